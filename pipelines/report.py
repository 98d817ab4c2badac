"""One self-contained HTML file: regions and their entities, predictions, and what carried them.

``collect`` joins an alignments folder, a predictions file and the videos into cards; ``write_report`` makes
the file. The page needs no network: pictures are data URIs, cards are one JSON script tag, and ``report.css``
and ``report.js`` beside this file go inline.
"""

import base64
import hashlib
import io
import json
import os
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from jinja2 import Environment, FileSystemLoader
from markupsafe import Markup
from PIL import Image

from aligner.sources import Source
from pipelines.errors import PipelineError, did_you_mean
from pipelines.mistakes import ConfusedPair, Confusions, Locate, confused_pairs, confusions
from pipelines.windows import Action

HERE = Path(__file__).parent
LEAD = (
    "Each frame is cut into regions, each region is matched with the entity whose text lies nearest to it, "
    "and the prediction is read from where those entities are and how they move."
)
LEAD_WHOLE_FRAMES = (
    "The prediction is read from whole frames, whose embeddings are compared with the texts of the labels. Regions and "
    "the entities nearest to them are shown beside it; they play no part in it."
)
MAX_BYTES = 20_000_000
DISPLAY = 224  # pixels of a frame's shorter side
ALTERNATIVES = 5  # entities shown per region
LONG_TABLE = 14  # rows; longer tables are folded up, after the others
QUALITIES = (82, 68, 54, 40)  # WebP, tried from the left until the file fits its budget

# Largest least distance under normal and red-green-deficient sight that a search among 36 published colours
# found (OKLab 0.10; tests/pipelines/test_report.py measures it).
PALETTE = (
    "#56b4e9 #aa4499 #f0e442 #661100 #ee7733 #b8f2e6 #332288 #882255 #44aa99 #5d3fd3 #117733 #f2b701".split()
)
ORIGINS = {
    "label": "a phrase of a label",
    "caption": "a phrase of the captions",
    "expansion": "an expansion of a label",
    "related": "a thing WordNet relates to a label",
    "body_part": "a body part, added to every corpus",
    "list": "a word of a list",
    "random": "a noun drawn at random, for comparison",
}
_ENTITY_COLUMNS = ["name", "source", "sense", "gloss", "labels"]
_REGION_COLUMNS = ["view", "frame_index", "time_s", "region_index", "patch_map", "topk_entity", "topk_score"]
_PREDICTION_COLUMNS = ["video_id", "label", "predicted", "correct", "topk_label", "topk_prob"]


class ReportError(PipelineError):
    """Inputs that do not belong together, or a report that cannot be made; the message says what to do."""


@dataclass(frozen=True)
class Table:
    """A table of results: numbers are right-aligned, None is shown as not measured, ``note`` goes below."""

    title: str
    columns: list[str]
    rows: list[list[str | float | None]]
    note: str = ""


@dataclass(frozen=True)
class Entity:
    """A row of the corpus; its place in the list that ``load_entities`` gives is its ``entity_id``."""

    name: str
    source: str
    sense: str | None
    gloss: str | None
    labels: tuple[str, ...]

    @property
    def key(self) -> str:
        """What the entity is known by across corpora: its sense where there is one."""
        return self.sense or self.name


@dataclass(frozen=True)
class Without:
    """The prediction without a part: best label, its probability, and that of the label predicted before."""

    label: str
    probability: float
    kept: float


@dataclass(frozen=True)
class Carrier:
    """Leave-one-entity-out: ``effects`` are logits of the best labels minus the same without the entity.

    ``regions`` are the (frame, region) pairs that were left out, region 0 being the class token.
    """

    entity_id: int
    effects: tuple[float, ...]
    regions: tuple[tuple[int, int], ...]
    without: Without

    @property
    def effect(self) -> float:
        """On the predicted label, the first."""
        return self.effects[0]


