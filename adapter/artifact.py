"""The run contract: file names, schemas, manifest, atomic writes, opening.

A run is a folder. ``manifest.json`` is written last: a folder without it is not a run.
"""

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq

from adapter import __version__
from adapter.config import AdapterError, reason

SCHEMA_VERSION = 1
# The newest version of each artifact that can be read.
READS = {"alignments": 3, "labels": 1, "run": SCHEMA_VERSION}
MANIFEST = "manifest.json"
CONFIG = "config.json"
WEIGHTS = "model.safetensors"
LAST_WEIGHTS = "last.safetensors"
METRICS = "metrics.jsonl"
VIDEOS = "videos.parquet"
VIDEO_ID = "video_id"
VIEW = "view"
ABLATION = "ablation.json"
ABLATION_TABLE = "ablation.md"
MADE_BY = "adapter train --alignments DIR --labels DIR --out DIR"

Kinds = Mapping[str, type | tuple[type, ...]]
# What readers need of a manifest; a dot goes one level down.
ENTRIES: dict[str, Kinds] = {
    "alignments": {
        **dict.fromkeys(("dim", "frames", "regions", "patches", "num_shards", "config.top_k"), int),
        "corpus.fingerprint": str,
    },
    "labels": {},
    "run": {"dim": int, "frames": int, "labels": list},
}
_OF_A_RUN = re.compile(
    r"config\.json|(model|last)\.safetensors|metrics\.jsonl|videos\.parquet|eval-.+\.json|predictions-.+\.parquet"
    r"|protocol-.+\.json|scores-.+\.parquet"
    r"|(state|best)-\d+\.safetensors|events\.out\.tfevents\..+|\..+\.\d+\.tmp"
)

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


def protocol_name(name: str) -> str:
    """File of one protocol's result inside a run."""
    return f"protocol-{name}.json"


def scores_name(name: str) -> str:
    """File of the scores that a protocol's result was made from, inside a run."""
    return f"scores-{name}.parquet"


def scores_table(video_ids: Sequence[str], labels: Sequence[str], scores: np.ndarray) -> pa.Table:
    """Scores (views, videos, classes): ``video_id``, with several views ``view``, a column of numbers for each label.

    The views of a video lie beside each other.
    """
    views = len(scores)
    videos = [video for video in video_ids for _ in range(views)]
    numbers = scores.transpose(2, 1, 0).reshape(len(labels), -1)
    told = {VIEW: np.tile(np.arange(views, dtype=np.int16), len(video_ids))} if views > 1 else {}
    return pa.table([videos, *told.values(), *numbers], names=[VIDEO_ID, *told, *labels])


def read_scores(file: Path) -> tuple[tuple[str, ...], tuple[str, ...], np.ndarray]:
    """Video ids, labels and scores (views, videos, labels) of a file as ``scores_table`` is stored, or of such a CSV.

    Rows may be in any order.
    """
    mend = f"it needs a column {VIDEO_ID} and a column of numbers for each label"
    if not file.is_file():
        raise AdapterError(f"there is no file {file}; {mend}")
    try:
        table = pa_csv.read_csv(file) if file.suffix == ".csv" else pq.read_table(file)
        videos = table[VIDEO_ID].cast(pa.string()).to_pylist()
        told = VIEW in table.column_names[:2]
        views = table[VIEW].cast(pa.int64()).to_numpy() if told else np.zeros(len(videos), np.int64)
        labels = tuple(
            name for name in table.column_names if name != VIDEO_ID and not (told and name == VIEW)
        )
        columns = [table[name].cast(pa.float64()).to_numpy() for name in labels]
    except (pa.ArrowException, KeyError, ValueError, OSError) as error:
        raise AdapterError(f"{file} holds no scores ({reason(error)}); {mend}") from error
    if not labels or not videos:
        raise AdapterError(f"{file} holds {len(videos)} videos and {len(labels)} labels; {mend}")
    scores = np.stack(columns, axis=1)
    if not told:
        return tuple(videos), labels, scores[None]
    names, places = _by_view(videos, views.tolist(), file)
    return names, labels, scores[places]


def _by_view(videos: Sequence[str], views: Sequence[int], file: Path) -> tuple[tuple[str, ...], np.ndarray]:
    """The videos, and the row of each view (first axis) of each of them."""
    rows = {key: i for i, key in enumerate(zip(videos, views, strict=True))}
    names, numbers = tuple(dict.fromkeys(videos)), range(len(set(views)))
    if len(rows) != len(videos) or rows.keys() != {(name, view) for name in names for view in numbers}:
        raise AdapterError(
            f"{file}: column {VIEW} must number the views of every video from 0 to {len(numbers) - 1}, each once"
        )
    return names, np.array([[rows[name, view] for name in names] for view in numbers])


