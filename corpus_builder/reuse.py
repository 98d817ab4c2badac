"""Corpora from corpora: subset, merge, re-embed; and what two corpora differ in.

A derived corpus is a Corpus like any other. Its manifest names the fingerprints of its parents and the operation; its
``candidates.parquet`` is that of the parents, since it tells of the mining.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Float

from corpus_builder import artifact
from corpus_builder.artifact import Artifact
from corpus_builder.config import KINDS, SOURCES, CorpusError, check_choice
from corpus_builder.entities import examples
from corpus_builder.index import build_index, index_bytes
from corpus_builder.sources import read_labels
from corpus_builder.tables import with_embeddings
from corpus_builder.wordlists import read_list

Row = dict[str, Any]
Place = tuple[int, int]
"""Number of a parent, and an entity id in it."""


@dataclass(frozen=True)
class Space:
    """Embeddings, the model that made them and where it lies."""

    vectors: Float[np.ndarray, "entities dim"]
    model: Mapping[str, Any]
    location: Mapping[str, str] | None = None
    truncated: int | None = None


@dataclass(frozen=True)
class Selection:
    """Which entities a subset keeps: all that meet every condition that is given."""

    labels: Path | None = None
    """File of labels; entities found in one of them are kept."""
    entities: Path | None = None
    """File of names, aliases and keys (synsets), one a line; ``#`` begins a remark."""
    kinds: tuple[str, ...] = ()
    sources: tuple[str, ...] = ()
    """Found in one of these, be it not the first."""
    lexnames: tuple[str, ...] = ()
    min_count: int = 0
    top: int | None = None
    """The so many found most often (ties: the lower id)."""

    def __post_init__(self) -> None:
        """Raises :class:`CorpusError` on an unknown kind or source, or a number below what makes sense."""
        for kind in self.kinds:
            check_choice("--kind", kind, KINDS)
        for source in self.sources:
            check_choice("--source", source, SOURCES)
        if self.top is not None and self.top < 1:
            raise CorpusError(f"--top is {self.top}, expected at least 1")


@dataclass(frozen=True)
class Difference:
    """Keys of entities in one corpus only, and of those in both that differ, with the columns in which."""

    only_first: tuple[str, ...]
    only_second: tuple[str, ...]
    changed: dict[str, tuple[str, ...]]
    same: int
    one_model: bool


def subset(folder: Path, out: Path, selection: Selection, *, force: bool = False) -> dict[str, Any]:
    """Write the entities of a corpus that ``selection`` keeps as a corpus of its own; returns its manifest.

    What the files of the selection name and no entity has is listed in the manifest's ``counts``, ``not_found``.
    Raises :class:`CorpusError` if nothing is left, or a lexicographer file is not among the corpus's.
    """
    corpus = artifact.open_corpus(folder)
    rows = _rows(corpus)
    for lexname in selection.lexnames:
        check_choice("--lexname", lexname, sorted({row["lexname"] for row in rows if row["lexname"]}))
    files = {name: path for name in ("labels", "entities") if (path := getattr(selection, name))}
    wanted = _wanted(selection)
    ids = _selected(rows, selection, wanted)
    if not ids:
        raise CorpusError(f"no entity of '{folder}' is left (it has {len(rows)}); ask for less")
    told = asdict(selection) | {name: path.name for name, path in files.items()}
    told |= {name: list(told[name]) for name in ("kinds", "sources", "lexnames")}
    return _derive(
        out,
        [corpus],
        [(0, number) for number in ids],
        [rows[number] for number in ids],
        {"name": "subset", **told},
        force,
        inputs={name: artifact.file_input(path) for name, path in files.items()},
        counts={"not_found": sorted(wanted.missing(rows))},
    )


def merge(folders: Sequence[Path], out: Path, *, force: bool = False) -> dict[str, Any]:
    """Write the union of corpora of one model; returns its manifest.

    Entities of one key become one: the name, text and embedding of the first corpus that has it, counts added, labels,
    sources, names and contexts united. The manifest's ``counts`` tell how many were ``united``, and of these how many
    ``texts_differed``. Raises :class:`CorpusError` if their models or WordNets differ, or there are fewer than two.
    """
    if len(folders) < 2:
        raise CorpusError(f"merge takes two corpora or more, got {len(folders)}")
    corpora = [artifact.open_corpus(folder) for folder in folders]
    _check_one_model(corpora)
    for corpus in corpora[1:]:
        artifact.check_one_wordnet(corpora[0], _wordnet([corpus]).get("sha256"), f"'{corpus.folder}'")
    places: dict[str, Place] = {}
    united: dict[str, Row] = {}
    counts: Counter[str] = Counter(united=0, texts_differed=0)
    for number, corpus in enumerate(corpora):
        for position, row in enumerate(_rows(corpus)):
            key = row["key"]
            if key in united:
                counts["united"] += 1
                counts["texts_differed"] += united[key]["text"] != row["text"]
                united[key] = _united(united[key], row)
            else:
                united[key], places[key] = row, (number, position)
    order = sorted(united, key=lambda key: (SOURCES.index(united[key]["source"]), united[key]["name"], key))
    at, rows = [places[key] for key in order], [united[key] for key in order]
    return _derive(out, corpora, at, rows, {"name": "merge"}, force, counts=counts)


