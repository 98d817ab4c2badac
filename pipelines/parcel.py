"""What is given away of a folder: its files by their names in a repository, verified, without paths of this machine.

An artifact goes as it is. A run that lies in the folder of an ``alt run`` takes along what predicting needs: the
corpus, the config without paths, and a model that was loaded from a folder. Its own files stay at the top,
``config.json`` and ``model.safetensors`` among them, where the hub's libraries look for them.
"""

import json
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from pipelines.config import PipelineConfig
from pipelines.errors import PipelineError
from pipelines.workflow import CONFIG_FILE, Layout

MANIFEST = "manifest.json"
CARD = "README.md"
CORPUS, MODEL = "corpus", "clip"
REPO_TYPES = {"run": "model", "corpus": "dataset", "labels": "dataset", "alignments": "dataset"}
MAKERS = "`alt run`, `adapter train`, `corpus-builder build` or `labels`, or `aligner run`"
_HOMES = re.compile(r"(?:/home/|/Users/|/root/|[A-Za-z]:\\+Users\\)[^\s\"']+")

Content = Path | bytes


@dataclass(frozen=True)
class Parcel:
    """The files of one artifact by their names in a repository; its manifest comes last.

    ``source`` is the artifact's folder; ``corpus`` and ``config`` are there for a run that came with its pipeline.
    """

    kind: str
    source: Path
    manifest: dict[str, Any]
    files: dict[str, Content]
    config: PipelineConfig | None = None

    @property
    def repo_type(self) -> str:
        """``model`` or ``dataset``."""
        return REPO_TYPES[self.kind]

    @property
    def bytes(self) -> int:
        """Size of all files."""
        return sum(size_of(content) for content in self.files.values())


def size_of(content: Content) -> int:
    """Bytes of a file or of what will be one."""
    return content.stat().st_size if isinstance(content, Path) else len(content)


def pack(path: Path) -> Parcel:
    """The parcel of an artifact's folder, or of the folder of an ``alt run`` (its adapter as ``alt predict`` picks it).

    Raises:
        PipelineError: no artifact, one that is damaged or unfinished, or one that this version does not know.
    """
    from pipelines.predict import find_source

    path = path.resolve()
    if not path.is_dir():
        raise PipelineError(f"there is no folder {path}; give an artifact's folder, made by {MAKERS}")
    if not (path / MANIFEST).is_file() and (path / CONFIG_FILE).is_file():
        source = find_source(path)
        return _run_parcel(source.layout.run(source.adapter), source.config, source.layout, source.adapter)
    kind = read_kind(path)
    if kind == "run":
        try:
            source = find_source(path)
        except PipelineError:
            # Trained by `adapter train` alone: there is no config to predict from videos with.
            return _run_parcel(path, None, None, path.name)
        return _run_parcel(path, source.config, source.layout, source.adapter)
    return Parcel(kind, path, _manifest(path), _last(_named(path, _verified_files(path, kind))))


def read_kind(path: Path) -> str:
    """Which artifact a folder holds: run, corpus, labels or alignments.

    Raises:
        PipelineError: none of them.
    """
    if not (path / MANIFEST).is_file():
        raise PipelineError(f"{path} has no {MANIFEST}, so it is no finished artifact; {MAKERS} make one")
    kind = _manifest(path).get("artifact")
    if kind not in REPO_TYPES:
        raise PipelineError(
            f"{path} holds the artifact {kind!r}, which this version does not know; known are {', '.join(REPO_TYPES)}"
        )
    return str(kind)


def verify(path: Path) -> str:
    """Verify a folder and a corpus inside it against their hashes; returns the kind of artifact.

    Raises:
        PipelineError: what is missing or was changed.
    """
    kind = read_kind(path)
    _verified_files(path, kind)
    if kind == "run" and (path / CORPUS).is_dir():
        _verified_files(path / CORPUS, "corpus")
    return kind


