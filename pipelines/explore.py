"""What ``alt explore`` does, as plain functions: look at a video, choose what a run may see of it, search its corpus.

``open_explorer`` loads CLIP, adapter and corpus once; ``app.py`` shows what they say on a page.
"""

import tempfile
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int64, UInt8
from PIL import ImageColor

import corpus_builder
from adapter.alignments import Video
from adapter.artifact import open_run
from adapter.checkpoint import load_model
from adapter.dataset import collate
from adapter.evaluate import Opened, open_all, softmax
from adapter.explain import EntityEffect, Prober, entity_places, explain_video
from adapter.labels import open_labels
from adapter.model import VideoAdapter
from adapter.train import choose_device, seeded
from aligner import run as aligner
from aligner.artifact import all_failures
from corpus_builder.build import build_labels
from corpus_builder.search import Hit, Query
from pipelines import hub
from pipelines.errors import PipelineError
from pipelines.gather import Entity, VideoCard, cards_of, load_entities
from pipelines.predict import Asked, Clip, Source, find_source, label_warnings, labels_section, own_config
from pipelines.report import PALETTE, entity_slots
from pipelines.towers import Towers
from pipelines.workflow import Layout, Say

DISPLAY = 448  # pixels of a frame's shorter side: regions are clicked
HITS = 10
EDGE = 2  # pixels of a region's outline on either side of its border
DIMMED = 0.75  # how much of a region that is switched off turns grey


@dataclass(frozen=True, eq=False)
class Sight:
    """A video that was looked at: its first view, in memory.

    Attributes:
        file: the video's file.
        video: regions and their entities, as the adapter reads them.
        card: pictures and the patch map, as the report shows them.
        entities: all of the corpus, in order of their id.
        opened: run and alignments, with the label set of the last ``choose_labels``.
        warnings: what makes predictions among these labels worth little.
    """

    file: Path
    video: Video
    card: VideoCard
    entities: list[Entity]
    opened: Opened
    warnings: tuple[str, ...] = ()

    @property
    def labels(self) -> tuple[str, ...]:
        """The candidates."""
        return self.opened.labels.labels

    @cached_property
    def places(self) -> dict[int, list[list[int]]]:
        """The (frame, region) pairs of each entity that is the best of any region, the largest first."""
        found = entity_places(self.video)
        return {entity: found[entity] for entity in sorted(found, key=lambda e: (-len(found[e]), e))}

    @cached_property
    def colours(self) -> dict[int, tuple[int, int, int]]:
        """Of each entity in ``places``, the report's."""
        slots = entity_slots(self.card.entity_patches(), self.entities)
        names = {entity: PALETTE[slot % len(PALETTE)] for entity, slot in slots.items()}
        return {entity: _rgb(names[entity]) for entity in self.places}


@dataclass(frozen=True)
class Answer:
    """Candidates with their logits and probabilities, the most probable first, with and without some entities."""

    labels: tuple[str, ...]
    logits: tuple[float, ...]
    probabilities: tuple[float, ...]
    logits_without: tuple[float, ...]
    probabilities_without: tuple[float, ...]


@dataclass(frozen=True)
class Region:
    """A region of a frame: its entities with their cosines, best first; ``patches`` of the grid are its own."""

    frame: int
    region: int
    time_s: float
    patches: int
    entities: tuple[tuple[Entity, float], ...]


