"""The contracts of this stage, **Corpus** and **Labels**: files, columns, manifests, writers, openers.

Corpus, ``DIR/``: ``entities.parquet`` (row number = entity id), ``entities.faiss`` (inner product over the
same rows), ``senses.parquet`` (every sense that was weighed for an entity), ``merged.parquet`` (what was merged
into another entity), ``candidates.parquet`` (every phrase found, kept or dropped), ``manifest.json``. Labels, ``DIR/``:
``labels.parquet`` (row number = class id) and ``manifest.json``. The manifest is written last: a folder
without one is not an artifact. A corpus whose model lay in a local folder or file may hold
``model_location.json`` too: a hint for this machine, in neither the manifest nor the fingerprint.
"""

import hashlib
import json
import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from corpus_builder import __version__
from corpus_builder.config import EXAMPLES, KINDS, SOURCES, CorpusError

SCHEMA_VERSIONS = {"corpus": 2, "labels": 1}
MANIFEST = "manifest.json"
ENTITIES = "entities.parquet"
INDEX = "entities.faiss"
SENSES = "senses.parquet"
MERGED = "merged.parquet"
CANDIDATES = "candidates.parquet"
LABELS = "labels.parquet"
MODEL_LOCATION = "model_location.json"
WORDNET = "wordnet"
"""The manifest's input that tells which WordNet the senses are from; corpora made from corpora carry it on."""
FILES = {"corpus": (ENTITIES, INDEX, SENSES, MERGED, CANDIDATES), "labels": (LABELS,)}
MAKERS = {
    "corpus": "corpus-builder build --labels FILE --model MODEL --pretrained TAG --out DIR",
    "labels": "corpus-builder labels --labels FILE --model MODEL --pretrained TAG --out DIR",
}
REQUIRED_KEYS = (
    "artifact",
    "schema_version",
    "package",
    "fingerprint",
    "config",
    "inputs",
    "model",
    "counts",
    "files",
)

MINED_SUFFIXES = (".parquet", ".csv", ".jsonl")

UNIT = "unit length, float32; the inner product of two is their cosine"


def _field(name: str, kind: pa.DataType, unit: str, *, null: bool = False) -> pa.Field:
    return pa.field(name, kind, nullable=null, metadata={"unit": unit})


def _strings(name: str, unit: str) -> pa.Field:
    return _field(name, pa.list_(pa.field("item", pa.string(), nullable=False)), unit)


def entities_schema(dim: int) -> pa.Schema:
    """Columns of ``entities.parquet`` for embeddings of ``dim`` numbers, each with its unit."""
    return pa.schema(
        [
            _field("entity_id", pa.int32(), "row number"),
            _field("key", pa.string(), "WordNet synset name where there is one, else the name; unique"),
            _field("name", pa.string(), "the unit, lower case"),
            _strings("aliases", "other names found for it, sorted"),
            _field("kind", pa.string(), ", ".join(KINDS)),
            _field("source", pa.string(), "the first of sources"),
            _strings("sources", f"among {', '.join(SOURCES)}, in this order"),
            _field("sense", pa.string(), "WordNet synset name", null=True),
            _field(
                "gloss",
                pa.string(),
                "definition of the sense; of a phrase without one, its entry in --descriptions",
                null=True,
            ),
            _field("lexname", pa.string(), "WordNet lexicographer file", null=True),
            _field("text", pa.string(), "the exact text embedded"),
            _field("count", pa.int64(), "mentions"),
            _strings("labels", "labels as given, sorted"),
            _strings("contexts", f"the first texts that hold it, at most {EXAMPLES}"),
            _field("embedding", pa.list_(pa.field("item", pa.float32(), nullable=False), dim), UNIT),
        ]
    )


def labels_schema(dim: int) -> pa.Schema:
    """Columns of ``labels.parquet``."""
    return pa.schema(
        [
            _field("class_id", pa.int32(), "row number"),
            _field("label", pa.string(), "as given"),
            _field("name", pa.string(), "cleaned for prompts"),
            _field("embedding", pa.list_(pa.field("item", pa.float32(), nullable=False), dim), UNIT),
        ]
    )


