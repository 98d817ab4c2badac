"""What a report shows: an alignments folder, a predictions file and the videos joined into cards, and mistakes.

``report.py`` draws it.
"""

import hashlib
import json
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from aligner.sources import Source
from pipelines.crops import crop
from pipelines.errors import PipelineError, did_you_mean
from pipelines.mistakes import ConfusedPair, Confusions, Locate, confused_pairs, confusions

DISPLAY = 224  # pixels of a frame's shorter side
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
    for row in sorted(rows, key=lambda row: digest(row["video_id"])):
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


def _some(names: Sequence[str], most: int = 3) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(repr(name) for name in names[:most]) + more


def digest(text: str) -> str:
    """What puts names into an order, and gives them colours, that no other name can change."""
    return hashlib.sha256(text.encode()).hexdigest()
