"""The nearest entities of every region: exact inner products, top k, ties by the lower entity id.

A score and its entity are one whole number, greater for a greater score and, among equal scores, for a lower id. No
two are alike, so ``topk`` of any device has one answer, and no branch waits for the device to look for ties.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from aligner.config import AlignerError

# Entities per matrix product: 1,000 regions times this many scores are 64 MB. A constant, since the shape
# of a product may change its last bits.
CHUNK = 16_384
# Entities whose best score decides whether any of them is looked at; the k best blocks hold the k best entities.
BLOCK = 32
# The lower half of a key, in which an id is counted down.
LOWER = (1 << 32) - 1
# All bits of a float but its sign.
UNSIGNED = 0x7FFFFFFF


@dataclass(frozen=True)
class Matches:
    """The k nearest entities of each region, the nearest first; scores are cosines."""

    entities: Int[Tensor, "regions k"]
    scores: Float[Tensor, "regions k"]


class Matcher:
    """Top-k search among a fixed set of unit entity vectors."""

    def __init__(self, entities: Float[Tensor, "entities dim"], k: int) -> None:
        """Keep the entities.

        Raises:
            AlignerError: fewer entities than k, or a vector with NaN or infinity.
        """
        if len(entities) < k:
            raise AlignerError(f"--top-k {k} needs at least {k} entities, the corpus has {len(entities)}")
        refuse_not_finite(entities, "entity")
        self.k = k
        self.entities = entities

    def __call__(self, regions: Float[Tensor, "regions dim"]) -> Matches:
        """Nearest entities of unit region vectors.

        Raises:
            AlignerError: a vector with NaN or infinity, whose order would mean nothing.
        """
        refuse_not_finite(regions, "region")
        return top_entities(regions, self.entities, self.k)


def refuse_not_finite(vectors: Float[Tensor, "rows dim"], what: str) -> None:
    """Raise AlignerError if any vector holds NaN or infinity, naming the first one."""
    bad = (~torch.isfinite(vectors).all(-1)).nonzero()
    if len(bad):
        raise AlignerError(f"{len(bad)} {what} vectors are not finite, the first is {what} {int(bad[0])}")


def top_entities(
    regions: Float[Tensor, "regions dim"], entities: Float[Tensor, "entities dim"], k: int, chunk: int = CHUNK
) -> Matches:
    """Exact top k by inner product of finite float32 vectors, in chunks of entities; equals a full stable sort."""
    best = torch.empty(len(regions), 0, dtype=torch.int64, device=regions.device)
    for start in range(0, len(entities), chunk):
        scores = regions @ entities[start : start + chunk].T
        found = torch.cat([best, _candidates(scores, k) - start], dim=1)
        best = found.topk(min(k, found.shape[1]), dim=1).values
    return Matches(_ids(best), _scores(best))


def _candidates(scores: Float[Tensor, "rows columns"], k: int) -> Int[Tensor, "rows candidates"]:
    """Keys of columns among which are the k best of each row.

    An entity outside the k blocks of the best maxima is preceded by each of those maxima: they are greater, or as
    great with a lower id. The columns after the last whole block are candidates all of them.
    """
    rows, columns = scores.shape
    count = columns // BLOCK
    column = torch.arange(columns, device=scores.device)
    if count <= k:
        return _keys(scores, column)
    blocks = scores[:, : count * BLOCK].unflatten(1, (count, BLOCK))
    best = _ids(_keys(blocks.amax(-1), column[:count]).topk(k, dim=1, sorted=False).values).unsqueeze(-1)
    inside = _keys(blocks.gather(1, best.expand(-1, -1, BLOCK)), best * BLOCK + column[:BLOCK])
    return torch.cat([inside.flatten(1), _keys(scores[:, count * BLOCK :], column[count * BLOCK :])], dim=1)


def _keys(scores: Float[Tensor, "*axes"], ids: Int[Tensor, "..."]) -> Int[Tensor, "*axes"]:
    """One number for a float32 score and an id below 2**32: the score's bits in its order, then the id downwards."""
    # Minus zero is no less than zero, and the bits of negative floats grow downwards.
    bits = (scores + 0.0).view(torch.int32)
    return (bits ^ ((bits >> 31) & UNSIGNED)).long().mul_(LOWER + 1).add_(LOWER - ids)


def _ids(keys: Int[Tensor, "*axes"]) -> Int[Tensor, "*axes"]:
    return LOWER - (keys & LOWER)


def _scores(keys: Int[Tensor, "*axes"]) -> Float[Tensor, "*axes"]:
    bits = (keys >> 32).int()
    return (bits ^ ((bits >> 31) & UNSIGNED)).view(torch.float32)
