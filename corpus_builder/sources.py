"""Read labels, expansions and captions, and clean names. Nothing here knows of entities."""

import csv
import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain, islice
from pathlib import Path
from typing import Any

from corpus_builder.config import CorpusError, did_you_mean
from corpus_builder.describe import PARTS, joined

LABEL_COLUMNS = ("name", "label")
CAPTION_COLUMNS = ("caption", "text")
WORD_COLUMNS = ("word", "name", "label", "phrase", "class")
ALIKE: dict[tuple[str, ...], tuple[str, ...]] = {
    LABEL_COLUMNS: ("class", "action"),
    CAPTION_COLUMNS: ("sentence", "description"),
    WORD_COLUMNS: ("category", "object", "entity", "synset"),
}
"""What such columns are called elsewhere: not read unasked, but worth a hint."""

CAPTION_BATCH = 4096
MAX_CAPTION = 2000
"""Longest caption, in characters; what is longer is no caption but a document or a broken file."""
MAX_LINE = 1 << 16
"""Longest line of a caption file, in bytes; the rest of a longer one is passed over, never held."""
SAMPLE = 1000
"""Rows looked at before the first caption is given, to tell another encoding from a few broken rows."""
RECODE = "save it as UTF-8, for example with `iconv -f LATIN1 -t UTF-8`"

# "applyEye" -> "apply Eye"; "TVShow" -> "TV Show", while "DVDs" stays whole.
_CAMEL = re.compile(r"(?<=[a-z])(?=[A-Z])|(?<=[A-Z])(?=[A-Z](?!s\b)[a-z])")
_SEPARATORS = re.compile(r"[\s_\-/]+")
_LATIN = re.compile(r"[A-Za-z]")


@dataclass(frozen=True)
class Label:
    """One class: its name as given, cleaned for people and prompts, and its id in the file."""

    label: str
    name: str
    class_id: int


@dataclass(frozen=True)
class Mention:
    """A text to mine, the words it is understood by, and where it came from."""

    text: str
    context: str
    label: str | None
    source: str


@dataclass(frozen=True)
class LabelFile:
    """The classes of one file in its order, and the phrases a JSON file gives for them (keyed by label)."""

    labels: tuple[Label, ...]
    expansions: dict[str, tuple[str, ...]]


@dataclass
class Captions:
    """The captions of one file, read as they are asked for; ``skipped`` counts the rows that hold none.

    After a whole pass, captions given + ``skipped`` rows == ``rows``. Reasons: ``blank``, ``not UTF-8``,
    ``NUL byte``, ``too long`` (over ``MAX_CAPTION`` characters), ``no Latin letters``, and by format ``ragged
    row``, ``broken CSV``, ``broken JSON``, ``no text``.
    """

    path: Path
    column: str | None = None
    skipped: Counter[str] = field(default_factory=Counter)
    rows: int = 0

    def __iter__(self) -> Iterator[str]:
        """Raises :class:`CorpusError` as :func:`read_labels` does, or if nothing but skipped rows is there."""
        self.skipped.clear()
        self.rows = 0
        stream = _caption_rows(self.path, self.column)
        sample = list(islice(stream, SAMPLE))
        broken = sum(row.reason == NOT_UTF8 for row in sample)
        if sample and 2 * broken >= len(sample):
            raise CorpusError(
                f"--captions {self.path.name}: {broken} of the first {len(sample)} rows are not UTF-8; {RECODE}"
            )
        for row in chain(sample, stream):
            self.rows += 1
            text, reason = (None, row.reason) if row.reason else _as_caption(row.text)
            if text is None:
                self.skipped[reason or "blank"] += 1
            else:
                yield text
        if self.rows == self.skipped.total():
            told = ", ".join(f"{number} {reason}" for reason, number in sorted(self.skipped.items()))
            raise CorpusError(
                f"--captions {self.path.name} holds no caption, expected at least one"
                + (f" (rows passed over: {told})" if told else "")
            )


NOT_UTF8 = "not UTF-8"


@dataclass(frozen=True)
class _Row:
    """The text of one row of a caption file, or why it has none."""

    text: str = ""
    reason: str | None = None


def clean_name(text: str) -> str:
    """Lower-case words of a class name: ``ApplyEyeMakeup`` and ``apply_eye-makeup`` -> ``apply eye makeup``.

    Acronyms and digits stay together (``TVShow3D`` -> ``tv show3d``); cleaning twice changes nothing.
    """
    spaced = _SEPARATORS.sub(" ", text)
    return _SEPARATORS.sub(" ", _CAMEL.sub(" ", spaced)).strip().lower()