@dataclass(frozen=True)
class Reasons:
    """What carried the best ``labels``: entities, largest effect on the first label first, and frames.

    ``frame_effects`` has a row for each label and a column for each frame; ``untried`` counts entities that were too
    small to be tried.
    """

    labels: tuple[str, ...] = ()
    carriers: tuple[Carrier, ...] = ()
    untried: int = 0
    frame_effects: tuple[tuple[float, ...], ...] = ()
    frames_without: tuple[Without, ...] = ()


@dataclass(frozen=True, eq=False)
class Mistakes:
    """What a run gets wrong, over all of its predictions: matrix, accuracy of every class, most confused pairs."""

    confusions: Confusions | None = None
    by_class: Table | None = None
    pairs: Sequence[ConfusedPair] = ()


NO_MISTAKES = Mistakes()


@dataclass(frozen=True, eq=False)
class VideoCard:
    """Everything the report shows of one video: T frames of a grid of N patches in R regions.

    Attributes:
        frames: T pictures [height, width, 3] uint8, what the model saw; empty when ``note`` says why.
        patch_region: [T, N] region of each patch in row-major order, 1..R.
        topk_entity: [T, R + 1, k] entity ids, best first; row 0 is the whole frame (class token).
        topk_score: [T, R + 1, k] cosine similarities.
        topk: most probable labels and their probabilities, best first.
    """

    video_id: str
    label: str | None
    split: str | None
    predicted: str
    correct: bool | None
    topk: tuple[tuple[str, float], ...]
    grid: tuple[int, int]
    times_s: tuple[float, ...]
    frames: tuple[np.ndarray, ...]
    patch_region: np.ndarray
    topk_entity: np.ndarray
    topk_score: np.ndarray
    reasons: Reasons = Reasons()
    note: str = ""

    def entity_patches(self) -> Counter[int]:
        """Patches, over all frames, of the regions whose best entity each one is."""
        best = self.topk_entity[:, :, 0]
        owners = np.take_along_axis(best, self.patch_region, axis=1)
        return Counter(owners.ravel().tolist())


# Gathering what belongs to a video.


def collect(
    alignments: Path,
    predictions: Path,
    videos_root: Path,
    *,
    explanations: Path | None = None,
    video_ids: Sequence[str] | None = None,
    limit: int = 40,
    display: int = DISPLAY,
) -> list[VideoCard]:
    """Cards of at most ``limit`` videos, a deterministic mix of classes and of right and wrong predictions.

    ``video_ids`` names the videos instead. A file that no longer decodes still gets its card, with a note.

    Raises:
        ReportError: predictions or explanations that do not belong to the alignments, damaged rows.
    """
    rows = choose(read_predictions(predictions, video_ids), limit)
    reasons = read_explanations(explanations) if explanations else {}
    return cards_of(rows, alignments, videos_root, reasons, display)


def cards_of(
    rows: Sequence[Mapping[str, Any]],
    alignments: Path,
    videos_root: Path,
    reasons: Mapping[str, Reasons],
    display: int = DISPLAY,
) -> list[VideoCard]:
    """Cards of videos that are aligned; ``rows`` are those of a predictions file, ``display`` is as in ``collect``."""
    from aligner import artifact

    manifest = artifact.read_manifest(alignments)
    chosen = [row["video_id"] for row in rows]
    regions = _read_regions(alignments, manifest, chosen)
    place_of = locate(alignments, videos_root, chosen)
    return [
        _card(
            row,
            regions[row["video_id"]],
            reasons.get(row["video_id"], Reasons()),
            manifest,
            place_of,
            display,
        )
        for row in rows
    ]


