"""The nearest entities of every region: exact inner products, top k, ties by the lower entity id."""

from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from aligner.config import AlignerError

# Entities per matrix product: 1,000 regions times this many scores are 64 MB. A constant, since the shape
# of a product may change its last bits.
CHUNK = 16_384
# Above this many entities FAISS is the quicker brute force on a CPU (engineering.md 5).
FAISS_ABOVE = 1_000_000

Engine = Literal["auto", "torch", "faiss"]


@dataclass(frozen=True)
class Matches:
    """The k nearest entities of each region, the nearest first; scores are cosines."""

    entities: Int[Tensor, "regions k"]
    scores: Float[Tensor, "regions k"]


class Matcher:
    """Top-k search among a fixed set of unit entity vectors."""

    def __init__(self, entities: Float[Tensor, "entities dim"], k: int, engine: Engine = "auto") -> None:
        """Keep the entities; index them with FAISS when they are very many or ``engine`` asks for it.

        Raises:
            AlignerError: fewer entities than k, or a vector with NaN or infinity.
        """
        if len(entities) < k:
            raise AlignerError(f"--top-k {k} needs at least {k} entities, the corpus has {len(entities)}")
        refuse_not_finite(entities, "entity")
        huge = len(entities) > FAISS_ABOVE and entities.device.type == "cpu"
        self.k = k
        self.entities = entities
        self.index = _faiss_index(entities) if engine == "faiss" or (engine == "auto" and huge) else None

    def __call__(self, regions: Float[Tensor, "regions dim"]) -> Matches:
        """Nearest entities of unit region vectors.

        Raises:
            AlignerError: a vector with NaN or infinity, whose order would mean nothing.
        """
        refuse_not_finite(regions, "region")
        if self.index is not None:
            return _search_faiss(self.index, regions, self.k)
        return top_entities(regions, self.entities, self.k)


def refuse_not_finite(vectors: Float[Tensor, "rows dim"], what: str) -> None:
    """Raise AlignerError if any vector holds NaN or infinity, naming the first one."""
    bad = (~torch.isfinite(vectors).all(-1)).nonzero()
    if len(bad):
        raise AlignerError(f"{len(bad)} {what} vectors are not finite, the first is {what} {int(bad[0])}")


def top_entities(
    regions: Float[Tensor, "regions dim"], entities: Float[Tensor, "entities dim"], k: int, chunk: int = CHUNK
) -> Matches:
    """Exact top k by inner product, in chunks of entities; equals a full stable sort."""
    ids = torch.empty(len(regions), 0, dtype=torch.int64, device=regions.device)
    scores = torch.empty(len(regions), 0, dtype=regions.dtype, device=regions.device)
    for start in range(0, len(entities), chunk):
        block = regions @ entities[start : start + chunk].T
        block_ids = torch.arange(start, start + block.shape[1], device=regions.device).expand_as(block)
        # What was found so far has lower ids and is in order, so position breaks ties as ids do.
        candidates = torch.cat([scores, block], dim=1)
        scores, position = _stable_top(candidates, min(k, candidates.shape[1]))
        ids = torch.cat([ids, block_ids], dim=1).gather(1, position)
    return Matches(ids, scores)


def _stable_top(
    scores: Float[Tensor, "rows columns"], k: int
) -> tuple[Float[Tensor, "rows k"], Int[Tensor, "rows k"]]:
    """Largest k of each row, descending, ties by the lower column (``topk`` promises no order of ties)."""
    top, column = scores.topk(k, dim=1)
    # A tie across the k-th place makes topk's choice arbitrary: such rows (rare) are sorted in full.
    tied = (scores >= top[:, -1:]).sum(1) > k
    if tied.any():
        column[tied] = scores[tied].sort(dim=1, descending=True, stable=True).indices[:, :k]
    column = column.sort(dim=1).values
    top, order = scores.gather(1, column).sort(dim=1, descending=True, stable=True)
    return top, column.gather(1, order)


def _faiss_index(entities: Float[Tensor, "entities dim"]) -> Any:
    try:
        import faiss  # after torch: the other order can crash with CUDA builds
    except ImportError as error:
        raise AlignerError("searching this many entities needs FAISS: pip install faiss-cpu") from error
    index = faiss.IndexFlatIP(entities.shape[1])
    index.add(entities.cpu().numpy())
    return index


def _search_faiss(index: Any, regions: Float[Tensor, "regions dim"], k: int) -> Matches:
    """The same search in FAISS; ties inside the top k are ordered by id, one across its edge is FAISS's."""
    scores, ids = index.search(regions.cpu().numpy(), k)
    ids, order = torch.from_numpy(ids).sort(dim=1)
    found, order_by_score = (
        torch.from_numpy(scores).gather(1, order).sort(dim=1, descending=True, stable=True)
    )
    return Matches(ids.gather(1, order_by_score).to(regions.device), found.to(regions.device))
