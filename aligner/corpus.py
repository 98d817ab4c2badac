"""The corpus as the aligner needs it: required columns, accepted versions, and clear refusals."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from aligner.artifact import Contract, checked_manifest
from aligner.config import AlignerError

ENTITIES = "entities.parquet"
REQUIRED = ("entity_id", "name", "embedding")
BUILD = "corpus-builder build --labels FILE --model {model} --out DIR"
SHAPE = {
    "fingerprint": str,
    "model": {"name": str, "pretrained": (str, type(None)), "weights_sha256": str, "embed_dim": int},
}
CONTRACT = Contract(
    "corpus", (1, 2), SHAPE, "a corpus", f"produced by `{BUILD.format(model='NAME')}`", "--corpus"
)


@dataclass(frozen=True)
class Corpus:
    """Names and unit embeddings of the entities, and where they come from."""

    path: Path
    names: list[str]
    embeddings: np.ndarray  # [entities, dim] float32, unit length
    model: dict[str, Any]
    fingerprint: str

    @property
    def entities_file(self) -> Path:
        """The Parquet file that alignments copy."""
        return self.path / ENTITIES


def load_corpus(path: Path) -> Corpus:
    """Read a corpus folder.

    Raises:
        AlignerError: files or columns missing, another artifact or version, or embeddings that are not unit
        vectors.
    """
    manifest = checked_manifest(path, CONTRACT)
    table = _read_entities(path)
    embeddings = _matrix(table["embedding"], path)
    if len(table) == 0:
        raise AlignerError(f"corpus {path} has no entities; run `{BUILD.format(model='NAME')}`")
    if table["entity_id"].to_pylist() != list(range(len(table))):
        raise AlignerError(f"corpus {path}: entity_id must count 0, 1, ... in row order")
    lengths = np.linalg.norm(embeddings, axis=1)
    if not np.all(np.abs(lengths - 1) < 1e-3):
        worst = int(np.argmax(np.nan_to_num(np.abs(lengths - 1), nan=np.inf)))
        raise AlignerError(f"corpus {path}: entity {worst} has length {lengths[worst]}, expected 1")
    return Corpus(path, table["name"].to_pylist(), embeddings, manifest["model"], manifest["fingerprint"])


def check_model(corpus: Corpus, model: dict[str, Any]) -> None:
    """Refuse a corpus whose text tower is not of the model that encodes the videos (AlignerError)."""
    same = corpus.model["weights_sha256"] == model["weights_sha256"]
    if same and corpus.model["embed_dim"] == model["embed_dim"] == corpus.embeddings.shape[1]:
        return
    options = model["name"] + (f" --pretrained {model['pretrained']}" if model["pretrained"] else "")
    raise AlignerError(
        f"corpus {corpus.path} was made with another model: needs {describe(model)}, "
        f"found {describe(corpus.model)}; run `{BUILD.format(model=options)}`"
    )


def describe(model: dict[str, Any]) -> str:
    """One model in words: name, weights, dimension and the beginning of the hash."""
    weights = model["pretrained"] or "its own weights"
    return f"{model['name']} ({weights}, {model['embed_dim']} dimensions, {model['weights_sha256'][:12]})"


def _read_entities(path: Path) -> pa.Table:
    file = path / ENTITIES
    if not file.is_file():
        raise AlignerError(
            f"--corpus {path} needs {ENTITIES}, found none; run `{BUILD.format(model='NAME')}`"
        )
    try:
        names = pq.read_schema(file).names
        missing = [column for column in REQUIRED if column not in names]
        if missing:
            raise AlignerError(f"{file} needs columns {', '.join(REQUIRED)}, missing {', '.join(missing)}")
        return pq.read_table(file, columns=list(REQUIRED), page_checksum_verification=True)
    except (pa.ArrowException, OSError) as error:
        raise AlignerError(f"{file} cannot be read: {error}") from error


def _matrix(column: pa.ChunkedArray, path: Path) -> np.ndarray:
    floats = pa.types.is_fixed_size_list(column.type) and pa.types.is_floating(column.type.value_type)
    if not floats or column.null_count:
        raise AlignerError(
            f"corpus {path}: embedding must be a fixed-size list of float32 in every row, "
            f"got {column.type} with {column.null_count} empty rows"
        )
    flat = column.combine_chunks().flatten().to_numpy(zero_copy_only=False)
    return flat.astype(np.float32, copy=False).reshape(len(column), column.type.list_size)