def locate(alignments: Path, videos_root: Path, video_ids: Sequence[str]) -> Locate:
    """What says where each of some videos lies: a file, a part of one, a member of a tar, a folder of pictures."""
    from aligner import artifact
    from aligner.plan import FRAME_RATE, Plan, items_of

    table = artifact.read_videos(alignments)
    table = table.filter(pc.is_in(table["video_id"], pa.array(video_ids, pa.string())))
    manifest, items = artifact.read_manifest(alignments), items_of(table)
    rate = manifest["config"].get("frame_rate", FRAME_RATE)
    plan = Plan(videos_root, items, manifest["num_shards"], frame_rate=rate)
    by_id = {item.video_id: item for item in items}
    return lambda video_id: plan.path(by_id[video_id])


def read_predictions(path: Path, video_ids: Sequence[str] | None = None) -> list[dict[str, Any]]:
    """Rows of a predictions file, those of ``video_ids`` in that order, by default all in order of the file.

    Raises:
        ReportError: not a predictions file, or a video that it lacks.
    """
    made_by = "made by `adapter predict RUN --alignments DIR --labels DIR --out FILE.parquet`"
    try:
        names = pq.read_schema(path).names
    except (OSError, pa.ArrowInvalid) as error:
        raise ReportError(f"{path} is no readable Parquet file; needed are predictions {made_by}") from error
    missing = [name for name in _PREDICTION_COLUMNS if name not in names]
    if missing:
        raise ReportError(f"{path} lacks {', '.join(missing)}; needed are predictions {made_by}")
    rows = pq.read_table(path, columns=_PREDICTION_COLUMNS).to_pylist()
    if video_ids is None:
        return rows
    by_id = {row["video_id"]: row for row in rows}
    unknown = [video_id for video_id in video_ids if video_id not in by_id]
    if unknown:
        hint = did_you_mean(unknown[0], by_id)
        raise ReportError(f"{path} has no prediction for {_some(unknown)}{hint}; predict these videos first")
    return [by_id[video_id] for video_id in video_ids]


def choose_videos(predictions: Path, limit: int) -> list[str]:
    """Ids of the videos that ``collect`` would show, for an explanation of just these."""
    return [row["video_id"] for row in choose(read_predictions(predictions), limit)]


def choose(rows: Sequence[dict[str, Any]], limit: int) -> list[dict[str, Any]]:
    """At most ``limit`` prediction rows: the classes take turns, and in each class right and wrong do.

    The same rows in any order give the same choice, except that ``limit`` or fewer keep their order.
    """
    if len(rows) <= limit:
        return list(rows)
    classes: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in sorted(rows, key=lambda row: _digest(row["video_id"])):
        classes[row["label"] or row["predicted"]].append(row)
    queues = [
        _alternate(members, wrong_first=turn % 2 == 1)
        for turn, (_, members) in enumerate(sorted(classes.items()))
    ]
    deepest = max(len(queue) for queue in queues)
    turns = (queue[depth] for depth in range(deepest) for queue in queues if depth < len(queue))
    return [row for row, _ in zip(turns, range(limit), strict=False)]


def _alternate(rows: list[dict[str, Any]], wrong_first: bool) -> list[dict[str, Any]]:
    """Wrong and right predictions in turn, until one of them runs out."""
    wrong = [row for row in rows if row["correct"] is False]
    right = [row for row in rows if row["correct"] is not False]
    first, second = (wrong, right) if wrong_first else (right, wrong)
    both = [row for pair in zip(first, second, strict=False) for row in pair]
    shorter = len(both) // 2
    return both + first[shorter:] + second[shorter:]


def read_explanations(path: Path) -> dict[str, Reasons]:
    """What carried the predictions, by video.

    Raises:
        ReportError: a file that is not what adapter's ``explain`` writes.
    """
    try:
        return {video["video_id"]: _reasons(video) for video in json.loads(path.read_text("utf-8"))}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ReportError(
            f"{path} is not a list of explanations ({type(error).__name__}: {error}); "
            "make it with `adapter explain`"
        ) from error