def read_labels(path: Path, column: str | None = None) -> LabelFile:
    """Classes from a ``.txt`` (one per line), ``.csv``, ``.json``, ``.jsonl`` or ``.parquet`` file.

    CSV, JSON lines, Parquet: the column ``name`` or ``label``, or ``column``. JSON: a list of names, or a
    dict from name to phrases.
    Raises :class:`CorpusError` on a missing, empty or unreadable file, an unknown column, or duplicates.
    """
    require_file(path, "--labels")
    expansions: dict[str, tuple[str, ...]] = {}
    suffix = path.suffix.lower()
    if suffix == ".json":
        names, ids, expansions = _labels_from_json(path)
    elif suffix == ".csv":
        names, ids = _labels_from_csv(path, column)
    elif suffix == ".txt":
        names, ids = [line for line in _lines(path) if line], None
    elif suffix in (".jsonl", ".parquet"):
        names, ids = _labels_from_rows(path, column), None
    else:
        raise CorpusError(
            f"--labels {path.name}: got '{path.suffix}', expected a .txt, .csv, .json, .jsonl or .parquet file"
        )
    return LabelFile(_as_labels(path, names, ids), expansions)


def read_expansions(path: Path, labels: Sequence[Label]) -> dict[str, tuple[str, ...]]:
    """Phrases per class from a JSON dict whose keys are labels or class ids; keyed by the label as given.

    Raises :class:`CorpusError` if a key is neither a label nor an id of ``labels``.
    """
    require_file(path, "--expansions")
    data = _load_json(path)
    if not isinstance(data, dict) or not data:
        raise CorpusError(
            f"--expansions {path.name}: got {_kind(data)}, expected a dict of label or id -> phrases"
        )
    names = {label.label: label.label for label in labels} | {
        str(label.class_id): label.label for label in labels
    }
    unknown = [key for key in data if key not in names]
    if unknown:
        raise CorpusError(
            f"--expansions {path.name}: {len(unknown)} keys are neither a label nor a class id, the first is"
            f" '{unknown[0]}'{did_you_mean(unknown[0], names)}; is it made for other labels?"
        )
    return {names[key]: _phrases(path, key, value) for key, value in data.items()}


def read_descriptions(path: Path) -> dict[str, str]:
    """Phrase -> description from a JSON dict, as ``corpus-builder expand ask`` writes it, or written by hand.

    A value is a text, or a dict with the text of ``sentence``, ``looks`` or both (see :mod:`corpus_builder.describe`).
    Raises :class:`CorpusError` if the file is none, or if two keys are one phrase.
    """
    require_file(path, "--descriptions")
    data = _load_json(path)
    if not isinstance(data, dict) or not data:
        raise CorpusError(
            f"--descriptions {path.name}: got {_kind(data)}, expected a dict of phrase -> description"
        )
    found: dict[str, str] = {}
    for phrase, value in data.items():
        name = " ".join(phrase.split()).lower()
        if name in found:
            raise CorpusError(f"--descriptions {path.name}: '{name}' stands twice; keep one")
        found[name] = _description(path, phrase, value)
    return found


def iter_captions(path: Path, column: str | None = None) -> Captions:
    """Captions of a ``.txt`` (one per line), ``.csv``, ``.jsonl`` or ``.parquet`` file, streamed and counted.

    The column is ``caption`` or ``text`` unless given. Rows without a usable caption are counted
    (:class:`Captions`). Raises :class:`CorpusError` as :func:`read_labels` does, or when half of the first
    rows are not UTF-8.
    """
    return Captions(path, column)


def list_rows(path: Path, column: str | None = None) -> Iterator[tuple[str, str | None]]:
    """Every row of a list of words: its text, and why it has none.

    ``.txt``, ``.csv``, ``.json``, ``.jsonl`` or ``.parquet``. The column is the first of ``WORD_COLUMNS`` unless given.
    JSON: a list of words or objects, the ``categories`` of COCO and LVIS, a dict from id to word (or ImageNet's pair),
    or from word to description.
    Raises :class:`CorpusError` on a missing, empty or unreadable file, or an unknown column.
    """
    require_file(path, "WORDS")
    suffix = path.suffix.lower()
    if suffix == ".txt":
        rows: Iterable[_Row] = _text_rows(path)
    elif suffix == ".csv":
        rows = _csv_rows(path, column, WORD_COLUMNS, "--column")
    elif suffix == ".jsonl":
        rows = _json_rows(path, column, WORD_COLUMNS, "--column")
    elif suffix == ".parquet":
        rows = _parquet_rows(path, column, WORD_COLUMNS, "WORDS", "--column")
    elif suffix == ".json":
        rows = _listed(path, column)
    else:
        raise CorpusError(
            f"WORDS {path.name}: got '{path.suffix}', expected a .txt, .csv, .json, .jsonl or .parquet file"
        )
    return ((row.text, row.reason) for row in rows)


