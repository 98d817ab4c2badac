"""The ablation: the paper's two tables, baselines and controls, seed by seed on the same videos, in one table.

A row is a form of the model (or a head on one), a column a way to test it. Runs and their evaluations are kept and
taken up again, so an interrupted ablation goes on, and one more seed or row costs that alone.
"""

import json
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool

from adapter import __version__
from adapter.alignments import Alignments, open_alignments
from adapter.artifact import (
    ABLATION,
    ABLATION_TABLE,
    evaluation_name,
    make_folder,
    open_run,
    predictions_name,
    read_table,
    train_again,
    write_atomic,
    write_json,
)
from adapter.config import AdapterError, Settings, make_settings
from adapter.evaluate import evaluate
from adapter.labels import Labels, open_labels
from adapter.measures import paired, spread
from adapter.sensitivity import KINDS
from adapter.train import train

Say = Callable[[str], None]


@dataclass(frozen=True)
class Row:
    """A form, by its options; ``head`` other than text scores runs of the row ``of`` instead of training its own.

    ``control_of`` names the row that a control is compared with; ``random_words`` takes the other alignments.
    """

    name: str
    title: str
    options: Mapping[str, Any] = field(default_factory=dict)
    head: str = "text"
    of: str = ""
    control_of: str = ""
    random_words: bool = False

    @property
    def learns(self) -> bool:
        """Whether its scores depend on training videos."""
        return self.head != "text" or self.options.get("model") != "mean_pool"


@dataclass(frozen=True)
class Column:
    """A test: which split and label set (None: the one trained on), and of runs trained on how many shots (0: all)."""

    name: str
    split: str
    labels: Path | None = None
    shots: int = 0
    candidates: str = "all"
    blend: float = 0.0
    sensitivity: bool = False


@dataclass(frozen=True)
class Data:
    """What is compared on; ``random_words`` are alignments of the same videos to a corpus of random words."""

    alignments: Path
    labels: Path
    random_words: Path | None = None


def _with_controls(name: str, title: str, options: Mapping[str, Any]) -> list[Row]:
    controls = {
        "renamed": ("entities renamed consistently", {"identities": "permuted"}, False),
        "random": ("a random entity for every region", {"identities": "scrambled"}, False),
        "shuffled": ("entities of another video", {"identities": "shuffled"}, False),
        "words": ("corpus of random words", {}, True),
    }
    return [Row(name, title, options)] + [
        Row(f"{name}-{key}", f"- control: {what}", {**options, **change}, control_of=name, random_words=words)
        for key, (what, change, words) in controls.items()
    ]


_CLIP = {"model": "mean_pool"}
ROWS: tuple[Row, ...] = (
    Row("clip", "CLIP, mean of frames, no training", _CLIP),
    Row("tip", "mean of frames, Tip-Adapter's cache", _CLIP, "tip", "clip"),
    Row("knn", "mean of frames, nearest neighbours", _CLIP, "knn", "clip"),
    Row("probe", "mean of frames, linear probe", _CLIP, "probe", "clip"),
    Row("adapt-then-align", "adapt-then-align, as large as the default form", {"model": "adapt_then_align"}),
    Row("paper-a", "paper 1a: adapt, then align", {"variant": "paper-adapt-then-align"}),
    Row("paper-b", "paper 1b: aligned to label names, cls only", {"variant": "paper-labels"}),
    Row("paper-c", "paper 1c: entity corpus, cls only", {"variant": "paper-cls"}),
    Row("paper-sa", "paper 2: self-attention only", {"variant": "paper-sa"}),
    Row("paper-ca", "paper 2: cross-attention only", {"variant": "paper-ca"}),
    Row("paper-sa+ca", "paper 2: both", {"variant": "paper-sa+ca"}),
    Row("paper-ca+conv", "paper 2: cross-attention and convolution", {"variant": "paper-ca+conv"}),
    *_with_controls("paper", "paper 1d and 2: all, with regions", {"variant": "paper"}),
    *_with_controls(
        "regions", "entity queries over all regions", {"queries": "aligned", "context": "regions"}
    ),
    Row(
        "regions-learned",
        "- control: learned queries",
        {"queries": "learned", "context": "regions"},
        control_of="regions",
    ),
    *_with_controls("tracks", "entity tracks, cls context", {"queries": "tracks", "context": "cls"}),
    *_with_controls(
        "label-tracks", "entity tracks, read by the labels that name them", {"variant": "label-tracks"}
    ),
    Row("tracks-regions", "entity tracks over all regions", {"queries": "tracks", "context": "regions"}),
)


