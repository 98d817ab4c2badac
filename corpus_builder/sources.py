"""Read labels, expansions and captions, and clean names. Nothing here knows of entities."""

import csv
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from corpus_builder.config import CorpusError, did_you_mean

LABEL_COLUMNS = ("name", "label")
CAPTION_COLUMNS = ("caption", "text")
ALIKE: dict[tuple[str, ...], tuple[str, ...]] = {
    LABEL_COLUMNS: ("class", "action"),
    CAPTION_COLUMNS: ("sentence", "description"),
}
"""What such columns are called elsewhere: not read unasked, but worth a hint."""

CAPTION_BATCH = 4096
RECODE = "save it as UTF-8, for example with `iconv -f LATIN1 -t UTF-8`"

# "applyEye" -> "apply Eye"; "TVShow" -> "TV Show", while "DVDs" stays whole.
_CAMEL = re.compile(r"(?<=[a-z])(?=[A-Z])|(?<=[A-Z])(?=[A-Z](?!s\b)[a-z])")
_SEPARATORS = re.compile(r"[\s_\-/]+")


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


def clean_name(text: str) -> str:
    """Lower-case words of a class name: ``ApplyEyeMakeup`` and ``apply_eye-makeup`` -> ``apply eye makeup``.

    Acronyms and digits stay together (``TVShow3D`` -> ``tv show3d``); cleaning twice changes nothing.
    """
    spaced = _SEPARATORS.sub(" ", text)
    return _SEPARATORS.sub(" ", _CAMEL.sub(" ", spaced)).strip().lower()


def read_labels(path: Path, column: str | None = None) -> LabelFile:
    """Classes from a ``.txt`` (one per line), ``.csv`` or ``.json`` file.

    CSV: the column ``name`` or ``label``, or ``column``. JSON: a list of names, or a dict from name to
    phrases.
    Raises :class:`CorpusError` on a missing, empty or unreadable file, an unknown column, or duplicates.
    """
    _require_file(path, "--labels")
    expansions: dict[str, tuple[str, ...]] = {}
    suffix = path.suffix.lower()
    if suffix == ".json":
        names, ids, expansions = _labels_from_json(path)
    elif suffix == ".csv":
        names, ids = _labels_from_csv(path, column)
    elif suffix == ".txt":
        names, ids = [line for line in _lines(path) if line], None
    else:
        raise CorpusError(f"--labels {path.name}: got '{path.suffix}', expected a .txt, .csv or .json file")
    return LabelFile(_as_labels(path, names, ids), expansions)


def read_expansions(path: Path, labels: Sequence[Label]) -> dict[str, tuple[str, ...]]:
    """Phrases per class from a JSON dict whose keys are labels or class ids; keyed by the label as given.

    Raises :class:`CorpusError` if a key is neither a label nor an id of ``labels``.
    """
    _require_file(path, "--expansions")
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


def iter_captions(path: Path, column: str | None = None) -> Iterator[str]:
    """Stream captions from a ``.txt`` (one per line), ``.csv`` or ``.parquet`` file, but for blank ones.

    The column is ``caption`` or ``text`` unless given. Raises :class:`CorpusError` as :func:`read_labels`
    does.
    """
    _require_file(path, "--captions")
    readers = {".txt": lambda: _lines(path), ".csv": lambda: _csv_column(path, column, CAPTION_COLUMNS)}
    readers[".parquet"] = lambda: _parquet_column(path, column)
    suffix = path.suffix.lower()
    if suffix not in readers:
        raise CorpusError(
            f"--captions {path.name}: got '{path.suffix}', expected a .txt, .csv or .parquet file"
        )
    found = False
    for caption in readers[suffix]():
        if caption.strip():
            found = True
            yield _SEPARATORS.sub(" ", caption).strip()
    if not found:
        raise CorpusError(f"--captions {path.name} holds no caption, expected at least one")


def label_mentions(file: LabelFile) -> list[Mention]:
    """One mention per label, then one per expansion phrase, in file order."""
    mentions = []
    for label in file.labels:
        mentions.append(Mention(label.name, label.name, label.label, "label"))
        for phrase in file.expansions.get(label.label, ()):
            mentions.append(Mention(clean_name(phrase), label.name, label.label, "expansion"))
    return mentions


def _require_file(path: Path, option: str) -> None:
    if not path.is_file():
        raise CorpusError(f"{option} {path}: no such file")
    if path.stat().st_size == 0:
        raise CorpusError(f"{option} {path.name}: the file is empty")


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
    except json.JSONDecodeError as error:
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


def _csv_column(
    path: Path, column: str | None, defaults: tuple[str, ...], option: str = "--caption-column"
) -> Iterator[str]:
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


def _parquet_column(path: Path, column: str | None) -> Iterator[str]:
    import pyarrow
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.ParquetFile(path)
    except (pyarrow.ArrowException, OSError) as error:
        raise CorpusError(f"--captions {path.name} is not a Parquet file: {error}; copy it again") from None
    chosen = _choose_column(path, table.schema_arrow.names, column, CAPTION_COLUMNS, "--caption-column")
    try:
        for batch in table.iter_batches(batch_size=CAPTION_BATCH, columns=[chosen]):
            yield from (_as_text(path, chosen, value) for value in batch.column(0).to_pylist())
    except UnicodeDecodeError as error:
        raise CorpusError(f"--captions {path.name} holds text that is not UTF-8 ({error.reason})") from None
    except (pyarrow.ArrowException, OSError) as error:
        raise CorpusError(
            f"--captions {path.name} is cut or damaged: {str(error).strip()}; copy or make it again"
        ) from None


def _as_text(path: Path, column: str, value: object) -> str:
    if value is None or isinstance(value, str):
        return value or ""
    if isinstance(value, bytes):
        return value.decode()
    raise CorpusError(
        f"--captions {path.name}: column '{column}' holds {_kind(value)}, expected text: choose another with"
        " --caption-column"
    )


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
