"""A corpus for other programs: CSV, JSON lines, or a folder that Hugging Face ``datasets`` loads.

- ``csv``: lists are JSON in their cell, an empty cell is null. Cells that begin with ``=``, ``+``, ``-`` or ``@`` are
  written as they are: the file is data, to be read back equal, and a quote mark before them would be another name. A
  spreadsheet may take such a cell for a formula, so they are counted and told; have it import the columns as text.
- ``jsonl``: one object a line; lists are lists.
- ``hf``: ``data/train-00000-of-00001.parquet`` and a data card, ``README.md``, which is written last.

Numbers of embeddings are written with the fewest digits that give the same float32 back. The same corpus gives the
same bytes.
"""

import csv
import io
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from corpus_builder import artifact
from corpus_builder.artifact import Artifact
from corpus_builder.card import CARD, DATA, data_card
from corpus_builder.config import CorpusError, check_choice

FORMS = ("csv", "jsonl", "hf")
FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r")


@dataclass(frozen=True)
class Exported:
    """What was written: the format, how many entities, and how many cells a spreadsheet may take for formulas."""

    form: str
    entities: int
    formulas: int = 0


def export(
    folder: Path, out: Path, *, form: str | None = None, embeddings: bool = False, force: bool = False
) -> Exported:
    """Write the entities of a corpus for other programs.

    Args:
        folder: the corpus.
        out: a file for ``csv`` and ``jsonl``, a folder for ``hf``; its own files there are replaced.
        form: one of ``FORMS``; by the suffix of ``out`` where it is None.
        embeddings: whether the vectors are written too; ``hf`` always holds them.
        force: write into a folder that holds other things.

    Raises:
        CorpusError: no corpus, an unknown format, or a place that cannot be written to.
    """
    form = _form(out, form)
    if form == "hf":
        artifact.check_holds_only(out, {CARD, Path(DATA).parts[0]}, force=force)
    elif out.is_dir():
        raise CorpusError(f"--out '{out}' is a folder, expected a file such as '{out / f'entities.{form}'}'")
    corpus = artifact.open_corpus(folder)
    if form == "hf":
        return _write_dataset(corpus, out)
    rows = list(_rows(corpus, embeddings))
    artifact.write_file(out, {"csv": _csv, "jsonl": _jsonl}[form](rows))
    return Exported(form, len(rows), _formulas(rows) if form == "csv" else 0)


def _form(out: Path, form: str | None) -> str:
    if form is not None:
        check_choice("--format", form, FORMS)
        return form
    suffix = out.suffix.lower().removeprefix(".")
    if suffix not in ("csv", "jsonl"):
        raise CorpusError(
            f"--out '{out}' ends with neither .csv nor .jsonl; give --format csv, jsonl or hf (a folder)"
        )
    return suffix


def _rows(corpus: Artifact, embeddings: bool) -> Iterator[dict[str, Any]]:
    rows = corpus.table.drop_columns(["embedding"]).to_pylist()
    if not embeddings:
        yield from rows
        return
    for row, vector in zip(rows, corpus.embeddings, strict=True):
        yield row | {"embedding": [float(number) for number in vector.astype(str)]}


def _csv(rows: list[dict[str, Any]]) -> bytes:
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(rows[0])
    for row in rows:
        writer.writerow([_to_json(cell) if isinstance(cell, list) else cell for cell in row.values()])
    return stream.getvalue().encode()


def _jsonl(rows: list[dict[str, Any]]) -> bytes:
    return "".join(f"{_to_json(row)}\n" for row in rows).encode()


def _to_json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def _formulas(rows: list[dict[str, Any]]) -> int:
    cells = (cell for row in rows for cell in row.values() if isinstance(cell, str))
    return sum(cell.startswith(FORMULA_STARTS) for cell in cells)


def _write_dataset(corpus: Artifact, out: Path) -> Exported:
    """The table, then the card: a folder without a card is not finished."""
    (out / CARD).unlink(missing_ok=True)
    artifact.write_file(out / DATA, artifact.parquet_bytes(_plain(corpus.table)))
    artifact.write_file(out / CARD, data_card(corpus).encode())
    return Exported("hf", len(corpus.table))


def _plain(table: pa.Table) -> pa.Table:
    """The table with lists of any length in place of lists of a fixed one, and nothing that may not be null."""
    return table.cast(pa.schema([_plain_field(field) for field in table.schema]))


def _plain_field(field: pa.Field) -> pa.Field:
    kind = field.type
    if pa.types.is_list(kind) or pa.types.is_fixed_size_list(kind):
        kind = pa.list_(kind.value_type)
    return pa.field(field.name, kind, metadata=field.metadata)