def _check_one_model(corpora: Sequence[Artifact]) -> None:
    first, *others = [(corpus.folder, corpus.manifest["model"]) for corpus in corpora]
    for folder, model in others:
        if model["weights_sha256"] != first[1]["weights_sha256"]:
            raise CorpusError(
                f"'{first[0]}' was made with {first[1]['name']} ({first[1]['weights_sha256'][:12]}), '{folder}' with"
                f" {model['name']} ({model['weights_sha256'][:12]}): only corpora of one model can be merged;"
                " run `corpus-builder re-embed` on one of them first"
            )


def re_embed(
    folder: Path,
    out: Path,
    model: str,
    pretrained: str | None,
    *,
    device: str = "auto",
    precision: str = "fp32",
    force: bool = False,
) -> dict[str, Any]:
    """Write the same entities, under the same ids, in another CLIP's space; returns the manifest."""
    from corpus_builder.embed import check_model, choose_device, load_text_encoder, model_location

    corpus = artifact.open_corpus(folder)
    artifact.check_room(out, "corpus", force=force)
    check_model(model, pretrained)
    choose_device(device, precision)
    encoder = load_text_encoder(model, pretrained, device, precision)
    texts = corpus.table["text"].to_pylist()
    vectors = encoder.encode(texts)
    rows = _rows(corpus)
    space = Space(vectors, encoder.info, model_location(model, pretrained), encoder.truncated(texts))
    places = [(0, number) for number in range(len(rows))]
    told = {"name": "re-embed", "precision": precision}
    return _derive(out, [corpus], places, rows, told, force, space=space)


def diff(first: Path, second: Path) -> Difference:
    """What two corpora differ in, by key; embeddings are not compared, but whether they are of one model is told."""
    corpora = [artifact.open_corpus(folder) for folder in (first, second)]
    one, two = ({row["key"]: row for row in _rows(corpus)} for corpus in corpora)
    changed = {}
    for key in sorted(one.keys() & two.keys()):
        columns = [name for name in one[key] if name != "entity_id" and one[key][name] != two[key].get(name)]
        if columns:
            changed[key] = tuple(columns)
    return Difference(
        tuple(sorted(one.keys() - two.keys())),
        tuple(sorted(two.keys() - one.keys())),
        changed,
        same=len(one.keys() & two.keys()) - len(changed),
        one_model=len({corpus.manifest["model"]["weights_sha256"] for corpus in corpora}) == 1,
    )


