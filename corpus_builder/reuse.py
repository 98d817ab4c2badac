"""Corpora from corpora: subset, merge, re-embed; and what two corpora differ in.

A derived corpus is a Corpus like any other. Its manifest names the fingerprints of its parents and the operation; its
``candidates.parquet`` is that of the parents, since it tells of the mining.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
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
    kinds: tuple[str, ...] = ()
    lexnames: tuple[str, ...] = ()
    min_count: int = 0
    top: int | None = None
    """The so many found most often (ties: the lower id)."""

    def __post_init__(self) -> None:
        """Raises :class:`CorpusError` on an unknown kind or a number below what makes sense."""
        for kind in self.kinds:
            check_choice("--kind", kind, KINDS)
        if self.top is not None and self.top < 1:
            raise CorpusError(f"--top is {self.top}, expected at least 1")


@dataclass(frozen=True)
class Difference:
    """Keys of entities in one corpus only, and of those in both that differ, with the columns in which."""

    only_first: tuple[str, ...]
    only_second: tuple[str, ...]
    changed: dict[str, tuple[str, ...]]
    same: int


def subset(folder: Path, out: Path, selection: Selection, *, force: bool = False) -> dict[str, Any]:
    """Write the entities of a corpus that ``selection`` keeps as a corpus of its own; returns its manifest.

    Raises :class:`CorpusError` if nothing is left.
    """
    corpus = artifact.open_corpus(folder)
    rows = _rows(corpus)
    ids = _selected(rows, selection)
    if not ids:
        raise CorpusError(f"no entity of '{folder}' is left (it has {len(rows)}); ask for less")
    told = asdict(selection) | {"labels": selection.labels.name if selection.labels else None}
    told |= {"kinds": list(selection.kinds), "lexnames": list(selection.lexnames)}
    kept = [rows[number] for number in ids]
    return _derive(out, [corpus], [(0, number) for number in ids], kept, {"name": "subset", **told}, force)


def merge(first: Path, second: Path, out: Path, *, force: bool = False) -> dict[str, Any]:
    """Write the union of two corpora of one model; returns its manifest.

    Entities of one key become one: the first corpus's name, text and embedding, counts added, labels, sources,
    names and contexts united. Raises :class:`CorpusError` if their models differ.
    """
    corpora = [artifact.open_corpus(first), artifact.open_corpus(second)]
    models = [corpus.manifest["model"] for corpus in corpora]
    if models[0]["weights_sha256"] != models[1]["weights_sha256"]:
        raise CorpusError(
            f"'{first}' was made with {models[0]['name']} ({models[0]['weights_sha256'][:12]}), '{second}' with"
            f" {models[1]['name']} ({models[1]['weights_sha256'][:12]}): only corpora of one model can be merged;"
            " run `corpus-builder re-embed` on one of them first"
        )
    tables = [_rows(corpus) for corpus in corpora]
    places: dict[str, Place] = {}
    united: dict[str, Row] = {}
    for number, rows in enumerate(tables):
        for position, row in enumerate(rows):
            if row["key"] in united:
                united[row["key"]] = _united(united[row["key"]], row)
            else:
                united[row["key"]] = row
                places[row["key"]] = number, position
    order = sorted(united, key=lambda key: (SOURCES.index(united[key]["source"]), united[key]["name"], key))
    at, rows = [places[key] for key in order], [united[key] for key in order]
    return _derive(out, corpora, at, rows, {"name": "merge"}, force)


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
    told = {"name": "re-embed", "precision": precision}
    return _derive(out, [corpus], [(0, i) for i in range(len(rows))], rows, told, force, space)


def diff(first: Path, second: Path) -> Difference:
    """What two corpora differ in, by key; embeddings are not compared."""
    one, two = (
        {row["key"]: row for row in _rows(artifact.open_corpus(folder))} for folder in (first, second)
    )
    changed = {}
    for key in sorted(one.keys() & two.keys()):
        columns = [name for name in one[key] if name != "entity_id" and one[key][name] != two[key].get(name)]
        if columns:
            changed[key] = tuple(columns)
    same = len(one.keys() & two.keys()) - len(changed)
    return Difference(
        tuple(sorted(one.keys() - two.keys())), tuple(sorted(two.keys() - one.keys())), changed, same
    )


def stats(folder: Path) -> dict[str, Any]:
    """Sizes of a corpus: entities by kind, source and lexicographer file, words, mentions, labels, bytes."""
    corpus = artifact.open_corpus(folder)
    rows = _rows(corpus)
    per_label = Counter(label for row in rows for label in row["labels"])
    counts = sorted(row["count"] for row in rows)

    def tally(name: str) -> dict[str, int]:
        return dict(sorted(Counter(str(row[name]) for row in rows).items()))

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


def _selected(rows: Sequence[Row], selection: Selection) -> list[int]:
    labels = {label.label for label in read_labels(selection.labels).labels} if selection.labels else None
    kept = [
        row["entity_id"]
        for row in rows
        if (labels is None or labels & set(row["labels"]))
        and (not selection.kinds or row["kind"] in selection.kinds)
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
    space: Space | None = None,
) -> dict[str, Any]:
    """Publish a corpus whose entity i is ``rows[i]``, found at ``places[i]``; ``space`` is new embeddings."""
    if space is None:
        vectors = np.stack([parents[parent].embeddings[number] for parent, number in places])
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
        },
        "model": dict(space.model),
        "counts": {"entities": len(rows), "parents": [len(parent.table) for parent in parents]},
        "index": built.facts,
    }
    if space.truncated is not None:
        facts["counts"]["texts_truncated"] = space.truncated
    table = with_embeddings(rows, space.vectors, artifact.entities_schema(space.vectors.shape[1]))
    return artifact.write_corpus(
        out, table, index_bytes(built.index), tables, facts, location=space.location, force=force
    )


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