def _listed(path: Path, column: str | None) -> Iterator[_Row]:
    data = _load_json(path)
    if isinstance(data, dict):
        data = data.get("categories", data)
    if isinstance(data, dict):
        ids = all(key.isdigit() for key in data)
        data = list(data.values()) if ids else [_described(key, value) for key, value in data.items()]
    if not isinstance(data, list) or not data:
        raise CorpusError(f"WORDS {path.name}: got {_kind(data)}, expected a list or a dict of words")
    chosen = None
    for item in data:
        if isinstance(item, dict):
            chosen = chosen or _choose_column(path, list(item), column, WORD_COLUMNS, "--column")
            item = item.get(chosen)
        elif isinstance(item, list) and all(isinstance(part, str) for part in item):
            item = " ".join(item)
        yield _json_row(item)


def _described(word: str, value: object) -> str:
    return f"{word}\t{value}" if isinstance(value, str) and value.strip() else word


def label_mentions(file: LabelFile) -> list[Mention]:
    """One mention per label, then one per expansion phrase, in file order."""
    mentions = []
    for label in file.labels:
        mentions.append(Mention(label.name, label.name, label.label, "label"))
        for phrase in file.expansions.get(label.label, ()):
            mentions.append(Mention(clean_name(phrase), label.name, label.label, "expansion"))
    return mentions


def require_file(path: Path, option: str) -> None:
    """Raise :class:`CorpusError` naming ``option`` unless there is such a file with something in it."""
    if not path.is_file():
        raise CorpusError(f"{option} {path}: no such file")
    if path.stat().st_size == 0:
        raise CorpusError(f"{option} {path.name}: the file is empty")


def _as_caption(text: str) -> tuple[str | None, str | None]:
    """The caption with single spaces, or None and why it is none."""
    if "\0" in text:
        return None, "NUL byte"
    if len(text) > MAX_CAPTION:
        return None, "too long"
    text = _SEPARATORS.sub(" ", text).strip()
    if not text:
        return None, "blank"
    return (text, None) if _LATIN.search(text) else (None, "no Latin letters")


def _caption_rows(path: Path, column: str | None) -> Iterator[_Row]:
    require_file(path, "--captions")
    suffix = path.suffix.lower()
    if suffix == ".parquet":
        return _parquet_rows(path, column, CAPTION_COLUMNS, "--captions", "--caption-column")
    readers = {".csv": _csv_rows, ".jsonl": _json_rows}
    if suffix == ".txt":
        return _text_rows(path)
    if suffix in readers:
        return readers[suffix](path, column, CAPTION_COLUMNS, "--caption-column")
    raise CorpusError(
        f"--captions {path.name}: got '{path.suffix}', expected a .txt, .csv, .jsonl or .parquet file"
    )


def _raw_lines(path: Path) -> Iterator[bytes | None]:
    """Lines as bytes without their end, None for one over ``MAX_LINE``; holds no more than that of one."""
    with path.open("rb") as stream:
        head = stream.read(4)
        if head[:2] in (b"\xff\xfe", b"\xfe\xff"):
            raise CorpusError(
                f"{path.name} is UTF-16, expected UTF-8; save it with `iconv -f UTF-16 -t UTF-8`"
            )
        stream.seek(3 if head[:3] == b"\xef\xbb\xbf" else 0)
        while line := stream.readline(MAX_LINE):
            if line.endswith(b"\n") or len(line) < MAX_LINE:
                yield line.rstrip(b"\r\n")
                continue
            while line and not line.endswith(b"\n"):
                line = stream.readline(MAX_LINE)
            yield None


def _text_rows(path: Path) -> Iterator[_Row]:
    for line in _raw_lines(path):
        if line is None:
            yield _Row(reason="too long")
            continue
        try:
            yield _Row(line.decode())
        except UnicodeDecodeError:
            yield _Row(reason=NOT_UTF8)


