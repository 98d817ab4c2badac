"""A researcher who wants the paper's table on her own data set, beside its baselines and controls."""

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

Command = Callable[..., subprocess.CompletedProcess[str]]


def test_the_papers_table_on_her_own_data(
    own: Path, command: Command, small: Callable[[Path, dict[str, Any]], None]
) -> None:
    shutil.copy(own / "my.yaml", own / "table.yaml")
    rows = ["clip", "paper-a", "paper", "paper-random"]
    options = {"epochs": 1, "blocks": 1, "device": "cpu"}
    table = {"labels": "train", "rows": rows, "shots": [1], "seeds": 2, "options": options}
    small(own / "table.yaml", {"ablation": table})
    told = command("alt", "run", "table.yaml", "--dry-run", cwd=own).stderr
    assert "alignments: up to date" in told and "ablation: would run" in told

    done = command("alt", "run", "table.yaml", cwd=own, code=2)
    assert "alignments: up to date" in done.stderr, "a table costs no decoding"
    text = (own / "runs/first/ablation/ablation.md").read_text()
    for title in (
        "CLIP, mean of frames",
        "paper 1a: adapt, then align",
        "paper 1d",
        "a random entity for every region",
    ):
        assert title in text
    found = json.loads((own / "runs/first/ablation/ablation.json").read_text())
    assert found["seeds"] == [0, 1] and found["cells"]["paper"]["supervised"]["n"] == 2
    assert len(found["cells"]["paper"]["supervised"]["runs"]) == 2
    assert found["comparisons"], "the control is compared with the form that it controls"