CANDIDATES_SCHEMA = pa.schema(
    [
        _field("label", pa.string(), "as given; null for what no label holds", null=True),
        _field("phrase", pa.string(), "as found in the text"),
        _field("entity", pa.string(), "name after normalising"),
        _field("sense", pa.string(), "WordNet synset name", null=True),
        _field("source", pa.string(), f"one of {', '.join(SOURCES)}"),
        _field(
            "role",
            pa.string(),
            "noun, whole, head, modifier, compound, activity, name, body_part, word or random",
        ),
        _field("taggers", pa.string(), "who proposed it, joined by +"),
        _field("reason", pa.string(), "why it was dropped; null if kept", null=True),
        _field(
            "margin", pa.float32(), "lead of the sense over the runner-up, in points of the score", null=True
        ),
        _field("count", pa.int64(), "mentions"),
        _strings("contexts", f"the first texts that hold it, at most {EXAMPLES}"),
    ]
)

SENSES_SCHEMA = pa.schema(
    [
        _field("entity_id", pa.int32(), "the entity that the sense was weighed for"),
        _field("sense", pa.string(), "WordNet synset name"),
        _field("gloss", pa.string(), "definition of the sense"),
        _field(
            "score", pa.float32(), "points of the strategy at the surest mention; higher is better", null=True
        ),
        _field("chosen", pa.bool_(), "whether it is the entity's sense"),
    ]
)

MERGED_SCHEMA = pa.schema(
    [
        _field("entity_id", pa.int32(), "the survivor"),
        _field("key", pa.string(), "key of what was merged into it"),
        _field("name", pa.string(), "its name"),
        _field("reason", pa.string(), "variant (case, number, spelling) or near-duplicate (embedding)"),
        _field("cosine", pa.float32(), "of the two embeddings; null for a variant", null=True),
        _field("count", pa.int64(), "mentions it brought"),
    ]
)

MINED_SCHEMA = pa.schema(
    [
        _field("label", pa.string(), "as given; null for what no label holds", null=True),
        _field("entity", pa.string(), "the unit, lower case"),
        _field("sense", pa.string(), "WordNet synset name", null=True),
        _field("source", pa.string(), f"one of {', '.join(SOURCES)}"),
        _field("gloss", pa.string(), "definition of the sense", null=True),
        _field("count", pa.int64(), "mentions"),
    ]
)


@dataclass(frozen=True)
class Artifact:
    """An opened Corpus or Labels folder: its manifest (checked) and its main table."""

    folder: Path
    manifest: dict[str, Any]
    table: pa.Table

    @property
    def kind(self) -> str:
        """``corpus`` or ``labels``."""
        return str(self.manifest["artifact"])

    @property
    def fingerprint(self) -> str:
        """What the artifact is, whenever and wherever it was made."""
        return str(self.manifest["fingerprint"])

    @property
    def embeddings(self) -> np.ndarray:
        """Unit vectors, float32, one row per table row."""
        return embedding_matrix(self.table)


def embedding_matrix(table: pa.Table) -> np.ndarray:
    """The ``embedding`` column as a matrix of shape (rows, dim), float32."""
    column = table["embedding"].combine_chunks()
    return column.flatten().to_numpy().reshape(len(table), column.type.list_size)


def embedding_array(vectors: np.ndarray) -> pa.FixedSizeListArray:
    """A matrix of shape (rows, dim) as an Arrow column."""
    flat = pa.array(np.ascontiguousarray(vectors, dtype=np.float32).reshape(-1))
    field = pa.field("item", pa.float32(), nullable=False)
    return pa.FixedSizeListArray.from_arrays(flat, type=pa.list_(field, vectors.shape[1]))


def write_corpus(
    folder: Path,
    entities: pa.Table,
    index: bytes,
    told: Mapping[str, pa.Table],
    facts: Mapping[str, Any],
    *,
    location: Mapping[str, str] | None = None,
    force: bool = False,
) -> dict[str, Any]:
    """Publish a Corpus and return its manifest.

    Args:
        folder: created if missing; an older corpus there is replaced.
        entities: as :func:`entities_schema`.
        index: the serialised FAISS index over the same rows.
        told: ``SENSES``, ``MERGED`` and ``CANDIDATES``, each by its file name and with its schema here.
        facts: the manifest's ``config``, ``inputs``, ``model`` and ``counts``.
        location: where the model lies on this machine, as :func:`read_model_location` gives it back.
        force: write even if the folder holds other things.
    """
    dim = entities.schema.field("embedding").type.list_size
    tables = {ENTITIES: entities, **told}
    files = {name: parquet_bytes(tables[name]) if name in tables else index for name in FILES["corpus"]}
    rows = {name: len(tables.get(name, entities)) for name in FILES["corpus"]}
    extra = {**facts, "entities": len(entities), "dim": dim}
    return _publish(folder, "corpus", files, rows, extra, force, location)


