"""Unit vectors -> FAISS inner-product index; search; and the same search by brute force.

On unit vectors the inner product is the cosine, larger is nearer. Corpora hold 1e3 to 1e5 entities, so the
index is exact. torch is imported before faiss everywhere: the other order crashes with some CUDA builds.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch  # noqa: F401  before faiss, see above
from jaxtyping import Float, Int

from corpus_builder.config import CorpusError

UNIT_TOLERANCE = 1e-3


@dataclass(frozen=True)
class Hits:
    """The nearest entities of each query: ids and cosines, best first, equal scores by lower id."""

    ids: Int[np.ndarray, "queries k"]
    scores: Float[np.ndarray, "queries k"]


def build_index(vectors: Float[np.ndarray, "entities dim"]) -> Any:
    """A FAISS ``IndexFlatIP`` over unit vectors, row i under id i; else :class:`CorpusError`."""
    import faiss

    check_unit(vectors)
    index = faiss.IndexFlatIP(vectors.shape[1])
    index.add(np.ascontiguousarray(vectors, dtype=np.float32))
    return index


def check_unit(vectors: Float[np.ndarray, "rows dim"]) -> None:
    """Raise :class:`CorpusError` unless every row is finite and of unit length."""
    lengths = np.linalg.norm(vectors.astype(np.float64), axis=1)
    bad = np.flatnonzero(~(np.abs(lengths - 1) < UNIT_TOLERANCE))
    if len(bad):
        raise CorpusError(f"{len(bad)} vectors are not of unit length; the first is row {bad[0]}")


def index_bytes(index: Any) -> bytes:
    """The index as FAISS writes it to a file."""
    import faiss

    return faiss.serialize_index(index).tobytes()


def read_index(path: Path) -> Any:
    """Load an index file; raises :class:`CorpusError` if FAISS cannot read it."""
    import faiss

    try:
        return faiss.read_index(str(path))
    except (RuntimeError, MemoryError) as error:
        reason = (str(error) or "its sizes make no sense").splitlines()[0]
        raise CorpusError(
            f"{path.name} is no FAISS index: {reason}; make the corpus again with `corpus-builder build`"
        ) from None


def search(index: Any, queries: Float[np.ndarray, "queries dim"], k: int) -> Hits:
    """The k nearest rows of each unit query; fewer where the index holds fewer."""
    wanted = min(k, index.ntotal)
    scores, ids = index.search(np.ascontiguousarray(queries, dtype=np.float32), index.ntotal)
    return _ordered(ids, scores, wanted)


def search_brute_force(
    vectors: Float[np.ndarray, "entities dim"], queries: Float[np.ndarray, "queries dim"], k: int
) -> Hits:
    """The definition of :func:`search`: every inner product, sorted."""
    scores = (queries @ vectors.T).astype(np.float32)
    ids = np.broadcast_to(np.arange(len(vectors), dtype=np.int64), scores.shape)
    return _ordered(ids, scores, min(k, len(vectors)))


def _ordered(
    ids: Int[np.ndarray, "queries found"], scores: Float[np.ndarray, "queries found"], k: int
) -> Hits:
    order = np.lexsort((ids, -scores), axis=1)[:, :k]
    return Hits(np.take_along_axis(ids, order, axis=1), np.take_along_axis(scores, order, axis=1))
