"""BENCHMARKS.md shows the stored results, and every benchmark can be called as the runner calls it."""

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks import results, run
from benchmarks.toyworld import join

ROOT = Path(__file__).resolve().parents[2]
CELL = st.text(st.characters(whitelist_categories=("L", "N"), whitelist_characters=" -.%+"), max_size=8).map(
    str.strip
)


def test_the_page_is_its_rendering() -> None:
    page = run.PAGE.read_text(encoding="utf-8")
    assert run.rendered(page, run.stored()) == page, "run `python -m benchmarks.run`"


def test_a_result_that_no_block_shows_is_an_error() -> None:
    page = run.PAGE.read_text(encoding="utf-8").replace("<!-- generated: speed -->", "")
    with pytest.raises(SystemExit, match="no block"):
        run.rendered(page, run.stored())


@given(
    st.integers(1, 4).flatmap(
        lambda n: st.lists(st.lists(CELL, min_size=n, max_size=n), min_size=1, max_size=4)
    )
)
def test_tables_are_read_from_what_a_benchmark_prints(rows: list[list[str]]) -> None:
    """Between other lines, and two of them one after the other."""
    table = results.Table([f"{cell}x" for cell in rows[0]], rows[1:])
    assert results.tables_of(f"loading\n{table.text()}\n\n{table.text()}\ndone") == [table, table]


def test_a_result_survives_its_file_and_names_no_machine_s_path(tmp_path: Path) -> None:
    command = results.shown_command(
        "benchmarks.x", ["--out", str(tmp_path / "deep" / "name"), "--rounds", "3"]
    )
    assert command == "python -m benchmarks.x --out name --rounds 3"
    made = results.made_now("x", command, "| a | b |\n|---|---|\n| 1 | 2 |\n")
    assert results.read_result(made.write(tmp_path)) == made
    assert results.tables_of('{"a": 1}\n{"a": 2}\n') == [results.Table(["a"], [["1"], ["2"]])]
    assert made.tables == [results.Table(["a", "b"], [["1", "2"]])] and made.packages["torch"]
    for path in results.FOLDER.glob("*.json"):
        assert not re.search(r"/(home|root|tmp|Users)/", path.read_text()), path.name


def test_the_runner_knows_every_benchmark_and_its_options() -> None:
    scripts = {path.stem for path in (ROOT / "benchmarks").glob("*.py")} - {
        "__init__",
        "picture",
        "results",
        "run",
    }
    assert scripts == run.BENCHMARKS.keys()
    for name, benchmark in run.BENCHMARKS.items():
        text = (ROOT / "benchmarks" / f"{name}.py").read_text(encoding="utf-8")
        for option in (*benchmark.usual, *benchmark.quick):
            if option.startswith("--"):  # typer makes options of parameters
                assert f'"{option}"' in text or f"    {option[2:].replace('-', '_')}: Annotated[" in text, (
                    name,
                    option,
                )


def test_what_is_quick_is_not_kept() -> None:
    command = [sys.executable, "-m", "benchmarks.run", "--only", "speed", "--quick", "--keep"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2 and "leave out one of" in done.stderr


def test_parts_of_an_ablation_join_into_one_table() -> None:
    """Rows in the order of the whole table, a row of two parts with the columns of both, no comparison twice."""

    def part(rows: list[str], columns: list[str], seeds: tuple[int, ...] = (0, 1)) -> dict[str, Any]:
        controls = [row for row in rows if row != "paper" and row.startswith("paper-")]
        return {
            "seeds": list(seeds),
            "columns": [{"name": column} for column in columns],
            "rows": [{"name": row} for row in rows],
            "cells": {row: {column: f"{row} {column}" for column in columns} for row in rows},
            "comparisons": [
                {"row": "paper", "control": row, "column": column} for row in controls for column in columns
            ],
        }

    wide = part(["paper", "paper-random"], ["supervised", "4-shot", "zero-shot"])
    narrow = part(["paper-sa", "paper"], ["supervised", "zero-shot"])
    narrow["comparisons"] = []
    joined = join([narrow, wide, part(["clip"], ["supervised"]), wide])
    assert [row["name"] for row in joined["rows"]] == ["clip", "paper-sa", "paper", "paper-random"]
    assert joined["columns"] == wide["columns"] and joined["comparisons"] == wide["comparisons"]
    assert joined["cells"]["paper"] == wide["cells"]["paper"]
    assert set(joined["cells"]["paper-sa"]) == {"supervised", "zero-shot"}
    with pytest.raises(ValueError, match="must be the same"):
        join([wide, part(["clip"], ["supervised"], seeds=(0,))])
