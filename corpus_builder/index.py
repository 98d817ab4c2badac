"""Unit vectors -> FAISS inner-product index; search; and the same search by brute force.

On unit vectors the inner product is the cosine, larger is nearer. Corpora hold 1e3 to 1e5 entities, so the
index is exact unless asked otherwise; an approximate one is measured against exact search when it is built, and
refused below ``MIN_RECALL``. torch is imported before faiss everywhere: the other order crashes with some CUDA builds.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch  # noqa: F401  before faiss, see above
from jaxtyping import Float, Int

from corpus_builder.config import INDEX_CHOICES, CorpusError, check_choice

UNIT_TOLERANCE = 1e-3
EXACT_UP_TO = 200_000
MIN_RECALL = 0.99
PROBES = 1000
TIES = 16
GPU_HITS = 1024


@dataclass(frozen=True)
class Hits:
    """The nearest entities of each query: ids and cosines, best first, equal scores by lower id."""

    ids: Int[np.ndarray, "queries k"]
    scores: Float[np.ndarray, "queries k"]


@dataclass(frozen=True)
class Built:
    """An index, its kind, and how often its best hit is the exact one (``recall_at_1``, from 0 to 1)."""

    index: Any
    kind: str
    recall_at_1: float

    @property
    def facts(self) -> dict[str, Any]:
        """What a manifest keeps of it."""
        return {"kind": self.kind, "recall_at_1": round(self.recall_at_1, 4)}


def build_index(vectors: Float[np.ndarray, "entities dim"], kind: str = "auto") -> Built:
    """A FAISS inner-product index over unit vectors, row i under id i.

    Args:
        vectors: unit rows.
        kind: ``flat`` (exact), ``ivf``, ``hnsw``, or ``auto``: flat up to ``EXACT_UP_TO`` rows, then ivf.

    Raises:
        CorpusError: vectors that are not of unit length, or an index whose recall@1 against exact search, on
            queries near to rows (``probe_queries``), is under ``MIN_RECALL``.
    """
    check_unit(vectors)
    check_choice("--index", kind, INDEX_CHOICES)
    rows = np.ascontiguousarray(vectors, dtype=np.float32)
    if kind == "auto":
        kind = "flat" if len(rows) <= EXACT_UP_TO else "ivf"
    index = {"flat": _flat, "ivf": _ivf, "hnsw": _hnsw}[kind](rows)
    recall = 1.0 if kind == "flat" else _recall_at_1(index, rows)
    if recall < MIN_RECALL:
        raise CorpusError(
            f"--index {kind} finds the nearest entity for {recall:.1%} of the queries, expected at least"
            f" {MIN_RECALL:.0%}; use --index flat, which is exact"
        )
    return Built(index, kind, recall)


def probe_queries(vectors: Float[np.ndarray, "entities dim"]) -> Float[np.ndarray, "queries dim"]:
    """Unit queries near to at most ``PROBES`` rows (cosine about 0.9), drawn with a fixed seed."""
    rng = np.random.default_rng(0)
    rows = vectors[np.sort(rng.choice(len(vectors), min(PROBES, len(vectors)), replace=False))]
    noise = rng.normal(size=rows.shape)
    noise /= np.linalg.norm(noise, axis=1, keepdims=True)
    queries = rows + 0.5 * noise
    return (queries / np.linalg.norm(queries, axis=1, keepdims=True)).astype(np.float32)


def on_gpu(index: Any) -> Any:
    """The index on the first GPU where ``faiss-gpu`` is installed and finds one, else as it is.

    For many queries of few hits: FAISS gives at most ``GPU_HITS`` of a query there, and has no HNSW for GPUs.
    """
    import faiss

    if not hasattr(faiss, "StandardGpuResources") or faiss.get_num_gpus() == 0:
        return index
    if isinstance(faiss.downcast_index(index), faiss.IndexHNSW):
        return index
    return faiss.index_cpu_to_gpu(faiss.StandardGpuResources(), 0, index)


def _flat(rows: Float[np.ndarray, "entities dim"]) -> Any:
    import faiss

    index = faiss.IndexFlatIP(rows.shape[1])
    index.add(rows)
    return index


def _ivf(rows: Float[np.ndarray, "entities dim"]) -> Any:
    """Cells of about the square root of the rows; as many are looked into as the recall asks for."""
    import faiss

    cells = max(1, int(np.sqrt(len(rows))))
    index = faiss.IndexIVFFlat(
        faiss.IndexFlatIP(rows.shape[1]), rows.shape[1], cells, faiss.METRIC_INNER_PRODUCT
    )
    index.cp.seed = 0
    # a warning about few training points says nothing here: the rows are all there is
    index.cp.min_points_per_centroid = 1
    index.train(rows)
    index.add(rows)
    index.nprobe = 1
    while index.nprobe < cells and _recall_at_1(index, rows) < MIN_RECALL:
        index.nprobe = min(cells, 2 * index.nprobe)
    return index


def _hnsw(rows: Float[np.ndarray, "entities dim"]) -> Any:
    """Grown by one thread, since the graph depends on the order in which rows arrive."""
    import faiss

    index = faiss.IndexHNSWFlat(rows.shape[1], 32, faiss.METRIC_INNER_PRODUCT)
    index.hnsw.efConstruction = 200
    threads = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1)
    try:
        index.add(rows)
    finally:
        faiss.omp_set_num_threads(threads)
    index.hnsw.efSearch = 16
    while index.hnsw.efSearch < len(rows) and _recall_at_1(index, rows) < MIN_RECALL:
        index.hnsw.efSearch *= 2
    return index


def _recall_at_1(index: Any, rows: Float[np.ndarray, "entities dim"]) -> float:
    """Share of queries whose best hit scores as high as the exact one (equal rows count as found)."""
    queries = probe_queries(rows)
    best, _ = _flat(rows).search(queries, 1)
    scores, _ = index.search(queries, 1)
    return float(np.mean(scores[:, 0] >= best[:, 0] - 1e-6))


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
    """The k nearest rows of each unit query; fewer where the index holds fewer.

    An approximate index may find fewer than k; the missing ones have id -1 and a score of minus infinity.
    """
    wanted = min(k, index.ntotal)
    # an exact index is asked for a few more, so that rows which tie with the last are ordered by id too
    asked = min(index.ntotal, wanted + TIES)
    scores, ids = index.search(np.ascontiguousarray(queries, dtype=np.float32), asked)
    while asked < index.ntotal and np.any(scores[:, wanted - 1] == scores[:, -1]):
        asked = min(index.ntotal, 2 * asked)
        scores, ids = index.search(np.ascontiguousarray(queries, dtype=np.float32), asked)
    return _ordered(ids, np.where(ids < 0, -np.inf, scores).astype(np.float32), wanted)


def nearest_others(
    index: Any,
    vectors: Float[np.ndarray, "entities dim"],
    rows: Int[np.ndarray, " queries"],
    k: int,
) -> Hits:
    """The k rows nearest to each of ``rows``, itself left out; the index is exact and over ``vectors``."""
    found = search(index, vectors[rows], k + 1)
    own = found.ids == rows[:, None]
    # among many equal rows its own may not be found at all: then the last one found is left out
    own[~own.any(axis=1), -1] = True
    shape = len(rows), found.ids.shape[1] - 1
    return Hits(found.ids[~own].reshape(shape), found.scores[~own].reshape(shape))


def check_belongs(index: Any, vectors: Float[np.ndarray, "entities dim"], where: str) -> None:
    """Raise :class:`CorpusError` unless the index holds these very rows (sizes, and some rows compared)."""
    remake = "make the corpus again with `corpus-builder build`"
    if (index.ntotal, index.d) != vectors.shape:
        raise CorpusError(
            f"{where}: the index holds {index.ntotal} vectors of {index.d}, expected"
            f" {' of '.join(map(str, vectors.shape))}; {remake}"
        )
    if hasattr(index, "make_direct_map"):
        index.make_direct_map()
    for row in sorted({0, len(vectors) // 2, len(vectors) - 1}) if len(vectors) else ():
        if not np.allclose(index.reconstruct(int(row)), vectors[row], atol=1e-5):
            raise CorpusError(f"{where}: the index belongs to another table (row {row} differs); {remake}")


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
