"""Statistics of reports: spread, calibration, intervals over videos, paired tests. Pure NumPy, seeded."""

import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float64, Int64

from adapter.config import AdapterError

DRAWS = 1000


def spread(values: Sequence[float]) -> dict[str, Any]:
    """Mean and population standard deviation, as papers print them over splits, draws and seeds."""
    return {"mean": float(np.mean(values)), "std": float(np.std(values)), "n": len(values)}


def interval(values: Float64[np.ndarray, " draws"]) -> list[float]:
    """The middle 95 % of bootstrapped values; draws without a value (NaN) are left out."""
    return [float(q) for q in np.nanquantile(values, [0.025, 0.975])]


def calibration(
    probabilities: Float64[np.ndarray, "videos classes"], truth: Int64[np.ndarray, " videos"], bins: int = 15
) -> dict[str, Any]:
    """Expected calibration error of the top prediction and its reliability diagram (Guo et al., 2017).

    Bins are equally wide and hold (low, high]; the error is the mean gap of confidence and accuracy, weighted
    by videos. Empty bins are left out.
    """
    confidence = probabilities.max(1)
    hits = probabilities.argmax(1) == truth
    place = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
    rows = []
    for b in np.unique(place):
        inside = place == b
        rows.append(
            {
                "low": float(b / bins),
                "high": float((b + 1) / bins),
                "n": int(inside.sum()),
                "confidence": float(confidence[inside].mean()),
                "accuracy": float(hits[inside].mean()),
            }
        )
    gaps = sum(row["n"] * abs(row["confidence"] - row["accuracy"]) for row in rows)
    return {"ece": gaps / len(truth), "bins": rows}


def resampled(
    parts: Sequence[tuple[Sequence[str], Bool[np.ndarray, " _"]]], draws: int = DRAWS, seed: int = 0
) -> Float64[np.ndarray, "draws parts"]:
    """Accuracy of every part on videos drawn with replacement; a part is its videos and which are right.

    A draw takes a video as often in one part as in all others, so that parts with common videos move together.
    Draws that leave a part empty are NaN there.
    """
    videos = {video: i for i, video in enumerate(dict.fromkeys(v for ids, _ in parts for v in ids))}
    member = np.zeros((len(parts), len(videos)))
    right = np.zeros_like(member)
    for p, (ids, hits) in enumerate(parts):
        places = [videos[video] for video in ids]
        member[p, places] = 1
        right[p, places] = hits
    rng = np.random.default_rng(seed)
    found = np.full((draws, len(parts)), np.nan)
    for row in found:
        weight = np.bincount(rng.integers(len(videos), size=len(videos)), minlength=len(videos))
        n = member @ weight
        np.divide(right @ weight, n, out=row, where=n > 0)
    return found


def mcnemar(first: Bool[np.ndarray, " videos"], second: Bool[np.ndarray, " videos"]) -> dict[str, Any]:
    """Exact two-sided McNemar test of two classifiers on the same videos (binomial over discordant pairs)."""
    only_first, only_second = int((first & ~second).sum()), int((second & ~first).sum())
    n, k = only_first + only_second, min(only_first, only_second)
    tail = sum(math.exp(_log_choose(n, i) - n * math.log(2)) for i in range(k + 1))
    return {"only_first": only_first, "only_second": only_second, "p": min(1.0, 2 * tail)}


def sign_flip(differences: Sequence[float]) -> float:
    """Exact two-sided p-value that paired differences (one a seed) have mean zero, by flipping their signs.

    The smallest value that n seeds can give is 2 / 2^n. For at most 20 seeds.
    """
    if len(differences) > 20:
        raise AdapterError(f"{len(differences)} paired runs; the exact test takes at most 20")
    values = np.asarray(differences, np.float64)
    signs = np.array(list(itertools.product((1.0, -1.0), repeat=len(values))))
    means = np.abs(signs @ values)
    return float((means >= abs(values.sum()) - 1e-12).mean())


def paired_bootstrap(
    first: Bool[np.ndarray, "seeds videos"],
    second: Bool[np.ndarray, "seeds videos"],
    draws: int = DRAWS,
    seed: int = 0,
) -> dict[str, Any]:
    """Difference in accuracy (first - second) with its 95 % interval over seeds and videos, both redrawn."""
    gap = first.astype(np.float64) - second
    rng = np.random.default_rng(seed)
    seeds, videos = gap.shape
    values = np.empty(draws)
    for d in range(draws):
        rows = gap[rng.integers(seeds, size=seeds)].mean(0)
        values[d] = rows[rng.integers(videos, size=videos)].mean()
    return {"difference": float(gap.mean()), "interval": interval(values)}


def paired(first: Bool[np.ndarray, "runs videos"], second: Bool[np.ndarray, "runs videos"]) -> dict[str, Any]:
    """Compare two models on the same videos, run by run (seeds).

    The difference with its interval over runs and videos, and a p-value: McNemar's for one run, sign flips for several.
    """
    gaps = (first.mean(1) - second.mean(1)).tolist()
    result = {"n": first.shape[1], "runs": len(first), **paired_bootstrap(first, second)}
    return result | (
        {"mcnemar": mcnemar(first[0], second[0])} if len(first) == 1 else {"sign_flip_p": sign_flip(gaps)}
    )


def _log_choose(n: int, k: int) -> float:
    return math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)