def state_name(steps: int) -> str:
    """File of a training's state after so many steps; an unfinished run alone has any."""
    return f"state-{steps:08d}.safetensors"


def best_name(epoch: int) -> str:
    """File of the best weights while training goes on, by the epoch they are from."""
    return f"best-{epoch:05d}.safetensors"


def saved_states(path: Path) -> list[Path]:
    """The states that an unfinished training saved, oldest first."""
    return sorted(path.glob("state-*.safetensors"))


def shared_files(path: Path, manifest: Mapping[str, Any]) -> list[str]:
    """Names of a finished run's files that are worth giving away: its own and its results, the manifest last.

    What helped to make it (states, logs of trackers) is left out.
    """
    patterns = ("eval-*.json", "predictions-*.parquet", "protocol-*.json", "scores-*.parquet")
    results = sorted(file.name for pattern in patterns for file in path.glob(pattern))
    return [*manifest["files"], *results, MANIFEST]


def is_unfinished(path: Path) -> bool:
    """Whether a folder holds a training that did not end: all of a run but its manifest."""
    return path.is_dir() and not (path / MANIFEST).exists() and (path / CONFIG).is_file() and _is_run(path)


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


def remove_temporaries(path: Path) -> None:
    """Delete the half-written files that a killed process left in a run's folder."""
    for file in path.glob(".*.tmp"):
        file.unlink(missing_ok=True)


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
        handle.write(_line(value))


def write_lines(path: Path, values: Sequence[Mapping[str, Any]]) -> None:
    """Write a file of JSON lines atomically."""
    text = "".join(map(_line, values))
    write_atomic(path, lambda temporary: _write_text(temporary, text))


def _line(value: Mapping[str, Any]) -> str:
    return json.dumps(value, sort_keys=True) + "\n"


def read_table(file: Path, columns: Sequence[str], mend: str, optional: Sequence[str] = ()) -> pa.Table:
    """Some columns of a Parquet file, and those of ``optional`` that it has.

    Raises ``AdapterError`` where it is missing, damaged or lacks a column; the message ends in ``mend``, what
    the user is to do next.
    """
    if not file.is_file():
        raise AdapterError(f"{file.parent} lacks {file.name}; {mend}")
    try:
        with pq.ParquetFile(file, page_checksum_verification=True) as parquet:
            found = parquet.schema_arrow.names
            table = parquet.read(columns=[name for name in (*columns, *optional) if name in found])
    except (pa.ArrowException, ValueError, OSError) as error:
        raise AdapterError(f"{file} cannot be read ({reason(error)}); {mend}") from error
    if missing := [name for name in columns if name not in found]:
        raise AdapterError(f"{file} lacks columns {', '.join(missing)}, found {', '.join(found)}; {mend}")
    return table


def read_json(file: Path, entries: Kinds, mend: str) -> dict[str, Any]:
    """A JSON object that has ``entries`` of the given types.

    Raises ``AdapterError`` where it is missing, damaged or lacks one; the message ends in ``mend``.
    """
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise AdapterError(f"{file} cannot be read ({reason(error)}); {mend}") from error
    if wrong := [name for name, kind in entries.items() if not isinstance(_entry(value, name), kind)]:
        raise AdapterError(f"{file} lacks {', '.join(wrong)}, or holds another type there; {mend}")
    if not isinstance(value, dict):
        raise AdapterError(f"{file} holds a {type(value).__name__}, not an object; {mend}")
    return value


