"""An engineer with a folder of videos and a list of labels: train, look, apply."""

import json
import re
import subprocess
from collections.abc import Callable
from pathlib import Path

Command = Callable[..., subprocess.CompletedProcess[str]]


def test_own_videos_from_a_folder_to_predictions(own: Path, command: Command) -> None:
    said = (own / "said.txt").read_text()
    assert re.search(r"alt on test: top-1 \d+\.\d% \(n = 2\)", said)
    assert "9 videos, 8 ok, 1 failed" in said, "the broken file is counted, and stops nothing"
    report = (own / "runs/first/report.html").read_text()
    assert "riding a bicycle" in report and "random weights" not in report
    assert not re.search(r"(src|href)=.https?://", report), (
        "the page opens from a download, without a network"
    )

    clip = "clips/test/playing a drum/3.mp4"
    (own / "other.txt").write_text("playing a drum\njuggling balls\n")
    words = ("predict", clip, "--labels", "other.txt", "--run", "runs/first", "--json", "--quiet")
    (found,) = json.loads(command("alt", *words, cwd=own).stdout)
    assert found["error"] is None and set(found["labels"]) == {"playing a drum", "juggling balls"}
    assert abs(sum(found["probabilities"]) - 1) < 1e-4
