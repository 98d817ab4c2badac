"""What a run gets wrong: the confusion matrix, and a gallery of wrong videos by most confused pair, for the report."""

from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from aligner.sources import Source

CLASSES = 40  # of a confusion matrix: more would be too small to read
PAIRS, PER_PAIR = 8, 4  # of the gallery
THUMB = 112  # pixels of a picture's shorter side


@dataclass(frozen=True)
class Confusions:
    """Videos of a true class (row) that were taken for another (column), or for itself.

    ``counts`` holds (row, column, videos) where there are any. ``left_out`` classes are those least confused, which
    did not fit, and ``videos_left_out`` the videos that one of them is the class or the prediction of.
    """

    classes: list[str]
    counts: list[tuple[int, int, int]]
    left_out: int = 0
    videos_left_out: int = 0


@dataclass(frozen=True, eq=False)
class Mistake:
    """A wrong prediction: its probability, that of the true class where it was among the best, and a picture.

    ``frame`` is [height, width, 3] uint8 from the middle of the video, None where that does not decode.
    """

    video_id: str
    probability: float
    truth_probability: float | None
    frame: np.ndarray | None


@dataclass(frozen=True)
class ConfusedPair:
    """A class, what it was taken for, how often, and some of the videos."""

    label: str
    predicted: str
    count: int
    shown: tuple[Mistake, ...]


Rows = Sequence[Mapping[str, Any]]
Locate = Callable[[str], Path | Source]


def confusions(rows: Rows, most: int = CLASSES) -> Confusions | None:
    """The confusion matrix of prediction rows, classes by name; None without true labels.

    Of more than ``most`` classes the most confused are kept.
    """
    pairs = Counter((row["label"], row["predicted"]) for row in rows if row["label"] is not None)
    if not pairs:
        return None
    classes = {name for pair in pairs for name in pair}
    wrong = Counter[str]()
    for (label, predicted), count in pairs.items():
        if label != predicted:
            wrong.update({label: count, predicted: count})
    kept = sorted(sorted(classes, key=lambda name: (-wrong[name], name))[:most])
    place = {name: at for at, name in enumerate(kept)}
    counts = sorted(
        (place[label], place[predicted], count)
        for (label, predicted), count in pairs.items()
        if label in place and predicted in place
    )
    shown = sum(count for _, _, count in counts)
    return Confusions(kept, counts, len(classes) - len(kept), sum(pairs.values()) - shown)


def confused_pairs(
    rows: Rows, place_of: Locate, config: Mapping[str, Any], pairs: int = PAIRS, per_pair: int = PER_PAIR
) -> list[ConfusedPair]:
    """The most confused pairs, most videos first, each with the mistakes that the model was surest of.

    ``place_of`` says where a video lies; ``config`` is that of the alignments' manifest, and says how the model's
    pictures are cut.
    """
    wrong: dict[tuple[str, str], list[Mapping[str, Any]]] = defaultdict(list)
    for row in rows:
        if row["label"] is not None and not row["correct"]:
            wrong[row["label"], row["predicted"]].append(row)
    ordered = sorted(wrong.items(), key=lambda item: (-len(item[1]), item[0]))[:pairs]
    return [
        ConfusedPair(label, predicted, len(found), _surest(found, place_of, config, per_pair))
        for (label, predicted), found in ordered
    ]


def _surest(rows: Rows, place_of: Locate, config: Mapping[str, Any], count: int) -> tuple[Mistake, ...]:
    chosen = sorted(rows, key=lambda row: (-row["topk_prob"][0], row["video_id"]))[:count]
    return tuple(_mistake(row, place_of, config) for row in chosen)


def _mistake(row: Mapping[str, Any], place_of: Locate, config: Mapping[str, Any]) -> Mistake:
    probabilities = dict(zip(row["topk_label"], row["topk_prob"], strict=True))
    frame = _middle_frame(place_of(row["video_id"]), config)
    return Mistake(row["video_id"], row["topk_prob"][0], probabilities.get(row["label"]), frame)


def _middle_frame(place: Path | Source, config: Mapping[str, Any]) -> np.ndarray | None:
    from aligner.decode import DecodeError, sample_frames
    from pipelines.crops import crop

    height, width = config["image_size"]
    scale = THUMB / min(height, width)
    try:
        frame = sample_frames(place, 1)[0]
    except DecodeError:
        return None
    return crop(
        frame.rgb, (round(height * scale), round(width * scale)), config.get("resize_mode", "shortest")
    )