def _reasons(video: Mapping[str, Any]) -> Reasons:
    carriers = (
        Carrier(
            int(entity["entity_id"]),
            tuple(map(float, entity["effects"])),
            tuple((int(frame), int(region)) for frame, region in entity["regions"]),
            Without(**entity["without"]),
        )
        for entity in video["entities"]
    )
    return Reasons(
        tuple(video["labels"]),
        tuple(sorted(carriers, key=lambda carrier: (-carrier.effect, carrier.entity_id))),
        int(video["entities_left_out"]),
        tuple(tuple(map(float, effects)) for effects in video["label_frame_effects"]),
        tuple(Without(**without) for without in video["frames_without"]),
    )


def load_entities(alignments: Path) -> list[Entity]:
    """The entities that the alignments refer to, in order of their id."""
    rows = pq.read_table(alignments / "entities.parquet", columns=_ENTITY_COLUMNS).to_pylist()
    return [Entity(**{**row, "labels": tuple(row["labels"] or ())}) for row in rows]


@dataclass(frozen=True, eq=False)
class _Regions:
    label: str | None
    split: str | None
    times_s: tuple[float, ...]
    patch_region: np.ndarray
    topk_entity: np.ndarray
    topk_score: np.ndarray


def _read_regions(folder: Path, manifest: Mapping[str, Any], video_ids: list[str]) -> dict[str, _Regions]:
    from aligner import artifact

    plan = artifact.read_videos(folder)
    plan = plan.filter(pc.is_in(plan["video_id"], pa.array(video_ids, pa.string())))
    shards: dict[int, dict[str, dict[str, Any]]] = defaultdict(dict)
    for row in plan.to_pylist():
        shards[row["shard"]][row["video_id"]] = row
    found = {
        video_id: _regions(table, manifest, planned[video_id], f"{folder}: {video_id}")
        for shard, planned in sorted(shards.items())
        for video_id, table in _read_shard(folder, shard, planned)
    }
    missing = [video_id for video_id in video_ids if video_id not in found]
    if missing:
        raise ReportError(
            f"{folder} has no regions of {_some(missing)}, which the predictions name; make both from one "
            f"run (`aligner status {folder}` tells what is done and what failed)"
        )
    return found


def _read_shard(folder: Path, shard: int, wanted: Mapping[str, Any]) -> Iterator[tuple[str, pa.Table]]:
    """Region rows of the first view of the wanted videos of a shard, reading each row group once."""
    from aligner import artifact

    marker = artifact.read_marker(folder, shard)
    if marker is None:
        return
    groups: dict[int, list[str]] = defaultdict(list)
    for video_id, place in sorted(marker["videos"].items()):
        if video_id in wanted:
            groups[place["row_group"]].append(video_id)
    with pq.ParquetFile(folder / artifact.shard_name(shard)) as file:
        for group, members in sorted(groups.items()):
            columns = [name for name in _REGION_COLUMNS if name in file.schema_arrow.names]
            table = file.read_row_group(group, columns=columns)
            for video_id in members:
                place = marker["videos"][video_id]
                yield video_id, artifact.first_view(table.slice(place["offset"], place["rows"]))


def _regions(
    table: pa.Table, manifest: Mapping[str, Any], planned: Mapping[str, Any], where: str
) -> _Regions:
    from aligner import artifact

    shape = manifest["frames"], manifest["regions"] + 1
    expected = np.divmod(np.arange(shape[0] * shape[1]), shape[1])
    order = [table[name].to_numpy() for name in ("frame_index", "region_index")]
    if not np.array_equal(order, expected):
        raise ReportError(
            f"{where} should have {shape[0]} x {shape[1]} regions in order; run `aligner verify`"
        )
    return _Regions(
        planned["label"],
        planned["split"],
        tuple(table["time_s"].to_numpy().reshape(shape)[:, 0].tolist()),
        _patch_region(table["patch_map"], shape, manifest["patches"], where),
        artifact.lists(table["topk_entity"]).reshape(*shape, -1),
        artifact.lists(table["topk_score"]).reshape(*shape, -1),
    )


