"""Does an attribution find what a prediction rests on? Delete what it ranks first, and as much at random.

Of every video the k parts (entities, regions, frames) with the largest attribution are left out together, and in
other copies k random ones. An attribution that says something lowers the probability of the predicted class more. For
entities there is a second control, as many random regions as the top entities have, since large parts rank high.

With k = 1, leave-one-out ranks by nearly what is measured, so it cannot lose by much; larger k and attention can.
"""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Float32, Float64

from adapter.alignments import Video
from adapter.config import AdapterError
from adapter.dataset import Batch, collate
from adapter.evaluate import Opened, open_all, softmax
from adapter.explain import Places, Prober, choose_videos, entity_places, frame_places, region_places
from adapter.model import AltEncoder
from adapter.train import seeded

SIZES = (1, 2, 4)
DRAWS = 8


@dataclass(frozen=True)
class Row:
    """One comparison; probabilities of the predicted class, means over the ``n`` videos with more than k parts.

    ``gain`` is how much more the top k lower it than k random ones, with the 95 % bootstrap interval over videos;
    ``won`` is the share of videos where they do. ``same_size`` is left for entities alone.
    """

    parts: str
    attribution: str
    k: int
    n: int
    whole: float
    top: float
    random: float
    same_size: float | None
    gain: float
    interval: list[float]
    won: float


@dataclass(frozen=True)
class DeletionTest:
    """All comparisons of a run on some videos."""

    videos: int
    draws: int
    seed: int
    random_weights: bool
    rows: list[Row]

    def to_json(self) -> dict[str, Any]:
        """As JSON types."""
        return asdict(self)


Key = tuple[str, str, int]
# Per comparison and video: probability whole, without the top k, without k random ones, without as many regions.
Measured = dict[Key, list[Float64[np.ndarray, "4"]]]


def deletion_test(
    run: Path,
    alignments: Path,
    labels: Path,
    video_ids: Sequence[str] | None = None,
    split: str | None = None,
    max_videos: int = 0,
    device: str = "auto",
    sizes: Sequence[int] = SIZES,
    seed: int = 0,
) -> DeletionTest:
    """Compare attributions with random deletions on videos of a split; ``max_videos`` are spread over its plan."""
    opened = open_all(run, alignments, labels, device)
    chosen = choose_videos(opened, video_ids, split)
    if max_videos:
        spread = np.linspace(0, len(chosen) - 1, min(max_videos, len(chosen))).round().astype(int)
        chosen = [chosen[i] for i in spread]
    with seeded(opened.run.config["seed"]):
        return compare(opened, opened.alignments.read(chosen), sizes, seed)


def compare(
    opened: Opened, videos: Iterable[Video], sizes: Sequence[int] = SIZES, seed: int = 0
) -> DeletionTest:
    """The comparisons on some videos; raises ``AdapterError`` where none has parts enough to choose from."""
    prober, rng, measured, count = Prober.of(opened), np.random.default_rng(seed), Measured(), 0
    for video in videos:
        _measure(prober, video, sizes, rng, measured)
        count += 1
    if not measured:
        raise AdapterError(
            f"no video has more than {min(sizes)} entities, regions or frames: nothing can be left out of them"
        )
    rows = [_row(key, np.array(values), seed) for key, values in measured.items()]
    return DeletionTest(count, DRAWS, seed, bool(opened.alignments.model.get("random_weights")), rows)


def parts_of(video: Video) -> dict[str, list[Places]]:
    """What can be left out of a video, by kind."""
    return {
        "entities": list(entity_places(video).values()),
        "regions": region_places(video),
        "frames": frame_places(video),
    }


def attributions(
    prober: Prober, whole: Batch, parts: Sequence[Places], best: int, logit: float
) -> dict[str, Float[np.ndarray, " parts"]]:
    """What each attribution gives each part; attention where the model has a key for each token of a part."""
    found = {"leave-one-out": logit - prober.logits(whole, parts)[:, best].astype(np.float64)}
    encoder = prober.opened.model.encoder
    if isinstance(encoder, AltEncoder) and encoder.context:
        attention = prober.attention(whole)
        by_frame = all(place[0][1] == 0 for place in parts)  # only frames hold their cls
        if by_frame or attention.shape == whole.mask.shape[1:]:
            found["attention"] = np.array([_looked(attention, place) for place in parts])
    return found


def _looked(attention: Float32[np.ndarray, "frames keys"], places: Places) -> float:
    keys = attention.shape[1]
    return float(sum(attention[frame, token] for frame, token in places if token < keys))


def _measure(
    prober: Prober, video: Video, sizes: Sequence[int], rng: np.random.Generator, measured: Measured
) -> None:
    whole = collate([(video, -1)])
    logits = prober.logits(whole, [[]])
    best = int(logits[0].argmax())
    kinds = parts_of(video)
    for kind, parts in kinds.items():
        usable = [k for k in sizes if k < len(parts)]
        given = attributions(prober, whole, parts, best, float(logits[0, best])) if usable else {}
        for k in usable:
            random = [_random(parts, k, rng) for _ in range(DRAWS)]
            for name, values in given.items():
                top = _together(parts, np.argsort(-values, kind="stable")[:k].tolist())
                size = len(top) if kind == "entities" else 0
                alike = [_random(kinds["regions"], size, rng) for _ in range(DRAWS if size else 0)]
                p = softmax(prober.logits(whole, [[], top, *random, *alike]))[:, best]
                same_size = p[2 + DRAWS :].mean() if alike else np.nan
                figures = np.array([p[0], p[1], p[2 : 2 + DRAWS].mean(), same_size])
                measured.setdefault((kind, name, k), []).append(figures)


def _random(parts: Sequence[Places], k: int, rng: np.random.Generator) -> Places:
    return _together(parts, rng.permutation(len(parts))[:k].tolist())


def _together(parts: Sequence[Places], chosen: Sequence[int]) -> Places:
    return [pair for i in chosen for pair in parts[i]]


def _row(key: Key, values: Float64[np.ndarray, "videos 4"], seed: int) -> Row:
    whole, top, random, same_size = values.mean(0).tolist()
    gains = values[:, 2] - values[:, 1]
    draws = np.random.default_rng(seed).integers(len(gains), size=(1000, len(gains)))
    interval = [float(q) for q in np.quantile(gains[draws].mean(1), [0.025, 0.975])]
    return Row(
        *key,
        len(values),
        whole,
        top,
        random,
        same_size if key[0] == "entities" else None,
        float(gains.mean()),
        interval,
        float((gains > 0).mean()),
    )