def stats(folder: Path) -> dict[str, Any]:
    """Sizes of a corpus: entities by kind, source and lexicographer file, words, mentions, labels, bytes."""
    corpus = artifact.open_corpus(folder)
    rows = _rows(corpus)
    per_label = Counter(label for row in rows for label in row["labels"])
    counts = sorted(row["count"] for row in rows)

    def tally(name: str) -> dict[str, int]:
        return dict(sorted(Counter(row[name] or "none" for row in rows).items()))

    return {
        "entities": len(rows),
        "dim": corpus.manifest["dim"],
        "with_sense": sum(row["sense"] is not None for row in rows),
        "by_kind": tally("kind"),
        "by_source": tally("source"),
        "by_lexname": tally("lexname"),
        "mentions": sum(counts),
        "median_count": counts[len(counts) // 2] if counts else 0,
        "labels": len(per_label),
        "entities_per_label": round(sum(per_label.values()) / len(per_label), 3) if per_label else 0.0,
        "bytes": {name: entry["bytes"] for name, entry in sorted(corpus.manifest["files"].items())},
    }


def _rows(corpus: Artifact) -> list[Row]:
    return corpus.table.drop_columns(["embedding"]).to_pylist()


@dataclass(frozen=True)
class _Wanted:
    """What the files of a selection name; None where there is no such file."""

    labels: frozenset[str] | None
    entities: frozenset[str] | None

    def allows(self, row: Row) -> bool:
        by_label = self.labels is None or bool(self.labels & set(row["labels"]))
        return by_label and (self.entities is None or bool(self.entities & _names(row)))

    def missing(self, rows: Sequence[Row]) -> frozenset[str]:
        """What no entity of a corpus has."""
        labels = {label for row in rows for label in row["labels"]}
        names = {name for row in rows for name in _names(row)}
        return ((self.labels or frozenset()) - labels) | ((self.entities or frozenset()) - names)


def _wanted(selection: Selection) -> _Wanted:
    labels = selection.labels and frozenset(label.label for label in read_labels(selection.labels).labels)
    listed = selection.entities and read_list(selection.entities, "--entities")
    return _Wanted(labels or None, listed.phrases | listed.synsets if listed else None)


def _names(row: Row) -> set[str]:
    return {name.lower() for name in (row["key"], row["name"], *row["aliases"])}


def _selected(rows: Sequence[Row], selection: Selection, wanted: _Wanted) -> list[int]:
    kept = [
        row["entity_id"]
        for row in rows
        if wanted.allows(row)
        and (not selection.kinds or row["kind"] in selection.kinds)
        and (not selection.sources or set(selection.sources) & set(row["sources"]))
        and (not selection.lexnames or row["lexname"] in selection.lexnames)
        and row["count"] >= selection.min_count
    ]
    if selection.top is not None:
        kept = sorted(sorted(kept, key=lambda i: (-rows[i]["count"], i))[: selection.top])
    return kept


def _united(kept: Row, other: Row) -> Row:
    sources = [source for source in SOURCES if source in (*kept["sources"], *other["sources"])]
    names = {kept["name"], other["name"], *kept["aliases"], *other["aliases"]}
    return kept | {
        "sources": sources,
        "source": sources[0],
        "aliases": sorted(names - {kept["name"]}),
        "count": kept["count"] + other["count"],
        "labels": sorted({*kept["labels"], *other["labels"]}),
        "contexts": list(examples((*kept["contexts"], *other["contexts"]))),
    }


def _derive(
    out: Path,
    parents: Sequence[Artifact],
    places: Sequence[Place],
    rows: Sequence[Row],
    told: Mapping[str, Any],
    force: bool,
    *,
    space: Space | None = None,
    inputs: Mapping[str, Any] = MappingProxyType({}),
    counts: Mapping[str, Any] = MappingProxyType({}),
) -> dict[str, Any]:
    """Publish a corpus whose entity i is ``rows[i]``, found at ``places[i]``; ``space`` is new embeddings.

    ``told`` is the operation, ``inputs`` and ``counts`` what the manifest is to hold beside parents and sizes.
    """
    if space is None:
        matrices = [parent.embeddings for parent in parents]
        vectors = np.stack([matrices[parent][number] for parent, number in places])
        lay = artifact.read_model_location(parents[0].folder)
        space = Space(vectors, parents[0].manifest["model"], lay)
    rows = [row | {"entity_id": number} for number, row in enumerate(rows)]
    new_id = {place: number for number, place in enumerate(places)}
    tables = {name: _carried(parents, name, new_id) for name in (artifact.SENSES, artifact.MERGED)}
    tables[artifact.CANDIDATES] = pa.concat_tables([_read(parent, artifact.CANDIDATES) for parent in parents])
    built = build_index(space.vectors)
    facts = {
        "config": {"operation": dict(told)},
        "inputs": {
            f"corpus{number}": {"file": parent.folder.name, "sha256": parent.fingerprint}
            for number, parent in enumerate(parents)
        }
        | ({artifact.WORDNET: found} if (found := _wordnet(parents)) else {})
        | dict(inputs),
        "model": dict(space.model),
        "counts": {"entities": len(rows), "parents": [len(parent.table) for parent in parents]}
        | dict(counts),
        "index": built.facts,
    }
    if space.truncated is not None:
        facts["counts"]["texts_truncated"] = space.truncated
    table = with_embeddings(rows, space.vectors, artifact.entities_schema(space.vectors.shape[1]))
    return artifact.write_corpus(
        out, table, index_bytes(built.index), tables, facts, location=space.location, force=force
    )


def _wordnet(parents: Sequence[Artifact]) -> dict[str, Any]:
    told = (parent.manifest["inputs"].get(artifact.WORDNET) for parent in parents)
    return next((entry for entry in told if entry), {})


def _read(corpus: Artifact, name: str) -> pa.Table:
    return pq.read_table(corpus.folder / name)


def _carried(parents: Sequence[Artifact], name: str, new_id: Mapping[Place, int]) -> pa.Table:
    """Rows of the parents' tables that speak of an entity that is kept, under its new id and in its order."""
    tables = [_read(parent, name) for parent in parents]
    rows = [
        row | {"entity_id": new_id[number, row["entity_id"]]}
        for number, table in enumerate(tables)
        for row in table.to_pylist()
        if (number, row["entity_id"]) in new_id
    ]
    return artifact.table_of(sorted(rows, key=lambda row: row["entity_id"]), tables[0].schema)