def _patch_region(maps: pa.ChunkedArray, shape: tuple[int, int], patches: int, where: str) -> np.ndarray:
    """Region of each patch [T, N] from the packed patch maps of all regions."""
    packed = np.frombuffer(b"".join(maps.to_pylist()), np.uint8).reshape(*shape, -1)
    member = np.unpackbits(packed, axis=-1, count=patches).astype(bool)
    if not (member.sum(1) == 1).all():
        raise ReportError(f"{where}: a patch belongs to no region or to several; run `aligner verify`")
    return member.argmax(1)


def _card(
    row: Mapping[str, Any],
    regions: _Regions,
    reasons: Reasons,
    manifest: Mapping[str, Any],
    place_of: Locate,
    display: int,
) -> VideoCard:
    frames, note = _pictures(place_of(row["video_id"]), row["video_id"], manifest["config"], display)
    return VideoCard(
        row["video_id"],
        # Predictions leave out labels that their label set lacks; the plan still knows them.
        row["label"] or regions.label,
        regions.split,
        row["predicted"],
        row["correct"],
        tuple(zip(row["topk_label"], row["topk_prob"], strict=True)),
        (manifest["grid"][0], manifest["grid"][1]),
        regions.times_s,
        frames,
        regions.patch_region,
        regions.topk_entity,
        regions.topk_score,
        reasons,
        note,
    )


def _pictures(
    place: Path | Source, video_id: str, config: Mapping[str, Any], display: int
) -> tuple[tuple[np.ndarray, ...], str]:
    """The frames of the first view as the model saw them, through the middle crop, or none and the reason."""
    from aligner.decode import DecodeError, sample_views
    from aligner.views import Sampling

    height, width = config["image_size"]
    scale = display / min(height, width)
    size = round(height * scale), round(width * scale)
    try:
        frames = sample_views(place, Sampling.of(config), video_id)[0]
    except DecodeError as error:
        return (), f"No pictures: {error}."
    return tuple(crop(frame.rgb, size, config.get("resize_mode", "shortest")) for frame in frames), ""


def crop(rgb: np.ndarray, size: tuple[int, int], resize_mode: str = "shortest") -> np.ndarray:
    """The part of a frame [height, width, 3] uint8 that the model saw, at ``size`` (height, width).

    Cut by open_clip's rule for ``resize_mode``, so that the patch grid lies on the picture as it lay on the
    input: ``shortest`` fills the size and crops the middle, ``longest`` fits into it with black bars,
    ``squash`` stretches.
    """
    image, (height, width) = Image.fromarray(rgb), size
    sizes = {"shortest": _filling(image, width, height), "longest": _fitting(image, width, height)}
    image = image.resize(sizes.get(resize_mode, (width, height)), Image.Resampling.BICUBIC)
    left, top = round((image.width - width) / 2), round((image.height - height) / 2)
    return np.asarray(image.crop((left, top, left + width, top + height)))


def _filling(image: Image.Image, width: int, height: int) -> tuple[int, int]:
    # The longer side is rounded down, as torchvision does: half a pixel moves the crop by a visible amount.
    if width * image.height > height * image.width:
        return width, int(width * image.height / image.width)
    return int(height * image.width / image.height), height


def _fitting(image: Image.Image, width: int, height: int) -> tuple[int, int]:
    scale = min(width / image.width, height / image.height)
    return round(image.width * scale), round(image.height * scale)


# Tables and mistakes that callers may hand to the report.


def find_mistakes(alignments: Path, predictions: Path, videos_root: Path) -> Mistakes:
    """The confusion matrix and the most confused pairs of a predictions file, with pictures of some videos."""
    from aligner import artifact

    rows = read_predictions(predictions)
    wrong = [row["video_id"] for row in rows if row["label"] is not None and not row["correct"]]
    place_of = locate(alignments, videos_root, wrong)
    pairs = confused_pairs(rows, place_of, artifact.read_manifest(alignments)["config"])
    return Mistakes(confusions(rows), class_table(rows), pairs)