def read_model_location(folder: Path) -> dict[str, str] | None:
    """Where the model of a corpus lay: ``model`` and, for a weights file, ``pretrained``; None if untold.

    A hint only: whoever loads what it names has to compare the weights.
    """
    try:
        told = json.loads((folder / MODEL_LOCATION).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    strings = isinstance(told, dict) and all(isinstance(value, str) for value in told.values())
    return told if strings and "model" in told else None


def write_labels(
    folder: Path, labels: pa.Table, facts: Mapping[str, Any], *, force: bool = False
) -> dict[str, Any]:
    """Publish a Labels artifact and return its manifest; arguments as :func:`write_corpus`."""
    dim = labels.schema.field("embedding").type.list_size
    extra = {**facts, "labels": len(labels), "dim": dim}
    return _publish(folder, "labels", {LABELS: parquet_bytes(labels)}, {LABELS: len(labels)}, extra, force)


def write_mined(path: Path, table: pa.Table) -> None:
    """Write the result of ``mine`` (``MINED_SCHEMA``) to one file in the format of its suffix, atomically.

    Raises :class:`CorpusError` as :func:`check_mined` does.
    """
    check_mined(path)
    writers = {".parquet": parquet_bytes, ".csv": _csv, ".jsonl": _jsonl}
    path.parent.mkdir(parents=True, exist_ok=True)
    _replace(path, writers[path.suffix.lower()](table))


def check_mined(path: Path) -> None:
    """Raise :class:`CorpusError` unless ``path`` can be written by :func:`write_mined`."""
    check_file(path, MINED_SUFFIXES)


def check_file(path: Path, suffixes: Sequence[str]) -> None:
    """Raise :class:`CorpusError` unless ``path`` can be a file that ends with one of ``suffixes``."""
    check_above(path)
    if path.is_dir():
        raise CorpusError(
            f"--out '{path}' is a folder, expected a file such as '{path / ('out' + suffixes[0])}'"
        )
    if path.suffix.lower() not in suffixes:
        raise CorpusError(f"--out '{path}' ends with '{path.suffix}', expected one of {', '.join(suffixes)}")


def read_mined(path: Path) -> pa.Table:
    """What :func:`write_mined` wrote, as ``MINED_SCHEMA``; raises :class:`CorpusError` if it is no such file."""
    from pyarrow import csv

    kinds = {field.name: field.type for field in MINED_SCHEMA}
    read_csv = csv.ConvertOptions(
        column_types=kinds, strings_can_be_null=True, quoted_strings_can_be_null=False
    )
    try:
        if path.suffix.lower() == ".parquet":
            table = pq.read_table(path)
        elif path.suffix.lower() == ".csv":
            table = csv.read_csv(path, convert_options=read_csv)
        else:
            rows = map(json.loads, path.read_text(encoding="utf-8").splitlines())
            table = table_of(list(rows), MINED_SCHEMA)
        return table.select(MINED_SCHEMA.names).cast(MINED_SCHEMA)
    except (pa.ArrowException, OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        first = (str(error) or type(error).__name__).splitlines()[0]
        raise CorpusError(
            f"--mined {path}: {first}; expected a file written by `corpus-builder mine --out`"
        ) from None


def open_artifact(folder: Path) -> Artifact:
    """Open a Corpus or Labels folder, whichever it is; checks as :func:`open_corpus`."""
    manifest = read_manifest(folder)
    return _open(folder, manifest, str(manifest["artifact"]))


def open_corpus(folder: Path) -> Artifact:
    """Open a Corpus: manifest, files present and of the recorded size, columns as promised.

    Raises :class:`CorpusError` saying what was needed, what was found and which command makes it.
    """
    return _open(folder, read_manifest(folder, "corpus"), "corpus")


def open_labels(folder: Path) -> Artifact:
    """Open a Labels artifact; checks as :func:`open_corpus`."""
    return _open(folder, read_manifest(folder, "labels"), "labels")


def read_manifest(folder: Path, kind: str | None = None) -> dict[str, Any]:
    """The manifest of an artifact of this stage, checked; raises :class:`CorpusError`."""
    wanted = f"a {kind or 'corpus or labels'} folder"
    maker = MAKERS[kind or "corpus"]
    path = folder / MANIFEST
    if not path.is_file():
        raise CorpusError(f"needs {wanted}, found no {MANIFEST} in '{folder}'; produced by `{maker}`")
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise CorpusError(
            f"needs {wanted}, found a broken {path}: {error}; make it again with `{maker}`"
        ) from None
    missing = [key for key in REQUIRED_KEYS if not isinstance(manifest, dict) or key not in manifest]
    if missing:
        raise CorpusError(f"needs {wanted}, found {path} without {', '.join(missing)}; produced by `{maker}`")
    if manifest["artifact"] not in ((kind,) if kind else FILES):
        raise CorpusError(
            f"needs {wanted}, found artifact '{manifest['artifact']}' in '{folder}'; produced by `{maker}`"
        )
    version = SCHEMA_VERSIONS[manifest["artifact"]]
    if manifest["schema_version"] != version:
        raise CorpusError(
            f"needs {wanted} of schema version {version}, found version {manifest['schema_version']}"
            f" (by {manifest['package']}); use that release, or make it again with `{maker}`"
        )
    if manifest["fingerprint"] != _fingerprint_if_whole(manifest):
        raise CorpusError(
            f"{path} was changed after it was written (its fingerprint is wrong); run `{maker}` again"
        )
    return manifest


def check_one_wordnet(first: Artifact, sha256: str | None, whose: str) -> None:
    """Raise :class:`CorpusError` if a corpus has its senses from another WordNet than ``whose``; None is unknown.

    Keys are synset names, and one name may be another synset in another version.
    """
    own = first.manifest["inputs"].get(WORDNET, {}).get("sha256")
    if own and sha256 and own != sha256:
        raise CorpusError(
            f"'{first.folder}' has its senses from another version of WordNet ({own[:12]}) than {whose}"
            f" ({sha256[:12]}), so that their keys cannot be compared; make one again with the other's WordNet"
        )


def verify_files(artifact: Artifact) -> dict[str, bool]:
    """For each file of the artifact whether its bytes are those that were written (full SHA-256)."""
    return {
        name: _sha256((artifact.folder / name).read_bytes()) == entry["sha256"]
        for name, entry in sorted(artifact.manifest["files"].items())
    }


def fingerprint(manifest: Mapping[str, Any]) -> str:
    """SHA-256 of what the artifact is: kind, version, config, inputs, model, files; never of the time."""
    keys = ("artifact", "schema_version", "package", "config", "inputs", "model")
    core = {key: manifest[key] for key in keys}
    core["files"] = {name: entry["sha256"] for name, entry in manifest["files"].items()}
    return _sha256(json.dumps(core, sort_keys=True, separators=(",", ":")).encode())


def _fingerprint_if_whole(manifest: Mapping[str, Any]) -> str | None:
    """The fingerprint, or None where entries of ``files`` lack what every entry holds."""
    try:
        whole = all({"bytes", "rows"} <= set(entry) for entry in manifest["files"].values())
        return fingerprint(manifest) if whole and "dim" in manifest else None
    except (AttributeError, KeyError, TypeError):
        return None


def file_input(path: Path) -> dict[str, str]:
    """A manifest's ``inputs`` entry for a file: base name and hash."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return {"file": path.name, "sha256": digest.hexdigest()}


def _open(folder: Path, manifest: dict[str, Any], kind: str) -> Artifact:
    for name in FILES[kind]:
        entry = manifest["files"].get(name)
        size = (folder / name).stat().st_size if (folder / name).is_file() else None
        if entry is None or size != entry["bytes"]:
            found = "nothing" if size is None else f"{size} bytes"
            needed = "an entry in the manifest" if entry is None else f"{entry['bytes']} bytes"
            raise CorpusError(
                f"{folder / name}: needs {needed}, found {found}; make it again with `{MAKERS[kind]}`"
            )
    path = folder / FILES[kind][0]
    try:
        table = pq.read_table(path)
    except (pa.ArrowException, OSError) as error:
        raise CorpusError(f"{path} cannot be read ({error}); make it again with `{MAKERS[kind]}`") from None
    schema = entities_schema if kind == "corpus" else labels_schema
    if not table.schema.equals(schema(manifest["dim"])):
        raise CorpusError(
            f"{path} has other columns than schema version {SCHEMA_VERSIONS[kind]}; run `{MAKERS[kind]}` again"
        )
    return Artifact(folder, manifest, table)


def _publish(
    folder: Path,
    kind: str,
    files: Mapping[str, bytes],
    rows: Mapping[str, int],
    facts: Mapping[str, Any],
    force: bool,
    location: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    _make_room(folder, kind, force)
    (folder / MANIFEST).unlink(missing_ok=True)
    (folder / MODEL_LOCATION).unlink(missing_ok=True)
    for name, data in files.items():
        _replace(folder / name, data)
    manifest: dict[str, Any] = {
        "artifact": kind,
        "schema_version": SCHEMA_VERSIONS[kind],
        "package": f"corpus_builder {__version__}",
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "files": {
            name: {"sha256": _sha256(data), "bytes": len(data), "rows": rows[name]}
            for name, data in files.items()
        },
        **facts,
    }
    manifest["fingerprint"] = fingerprint(manifest)
    if location:
        _replace(folder / MODEL_LOCATION, (json.dumps(dict(location), indent=2) + "\n").encode())
    _replace(folder / MANIFEST, (json.dumps(manifest, sort_keys=True, indent=2) + "\n").encode())
    return manifest


def check_above(path: Path) -> None:
    """Raise :class:`CorpusError` if ``path`` lies below a file."""
    blocked = next((parent for parent in path.parents if parent.is_file()), None)
    if blocked:
        raise CorpusError(f"--out '{path}' lies below '{blocked}', which is a file, expected a folder")


def check_room(folder: Path, kind: str, *, force: bool = False) -> None:
    """Raise :class:`CorpusError` if writing into ``folder`` would mix an artifact with other things."""
    own = {*FILES[kind], MANIFEST, *([MODEL_LOCATION] if kind == "corpus" else [])}
    check_holds_only(folder, own, force=force)


def check_holds_only(folder: Path, own: set[str], *, force: bool = False) -> None:
    """Raise :class:`CorpusError` if a folder to write to is a file, or holds other things than ``own``."""
    check_above(folder)
    if folder.exists() and not folder.is_dir():
        raise CorpusError(f"--out '{folder}' is a file, expected a folder")
    others = sorted(p.name for p in folder.iterdir() if p.name not in own) if folder.is_dir() else []
    others = [name for name in others if not name.startswith(".tmp-")]
    if others and not force:
        raise CorpusError(
            f"--out '{folder}' holds other things ({others[0]}): choose another folder, or pass --force"
        )


def _make_room(folder: Path, kind: str, force: bool) -> None:
    check_room(folder, kind, force=force)
    folder.mkdir(parents=True, exist_ok=True)
    for stale in folder.glob(".tmp-*"):
        stale.unlink()


def parquet_bytes(table: pa.Table) -> bytes:
    """A table as a Parquet file with checksums of its pages."""
    sink = pa.BufferOutputStream()
    plain = [name for name in table.schema.names if name != "embedding"]
    pq.write_table(table, sink, compression="zstd", use_dictionary=plain, write_page_checksum=True)
    return sink.getvalue().to_pybytes()


def _csv(table: pa.Table) -> bytes:
    from pyarrow import csv

    sink = pa.BufferOutputStream()
    csv.write_csv(table, sink)
    return sink.getvalue().to_pybytes()


def _jsonl(table: pa.Table) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in table.to_pylist()).encode()


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _replace(path: Path, data: bytes) -> None:
    """Write beside the target, force to disk, rename: readers never see a part."""
    handle, temporary = tempfile.mkstemp(prefix=".tmp-", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def write_file(path: Path, data: bytes) -> None:
    """Write a single file whole or not at all, making its folder; raises :class:`CorpusError` below a file."""
    check_above(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    _replace(path, data)


def table_of(rows: Sequence[Mapping[str, Any]], schema: pa.Schema) -> pa.Table:
    """Rows as dicts -> a table of that schema."""
    return pa.Table.from_pylist(list(rows), schema=schema)


def summary(opened: Artifact) -> str:
    """A few lines for people: what it is, its model, inputs, counts, and its first rows."""
    manifest = opened.manifest
    model = manifest["model"]
    given = ", ".join(f"{name}: {entry['file']}" for name, entry in sorted(manifest["inputs"].items()))
    weights = "RANDOM WEIGHTS" if model["random_weights"] else model["pretrained"] or "own weights"
    lines = [
        f"{opened.kind} {opened.fingerprint[:12]}, {manifest['package']}, {manifest['created']}",
        f"model    {model['name']} ({weights}), {model['embed_dim']} wide, {model['weights_sha256'][:12]}",
        f"inputs   {given}",
        f"counts   {json.dumps(manifest['counts'], sort_keys=True)}",
        f"rows     {len(opened.table)}, of which",
    ]
    column = "text" if opened.kind == "corpus" else "name"
    return "\n".join(
        lines + [f"  {row:>5}  {text}" for row, text in enumerate(opened.table[column][:10].to_pylist())]
    )