@dataclass(frozen=True, eq=False)
class Explorer:
    """A run with everything that it needs, in memory."""

    source: Source
    towers: Towers
    model: VideoAdapter
    corpus: corpus_builder.Corpus

    @property
    def run(self) -> Path:
        """Folder of the run."""
        return self.source.layout.run(self.source.adapter)

    @property
    def train_labels(self) -> tuple[str, ...]:
        """The labels that it was trained on."""
        return tuple(open_run(self.run).train_labels)

    def look(self, file: Path, labels: Sequence[str]) -> Sight:
        """Align a video in a temporary folder.

        Raises:
            PipelineError: a video that cannot be read, or no labels; likewise the stages' errors.
        """
        file = file.resolve()
        with tempfile.TemporaryDirectory(prefix="alt-explore-") as folder:
            work, layout = Path(folder).resolve(), Layout(Path(folder).resolve())
            asked = Asked([Clip(file, file.name)], labels_section(labels, None, work), self.source, work)
            config = own_config(asked)
            section = config.alignments
            # Regions are searched with, so their embeddings are kept; one video is no work to share or compile for.
            store = "fp16" if section.store == "topk" else section.store
            section = section.model_copy(update={"store": store})
            corpus, videos = self.source.layout.corpus, section.videos
            settings = section.settings(config, corpus, layout.alignments, videos, asked.root)
            settings = replace(settings, processes=1, compile=False, decode_workers=1)
            aligner.run(settings, loaded=self.towers.clip)
            for failure in all_failures(layout.alignments):
                raise PipelineError(f"{file.name} cannot be read: {failure['stage']}: {failure['message']}")
            warnings = self._write_labels(config, layout)
            own = layout.labels("own")
            opened = open_all(self.run, layout.alignments, own, config.device, model=self.model)
            row: dict[str, Any] = {"video_id": file.name, "label": None, "predicted": "", "correct": None}
            row |= {"topk_label": [], "topk_prob": []}
            (card,) = cards_of([row], layout.alignments, asked.root, {}, DISPLAY)
            (video,) = opened.alignments.read([file.name])
            return Sight(file, _own(video), card, load_entities(layout.alignments), opened, warnings)

    def choose_labels(self, sight: Sight, labels: Sequence[str]) -> Sight:
        """The same video among other candidates; nothing is aligned again.

        Raises:
            PipelineError: no labels; CorpusError: one label twice.
        """
        with tempfile.TemporaryDirectory(prefix="alt-explore-") as folder:
            work = Path(folder).resolve()
            clips = [Clip(sight.file, sight.file.name)]
            config = own_config(Asked(clips, labels_section(labels, None, work), self.source, work))
            warnings = self._write_labels(config, Layout(work))
            own = open_labels(Layout(work).labels("own"), sight.opened.run.manifest["model"], "the run")
        return replace(sight, opened=replace(sight.opened, labels=own), warnings=warnings)

    def _write_labels(self, config: Any, layout: Layout) -> tuple[str, ...]:
        """Embed the candidates into ``layout``; returns what is to be said of them."""
        section, out = config.labels["own"], layout.labels("own")
        build_labels(
            section.file,
            config.model,
            config.pretrained,
            out,
            templates=section.prompts(),
            encoder=self.towers.names,
        )
        return tuple(label_warnings(config.model, out))

    def search_text(self, text: str, k: int = HITS) -> list[Hit]:
        """The entities nearest to a text; ``CorpusError`` where it is empty."""
        return self.corpus.nearest(self.towers.texts.encode([str(Query(text=text).content())]), k)[0]

    def search_region(self, sight: Sight, frame: int, region: int, k: int = HITS) -> list[Hit]:
        """The entities nearest to a region, or with ``region`` 0 to a frame, of the whole corpus."""
        vector = sight.video.embeddings[frame, region].astype(np.float32)
        return self.corpus.nearest((vector / np.linalg.norm(vector))[None], k)[0]


def open_explorer(run: str | Path, device: str = "auto", say: Say = lambda line: None) -> Explorer:
    """Load a run, its CLIP and its corpus.

    Args:
        run: as in ``alt.load``.
        device: auto, cpu, cuda or cuda:N, whatever the run was made on.
        say: called with lines about progress.

    Raises:
        PipelineError: no such run, or one that cannot predict from videos; likewise the stages' errors.
    """
    found = find_source(hub.local(run).resolve())
    config = found.config.model_copy(update={"device": device})
    source, place = replace(found, config=config), choose_device(device)
    say(f"run: {source.adapter} of {source.layout.root}")
    corpus = corpus_builder.open(source.layout.corpus)
    say(f"corpus: {len(corpus)} entities")
    say(f"loading {config.model}")
    towers = Towers(config.model, config.pretrained, str(place))
    _ = towers.texts, towers.names  # now, and not when the first video comes
    model = load_model(open_run(source.layout.run(source.adapter)), place)
    return Explorer(source, towers, model, corpus)


