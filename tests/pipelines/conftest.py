"""One finished miniature of ``alt run`` that several tests look at."""

import json
from pathlib import Path

import pytest

from pipelines.config import PipelineConfig, check_config
from pipelines.toyworld.lexicon import write_nltk_data
from pipelines.toyworld.videos import frames_of, write_video
from pipelines.toyworld.vocabulary import ACTION_BY_LABEL

LABELS = ("riding a bicycle", "playing a drum", "flying a kite")


def write_miniature(root: Path, model: str) -> PipelineConfig:
    """Three classes, a few tiny videos each with splits, one broken file, and a config."""
    rows = ["path,label,split"]
    for number, label in enumerate(LABELS):
        for clip, split in enumerate(("train", "train", "val", "test")):
            path = f"videos/{number}-{clip}.mp4"
            write_video(root / path, frames_of(ACTION_BY_LABEL[label], (number, clip), frames=6, pixels=48))
            rows.append(f"{path},{label},{split}")
    (root / "videos" / "broken.mp4").write_text("no video")
    rows.append(f"videos/broken.mp4,{LABELS[0]},test")
    (root / "manifest.csv").write_text("\n".join(rows) + "\n")
    (root / "labels.txt").write_text("\n".join(LABELS) + "\n")
    (root / "new.txt").write_text("juggling balls\nriding a horse\n")
    write_nltk_data(root / "nltk_data")
    raw = {
        "out": "out",
        "model": model,
        "nltk_data": "nltk_data",
        "device": "cpu",
        "corpus": {"labels": "labels.txt", "taggers": "nltk"},
        "labels": {"train": {"file": "labels.txt"}},
        "alignments": {"videos": "manifest.csv", "frames": 4, "merge": 3, "top_k": 3, "videos_per_shard": 6},
        "adapters": {"alt": {"labels": "train", "epochs": 1, "blocks": 1}},
        "evaluations": [{"name": "test", "labels": "train"}],
        "report": {"adapter": "alt", "evaluation": "test", "videos": 2},
    }
    (root / "alt.yaml").write_text(json.dumps(raw))
    return check_config(raw, root)


@pytest.fixture(scope="session")
def miniature(tiny_clip: str, tmp_path_factory: pytest.TempPathFactory) -> PipelineConfig:
    """A finished run; tests read it and do not change it."""
    from pipelines.workflow import run_pipeline

    config = write_miniature(tmp_path_factory.mktemp("miniature"), tiny_clip)
    report = run_pipeline(config, lambda line: None)
    assert set(report.steps.values()) == {"done"}
    assert report.failed_videos == 1
    return config