def class_table(rows: Sequence[Mapping[str, Any]]) -> Table | None:
    """Accuracy of every class, worst first, and what it is taken for most often; None without true labels."""
    rows = [row for row in rows if row["label"] is not None]
    if not rows:
        return None
    confused = Counter((row["label"], row["predicted"]) for row in rows if not row["correct"])
    pairs = sorted(confused.items(), key=lambda item: (-item[1], item[0]))
    table = Table("Accuracy by class", ["class", "right", "of", "%", "taken most for"], [])
    table.rows.extend(sorted(_class_rows(rows, pairs), key=lambda row: (row[3], row[0])))
    return table


def _class_rows(
    rows: Sequence[Mapping[str, Any]], pairs: list[tuple[tuple[str, str], int]]
) -> list[list[Any]]:
    videos = Counter(row["label"] for row in rows)
    right = Counter(row["label"] for row in rows if row["correct"])
    taken = {truth: f"{other} ({count})" for (truth, other), count in reversed(pairs)}
    return [
        [label, str(right[label]), str(count), 100 * right[label] / count, taken.get(label)]
        for label, count in videos.items()
    ]


# Colours.


def entity_slots(weights: Mapping[int, float], entities: Sequence[Entity]) -> dict[int, int]:
    """A slot for each entity: colour ``PALETTE[slot % len(PALETTE)]``, another texture for every further lap.

    An entity's hash says where it would like to go; the heavier ones choose first and later ones move on, so
    that no two entities look alike while slots last.
    """
    size, taken, slots = len(PALETTE), Counter[int](), {}
    for entity in sorted(weights, key=lambda entity: (-weights[entity], entities[entity].key)):
        wish = int(_digest(entities[entity].key), 16) % size
        colour = min(range(wish, wish + size), key=lambda colour: taken[colour % size]) % size
        slots[entity] = colour + size * taken[colour]
        taken[colour] += 1
    return slots


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


# Writing.


def write_report(
    out: Path,
    *,
    title: str,
    cards: Sequence[VideoCard],
    tables: Sequence[Table],
    facts: Mapping[str, str],
    entities: Sequence[Entity],
    notices: Sequence[str] = (),
    lead: str = LEAD,
    max_bytes: int = MAX_BYTES,
    mistakes: Mistakes = NO_MISTAKES,
    config: str = "",
    actions: Sequence[Action] = (),
) -> Path:
    """Write the report atomically and return its path; the same input gives the same bytes.

    Beyond ``max_bytes`` pictures are compressed harder, then videos are left out, and the report says so.
    ``mistakes`` are those of all videos, not only of the cards; ``config`` is a text to fold up at the end,
    ``actions`` the timeline of long videos whose windows the cards are.

    Raises:
        ReportError: even without videos the report is too large.
    """
    page = _Page(title, lead, list(tables), dict(facts), list(notices), config, mistakes, list(actions))
    for quality, count in _attempts(len(cards)):
        html = _render(page, cards[:count], len(cards), entities, quality).encode()
        if len(html) <= max_bytes:
            out.parent.mkdir(parents=True, exist_ok=True)
            _publish(out, html)
            return out
    raise ReportError(
        f"the report takes {len(html):,} bytes without any video, the budget is {max_bytes:,}; "
        "hand in fewer tables or a larger budget"
    )


@dataclass(frozen=True)
class _Page:
    title: str
    lead: str
    tables: list[Table]
    facts: dict[str, str]
    notices: list[str]
    config: str
    mistakes: Mistakes
    actions: list[Action]


def _attempts(cards: int) -> Iterator[tuple[int, int]]:
    """Picture quality and number of cards, from the best report to the smallest."""
    for quality in QUALITIES:
        yield quality, cards
    while cards:
        cards = cards * 3 // 4
        yield QUALITIES[-1], cards