def choose_rows(patterns: Sequence[str], rows: Sequence[Row] = ROWS) -> list[Row]:
    """Rows by name or pattern (``tracks*``), all without any; rows that others need come with them."""
    wanted = {row.name for row in rows if not patterns or any(fnmatch(row.name, p) for p in patterns)}
    if unknown := [p for p in patterns if not any(fnmatch(row.name, p) for row in rows)]:
        raise AdapterError(f"--rows {unknown[0]} matches none of {', '.join(row.name for row in rows)}")
    wanted |= {row.of for row in rows if row.name in wanted}
    wanted |= {row.control_of for row in rows if row.name in wanted}
    return [row for row in rows if row.name in wanted]


def standard_columns(
    split: str = "test",
    shots: Sequence[int] = (4,),
    unseen: Path | None = None,
    unseen_split: str = "all",
    blend: float = 0.5,
    sensitivity: bool = False,
) -> list[Column]:
    """Supervised, K-shot and, with a label set ``unseen``, zero-shot: alone and in part with zero-shot CLIP."""
    columns = [Column("supervised", split, sensitivity=sensitivity)]
    columns += [Column(f"{k}-shot", split, shots=k) for k in shots]
    if unseen is not None:
        columns += [
            Column("zero-shot", unseen_split, unseen),
            Column("zero-shot-blended", unseen_split, unseen, blend=blend),
        ]
    return columns


def ablate(
    data: Data,
    out: Path,
    columns: Sequence[Column],
    rows: Sequence[Row] = ROWS,
    seeds: Sequence[int] = (0, 1, 2),
    options: Mapping[str, Any] | None = None,
    few_options: Mapping[str, Any] | None = None,
    say: Say = lambda line: None,
) -> dict[str, Any]:
    """Train and test every row with every seed; write ``ablation.json`` and ``ablation.md`` into ``out``.

    ``options`` go to every row, ``few_options`` to runs of few shots above them; neither overrides what makes a row.
    Raises ``AdapterError`` where a tested video trained the run or chose its epoch, where the two alignments hold other
    videos, and as ``train`` and ``evaluate`` do.
    """
    if not seeds or len(set(seeds)) < len(seeds) or len(seeds) > 20:
        raise AdapterError(f"--seeds are {list(seeds)}; give 1 to 20 different ones")
    make_folder(out)
    bench = _Bench(data, out / "runs", {**(options or {})}, {**(few_options or {})}, tuple(seeds), say)
    kept = [row for row in rows if data.random_words or not row.random_words]
    cells = {row.name: {c.name: bench.cell(row, c) for c in columns if _applies(row, c)} for row in kept}
    result = {
        "package": f"adapter {__version__}",
        "seeds": list(seeds),
        "options": {**(options or {})},
        "few_options": {**(few_options or {})},
        "inputs": bench.inputs(),
        "columns": [{**asdict(c), "labels": c.labels and c.labels.name} for c in columns],
        "rows": [{**asdict(row), "parameters": bench.parameters[row.name]} for row in kept],
        "left_out": [row.name for row in rows if row not in kept],
        "cells": {r: {c: cell.to_json() for c, cell in found.items()} for r, found in cells.items()},
        "comparisons": _comparisons(kept, cells),
        "random_weights": bool(bench.own.model.get("random_weights")),
    }
    write_json(out / ABLATION, result)
    text = "\n".join(ablation_words(result)) + "\n"
    write_atomic(out / ABLATION_TABLE, lambda temporary: _write_text(temporary, text))
    return result


@dataclass(frozen=True)
class Cell:
    """A row under a column: one run a seed, what each got right, and its result."""

    runs: tuple[str, ...]
    videos: tuple[str, ...]
    hits: Bool[np.ndarray, "runs videos"]
    results: tuple[dict[str, Any], ...]

    def to_json(self) -> dict[str, Any]:
        """Mean and spread over seeds of the figures, and of those of sensitivity."""
        figures = {name: [r[name] for r in self.results] for name in ("top1", "top5", "mean_class_accuracy")}
        figures["calibration_error"] = [r["calibration"]["ece"] for r in self.results]
        told = self.results[0].get("sensitivity", {})
        for name in (name for name, found in told.items() if isinstance(found, dict)):
            figures[name] = [r["sensitivity"][name]["top1"] for r in self.results]
        return {
            "runs": list(self.runs),
            "n": len(self.videos),
            "top1_by_run": figures["top1"],
            **{name: spread(values) for name, values in figures.items()},
        }