def _csv_rows(path: Path, column: str | None, defaults: tuple[str, ...], option: str) -> Iterator[_Row]:
    """One row per record; bytes that are not UTF-8 pass the CSV reader as lone surrogates."""
    long: list[int] = []
    reader = csv.reader(_csv_lines(path, long))
    try:
        header = next(reader, [])
    except csv.Error as error:
        raise CorpusError(f"{path.name} cannot be read as CSV: {error}; save it as CSV again") from None
    header = [name.encode(errors="replace").decode() for name in header]
    chosen = header.index(_choose_column(path, header, column, defaults, option))
    while True:
        try:
            row = next(reader, None)
        except csv.Error:
            yield _Row(reason="broken CSV")
            continue
        yield from (_Row(reason="too long") for _ in range(len(long)))
        long.clear()
        if row is None:
            return
        yield _csv_row(row, chosen, len(header))


def _csv_lines(path: Path, long: list[int]) -> Iterator[str]:
    for number, line in enumerate(_raw_lines(path)):
        if line is None:
            long.append(number)
        else:
            yield line.decode(errors="surrogateescape") + "\n"


def _csv_row(row: Sequence[str], chosen: int, width: int) -> _Row:
    if not any(row):
        return _Row()
    if len(row) != width:
        return _Row(reason="ragged row")
    try:
        row[chosen].encode()
    except UnicodeEncodeError:
        return _Row(reason=NOT_UTF8)
    return _Row(row[chosen])


def _json_rows(path: Path, column: str | None, defaults: tuple[str, ...], option: str) -> Iterator[_Row]:
    """One row per line: a string, or an object whose column holds one; the first object settles which."""
    chosen = None
    for row in _text_rows(path):
        if row.reason or not row.text.strip():
            yield row
            continue
        try:
            value = json.loads(row.text)
        except (ValueError, RecursionError):
            yield _Row(reason="broken JSON")
            continue
        if isinstance(value, dict):
            chosen = chosen or _choose_column(path, list(value), column, defaults, option)
            value = value.get(chosen)
        yield _json_row(value)


def _json_row(value: object) -> _Row:
    if not isinstance(value, str):
        return _Row(reason="no text")
    try:
        value.encode()  # JSON may spell half of a surrogate pair
    except UnicodeEncodeError:
        return _Row(reason=NOT_UTF8)
    return _Row(value)


def _parquet_rows(
    path: Path, column: str | None, defaults: tuple[str, ...], option: str, column_option: str
) -> Iterator[_Row]:
    import pyarrow
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.ParquetFile(path)
    except (pyarrow.ArrowException, OSError) as error:
        raise CorpusError(f"{option} {path.name} is not a Parquet file: {error}; copy it again") from None
    chosen = _choose_column(path, table.schema_arrow.names, column, defaults, column_option)
    try:
        for batch in table.iter_batches(batch_size=CAPTION_BATCH, columns=[chosen]):
            yield from (_cell(path, chosen, value, option) for value in _cells(batch.column(0)))
    except (pyarrow.ArrowException, OSError) as error:
        raise CorpusError(
            f"{option} {path.name} is cut or damaged: {str(error).strip()}; copy or make it again"
        ) from None


def _cells(column: Any) -> list[Any]:
    import pyarrow as pa

    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    # as bytes: pyarrow itself does not check that strings are UTF-8, and Python would stop at the first
    kinds = {pa.string(): pa.binary(), pa.large_string(): pa.large_binary()}
    return column.cast(kinds.get(column.type, column.type)).to_pylist()


def _cell(path: Path, column: str, value: object, option: str) -> _Row:
    if value is None or isinstance(value, str):
        return _Row(value or "")
    if isinstance(value, bytes):
        try:
            return _Row(value.decode())
        except UnicodeDecodeError:
            return _Row(reason=NOT_UTF8)
    raise CorpusError(
        f"{option} {path.name}: column '{column}' holds {_kind(value)}, expected text: choose another with"
        f" {option[:-1]}-column"
    )


def _labels_from_rows(path: Path, column: str | None) -> list[str]:
    """Names of a JSON-lines or Parquet file; a row that cannot be read is an error, since ids count rows."""
    if path.suffix.lower() == ".parquet":
        rows: Iterable[_Row] = _parquet_rows(path, column, LABEL_COLUMNS, "--labels", "--label-column")
    else:
        rows = _json_rows(path, column, LABEL_COLUMNS, "--label-column")
    names = []
    for number, row in enumerate(rows, start=1):
        if row.reason:
            raise CorpusError(
                f"--labels {path.name}: row {number} is {row.reason}, expected a name; mend or remove the row"
            )
        if row.text.strip():
            names.append(row.text.strip())
    return names


def _lines(path: Path) -> Iterator[str]:
    try:
        with path.open(encoding="utf-8-sig") as stream:
            for line in stream:
                yield line.strip()
    except UnicodeDecodeError as error:
        raise CorpusError(f"{path.name} is not UTF-8 text ({error.reason}); {RECODE}") from None