def write(parcel: Parcel, out: Path) -> None:
    """Lay a parcel out in a new folder, whole or not at all: what a repository would hold.

    Raises:
        PipelineError: there is something at ``out`` already.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise PipelineError(f"--to {out} is there already; give a new or empty folder")
    out.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    try:
        for name, content in parcel.files.items():
            target = work / name
            target.parent.mkdir(parents=True, exist_ok=True)
            if isinstance(content, Path):
                shutil.copyfile(content, target)
            else:
                target.write_bytes(content)
        work.chmod(0o755)
        if out.is_dir():
            out.rmdir()
        work.replace(out)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def local_paths(parcel: Parcel) -> list[str]:
    """Where files of a parcel name folders of this machine: ``file: path``, one a file."""
    found = []
    own = {str(folder) + "/" for folder in _own_folders(parcel)}
    for name, content in parcel.files.items():
        for text in _texts(name, content):
            match = _HOMES.search(text)
            path = match[0] if match else next((folder for folder in own if folder in text), None)
            if path:
                found.append(f"{name}: {path}")
                break
    return found


def _own_folders(parcel: Parcel) -> Iterator[Path]:
    for folder in (Path.home(), Path(tempfile.gettempdir()).resolve(), parcel.source.parent, parcel.source):
        if len(folder.parts) > 1:
            yield folder


def _texts(name: str, content: Content) -> Iterator[str]:
    """The texts of a file that may hold a path: a text file whole, the string columns of a table."""
    if name.endswith((".json", ".jsonl", ".yaml", ".md", ".txt", ".csv")):
        yield (content.read_bytes() if isinstance(content, Path) else content).decode(errors="replace")
    elif name.endswith(".parquet") and isinstance(content, Path):
        yield from _strings(content)


def _strings(file: Path) -> Iterator[str]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    with pq.ParquetFile(file) as parquet:
        schema = parquet.schema_arrow
        columns = [
            column.name
            for column in schema
            if pa.types.is_string(column.type)
            or pa.types.is_dictionary(column.type)
            or (pa.types.is_list(column.type) and pa.types.is_string(column.type.value_type))
        ]
        for batch in parquet.iter_batches(columns=columns):
            for column in batch.columns:
                flat = column.flatten() if pa.types.is_list(column.type) else column
                yield "\n".join(str(value) for value in flat.unique().to_pylist())


def _run_parcel(run: Path, config: PipelineConfig | None, layout: Layout | None, adapter: str) -> Parcel:
    files = _named(run, _verified_files(run, "run"))
    if config and layout and layout.corpus.is_dir():
        files |= _named(layout.corpus, _verified_files(layout.corpus, "corpus"), f"{CORPUS}/")
        model = _model_files(config)
        files |= {f"{MODEL}/{file.name}": file for file in model}
        files[CONFIG_FILE] = portable(config, adapter).encode()
    return Parcel("run", run, _manifest(run), _last(files), config if CONFIG_FILE in files else None)


def portable(config: PipelineConfig, adapter: str) -> str:
    """The config as YAML, for one adapter, with the names of files in place of their paths."""
    raw = config.model_dump(mode="json", exclude_none=True)
    for key in ("evaluations", "report", "nltk_data", "device"):
        raw.pop(key, None)
    raw["adapters"] = {name: section for name, section in raw["adapters"].items() if name == adapter}
    if config.model.startswith("local-dir:"):
        raw["model"] = f"local-dir:{MODEL}"
    elif config.pretrained and Path(config.pretrained).is_file():
        raw["pretrained"] = f"{MODEL}/{Path(config.pretrained).name}"
    raw["out"] = "."
    return yaml.safe_dump(_names_only(raw), sort_keys=False)


def _names_only(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _names_only(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_names_only(item) for item in value]
    return Path(value).name if isinstance(value, str) and Path(value).is_absolute() else value


def _model_files(config: PipelineConfig) -> list[Path]:
    """The files of a model that only this machine has; none for one that open_clip downloads."""
    if config.model.startswith("local-dir:"):
        folder = Path(config.model.partition(":")[2])
        if not folder.is_dir():
            raise PipelineError(
                f"the model's folder {folder} is gone, and without it nobody can predict with the run; put it back"
            )
        return sorted(file for file in folder.iterdir() if file.is_file() and not file.name.startswith("."))
    file = Path(config.pretrained or "")
    return [file] if config.pretrained and file.is_file() else []


def _verified_files(path: Path, kind: str) -> list[str]:
    """Names of what is given away of an artifact, once every one of them is as its manifest says.

    Results of a run, which are written after its manifest, have no hashes; states of a training and its logs stay here.
    """
    problems, names = _CHECKS[kind](path)
    if problems:
        more = f" and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise PipelineError(f"{kind} {path} is damaged or unfinished: {'; '.join(problems[:3])}{more}")
    return names


def _check_run(path: Path) -> tuple[list[str], list[str]]:
    from adapter import artifact

    run = artifact.open_run(path)
    problems = _changed(path, run.manifest)
    if artifact.fingerprint(run.manifest) != run.manifest["fingerprint"]:
        problems.append(f"{MANIFEST} was changed: its fingerprint does not fit its content")
    return problems, artifact.shared_files(path, run.manifest)


def _check_texts(path: Path) -> tuple[list[str], list[str]]:
    from corpus_builder.artifact import open_artifact

    manifest = open_artifact(path).manifest
    return _changed(path, manifest), [*manifest["files"], MANIFEST]


def _check_alignments(path: Path) -> tuple[list[str], list[str]]:
    from aligner.artifact import read_manifest, shard_files
    from aligner.verify import verify as verify_alignments

    manifest = read_manifest(path)
    shards = [name for shard in range(manifest["num_shards"]) for name in shard_files(shard)]
    return verify_alignments(path), [*manifest["files"], *shards, MANIFEST]


_CHECKS: dict[str, Callable[[Path], tuple[list[str], list[str]]]] = {
    "run": _check_run,
    "corpus": _check_texts,
    "labels": _check_texts,
    "alignments": _check_alignments,
}


def _changed(path: Path, manifest: dict[str, Any]) -> list[str]:
    from pipelines.ledger import file_sha256

    problems = []
    for name, entry in manifest["files"].items():
        found = file_sha256(path / name)
        if found == "missing":
            problems.append(f"{name} is missing")
        elif found != entry["sha256"]:
            problems.append(f"{name} was changed (sha256 differs from the manifest)")
    return problems


def _manifest(path: Path) -> dict[str, Any]:
    try:
        manifest = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise PipelineError(f"{path / MANIFEST} cannot be read ({error}); make the artifact again") from error
    if not isinstance(manifest, dict):
        raise PipelineError(f"{path / MANIFEST} is no manifest; make the artifact again")
    return manifest


def _named(folder: Path, names: list[str], prefix: str = "") -> dict[str, Content]:
    return {prefix + name: folder / name for name in names}


def _last(files: dict[str, Content]) -> dict[str, Content]:
    """Manifests after all else: a folder without one is no artifact."""
    return dict(sorted(files.items(), key=lambda item: item[0].endswith(MANIFEST)))