def _render(
    page: _Page, cards: Sequence[VideoCard], asked: int, entities: Sequence[Entity], quality: int
) -> str:
    page = replace(page, notices=page.notices + _budget_notices(quality, len(cards), asked))
    environment = Environment(
        autoescape=True, loader=FileSystemLoader(HERE), trim_blocks=True, lstrip_blocks=True
    )
    # Files of our own, not data: nothing in them needs escaping.
    inline = {name: Markup((HERE / f"report.{name}").read_text("utf-8")) for name in ("css", "js")}  # noqa: S704
    data = _script_json(payload(cards, entities, quality, page.mistakes) | _timeline_json(page.actions))
    tables = [_formatted(table) for table in page.tables]
    by_class = _formatted(page.mistakes.by_class) if page.mistakes.by_class else None
    return environment.get_template("report.html").render(
        page=page, tables=tables, by_class=by_class, inline=inline, data=data
    )


def _budget_notices(quality: int, shown: int, asked: int) -> list[str]:
    notices = []
    if quality < QUALITIES[0]:
        notices.append(
            f"Pictures are compressed harder than usual (quality {quality}) to keep this file small."
        )
    if shown < asked:
        notices.append(f"{shown} of {asked} videos are shown: the others did not fit the size of this file.")
    return notices


