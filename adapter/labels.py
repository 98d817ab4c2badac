"""Consumer of the Labels artifact: class names, unit text embeddings, and matching videos' labels."""

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from jaxtyping import Float32

from adapter.artifact import check_same_model, read_manifest, read_table, with_model
from adapter.config import AdapterError

REQUIRED = ("label", "name", "embedding")
MADE_BY = "corpus-builder labels --labels FILE --model NAME --pretrained TAG --out DIR"

# Repeated from the corpus builder on purpose, since stages never import each other; a contract test compares.
# "applyEye" -> "apply Eye"; "TVShow" -> "TV Show", while "DVDs" stays whole.
_CAMEL = re.compile(r"(?<=[a-z])(?=[A-Z])|(?<=[A-Z])(?=[A-Z](?!s\b)[a-z])")
_SEPARATORS = re.compile(r"[\s_\-/]+")
_NO_WORD = re.compile(r"[\W_]+")


@dataclass(frozen=True)
class Labels:
    """A label set: ``labels`` as given, ``names`` cleaned, ``embeddings`` of unit length, same order."""

    labels: tuple[str, ...]
    names: tuple[str, ...]
    embeddings: Float32[np.ndarray, "classes dim"]
    model: Mapping[str, Any] = field(default_factory=dict)
    fingerprint: str = ""

    def match(self, label: str | None) -> int:
        """Class of a video's label: exact spelling first, else the cleaned name; -1 where there is none."""
        if label is None:
            return -1
        by_label, by_name = self._lookups()
        return by_label.get(label, by_name.get(clean_name(label), -1))

    def _lookups(self) -> tuple[dict[str, int], dict[str, int]]:
        cached = self.__dict__.get("_cached")
        if cached is None:
            cleaned = [clean_name(name) for name in self.names]
            count = Counter(cleaned)
            # Two labels with one cleaned name can be told apart by their exact spelling only.
            by_name = {name: i for i, name in enumerate(cleaned) if count[name] == 1}
            cached = {label: i for i, label in enumerate(self.labels)}, by_name
            object.__setattr__(self, "_cached", cached)
        return cached

    def take(self, classes: list[int]) -> "Labels":
        """The label set of some classes, in the order given."""
        return Labels(
            tuple(self.labels[c] for c in classes),
            tuple(self.names[c] for c in classes),
            self.embeddings[classes],
            self.model,
            self.fingerprint,
        )


def spaced_name(label: str) -> str:
    """``ApplyEyeMakeup`` and ``Apply_Eye-Makeup`` -> ``Apply Eye Makeup``."""
    spaced = _SEPARATORS.sub(" ", label)
    return _SEPARATORS.sub(" ", _CAMEL.sub(" ", spaced)).strip()


def clean_name(label: str) -> str:
    """``ApplyEyeMakeup`` and ``apply_eye-makeup`` -> ``apply eye makeup``, as the corpus builder cleans."""
    return spaced_name(label).lower()


def name_key(label: str) -> str:
    """Letters and digits of a label in lower case: ``Pull-Ups``, ``pull ups`` and ``pullups`` are one class.

    Data sets space their names differently, so label sets are compared by this key.
    """
    return _NO_WORD.sub("", label).lower()


def open_labels(path: Path, model: Mapping[str, Any] | None = None, needs: str = "the alignments") -> Labels:
    """Open a label set and, with ``model``, refuse one that another vision-language model made."""
    manifest = read_manifest(path, "labels", MADE_BY)
    if model is not None:
        run = with_model("corpus-builder labels --labels FILE MODEL --out DIR", model)
        check_same_model(manifest["model"], model, f"label set {path.name} was", needs, run)
    mend = f"make it again with `{MADE_BY}`"
    table = read_table(path / "labels.parquet", REQUIRED, mend)
    if len(table) == 0:
        raise AdapterError(f"label set {path} is empty; it needs at least one label, {mend}")
    return _labels(table, manifest, vectors(table, "embedding", path, mend))


def vectors(table: pa.Table, column: str, path: Path, mend: str) -> Float32[np.ndarray, "rows dim"]:
    """A fixed-size-list column of float32 as a matrix; ``path`` and ``mend`` are for the error."""
    kind, nulls = table.schema.field(column).type, table[column].null_count
    if not pa.types.is_fixed_size_list(kind) or kind.value_type != pa.float32() or nulls:
        raise AdapterError(
            f"{path}: column {column} is {kind} with {nulls} nulls, expected fixed_size_list<float>; {mend}"
        )
    flat = table[column].combine_chunks().flatten()
    # A copy: Arrow's memory is read-only, torch wants it writable.
    return np.array(flat, dtype=np.float32).reshape(len(table), kind.list_size)


def _labels(
    table: pa.Table, manifest: dict[str, Any], embeddings: Float32[np.ndarray, "classes dim"]
) -> Labels:
    labels = tuple(table["label"].to_pylist())
    if len(set(labels)) < len(labels):
        twice = [label for label, n in Counter(labels).items() if n > 1]
        raise AdapterError(f"label set holds some labels twice: {twice[:5]}")
    lengths = np.linalg.norm(embeddings, axis=1)
    if not np.allclose(lengths, 1, atol=1e-3):
        raise AdapterError(
            f"label embeddings need unit length, found {lengths.min():.3f} to {lengths.max():.3f}"
        )
    return Labels(
        labels, tuple(table["name"].to_pylist()), embeddings, manifest["model"], manifest["fingerprint"]
    )
