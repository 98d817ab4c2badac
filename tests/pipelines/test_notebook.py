"""The example notebook runs from top to bottom on a finished run, and is committed without outputs.

Cells are plain Python, so they are run as such: a kernel and its protocol would be a dozen packages more and test them.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipelines.config import PipelineConfig

NOTEBOOK = Path(__file__).resolve().parents[2] / "examples" / "alignments.ipynb"


def code_cells() -> list[dict[str, Any]]:
    cells = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    return [cell for cell in cells if cell["cell_type"] == "code"]


def test_outputs_are_cleared() -> None:
    assert code_cells()
    assert all(not cell["outputs"] and cell["execution_count"] is None for cell in code_cells())


def test_the_notebook_runs(miniature: PipelineConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALT_RUN", str(miniature.out))
    names: dict[str, Any] = {}
    for number, cell in enumerate(code_cells()):
        exec(compile("".join(cell["source"]), f"cell {number}", "exec"), names)
    regions, lift, everywhere = names["regions"], names["lift"], names["everywhere"]
    assert set(lift.columns) == {"riding a bicycle", "playing a drum", "flying a kite"}
    frames = regions.groupby(["video_id", "frame_index"])["patches"].sum()
    assert set(frames) == {16}, "the regions of a frame are all its patches"
    # A class's shares sum to 1, so the mean lift weighted by the overall shares does as well.
    np.testing.assert_allclose((lift.mul(everywhere, axis=0)).sum(), 1.0)
    assert len(names["hits"]) == 3