def make_folder(path: Path) -> None:
    """Make a folder for ``--out``, with those above it; a file in its way raises ``AdapterError``."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise AdapterError(
            f"--out: cannot make the folder {path} ({reason(error)}); choose another"
        ) from error


def start_run(path: Path, force: bool) -> None:
    """Make an empty run folder; a run that is there is refused, or with ``force`` replaced.

    Any other folder with something in it is refused either way: only what a run wrote is ever deleted.
    """
    if path.is_file():
        raise AdapterError(f"--out {path} is a file; a run needs a folder")
    if path.is_dir() and any(path.iterdir()):
        if not _is_run(path):
            raise AdapterError(
                f"--out {path} holds {_contents(path)} and is no run; --force replaces runs only, choose "
                "another folder"
            )
        if not force:
            raise AdapterError(
                f"--out {path} is not empty; choose another folder or pass --force to replace the run"
            )
        shutil.rmtree(path)
    make_folder(path)


@contextmanager
def removed_on_failure(path: Path) -> Iterator[None]:
    """Delete the folder when an error leaves the block: half a run would only stand in the next one's way.

    An interruption keeps it, for the metrics so far; so does a saved state, from which training can go on.
    """
    try:
        yield
    except Exception:
        if not saved_states(path):
            shutil.rmtree(path, ignore_errors=True)
        raise


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
    """The manifest of any artifact, checked for kind, version and what readers need of it.

    ``made_by`` is the command to suggest.
    """
    file, mend = path / MANIFEST, f"make it again with `{made_by}`"
    if not file.is_file():
        raise AdapterError(
            f"needs the {artifact} artifact, found no {MANIFEST} in {path}; produced by `{made_by}`"
        )
    manifest = read_json(file, {"artifact": str, "schema_version": int}, f"it is not a manifest: {mend}")
    if manifest["artifact"] != artifact:
        raise AdapterError(
            f"needs the {artifact} artifact, found '{manifest['artifact']}' in {path}; produced by "
            f"`{made_by}`"
        )
    if manifest["schema_version"] > READS[artifact]:
        raise AdapterError(
            f"{path} has schema version {manifest['schema_version']}, this adapter {__version__} reads up to "
            f"{READS[artifact]}; update the adapter or make the artifact again"
        )
    return read_json(file, {"fingerprint": str, "model": dict, **ENTRIES[artifact]}, mend)


def check_same_model(
    found: Mapping[str, Any], needed: Mapping[str, Any], what: str, needs: str, run: str
) -> None:
    """Refuse two artifacts of different vision-language models, naming both and ``run``, what mends it."""
    keys = ("weights_sha256", "embed_dim")
    if any(found.get(k) != needed.get(k) for k in keys):
        raise AdapterError(
            f"{what} made with another model than {needs}: found {_model_words(found)}, "
            f"expected {_model_words(needed)}; run {run}"
        )


def with_model(command: str, model: Mapping[str, Any]) -> str:
    """A command in backticks, its ``MODEL`` replaced by the options that load ``model``.

    Artifacts keep no paths: where the model came from a folder, the words after it say which to name.
    """
    name, pretrained = str(model.get("name")), model.get("pretrained")
    local = name.startswith("local-dir:")
    options = f"--model {'local-dir:PATH' if local else name}"
    options += f" --pretrained {pretrained}" if pretrained else ""
    note = f", where PATH is the folder of {name}" if local else ""
    return f"`{command.replace('MODEL', options, 1)}`{note}"


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
        return {video_id for role in ("train", "val") for video_id in self.videos(role)}

    def videos(self, role: str) -> dict[str, str]:
        """Videos of a role (train, val) with their labels."""
        table = read_table(self.path / VIDEOS, VIDEOS_SCHEMA.names, train_again(self.path))
        return {row["video_id"]: row["label"] for row in table.to_pylist() if row["role"] == role}


def open_run(path: Path) -> Run:
    """Open a finished run; errors say how to make one."""
    manifest = read_manifest(path, "run", MADE_BY)
    for name in (CONFIG, WEIGHTS, VIDEOS):
        if not (path / name).is_file():
            raise AdapterError(f"run {path} lacks {name}; {train_again(path)}")
    number = (int, float)
    config = read_json(path / CONFIG, {"logit_scale": number, "seed": int}, train_again(path))
    return Run(path, manifest, config)


def train_again(path: Path) -> str:
    """What to do about a run whose files are damaged."""
    return f"train it again with `adapter train --alignments DIR --labels DIR --out {path} --force`"


def _is_run(path: Path) -> bool:
    # A run writes its config first and its manifest last. Names alone would not do: a folder of weights from
    # a model hub holds config.json and model.safetensors, too.
    try:
        if (path / MANIFEST).exists():
            return read_json(path / MANIFEST, {"artifact": str}, "")["artifact"] == "run"
        read_json(path / CONFIG, {"recipe": str, "queries": str}, "")
    except AdapterError:
        return False
    return all(entry.is_file() and _OF_A_RUN.fullmatch(entry.name) for entry in path.iterdir())


def _contents(path: Path) -> str:
    names = sorted(entry.name for entry in path.iterdir())
    return ", ".join(names[:3]) + (" ..." if len(names) > 3 else "")


def _entry(value: Any, name: str) -> Any:
    for part in name.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    return value


def _model_words(model: Mapping[str, Any]) -> str:
    sha = str(model.get("weights_sha256", "?"))[:12]
    return f"{model.get('name')} ({model.get('pretrained')}, weights {sha}, dim {model.get('embed_dim')})"


def _write_text(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")
