"""What the four walks share: commands as a person gives them, and one small data set of her own."""

import importlib.util
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

from pipelines.toyworld.lexicon import write_nltk_data
from pipelines.toyworld.videos import frames_of, write_video
from pipelines.toyworld.vocabulary import ACTION_BY_LABEL

ROOT = Path(__file__).resolve().parents[2]
LABELS = ("riding a bicycle", "playing a drum")
Command = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="session")
def cluster() -> ModuleType:
    """``tests/aligner/slurm_cluster.py``: a real scheduler of one node."""
    spec = importlib.util.spec_from_file_location(
        "slurm_cluster", ROOT / "tests" / "aligner" / "slurm_cluster.py"
    )
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def command() -> Command:
    """``command("alt", "run", ..., cwd=FOLDER, code=0)`` in a process of its own; another exit code fails the walk."""
    modules = {"alt": "pipelines", "aligner": "aligner", "adapter": "adapter"}

    def call(
        program: str, *words: object, cwd: Path, code: int = 0, env: dict[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [sys.executable, "-m", modules[program], *map(str, words)],
            cwd=cwd,
            env={
                **os.environ,
                "PYTHONPATH": str(ROOT),
                "HF_HUB_OFFLINE": "1",
                "NO_COLOR": "1",
                **(env or {}),
            },
            capture_output=True,
            text=True,
        )
        assert done.returncode == code, done.stdout + done.stderr
        assert "Traceback" not in done.stderr
        return done

    return call


@pytest.fixture(scope="session")
def small(tiny_clip: str) -> Callable[[Path, dict[str, Any]], None]:
    """Change a config as its owner would, and make all of it small."""

    def change(file: Path, changes: dict[str, Any]) -> None:
        raw = yaml.safe_load(file.read_text())
        raw.pop("pretrained", None)
        raw |= {"model": tiny_clip, "device": "cpu", "nltk_data": "nltk_data"}
        raw["corpus"] |= {"taggers": "nltk"}
        raw["alignments"] |= {"frames": 2, "merge": 3, "top_k": 3, "decode_workers": 1, "batch_frames": 32}
        for adapter in raw["adapters"].values():
            adapter |= {"epochs": 1, "blocks": 1}
        for section, values in changes.items():
            raw[section] = raw.get(section, {}) | values if isinstance(values, dict) else values
        file.write_text(yaml.safe_dump(raw, sort_keys=False))

    return change


def write_own(root: Path) -> None:
    """A folder ``SPLIT/CLASS/clip.mp4``, one file of which is broken, and a list of labels."""
    for number, label in enumerate(LABELS):
        for place, split in enumerate(("train", "train", "val", "test")):
            frames = frames_of(ACTION_BY_LABEL[label], (number, place), frames=3, pixels=48)
            write_video(root / "clips" / split / label / f"{place}.mp4", frames)
    (root / "clips" / "train" / LABELS[0] / "broken.mp4").write_text("no video")
    (root / "labels.txt").write_text("\n".join(LABELS) + "\n")
    write_nltk_data(root / "nltk_data")


@pytest.fixture(scope="session")
def own(
    tmp_path_factory: pytest.TempPathFactory, command: Command, small: Callable[[Path, dict[str, Any]], None]
) -> Path:
    """The folder of somebody with videos and labels of her own, after her first ``alt run``."""
    root = tmp_path_factory.mktemp("own")
    write_own(root)
    command("alt", "init", "my.yaml", cwd=root)
    changes = {
        "corpus": {"labels": "labels.txt"},
        "labels": {"train": {"file": "labels.txt"}},
        "alignments": {"videos": "clips"},
    }
    small(root / "my.yaml", changes)
    done = command("alt", "run", "my.yaml", cwd=root, code=2)
    (root / "said.txt").write_text(done.stdout + done.stderr)
    return root