def answer(sight: Sight, off: Collection[int] = ()) -> Answer:
    """What the run says of the video, whole and without the entities whose ids are ``off``.

    An entity is left out as by ``adapter explain``: with all regions whose best entity it is.
    """
    gone = [place for entity in off for place in sight.places.get(entity, [])]
    whole = collate([(sight.video, -1)])
    with seeded(sight.opened.run.config["seed"]):
        logits = Prober.of(sight.opened).logits(whole, [[], gone])
    order = np.argsort(-logits[0], kind="stable")
    shares = softmax(logits)
    columns = (values[row, order].tolist() for row in (0, 1) for values in (logits, shares))
    return Answer(tuple(sight.labels[place] for place in order), *(tuple(column) for column in columns))


def effects(sight: Sight) -> list[EntityEffect]:
    """By how much the best label's logit falls without each entity of the video, largest effect first."""
    with seeded(sight.opened.run.config["seed"]):
        return explain_video(sight.opened, sight.video, None, max_entities=len(sight.places)).entities


def region_at(sight: Sight, frame: int, x: float, y: float) -> Region:
    """The region that owns a pixel of ``picture``, counted from the top left.

    Raises:
        PipelineError: a frame or a pixel that is not there.
    """
    owner = _owner(sight, frame)
    height, width = owner.shape
    if not (0 <= x < width and 0 <= y < height):
        raise PipelineError(f"pixel {x:g}, {y:g} is outside the picture of {width} x {height}")
    region = int(owner[int(y), int(x)])
    card = sight.card
    pairs = zip(card.topk_entity[frame, region], card.topk_score[frame, region], strict=True)
    found = tuple((sight.entities[int(entity)], float(score)) for entity, score in pairs)
    patches = int((card.patch_region[frame] == region).sum())
    return Region(frame, region, card.times_s[frame], patches, found)


def picture(
    sight: Sight, frame: int, off: Collection[int] = (), chosen: int | None = None
) -> UInt8[np.ndarray, "height width 3"]:
    """A frame with its regions outlined in the colours of their entities.

    Regions of entities that are ``off`` are grey and not outlined; the region ``chosen`` has a white outline.

    Raises:
        PipelineError: a frame that is not there, or no pictures at all.
    """
    owner = _owner(sight, frame)
    best = sight.card.topk_entity[frame, :, 0]
    colours = np.array([sight.colours.get(int(entity), (0, 0, 0)) for entity in best], np.uint8)
    hidden = np.isin(best, list(off))[owner]
    shown = sight.card.frames[frame].astype(np.float32)
    grey = shown.mean(-1, keepdims=True) * (1 - DIMMED) + 128 * DIMMED
    shown = np.where(hidden[..., None], grey, shown).astype(np.uint8)
    edges = _edges(owner, EDGE) & ~hidden
    shown[edges] = colours[owner][edges]
    if chosen is not None:
        shown[_edges(owner, 2 * EDGE) & (owner == chosen)] = 255
    return shown


def _own(video: Video) -> Video:
    """The same in memory of its own: what was read is a view of a file."""
    arrays: dict[str, Any] = {
        name: np.copy(value) for name, value in vars(video).items() if name != "video_id"
    }
    return replace(video, **arrays)


def _owner(sight: Sight, frame: int) -> Int64[np.ndarray, "height width"]:
    """The region of every pixel."""
    card = sight.card
    if not card.frames:
        raise PipelineError(card.note)
    if not 0 <= frame < len(card.frames):
        raise PipelineError(f"there is no frame {frame}; there are {len(card.frames)}, counted from 0")
    (rows, columns), (height, width) = card.grid, card.frames[frame].shape[:2]
    grid = card.patch_region[frame].reshape(rows, columns)
    return grid[np.arange(height) * rows // height][:, np.arange(width) * columns // width]


def _edges(owner: Int64[np.ndarray, "height width"], size: int) -> np.ndarray:
    """Which pixels lie within ``size`` of another region, or of the picture's border."""
    padded, (height, width) = np.pad(owner, size, constant_values=-1), owner.shape
    steps = range(2 * size + 1)
    shifted = (padded[y : y + height, x : x + width] for y in steps for x in steps)
    return np.any([other != owner for other in shifted], axis=0)


def _rgb(name: str) -> tuple[int, int, int]:
    red, green, blue = ImageColor.getrgb(name)[:3]
    return red, green, blue
