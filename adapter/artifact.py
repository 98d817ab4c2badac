"""The run contract: file names, schemas, manifest, atomic writes, opening.

A run is a folder. ``manifest.json`` is written last: a folder without it is not a run.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from adapter import __version__
from adapter.config import AdapterError

SCHEMA_VERSION = 1
MANIFEST = "manifest.json"
CONFIG = "config.json"
WEIGHTS = "model.safetensors"
LAST_WEIGHTS = "last.safetensors"
METRICS = "metrics.jsonl"
VIDEOS = "videos.parquet"

VIDEOS_SCHEMA = pa.schema(
    [
        pa.field("video_id", pa.string(), nullable=False),
        pa.field("label", pa.string(), nullable=False, metadata={"note": "as the label set spells it"}),
        pa.field("role", pa.string(), nullable=False, metadata={"values": "train, val"}),
    ]
)
PREDICTIONS_SCHEMA = pa.schema(
    [
        pa.field("video_id", pa.string(), nullable=False),
        pa.field("label", pa.string(), metadata={"note": "truth; null where unknown"}),
        pa.field("predicted", pa.string(), nullable=False),
        pa.field("correct", pa.bool_(), metadata={"note": "null where the truth is unknown"}),
        pa.field("topk_label", pa.list_(pa.string())),
        pa.field("topk_prob", pa.list_(pa.float32()), metadata={"unit": "probability among the candidates"}),
    ]
)


def evaluation_name(name: str) -> str:
    """File of one evaluation inside a run."""
    return f"eval-{name}.json"


def predictions_name(name: str) -> str:
    """File of one evaluation's predictions inside a run."""
    return f"predictions-{name}.parquet"


def write_atomic(path: Path, write: Callable[[Path], None]) -> None:
    """Let ``write`` fill a temporary file beside ``path``, flush it to disk, then rename it into place."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        write(temporary)
        with open(temporary, "rb+") as handle:
            os.fsync(handle.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """Write sorted, indented JSON atomically."""
    text = json.dumps(value, sort_keys=True, indent=2, allow_nan=False) + "\n"
    write_atomic(path, lambda temporary: _write_text(temporary, text))


def write_table(path: Path, table: pa.Table) -> None:
    """Write a Parquet file atomically."""
    write_atomic(path, lambda temporary: pq.write_table(table, temporary, compression="zstd"))


def append_line(path: Path, value: Mapping[str, Any]) -> None:
    """Add one JSON line; metrics are read while training goes on."""
    with open(path, "a", encoding="utf-8") as handle:
        handle.write(json.dumps(value, sort_keys=True) + "\n")


def start_run(path: Path, force: bool) -> None:
    """Make an empty run folder; an existing one is refused, or with ``force`` replaced."""
    if path.exists() and not path.is_dir():
        raise AdapterError(f"--out {path} is a file; a run needs a folder")
    if path.is_dir() and any(path.iterdir()):
        ours = (path / MANIFEST).is_file() or (path / CONFIG).is_file()
        if not force:
            raise AdapterError(
                f"--out {path} is not empty; choose another folder or pass --force to replace the run"
            )
        if not ours:
            raise AdapterError(f"--out {path} holds files that are no run; --force replaces runs only")
        shutil.rmtree(path)
    path.mkdir(parents=True, exist_ok=True)


def publish(path: Path, body: Mapping[str, Any], rows: Mapping[str, int]) -> dict[str, Any]:
    """Write the manifest, last of all; ``rows`` gives the row count of every file (0: no table)."""
    files = {name: {**describe_file(path / name), "rows": n} for name, n in rows.items()}
    manifest = {
        "artifact": "run",
        "schema_version": SCHEMA_VERSION,
        "package": f"adapter {__version__}",
        **body,
        "files": files,
    }
    manifest["fingerprint"] = fingerprint(manifest)
    manifest["created"] = datetime.now(UTC).isoformat(timespec="seconds")
    write_json(path / MANIFEST, manifest)
    return manifest


def describe_file(path: Path) -> dict[str, Any]:
    """Hash and size of a file."""
    with open(path, "rb") as handle:
        return {"sha256": hashlib.file_digest(handle, "sha256").hexdigest(), "bytes": path.stat().st_size}


def fingerprint(manifest: Mapping[str, Any]) -> str:
    """What identifies the content: never the date, never the wall time in the metrics."""
    keys = ("artifact", "schema_version", "package", "config", "inputs", "model")
    hashes = {n: f["sha256"] for n, f in manifest["files"].items() if n != METRICS}
    text = json.dumps(
        {**{k: manifest[k] for k in keys}, "files": hashes}, sort_keys=True, separators=(",", ":")
    )
    return hashlib.sha256(text.encode()).hexdigest()


def read_manifest(path: Path, artifact: str, made_by: str) -> dict[str, Any]:
    """The manifest of any artifact, checked for kind and version; ``made_by`` is the command to suggest."""
    file = path / MANIFEST
    if not file.is_file():
        raise AdapterError(
            f"needs the {artifact} artifact, found no {MANIFEST} in {path}; produced by `{made_by}`"
        )
    try:
        manifest = json.loads(file.read_text(encoding="utf-8"))
        found, version = manifest["artifact"], manifest["schema_version"]
    except (ValueError, KeyError, TypeError) as error:
        raise AdapterError(f"{file} is not a manifest ({error}); make it again with `{made_by}`") from error
    if found != artifact:
        raise AdapterError(
            f"needs the {artifact} artifact, found '{found}' in {path}; produced by `{made_by}`"
        )
    if version > SCHEMA_VERSION:
        raise AdapterError(
            f"{path} has schema version {version}, this adapter {__version__} reads up to {SCHEMA_VERSION}; "
            "update the adapter or make the artifact again"
        )
    return manifest


def check_same_model(
    found: Mapping[str, Any], needed: Mapping[str, Any], what: str, needs: str, run: str
) -> None:
    """Refuse two artifacts of different vision-language models, naming both and the command that mends it."""
    keys = ("weights_sha256", "embed_dim")
    if any(found.get(k) != needed.get(k) for k in keys):
        raise AdapterError(
            f"{what} made with another model than {needs}: found {_model_words(found)}, "
            f"expected {_model_words(needed)}; run `{run}`"
        )


@dataclass(frozen=True)
class Run:
    """An opened run: where it is, how it was made, what it was trained on."""

    path: Path
    manifest: dict[str, Any]
    config: dict[str, Any]

    @property
    def train_labels(self) -> list[str]:
        """Labels that had training videos, as the label set spelled them."""
        return self.manifest["labels"]

    def trained_on(self) -> set[str]:
        """Ids of the videos that trained the model or chose its epoch."""
        return set(pq.read_table(self.path / VIDEOS, columns=["video_id"])["video_id"].to_pylist())


def open_run(path: Path) -> Run:
    """Open a finished run; errors say how to make one."""
    manifest = read_manifest(path, "run", f"adapter train --alignments DIR --labels DIR --out {path}")
    for name in (CONFIG, WEIGHTS, VIDEOS):
        if not (path / name).is_file():
            raise AdapterError(
                f"run {path} lacks {name}; train it again with `adapter train ... --out {path} --force`"
            )
    return Run(path, manifest, json.loads((path / CONFIG).read_text(encoding="utf-8")))


def _model_words(model: Mapping[str, Any]) -> str:
    sha = str(model.get("weights_sha256", "?"))[:12]
    return f"{model.get('name')} ({model.get('pretrained')}, weights {sha}, dim {model.get('embed_dim')})"


def _write_text(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")
