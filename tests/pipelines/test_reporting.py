"""``alt report``: the report of a run that is there, whichever way it was made."""

import json
import re
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from pipelines.cli import app
from pipelines.config import PipelineConfig
from pipelines.errors import PipelineError
from pipelines.reporting import ByHand, report_run
from pipelines.workflow import Layout

RUNNER = CliRunner()


def data_of(page: Path) -> dict:
    text = page.read_text(encoding="utf-8")
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL)
    assert found
    return json.loads(found.group(1))


def test_a_report_is_drawn_again_with_the_facts_of_its_run(miniature: PipelineConfig, tmp_path: Path) -> None:
    out = tmp_path / "again.html"
    options = ["report", str(miniature.out), "--out", str(out), "--videos", "1", "--max-mb", "1.5", "--quiet"]
    result = RUNNER.invoke(app, options)
    assert result.exit_code == 0, result.output
    assert len(data_of(out)["cards"]) == 1 and out.stat().st_size < 1_500_000
    page, layout = out.read_text(encoding="utf-8"), Layout(miniature.out)
    for folder in (layout.corpus, layout.alignments, layout.run("alt"), layout.labels("train")):
        manifest = json.loads((folder / "manifest.json").read_text())
        assert manifest["fingerprint"][:12] in page
    assert "1 open: unreadable" in page and "frames/s" in page and "alt run pipeline.yaml" in page
    assert yaml.safe_load(layout.config.read_text())["model"] in page


def test_a_run_made_by_hand_is_told_where_things_are(miniature: PipelineConfig, tmp_path: Path) -> None:
    layout = Layout(miniature.out)
    given = ByHand(layout.alignments, layout.labels("train"), miniature.alignments.videos.parent)
    path = report_run(layout.run("alt"), out=tmp_path / "r.html", by_hand=given, device="cpu")
    shown = data_of(path)
    assert shown["cards"] and shown["cards"][0]["frames"][0]["src"].startswith("data:image/webp")
    result = RUNNER.invoke(app, ["report", str(layout.run("alt")), "--labels", str(given.labels)])
    assert result.exit_code == 1 and "go together" in result.output


def test_an_evaluation_that_is_not_there_is_named_with_those_that_are(miniature: PipelineConfig) -> None:
    with pytest.raises(PipelineError, match="evaluated as test; --evaluation tets is none of them.*'test'"):
        report_run(miniature.out, "tets")
