"""What a benchmark said, kept as JSON: its tables, and with which command, version and machine they were made.

A benchmark prints Markdown tables, or an object of JSON a line; nothing else is asked of it. Small results that
BENCHMARKS.md shows lie in ``benchmarks/results``.
"""

import importlib.metadata
import json
import os
import platform
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path

FOLDER = Path(__file__).parent / "results"
PACKAGES = ("torch", "open_clip_torch", "av", "pyarrow", "spacy", "nltk", "faiss-cpu")
PEERS = ("opencv-python-headless", "datasets", "webdataset", "mosaicml-streaming")


@dataclass(frozen=True)
class Table:
    """Cells as they are shown."""

    columns: list[str]
    rows: list[list[str]]

    def text(self) -> str:
        """Markdown."""
        head, *rows = (
            f"| {' | '.join(cells)} |".replace("|  |", "| |") for cells in (self.columns, *self.rows)
        )
        return "\n".join([head, "|---" * len(self.columns) + "|", *rows])


@dataclass(frozen=True)
class Result:
    """One run of one benchmark. ``machine`` and ``packages`` say on what; ``version`` is the toolkit's."""

    name: str
    command: str
    version: str
    date: str
    machine: str
    packages: dict[str, str]
    tables: list[Table]

    def write(self, folder: Path) -> Path:
        """``NAME.json`` in a folder."""
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{self.name}.json"
        path.write_text(json.dumps(asdict(self), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        return path


def read_result(path: Path) -> Result:
    """A result that was written."""
    raw = json.loads(path.read_text(encoding="utf-8"))
    return Result(**raw | {"tables": [Table(**table) for table in raw["tables"]]})


def tables_of(text: str) -> list[Table]:
    """The Markdown tables of a text, and its lines of JSON as one more."""
    tables: list[Table] = []
    lines = [line.strip() for line in text.splitlines()]
    if objects := [json.loads(line) for line in lines if line.startswith("{")]:
        tables.append(Table(list(objects[0]), [[str(value) for value in item.values()] for item in objects]))
    for before, line in zip(lines, lines[1:], strict=False):
        if line.startswith("|--") and set(line) <= set("|-: "):
            tables.append(Table(_cells(before), []))
        elif line.startswith("|") and before.startswith("|") and tables:
            tables[-1].rows.append(_cells(line))
    return tables


def _cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip().removeprefix("|").removesuffix("|").split("|")]


def shown_command(module: str, arguments: Sequence[str]) -> str:
    """The command without a machine's paths: of an absolute one only the last part is told."""
    told = [Path(word).name if os.path.isabs(word) else word for word in arguments]
    return shlex.join(["python", "-m", module, *told])


def machine() -> str:
    """Processor cores, GPU and Python of this machine."""
    import torch

    gpu = torch.cuda.get_device_name(0) if torch.cuda.is_available() else "no GPU"
    return f"{os.cpu_count()} cores, {platform.machine()}, {gpu}, Python {platform.python_version()}"


def packages() -> dict[str, str]:
    """Versions of what is measured and of peers, as far as they are installed."""
    found = {}
    for name in (*PACKAGES, *PEERS):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def made_now(name: str, command: str, output: str) -> Result:
    """The result of a run that just ended."""
    from pipelines import __version__

    return Result(
        name, command, __version__, date.today().isoformat(), machine(), packages(), tables_of(output)
    )


def blocks(results: Mapping[str, Result]) -> dict[str, str]:
    """Generated blocks of BENCHMARKS.md: ``NAME``, ``NAME:2`` ... are the tables of a result, ``index`` lists all."""
    made = [[r.name, f"`{r.command}`", r.version, r.date, r.machine] for r in results.values()]
    found = {"index": Table(["result", "command", "version", "date", "machine"], made).text()}
    for name, result in results.items():
        for number, table in enumerate(result.tables, 1):
            found[name if number == 1 else f"{name}:{number}"] = table.text()
    return found
