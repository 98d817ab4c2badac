"""Real clips, real labels, WordNet and spaCy, ViT-B/16 at 224 px with random weights: the documented example runs."""

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from pipelines.config import load_config
from pipelines.workflow import Layout, run_pipeline

EXAMPLE = Path(__file__).resolve().parent.parent / "examples" / "real_clips.yaml"

pytestmark = [pytest.mark.shared, pytest.mark.slow]


@pytest.fixture(scope="module")
def layout(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Layout:
    config = load_config(EXAMPLE).model_copy(update={"out": tmp_path_factory.mktemp("real") / "out"})
    report = run_pipeline(config, lambda line: None)
    assert set(report.steps.values()) == {"done"} and report.failed_videos == 0
    return Layout(config.out)


def test_the_corpus_covers_all_400_labels(layout: Layout) -> None:
    manifest = json.loads((layout.corpus / "manifest.json").read_text())
    assert manifest["counts"]["labels_without_entity"] == 0
    rows = pq.read_table(layout.corpus / "entities.parquet", columns=["name", "sense", "labels"]).to_pylist()
    labels = {label for row in rows for label in row["labels"]}
    assert len(labels) == 400
    senses = {row["sense"] for row in rows}
    assert {"bicycle.n.01", "guitar.n.01", "hand.n.01"} <= senses


def test_all_clips_are_aligned_as_the_paper_counts(layout: Layout) -> None:
    """ViT-B/16, r = 8: 196 patches become 100 regions, and no patch is lost."""
    manifest = json.loads((layout.alignments / "manifest.json").read_text())
    assert (manifest["patches"], manifest["regions"], manifest["dim"]) == (196, 100, 512)
    rows = pq.read_table(
        layout.alignments / "shard-00000.parquet", columns=["video_id", "frame_index", "patches"]
    )
    totals = (
        rows.to_pandas().groupby(["video_id", "frame_index"], observed=True)["patches"].agg(["sum", "count"])
    )
    assert len(totals) == 6 * 8
    assert set(totals["sum"]) == {196} and set(totals["count"]) == {101}


def test_every_clip_has_a_prediction_among_400_labels(layout: Layout, tmp_path: Path) -> None:
    from adapter.evaluate import predict

    counts = predict(
        layout.run("alt"), layout.alignments, layout.labels("kinetics400"), tmp_path / "predictions.parquet"
    )
    assert counts == {"planned": 6, "predicted": 6, "failed": 0}
    assert pq.read_table(tmp_path / "predictions.parquet").num_rows == 6


def test_scores_account_for_every_clip(layout: Layout) -> None:
    """Two clips have no label, and one has a label of UCF that Kinetics does not know."""
    for adapter in ("zero_shot", "alt"):
        found = json.loads((layout.run(adapter) / "eval-all_clips.json").read_text())
        assert found["classes"] == 400 and found["n"] == 3
        assert found["counts"]["unlabelled"] == 2 and found["unknown_labels"] == ["applying eye makeup"]


def test_random_weights_are_marked_wherever_one_looks(layout: Layout) -> None:
    for folder in (layout.corpus, layout.labels("kinetics400"), layout.alignments, layout.run("alt")):
        assert json.loads((folder / "manifest.json").read_text())["model"]["random_weights"] is True
    assert "random weights" in layout.report.read_text()
