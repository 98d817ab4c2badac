"""Somebody who only read the abstract, and wants to see whether it is true: the demo, and what it admits."""

import json
import re
import subprocess
from collections.abc import Callable
from pathlib import Path

Command = Callable[..., subprocess.CompletedProcess[str]]


def test_the_demo_shows_its_controls_beside_its_claims(command: Command, tmp_path: Path) -> None:
    done = command("alt", "demo", "--size", "tiny", "--out", "demo", cwd=tmp_path)
    rows = {
        line[:34].strip(): [float(x) for x in line[34:].split()]
        for line in done.stdout.splitlines()
        if re.search(r"( +\d+\.\d){4}$", line)
    }
    assert {
        "CLIP, mean of frames, no training",
        "adapt-then-align (cls only)",
        "ALT, random entities (control)",
        "ALT, entity tracks read by labels",
    } <= set(rows)
    assert all(0 <= value <= 100 for values in rows.values() for value in values)

    report = (tmp_path / "demo/report.html").read_text()
    assert "ALT, random entities (control)" in report and "riding a bicycle" in report
    # The figures of the page are those that the evaluations stored: nothing is rounded into shape.
    stored = json.loads((tmp_path / "demo/runs/alt/eval-test.json").read_text())
    assert rows["ALT, entity tracks read by labels"][0] == round(100 * stored["top1"], 1)
    assert stored["n_trained_on"] == 0, "no tested video trained the model or chose its epoch"
    control = json.loads((tmp_path / "demo/runs/alt_random/config.json").read_text())
    assert control["identities"] == "scrambled"