@dataclass
class _Bench:
    """Runs and evaluations in a folder, made where they are missing or of other inputs."""

    data: Data
    folder: Path
    options: dict[str, Any]
    few_options: dict[str, Any]
    seeds: tuple[int, ...]
    say: Say
    parameters: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Open what all runs share, and refuse alignments of other videos."""
        self.own: Alignments = open_alignments(self.data.alignments)
        self.labels: Labels = open_labels(self.data.labels, self.own.model)
        self.random = open_alignments(self.data.random_words) if self.data.random_words else None
        if self.random and set(self.random.index) != set(self.own.index):
            raise AdapterError(
                f"{self.random.path} and {self.own.path} hold other videos; align the same ones to the random words"
            )

    def inputs(self) -> dict[str, Any]:
        """Fingerprints, and the sizes of the corpora."""
        found = {"alignments": self.own.fingerprint, "entities": len(self.own.entities.names)}
        if self.random:
            found |= {
                "random_words": self.random.fingerprint,
                "random_entities": len(self.random.entities.names),
            }
        return {**found, "labels": self.labels.fingerprint}

    def cell(self, row: Row, column: Column) -> Cell:
        """Train and test a row for a column, every seed."""
        found = [(run, self._tested(row, column, run)) for run in self._runs(row, column)]
        hits = [_hits(run, result["name"]) for run, result in found]
        return Cell(
            tuple(run.name for run, _ in found),
            tuple(hits[0]),
            np.array([[one[video] for video in hits[0]] for one in hits], bool),
            tuple(result for _, result in found),
        )

    def _runs(self, row: Row, column: Column) -> Iterator[Path]:
        # What no seed changes runs once: nothing is learned, or from all videos without chance.
        chance = row.learns and (row.head == "text" or column.shots)
        shots = column.shots if row.learns else 0
        for seed in self.seeds if chance else self.seeds[:1]:
            name = f"{row.of or row.name}{f'-{shots}shot' if shots else ''}-s{seed}"
            extra = self.few_options if shots else {}
            settings = make_settings({**self.options, **extra, **row.options, "shots": shots, "seed": seed})
            yield self._trained(row, name, settings)

    def _trained(self, row: Row, name: str, settings: Settings) -> Path:
        run = self.folder / name
        opened = self._alignments(row)
        inputs = {"alignments": opened.fingerprint, "labels": self.labels.fingerprint}
        if not _is_made(run, settings, inputs):
            report = train(opened.path, self.data.labels, run, settings, force=True)
            val = "" if report.best_val_top1 is None else f", validation {report.best_val_top1:.1%}"
            self.say(f"{name}: trained in {report.seconds:.0f} s{val}")
        self.parameters[row.name] = open_run(run).manifest["parameters"]
        return run

    def _tested(self, row: Row, column: Column, run: Path) -> dict[str, Any]:
        name = column.name if row.head == "text" else f"{column.name}-{row.head}"
        opened, labels = self._alignments(row), column.labels or self.data.labels
        asked: dict[str, Any] = {
            "split": column.split,
            "candidates": column.candidates,
            "blend": column.blend,
            "head": row.head,
        }
        inputs = {
            "run": open_run(run).manifest["fingerprint"],
            "alignments": opened.fingerprint,
            "labels": open_labels(labels).fingerprint,
        }
        result = _stored(run / evaluation_name(name), {**asked, **inputs}, column.sensitivity)
        if result is None:
            result = evaluate(run, opened.path, labels, name=name, sensitivity=column.sensitivity, **asked)
            self.say(f"{run.name}, {name}: {result['top1']:.1%} (n = {result['n']})")
        if result["n_trained_on"]:
            raise AdapterError(
                f"column {column.name}: {result['n_trained_on']} of {result['n']} tested videos trained {run.name} or "
                "chose its epoch; test on a split, or label sets, without them"
            )
        return result

    def _alignments(self, row: Row) -> Alignments:
        return self.random if row.random_words and self.random else self.own


def _applies(row: Row, column: Column) -> bool:
    """Heads of labelled videos say nothing of classes without any, and have no text to blend with."""
    return row.head == "text" or (column.labels is None and not column.blend)


def _is_made(run: Path, settings: Settings, inputs: Mapping[str, str]) -> bool:
    try:
        manifest = open_run(run).manifest
    except AdapterError:
        return False
    flat, made = settings.flat(), manifest["config"]
    return (
        manifest["package"] == f"adapter {__version__}"
        and all(flat.get(name) == value for name, value in made.items())
        and all(manifest["inputs"][name]["fingerprint"] == value for name, value in inputs.items())
    )


def _stored(file: Path, asked: Mapping[str, Any], sensitivity: bool) -> dict[str, Any] | None:
    """An evaluation as stored, if it is the one that is asked for."""
    if not file.is_file():
        return None
    found = json.loads(file.read_text(encoding="utf-8"))
    same = all(found.get(name) == value for name, value in asked.items())
    return found if same and (not sensitivity or "sensitivity" in found) else None


def _hits(run: Path, name: str) -> dict[str, bool]:
    table = read_table(run / predictions_name(name), ["video_id", "correct"], train_again(run))
    return dict(zip(table["video_id"].to_pylist(), table["correct"].to_pylist(), strict=True))


def _comparisons(rows: Sequence[Row], cells: Mapping[str, Mapping[str, Cell]]) -> list[dict[str, Any]]:
    """Every form against each of its controls, under every column: the same videos, the same seeds."""
    return [
        {
            "row": row.control_of,
            "control": row.name,
            "column": column,
            **_paired(cells[row.control_of][column], cell),
        }
        for row in rows
        if row.control_of in cells
        for column, cell in cells[row.name].items()
    ]


def _paired(first: Cell, second: Cell) -> dict[str, Any]:
    place = {video: i for i, video in enumerate(second.videos)}
    if place.keys() != set(first.videos):
        raise AdapterError(
            "a form and its control were tested on other videos; remove their runs, and start again"
        )
    return paired(first.hits, second.hits[:, [place[video] for video in first.videos]])


# ------------------------------------------------------------------ in words


def ablation_words(result: Mapping[str, Any]) -> list[str]:
    """The result as Markdown: the table, the paired tests, and what was done."""
    heads = _heads(result)
    lines = [
        f"Top-1 in %, mean ± standard deviation over seeds {', '.join(map(str, result['seeds']))}.",
        "",
        "| model | parameters | " + " | ".join(title for title, _, _ in heads) + " |",
        "|---" * (len(heads) + 2) + "|",
    ]
    for row in result["rows"]:
        cells = [_cell_words(result["cells"][row["name"]].get(column), figure) for _, column, figure in heads]
        size = f"{row['parameters'] / 1e6:.2f} M" if row["parameters"] else "0"
        lines.append(f"| {row['title']} | {size} | " + " | ".join(cells) + " |")
    return [*lines, "", *_comparison_words(result), *_notes(result)]


def _heads(result: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """Title, column and figure of every column of the table."""
    heads = []
    for column in result["columns"]:
        heads.append((column["name"], column["name"], "top1"))
        if column["sensitivity"]:
            heads += [
                (f"{column['name']}, {what}", column["name"], what)
                for what in ("reversed", "shuffled", *KINDS)
            ]
    return heads


def _cell_words(cell: Mapping[str, Any] | None, figure: str) -> str:
    if cell is None or figure not in cell:
        return "-"
    found = cell[figure]
    more = f" ± {100 * found['std']:.1f}" if found["n"] > 1 else ""
    return f"{100 * found['mean']:.1f}{more}"


def _comparison_words(result: Mapping[str, Any]) -> list[str]:
    """Every form with each of its controls in a row, every column of the ablation in one."""
    if not result["comparisons"]:
        return []
    columns = [column["name"] for column in result["columns"]]
    found: dict[tuple[str, str], dict[str, str]] = defaultdict(dict)
    for one in result["comparisons"]:
        low, high = (100 * value for value in one["interval"])
        p = one["mcnemar"]["p"] if "mcnemar" in one else one["sign_flip_p"]
        words = f"{100 * one['difference']:+.1f} [{low:+.1f}, {high:+.1f}] {p:.2g}"
        found[one["row"], one["control"]][one["column"]] = words
    lines = [
        f"| form - control | {' | '.join(columns)} |",
        "|---" * (len(columns) + 1) + "|",
        *(
            f"| {row} - {control} | {' | '.join(cells.get(column, '-') for column in columns)} |"
            for (row, control), cells in found.items()
        ),
    ]
    runs = len(result["seeds"])
    test = (
        "McNemar's" if runs == 1 else f"sign flips over seeds, at least {2 / 2**runs:.2g} with {runs} of them"
    )
    return [*lines, "", f"Points, their 95 % interval by bootstrap over seeds and videos, and p ({test})."]


def _notes(result: Mapping[str, Any]) -> list[str]:
    lines = []
    if result["left_out"]:
        lines.append(f"Left out, they need --random-words: {', '.join(result['left_out'])}.")
    sizes = result["inputs"]
    if sizes.get("random_entities", sizes["entities"]) != sizes["entities"]:
        lines.append(
            f"The corpus has {sizes['entities']} entities, that of random words {sizes['random_entities']}."
        )
    if result["random_weights"]:
        lines.append("The vision-language model has random weights; these figures mean nothing.")
    return lines


def _write_text(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")
