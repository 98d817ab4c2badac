"""Vectors -> a plane to draw them in: principal components, the same on every run, signs included."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

BLOCK = 4096


@dataclass(frozen=True)
class Plane:
    """Where each vector falls on the two directions of most variance.

    Attributes:
        places: coordinates about the mean, in the unit of the vectors; the first axis holds more variance.
        share: of the whole variance the two axes hold, from 0 to 1; 1 where there is no variance at all.
    """

    places: Float[np.ndarray, "entities 2"]
    share: float


def principal_plane(vectors: Float[np.ndarray, "entities dim"]) -> Plane:
    """Principal component analysis by a singular value decomposition of the scatter matrix.

    The scatter is summed in blocks, so that no second copy of the vectors is held. An axis is turned so that its
    largest part (the first of equals) is positive. Vectors of one dimension get a second coordinate of zero.
    """
    dim = vectors.shape[1]
    mean = vectors.mean(axis=0, dtype=np.float64)
    blocks = [vectors[start : start + BLOCK] for start in range(0, len(vectors), BLOCK)]
    scatter = np.zeros((dim, dim))
    for block in blocks:
        scatter += (block - mean).T @ (block - mean)
    _, spread, axes = np.linalg.svd(scatter, hermitian=True)
    axes = np.vstack([axes[:2], np.zeros((2 - min(2, dim), dim))])
    largest = axes[np.arange(2), np.abs(axes).argmax(axis=1)]
    axes = axes * np.where(largest < 0, -1.0, 1.0)[:, None]
    total = spread.sum()
    share = float(spread[:2].sum() / total) if total > 0 else 1.0
    return Plane(np.concatenate([(block - mean) @ axes.T for block in blocks]), share)
