"""Baselines without gradients through a model: classes known by their labelled videos, in the space of z.

Every head gives the scores that a trained run gives, videos by classes, so that the same figures follow. What is
chosen is chosen by the run's validation videos (the first choice where there are none, or where choices are equal).
"""

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np
from jaxtyping import Float64, Int64

from adapter.probe import PENALTIES, fit_linear

NEIGHBOURS = (5, 1, 3, 9, 17, 33)
SOFTNESS = 0.07  # of votes by cosine, as in instance discrimination (Wu et al., CVPR 2018)
ALPHAS = (1.0, 0.3, 3.0, 10.0, 30.0)
BETAS = (5.5, 1.0, 2.5, 10.0, 20.0)
NO_VOTE = 1e-6  # share of a class that nobody votes for
UNKNOWN = -1e4  # logit of a class that a probe has not seen

Z = Float64[np.ndarray, "videos dim"]
Logits = Float64[np.ndarray, "videos classes"]
Keys = Float64[np.ndarray, "kept dim"]
Votes = Float64[np.ndarray, "kept classes"]
Score = Callable[[Z, Logits], Logits]


@dataclass(frozen=True)
class Videos:
    """Labelled videos: z, its logits against the texts of all classes, and the class."""

    z: Z
    text: Logits
    truth: Int64[np.ndarray, " videos"]


@dataclass(frozen=True)
class Head:
    """A fitted head: ``score(z, text logits)``, and what was chosen for it."""

    score: Score
    choice: dict[str, float | int]


def fit_head(name: str, train: Videos, val: Videos, classes: int) -> Head:
    """Fit a head (``probe``, ``knn`` or ``tip``) to training videos and choose by accuracy on validation videos."""
    makers = {"probe": probe_heads, "knn": knn_heads, "tip": tip_heads}
    best, most = None, -1.0
    for head in makers[name](train, classes):
        right = float((head.score(val.z, val.text).argmax(1) == val.truth).sum())
        if right > most:
            best, most = head, right
        if not len(val.truth):
            break
    assert best is not None
    return best


def probe_heads(train: Videos, classes: int) -> Iterator[Head]:
    """Multinomial logistic regression on z, the penalties from the middle outwards."""
    known, truth = np.unique(train.truth, return_inverse=True)
    middle = PENALTIES[len(PENALTIES) // 2]
    for penalty in sorted(PENALTIES, key=lambda p: abs(np.log(p / middle))):
        fitted = fit_linear(train.z, truth, len(known), penalty)

        def score(z: Z, text: Logits, logits: Callable[[Z], Logits] = fitted.logits) -> Logits:
            found = np.full((len(z), classes), UNKNOWN)
            found[:, known] = logits(z)
            return found

        yield Head(score, {"penalty": penalty})


def knn_heads(train: Videos, classes: int) -> Iterator[Head]:
    """The k nearest training videos by cosine vote, each by exp(cosine / 0.07); logits are logs of their shares."""
    votes = np.eye(classes)[train.truth]
    for k in NEIGHBOURS:
        if k <= len(train.truth):
            yield Head(partial(_nearest, _unit(train.z), votes, k), {"k": k})


def tip_heads(train: Videos, classes: int) -> Iterator[Head]:
    """Tip-Adapter without training (Zhang et al., ECCV 2022, arXiv 2207.09519): text + alpha exp(-beta (1 - cos)) L."""
    votes = np.eye(classes)[train.truth]
    for alpha, beta in itertools.product(ALPHAS, BETAS):
        yield Head(partial(_cached, _unit(train.z), votes, alpha, beta), {"alpha": alpha, "beta": beta})


def _nearest(keys: Keys, votes: Votes, k: int, z: Z, text: Logits) -> Logits:
    cosine = _unit(z) @ keys.T
    nearest = np.argsort(-cosine, axis=1, kind="stable")[:, :k]
    weight = np.exp((np.take_along_axis(cosine, nearest, 1) - 1) / SOFTNESS)
    share = np.einsum("vk,vkc->vc", weight / weight.sum(1, keepdims=True), votes[nearest])
    return np.log(share + NO_VOTE)


def _cached(keys: Keys, votes: Votes, alpha: float, beta: float, z: Z, text: Logits) -> Logits:
    return text + alpha * np.exp(-beta * (1 - _unit(z) @ keys.T)) @ votes


def _unit(z: Z) -> Z:
    return z / np.maximum(np.linalg.norm(z, axis=1, keepdims=True), 1e-12)