def _script_json(data: Any) -> Markup:
    """JSON that cannot end its script tag or open a comment, whatever the data."""
    text = json.dumps(data, ensure_ascii=False, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return Markup(text.replace("<", "\\u003c"))  # noqa: S704


def payload(
    cards: Sequence[VideoCard],
    entities: Sequence[Entity],
    quality: int = QUALITIES[0],
    mistakes: Mistakes = NO_MISTAKES,
) -> dict[str, Any]:
    """What the page's script draws: the cards, and the entities that they mention.

    A frame is {t: seconds, src: data URI or null, map: region of each patch, top: per region [ids, scores]}.
    """
    weights: Counter[int] = Counter()
    for card in cards:
        weights.update(dict.fromkeys(card.topk_entity[:, :, :ALTERNATIVES].ravel().tolist(), 0))
        weights.update(dict.fromkeys((carrier.entity_id for carrier in card.reasons.carriers), 0))
        weights.update(card.entity_patches())
    if weights and max(weights) >= len(entities):
        raise ReportError(
            f"cards name entity {max(weights)}, the list has {len(entities)}; pass load_entities()"
        )
    slots = entity_slots(_prominence(cards, weights), entities)
    return {
        "palette": PALETTE,
        "origins": ORIGINS,
        "entities": {str(i): _entity_json(entities[i], slots[i], weights[i]) for i in sorted(weights)},
        "cards": [_card_json(card, quality) for card in cards],
        "confusions": vars(mistakes.confusions) if mistakes.confusions else None,
        "pairs": [_pair_json(pair, quality) for pair in mistakes.pairs],
    }


def _prominence(cards: Sequence[VideoCard], patches: Mapping[int, int]) -> dict[int, float]:
    """Who chooses a colour first: what carried predictions, then what covers much."""
    carried: dict[int, float] = defaultdict(float)
    for card in cards:
        for carrier in card.reasons.carriers:
            carried[carrier.entity_id] += max(carrier.effect, 0.0)
    most = 1 + max(patches.values(), default=0)
    return {entity: carried[entity] + count / most * 1e-3 for entity, count in patches.items()}


def _timeline_json(actions: Sequence[Action]) -> dict[str, Any]:
    """Per video its actions, [start, end, label, probability, windows], times in seconds."""
    videos: dict[str, list[list[Any]]] = defaultdict(list)
    for one in actions:
        videos[one.video].append([one.start_s, one.end_s, one.label, round(one.probability, 4), one.windows])
    told = [{"video": Path(path).name, "actions": stretches} for path, stretches in videos.items()]
    return {"timeline": told} if actions else {}


def _pair_json(pair: ConfusedPair, quality: int) -> dict[str, Any]:
    shown = [
        {
            "id": one.video_id,
            "p": round(float(one.probability), 4),
            "truth": None if one.truth_probability is None else round(float(one.truth_probability), 4),
            "src": None if one.frame is None else _data_uri(one.frame, quality),
        }
        for one in pair.shown
    ]
    return {"label": pair.label, "predicted": pair.predicted, "count": pair.count, "shown": shown}


def _entity_json(entity: Entity, slot: int, patches: int) -> dict[str, Any]:
    content = {name: getattr(entity, name) for name in ("name", "source", "sense", "gloss")}
    return {**content, "labels": list(entity.labels), "slot": slot, "patches": patches}


def _card_json(card: VideoCard, quality: int) -> dict[str, Any]:
    content = {name: getattr(card, name) for name in ("label", "split", "predicted", "correct", "note")}
    return {
        **content,
        "id": card.video_id,
        "grid": list(card.grid),
        "top": [[label, round(float(probability), 4)] for label, probability in card.topk],
        "frames": [_frame_json(card, i, quality) for i in range(len(card.times_s))],
        **_reasons_json(card.reasons),
    }


def _reasons_json(reasons: Reasons) -> dict[str, Any]:
    """The best labels with the effect of each frame, and the entities with their effect on each label."""
    carriers = [
        {
            "entity": carrier.entity_id,
            "effects": [round(effect, 4) for effect in carrier.effects],
            "regions": [list(pair) for pair in carrier.regions],
            "without": _without_json(carrier.without),
        }
        for carrier in reasons.carriers
    ]
    return {
        "explained": list(reasons.labels),
        "carriers": carriers,
        "untried": reasons.untried,
        "frameEffects": [[round(effect, 4) for effect in effects] for effects in reasons.frame_effects],
        "framesWithout": [_without_json(without) for without in reasons.frames_without],
    }


def _without_json(without: Without) -> list[Any]:
    return [without.label, round(without.probability, 4), round(without.kept, 4)]


def _frame_json(card: VideoCard, frame: int, quality: int) -> dict[str, Any]:
    ids = card.topk_entity[frame, :, :ALTERNATIVES].tolist()
    scores = np.round(card.topk_score[frame, :, :ALTERNATIVES].astype(np.float64), 3).tolist()
    return {
        "t": round(card.times_s[frame], 3),
        "src": _data_uri(card.frames[frame], quality) if card.frames else None,
        "map": card.patch_region[frame].tolist(),
        "top": [list(pair) for pair in zip(ids, scores, strict=True)],
    }


def _data_uri(rgb: np.ndarray, quality: int) -> str:
    buffer = io.BytesIO()
    Image.fromarray(rgb).save(buffer, "WEBP", quality=quality)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode()


def _formatted(table: Table) -> dict[str, Any]:
    """A table as text, and which columns hold numbers (given as such, or as text of digits)."""
    columns = list(zip(*table.rows, strict=True)) or [()] * len(table.columns)
    texts = [_column(values) for values in columns]
    numeric = [all(v is None or not isinstance(v, str) or v.isdigit() for v in values) for values in columns]
    rows = list(zip(*texts, strict=True))
    return {**vars(table), "rows": rows, "numeric": numeric, "long": len(rows) > LONG_TABLE}


def _column(values: Sequence[str | float | None]) -> list[str]:
    """One number of decimals a column: three where all are fractions of one, else one."""
    fractions = all(abs(value) <= 1 for value in values if isinstance(value, int | float))
    return [_cell(value, 3 if fractions else 1) for value in values]


def _cell(value: str | float | None, decimals: int) -> str:
    if value is None:
        return "–"
    return value if isinstance(value, str) else f"{value:.{decimals}f}"


def _some(names: Sequence[str], most: int = 3) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(repr(name) for name in names[:most]) + more


def _publish(target: Path, content: bytes) -> None:
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)
