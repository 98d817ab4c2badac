"""Every recipe in miniature: priced and run on generated videos that are laid out and listed as the real ones are."""

import csv
import importlib.util
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

from pipelines.config import PipelineConfig, check_config
from pipelines.errors import PipelineError, Unfinished
from pipelines.template import read_recipe, recipes
from pipelines.toyworld.lexicon import write_nltk_data
from pipelines.toyworld.videos import frames_of, write_video
from pipelines.toyworld.vocabulary import ACTION_BY_LABEL
from pipelines.workflow import Layout, RunReport, run_pipeline


def load(path: str) -> ModuleType:
    """A file of the tests, as a module."""
    file = Path(__file__).parents[1] / path
    spec = importlib.util.spec_from_file_location(file.stem, file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[file.stem] = module
    spec.loader.exec_module(module)
    return module


LISTS = load("adapter/conftest.py")
# Of the videos of a class those with these numbers are there: 0 to 5 are the three test splits, two of each.
THERE = (0, 1, 2, 4, 8, 9)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with lists, a lexicon and a few drawn videos, of which data sets are made by copying."""
    root = tmp_path_factory.mktemp("source")
    for number, label in enumerate(("riding a bicycle", "playing a drum", "flying a kite")):
        frames = frames_of(ACTION_BY_LABEL[label], (number, 0), frames=3, pixels=32)
        write_video(root / f"{number}.mp4", frames)
    write_nltk_data(root / "nltk_data")
    LISTS.write_mini_lists(root / "lists")
    # Kinetics-600 has the classes of its three zero-shot subsets, among others.
    names = [f"new deed {c}" for c in range(1, 7)]
    (root / "lists/labels/kinetics_600_labels.csv").write_text(LISTS.class_file(names))
    return root


class Miniature:
    """A data set in a folder of its own, and a recipe changed as a user would, with everything small."""

    def __init__(self, root: Path, source: Path, model: str) -> None:
        self.root, self.source, self.model, self.copied = root, source, model, 0
        os.symlink(source / "lists", root / "lists")

    def videos(self, *names: str) -> None:
        """Some videos of these names."""
        for name in names:
            (self.root / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(self.source / f"{self.copied % 3}.mp4", self.root / name)
            self.copied += 1

    def listed(self, folder: str, data: str, numbers: tuple[int, ...] = THERE) -> None:
        """Videos of a data set by its lists' names, in a folder for each class."""
        for label in LISTS.MINI_CLASSES[data]:
            self.videos(*(f"{folder}/{label}/{LISTS.mini_video(label, i)}" for i in numbers))

    def config(
        self, name: str, change: Callable[[dict[str, Any]], None] = lambda raw: None
    ) -> PipelineConfig:
        """The recipe with a tiny model, one epoch and few frames."""
        raw = yaml.safe_load(read_recipe(name))
        raw |= {"model": self.model, "device": "cpu", "nltk_data": str(self.source / "nltk_data")}
        del raw["pretrained"]
        raw["corpus"] |= {"taggers": "nltk"}
        raw["alignments"] |= {"frames": 2, "merge": 3, "top_k": 3, "decode_workers": 1, "batch_frames": 32}
        for adapter in raw["adapters"].values():
            adapter |= {"epochs": 1, "blocks": 1, "batch_size": 16}
        change(raw)
        return check_config(raw, self.root, name)


@pytest.fixture
def mini(source: Path, tiny_clip: str, tmp_path: Path) -> Miniature:
    return Miniature(tmp_path, source, tiny_clip)


def run(config: PipelineConfig) -> RunReport:
    """Run a config; a dry run must say the same videos and steps beforehand."""
    said: list[str] = []
    before = run_pipeline(config, said.append, dry_run=True, probe=1)
    assert set(before.steps.values()) == {"would run"} and not config.out.exists()
    report = run_pipeline(config, lambda line: None)
    assert list(report.steps) == list(before.steps) and set(report.steps.values()) == {"done"}
    assert report.failed_videos == 0
    costs = {cost["stage"]: cost for cost in before.price["stages"]}
    for name in (None, *config.test_alignments):
        folder = Layout(config.out).aligned(name)
        manifest, title = (
            json.loads((folder / "manifest.json").read_text()),
            str(folder.relative_to(config.out)),
        )
        cost = costs[title]
        assert cost["videos"] == manifest["videos"]
        assert cost["frames"] == manifest["videos"] * manifest["frames"] * len(manifest["views"])
        assert cost["missing"] == report.missing_videos.get(name or "alignments", 0)
        on_disk = sum(file.stat().st_size for file in folder.glob("shard-*.parquet"))
        assert 0.3 < on_disk / cost["bytes"][manifest["config"]["store"]] < 3
        low, middle, high = cost["seconds"]
        assert 0 < low <= middle <= high
    assert before.price["device_hours"]["median"] > 0 and "CPU-hours" in said[-1]
    return report


def result(report: RunReport, name: str) -> dict[str, Any]:
    """A protocol's stored result."""
    found: dict[str, Any] = json.loads(Layout(report.out).protocol(name).read_text())
    return found


def test_every_recipe_is_run_here() -> None:
    source = Path(__file__).read_text()
    for name in recipes():
        assert f'config("{name}"' in source or f'"{name}",' in source, name
        assert read_recipe(name).startswith("# ")


@pytest.mark.parametrize("data", ["ucf101", "hmdb51"])
def test_three_official_splits_are_aligned_once(mini: Miniature, data: str) -> None:
    """``config("ucf101")`` and ``config("hmdb51")``."""
    mini.listed("videos", data)
    report = run(mini.config(data))
    classes = len(LISTS.MINI_CLASSES[data])
    # All 20 videos of a class are on some list.
    assert report.missing_videos == {"alignments": classes * (LISTS.PER_CLASS - len(THERE))}
    parts = result(report, f"{data}-supervised")["parts"]
    assert [part["n"] for part in parts] == [2 * classes, classes, classes]
    assert [len(part["missing"]) for part in parts] == [0, classes, classes]
    # Each run is trained on the videos of its own list: four of a class in all, less those that chose the epoch.
    for i, part in enumerate(parts):
        assert part["training"]["both"] == part["training"]["run"] == classes * (4, 5, 5)[i]
    assert report.scores["split1"]["test1"]["n"] == 2 * classes
    assert "listed, not there" in (report.out / "report.html").read_text()


def test_few_shot_draws_share_one_cache(mini: Miniature) -> None:
    mini.listed("videos", "hmdb51")
    report = run(mini.config("few-shot"))
    classes = len(LISTS.MINI_CLASSES["hmdb51"])
    # Test split 1 (0, 1) and the training lists, which begin with 2: up to 17.
    assert report.missing_videos == {"alignments": classes * (18 - len(THERE))}
    shots = {k: result(report, f"hmdb51-few-shot-{k}")["parts"][0] for k in (2, 4, 8, 16)}
    assert {k: part["training"]["run"] for k, part in shots.items()} == {
        2: classes,  # 2 and 3, of which 3 is missing
        4: 2 * classes,
        8: 4 * classes,
        16: 4 * classes,
    }
    assert all(part["n"] == 2 * classes for part in shots.values())


def test_base_to_novel_trains_on_the_base_classes_alone(mini: Miniature) -> None:
    mini.listed("videos", "hmdb51")
    report = run(mini.config("base-to-novel"))
    table = report.protocols["hmdb51-base-to-novel"]["top1"]
    assert table["base"]["n"] == table["novel"]["n"] == 3 and 0 <= table["harmonic_mean"] <= 1
    parts = result(report, "hmdb51-base-to-novel")["parts"]
    assert {part["part"]: part["classes"] for part in parts} == {
        **{f"base s{i}": 3 for i in (1, 2, 3)},
        **{f"novel s{i}": 3 for i in (1, 2, 3)},
    }


def test_kinetics_400_is_trained_on_folders_and_tested_by_the_list(mini: Miniature) -> None:
    for label in LISTS.MINI_CLASSES["k400"]:
        mini.videos(*(f"videos/train/{label}/{label}-{i}.mp4" for i in range(2)))
        mini.videos(f"videos/val/{LISTS.mini_video(label, 0)}")
    report = run(mini.config("kinetics-400"))
    classes = len(LISTS.MINI_CLASSES["k400"])
    assert report.missing_videos == {"alignments": 0, "val": classes}
    found = result(report, "baseline")
    assert found["parts"][0]["n"] == classes and len(found["parts"][0]["missing"]) == classes
    assert found["runs"][0]["views"]["clips"] == 3


def test_kinetics_600_splits_are_aligned_apart(mini: Miniature) -> None:
    for c in range(1, 7):
        mini.videos(
            *(f"videos/train/new deed {c}/{i}.mp4" for i in range(2)), f"videos/val/new deed {c}/x.mp4"
        )
    report = run(mini.config("kinetics-600"))
    assert report.scores["alt"]["val"]["n"] == 6 and report.scores["alt"]["val"]["views"] == 3
    assert "first of 3 views" in (report.out / "report.html").read_text()


def test_ssv2_with_the_manifest_that_its_comment_makes(mini: Miniature) -> None:
    labels = LISTS.MINI_CLASSES["ssv2"]
    rows = [
        {"id": f"{number}{i}", "template": label.replace("something", "[something]")}
        for number, label in enumerate(labels)
        for i in range(2)
    ]
    (mini.root / "train.json").write_text(json.dumps(rows))
    mini.videos(*(f"videos/{row['id']}.webm" for row in rows))
    mini.videos(*(f"videos/{LISTS.mini_video(label, 1)}" for label in labels))
    comment = re.search(r'#   python -c "(.*?)"\n# lists', read_recipe("ssv2"), re.DOTALL)
    assert comment
    program = comment[1].replace("\n#  ", "")
    subprocess.run([sys.executable, "-c", program], cwd=mini.root, check=True)
    with (mini.root / "train.csv").open() as file:
        assert next(csv.DictReader(file)) == {"path": "00.webm", "label": labels[0], "split": "train"}
    report = run(mini.config("ssv2"))
    assert report.missing_videos == {"val": len(labels)}
    assert result(report, "ssv2-supervised")["parts"][0]["n"] == len(labels)


def test_zero_shot_from_one_data_set_to_three(mini: Miniature) -> None:
    for label in LISTS.MINI_CLASSES["k400"]:
        mini.videos(*(f"k400/train/{label}/{i}.mp4" for i in range(2)))
    for data in ("ucf101", "hmdb51"):
        mini.listed(data, data, (0, 2, 4))
    mini.videos(*(f"k600/{LISTS.mini_video(f'new deed {c}', i)}" for c in range(1, 7) for i in (2, 3)))
    report = run(mini.config("zero-shot"))
    assert {name: n for name, n in report.missing_videos.items() if name != "alignments"} == {
        "ucf101": 3 * 7,
        "hmdb51": 3 * 6,
        "k600": 8,  # of the 18 videos that are on a list of some subset
    }
    assert set(report.protocols) == {
        f"{prefix}{name}" for prefix in ("", "clip-") for name in ("ucf101-ep3", "hmdb51-ep3", "k600-vifi")
    }
    # Archery, pull ups and shot put are classes of Kinetics-400 too.
    assert result(report, "ucf101-ep3")["parts"][0]["seen"]["classes"] == 3
    clip = json.loads((Layout(report.out).run("clip") / "manifest.json").read_text())
    assert clip["parameters"] == 0


def own(mini: Miniature) -> None:
    """One's own videos: a manifest with a missing file, and labels."""
    rows = ["path,label,split"]
    for label in ("riding a bicycle", "playing a drum"):
        for split in ("train", "train", "val", "test"):
            name = f"clips/{label}-{len(rows)}.mp4"
            mini.videos(name)
            rows.append(f"{name},{label},{split}")
    (mini.root / "videos.csv").write_text("\n".join([*rows, "clips/gone.mp4,playing a drum,test", ""]))
    (mini.root / "labels.csv").write_text("name\nriding a bicycle\nplaying a drum\n")


def test_own_data_with_a_missing_file(mini: Miniature) -> None:
    own(mini)
    config = mini.config("own-data")
    before = run_pipeline(config, lambda line: None, dry_run=True, probe=1)
    cost = next(cost for cost in before.price["stages"] if cost["stage"] == "alignments")
    assert (cost["videos"], cost["missing"], cost["frames"]) == (8, 1, 16)
    report = run_pipeline(config, lambda line: None)
    assert report.failed_videos == 1 and report.scores["alt"]["test"]["n"] == 2


# A scheduler of three lines: sbatch runs every task of the array at once, one after the other.
SBATCH = """#!{python}
import os, re, subprocess, sys
array = next(word.split("=")[1] for word in sys.argv if word.startswith("--array="))
first, _, last = array.split("%")[0].partition("-")
offset = re.search("ALIGNER_OFFSET=[0-9]+", " ".join(sys.argv))[0].split("=")[1]
for task in range(int(first), int(last or first) + 1):
    told = {{"SLURM_ARRAY_TASK_ID": str(task), "ALIGNER_OFFSET": offset}}
    subprocess.run(["bash", sys.argv[-1]], env=os.environ | told, check=True, stdout=sys.stderr)
print(7)
"""


def test_on_slurm_the_same_command_submits_waits_and_goes_on(
    mini: Miniature, monkeypatch: pytest.MonkeyPatch
) -> None:
    own(mini)
    programs = mini.root / "bin"
    programs.mkdir()
    for name, text in {
        "sbatch": SBATCH.format(python=sys.executable),
        "squeue": f"#!/bin/sh\ncat {shlex.quote(str(mini.root / 'queue'))}\n",
    }.items():
        (programs / name).write_text(text)
        (programs / name).chmod(0o755)
    (mini.root / "queue").write_text("7\n7\n")
    monkeypatch.setenv("PATH", f"{programs}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    config = mini.config("slurm")
    with pytest.raises(Unfinished, match="1 tasks submitted .*job 7") as submitted:
        run_pipeline(config, lambda line: None)
    assert submitted.value.exit_code == 75
    script = (config.out / "alignments.sbatch").read_text()
    assert "#SBATCH --time=04:00:00\n" in script and "#SBATCH --cpus-per-task=8\n" in script
    with pytest.raises(Unfinished, match="2 tasks of the job array are queued or at work"):
        run_pipeline(config, lambda line: None)
    (mini.root / "queue").write_text("")
    report = run_pipeline(config, lambda line: None)
    assert report.steps["alignments"] == report.steps["train/alt"] == "done"
    assert report.scores["alt"]["test"]["n"] == 2


def test_ray_is_asked_for_with_the_recipe_s_cores(mini: Miniature) -> None:
    own(mini)
    config = mini.config("ray")
    section = config.alignments
    settings = section.settings(config, Path(), Path(), section.videos, section.videos_root)
    assert (settings.launcher, settings.ray_cpus, settings.processes) == ("ray", 2, "auto")


def test_an_unknown_recipe_is_a_message() -> None:
    with pytest.raises(PipelineError, match="no recipe 'ucf'.*there are .*zero-shot"):
        read_recipe("ucf")