def _load_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except UnicodeDecodeError as error:
        raise CorpusError(f"{path.name} is not UTF-8 text ({error.reason}); {RECODE}") from None
    except (ValueError, RecursionError) as error:
        raise CorpusError(f"{path.name} is not valid JSON: {error}") from None


def _kind(value: object) -> str:
    empty = "an empty " if value in ([], {}) else "a "
    return f"{empty}{type(value).__name__}"


def _phrases(path: Path, key: str, value: object) -> tuple[str, ...]:
    items = [value] if isinstance(value, str) else value
    if not isinstance(items, list) or not all(isinstance(item, str) for item in items):
        raise CorpusError(
            f"{path.name}: the value of '{key}' is {_kind(value)}, expected a string or strings"
        )
    return tuple(item.strip() for item in items if item.strip())


def _description(path: Path, phrase: str, value: object) -> str:
    told: dict[str, Any] = value if isinstance(value, dict) else {PARTS[0]: value}
    parts = [told[name] for name in PARTS if name in told]
    if not parts or not all(isinstance(part, str) and part.strip() for part in parts):
        raise CorpusError(
            f"--descriptions {path.name}: the entry of '{phrase}' is neither a text nor a dict with texts of"
            f" {' or '.join(PARTS)}; mend or remove it"
        )
    return joined(told)


def _labels_from_json(path: Path) -> tuple[list[str], None, dict[str, tuple[str, ...]]]:
    data = _load_json(path)
    if isinstance(data, list) and all(isinstance(item, str) for item in data):
        return [item.strip() for item in data], None, {}
    if not isinstance(data, dict):
        raise CorpusError(f"--labels {path.name}: got {_kind(data)}, expected a list of names or a dict")
    if data and all(key.isdigit() for key in data):
        raise CorpusError(
            f"--labels {path.name}: the keys are class ids, not names; give the names with --labels FILE.csv"
            f" and this file with --expansions {path.name}"
        )
    phrases = {key.strip(): _phrases(path, key, value) for key, value in data.items()}
    return list(phrases), None, phrases


def _labels_from_csv(path: Path, column: str | None) -> tuple[list[str], list[int] | None]:
    names = [value.strip() for value in _csv_column(path, column, LABEL_COLUMNS, "--label-column")]
    with path.open(encoding="utf-8-sig", newline="") as stream:
        ids = [(row.get("id") or "").strip() for row in csv.DictReader(stream)]
    if all(value.isdigit() for value in ids) and len(set(ids)) == len(ids) == len(names):
        return names, [int(value) for value in ids]
    return names, None


def _csv_column(path: Path, column: str | None, defaults: tuple[str, ...], option: str) -> Iterator[str]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as stream:
            reader = csv.DictReader(stream)
            chosen = _choose_column(path, list(reader.fieldnames or ()), column, defaults, option)
            for row in reader:
                yield row[chosen] or ""
    except UnicodeDecodeError as error:
        raise CorpusError(f"{path.name} is not UTF-8 text ({error.reason}); {RECODE}") from None
    except csv.Error as error:
        raise CorpusError(f"{path.name} cannot be read as CSV: {error}; save it as CSV again") from None


def _choose_column(
    path: Path, columns: list[str], wanted: str | None, defaults: tuple[str, ...], option: str
) -> str:
    for name in [wanted] if wanted else defaults:
        if name in columns:
            return name
    missing = wanted or " or ".join(defaults)
    names = [wanted] if wanted else [*defaults, *ALIKE[defaults]]
    hint = next(filter(None, (did_you_mean(name, columns) for name in names)), "")
    raise CorpusError(
        f"{path.name} has no column '{missing}'{hint}; it has {', '.join(columns)}: choose with {option}"
    )


def _as_labels(path: Path, names: Sequence[str], ids: Sequence[int] | None) -> tuple[Label, ...]:
    if not names:
        raise CorpusError(f"--labels {path.name}: the list is empty, expected at least one label")
    first_row: dict[str, int] = {}
    labels = []
    for row, given in enumerate(names):
        if given in first_row:
            raise CorpusError(
                f"--labels {path.name}: '{given}' stands twice,"
                f" as entries {first_row[given] + 1} and {row + 1}"
            )
        first_row[given] = row
        if not clean_name(given):
            raise CorpusError(f"--labels {path.name}: entry {row + 1} ('{given}') holds no name")
        labels.append(Label(given, clean_name(given), ids[row] if ids else row))
    return tuple(labels)
