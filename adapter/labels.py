"""Consumer of the Labels artifact: class names, unit text embeddings, and matching videos' labels."""

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Float32

from adapter.artifact import check_same_model, read_manifest
from adapter.config import AdapterError

REQUIRED = ("label", "name", "embedding")
MADE_BY = "corpus-builder labels --labels FILE --model NAME --pretrained TAG --out DIR"


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


def clean_name(label: str) -> str:
    """``ApplyEyeMakeup`` and ``apply_eye_makeup`` -> ``apply eye makeup``."""
    split = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", " ", label)
    return " ".join(split.replace("_", " ").lower().split())


def open_labels(path: Path, model: Mapping[str, Any] | None = None, needs: str = "the alignments") -> Labels:
    """Open a label set and, with ``model``, refuse one that another vision-language model made."""
    manifest = read_manifest(path, "labels", MADE_BY)
    file = path / "labels.parquet"
    if not file.is_file():
        raise AdapterError(f"label set {path} lacks {file.name}; make it again with `{MADE_BY}`")
    if model is not None:
        clip = f"--model {model.get('name')} --pretrained {model.get('pretrained')}"
        run = f"corpus-builder labels --labels FILE {clip} --out DIR"
        check_same_model(manifest["model"], model, f"label set {path.name} was", needs, run)
    table = pq.read_table(file)
    missing = [name for name in REQUIRED if name not in table.column_names]
    if missing:
        raise AdapterError(
            f"{file} lacks columns {missing}, found {table.column_names}; produced by `{MADE_BY}`"
        )
    if len(table) == 0:
        raise AdapterError(f"label set {path} is empty; it needs at least one label, produced by `{MADE_BY}`")
    return _labels(table, manifest)


def vectors(table: pa.Table, column: str) -> Float32[np.ndarray, "rows dim"]:
    """A fixed-size-list column of float32 as a matrix."""
    flat = table[column].combine_chunks().flatten()
    # A copy: Arrow's memory is read-only, torch wants it writable.
    return np.array(flat, dtype=np.float32).reshape(len(table), -1)


def _labels(table: pa.Table, manifest: dict[str, Any]) -> Labels:
    labels = tuple(table["label"].to_pylist())
    if len(set(labels)) < len(labels):
        twice = [label for label, n in Counter(labels).items() if n > 1]
        raise AdapterError(f"label set holds some labels twice: {twice[:5]}")
    embeddings = vectors(table, "embedding")
    lengths = np.linalg.norm(embeddings, axis=1)
    if not np.allclose(lengths, 1, atol=1e-3):
        raise AdapterError(
            f"label embeddings need unit length, found {lengths.min():.3f} to {lengths.max():.3f}"
        )
    return Labels(
        labels, tuple(table["name"].to_pylist()), embeddings, manifest["model"], manifest["fingerprint"]
    )
