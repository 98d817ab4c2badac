"""Several processes train and score as one does: real processes, gloo, and once ``torchrun`` itself."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file

from adapter.artifact import open_run
from adapter.ranks import Ranks

DRIVER = Path(__file__).parent / "drive_trainings.py"
# 36 videos in batches of 7: the last batch has one video, so two of three ranks have none in it.
QUIET = {"blocks": 1, "epochs": 2, "batch_size": 7, "dropout": 0.0, "noise": "never", "device": "cpu"}
NOISY = {**QUIET, "dropout": 0.1, "noise": "train", "save_every": 3}
PROTOCOL = "hmdb51-few-shot-2"
FORMS = {
    "two ranks": {"ranks": 2},
    "three ranks": {"ranks": 3},
    "in parts": {"settings": {**QUIET, "accumulate": 3}},
    "two ranks in parts": {"ranks": 2, "settings": {**QUIET, "accumulate": 2}},
}


SCORED = {
    "1 ranks": {"ranks": 1, "pass": 3},
    "2 ranks": {"ranks": 2, "pass": 3},
    "3 ranks": {"ranks": 3, "pass": 3},
    "two videos, alone": {"data": "few", "ranks": 1, "pass": 1},
    "two videos, three ranks": {"data": "few", "ranks": 3, "pass": 1},
    "damaged": {"data": "damaged", "ranks": 2, "pass": 1},
}


@pytest.fixture(scope="module")
def jobs_done(tmp_path_factory, learnable, label_set, split_one, mini, toy):
    """A folder of runs by name, exit codes by name, and what was said; one program does all jobs."""
    root = tmp_path_factory.mktemp("ranks")
    jobs = training_jobs(root, learnable, label_set) + scoring_jobs(root, split_one, mini, toy)
    done = subprocess.run(
        [sys.executable, DRIVER],
        input=json.dumps([settings for _, settings in jobs]),
        capture_output=True,
        text=True,
        timeout=600,
        start_new_session=True,
    )
    assert done.returncode == 0, done.stderr
    codes = [(name, code) for (name, _), code in zip(jobs, json.loads(done.stdout), strict=True)]
    return root, codes, done.stderr


def training_jobs(root, learnable, label_set):
    def job(name, settings=QUIET, **more):
        paths = {"alignments": str(learnable), "labels": str(label_set), "out": str(root / name)}
        return name, {**paths, "settings": settings, **more}

    jobs = [job("alone"), *(job(name, **form) for name, form in FORMS.items())]
    jobs += [
        job("noisy", NOISY, ranks=2),
        job("noisy stopped", NOISY, ranks=2, fault=("stop at step", 5), fault_rank=1),
        job("noisy stopped", NOISY, ranks=2),
        job("elastic", ranks=2, fault=("stop at step", 5)),
        job("elastic", ranks=3),
        job("crowd", {**QUIET, "batch_size": 2}, ranks=3),
    ]
    for ranks, batch_size in ((1, 7), (2, 5), (3, 16)):
        name = f"figures of {ranks}"
        jobs.append(job(name, {**QUIET, "batch_size": batch_size}, ranks=ranks, validate=True, **{"pass": 4}))
    return jobs


def scoring_jobs(root, split_one, mini, toy):
    """Copies of a run, each scored on all videos, on two, or on two of which the second is damaged."""
    name = mini.classes["hmdb51"][0]
    few = [toy.world.video(f"{name}/{mini.video(name, i)}", name, "test", 0, i) for i in (0, 1)]
    data = {"few": root / "few", "damaged": root / "damaged data"}
    for path in data.values():
        toy.write_alignments(path, few, num_shards=1, per_group=1)
    damage_last_group(data["damaged"])
    common = {"labels": str(split_one / "labels"), "lists": str(mini.root), "protocol": PROTOCOL}
    jobs = []
    for name, form in SCORED.items():
        out = shutil.copytree(split_one / "run", root / name)
        alignments = data.get(form.get("data"), split_one / "alignments")
        heads = ["text"] if "data" in form else ["text", "probe"]
        jobs.append(
            (name, {**common, **form, "heads": heads, "alignments": str(alignments), "out": str(out)})
        )
    return jobs


def damage_last_group(alignments):
    """Let the last row group hold a number that is none; the others are as they were."""
    (file,) = alignments.glob("shard-*.parquet")
    old = pq.ParquetFile(file)
    groups = [old.read_row_group(i) for i in range(old.num_row_groups)]
    place = groups[-1].column_names.index("norm")
    groups[-1] = groups[-1].set_column(
        place, "norm", pa.array([float("nan")] * len(groups[-1]), pa.float32())
    )
    with pq.ParquetWriter(file, old.schema_arrow, write_page_checksum=True) as writer:
        for group in groups:
            writer.write_table(group)


def assert_close(run, other):
    one, two = (load_file(path / "last.safetensors") for path in (run, other))
    assert one.keys() == two.keys()
    for name in one:
        # A softmax does not feel the bias of its keys: that gradient is rounding alone, which AdamW blows up.
        felt = slice(len(one[name]) // 2, None) if name.endswith("key_value.bias") else slice(None)
        parts = (weights[name] if weights[name].ndim == 0 else weights[name][felt] for weights in (one, two))
        torch.testing.assert_close(*parts, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", [*FORMS, "elastic"])
def test_the_number_of_ranks_and_parts_does_not_matter(jobs_done, name):
    root, codes, _ = jobs_done
    assert all(set(code) == {0} for found, code in codes if found in FORMS or found == "alone")
    assert_close(root / name, root / "alone")
    figures = [
        json.loads((root / run / "metrics.jsonl").read_text().splitlines()[-1]) for run in (name, "alone")
    ]
    for key in ("loss", "top1", "val_loss"):
        assert figures[0][key] == pytest.approx(figures[1][key], abs=1e-4)
    manifests = [open_run(root / run).manifest for run in (name, "alone")]
    assert manifests[0]["counts"] == manifests[1]["counts"]


def test_weights_were_learned_at_all(jobs_done):
    weights = [load_file(jobs_done[0] / name / "last.safetensors") for name in ("alone", "noisy")]
    largest = max((weights[0][name] - weights[1][name]).abs().max().item() for name in weights[0])
    assert largest > 1e-3


def test_a_signal_to_one_rank_stops_all_and_all_go_on_to_the_same_bits(jobs_done):
    root, codes, said = jobs_done
    assert [code for name, code in codes if name == "noisy stopped"] == [[75, 75], [0, 0]]
    for file in ("model.safetensors", "last.safetensors"):
        assert (root / "noisy" / file).read_bytes() == (root / "noisy stopped" / file).read_bytes()
    assert "the state is saved" in said


def test_more_ranks_than_videos_are_an_error_on_every_rank(jobs_done):
    root, codes, said = jobs_done
    assert dict(codes)["crowd"] == [1, 1, 1] and not (root / "crowd").exists()
    assert "3 processes cannot share 36 training videos in batches of 2; start at most 2" in said


def test_validation_is_bit_equal_over_ranks_and_batch_sizes(jobs_done):
    root, codes, _ = jobs_done
    texts = {(root / f"figures of {ranks}").read_text() for ranks in (1, 2, 3)}
    assert len(texts) == 1 and set(json.loads(texts.pop())) == {"val_loss", "val_top1"}


@pytest.mark.parametrize(
    ("name", "alone"),
    [("2 ranks", "1 ranks"), ("3 ranks", "1 ranks"), ("two videos, three ranks", "two videos, alone")],
)
def test_the_number_of_ranks_changes_no_bit_of_what_is_scored(jobs_done, name, alone):
    """Evaluations by text and by probe, predictions, a protocol's result and its scores; only the first rank writes."""
    root, codes, said = jobs_done
    assert {*dict(codes)[name], *dict(codes)[alone]} == {0}, said
    written = [
        {
            path.relative_to(root / run): content(path, run)
            for path in (root / run).rglob("*")
            if path.is_file()
        }
        for run in (name, alone)
    ]
    assert written[0] == written[1]
    files = {path.name for path in written[0]}
    assert files >= {"eval-by-text.json", "predictions-by-text.parquet", "predictions.parquet", "table.json"}
    assert files >= {f"protocol-{PROTOCOL}.json", f"scores-{PROTOCOL}.parquet"}


def content(path, run):
    """What a file says, less the name of the run's folder."""
    return path.read_bytes().replace(f'"{run}"'.encode(), b'"run"')


@pytest.mark.parametrize(
    ("name", "tested", "aligned"), [("3 ranks", 10, 70), ("two videos, three ranks", 2, 2)]
)
def test_every_video_is_scored_once_whatever_the_number_of_ranks(jobs_done, name, tested, aligned):
    root = jobs_done[0]
    result = json.loads((root / name / "eval-by-text.json").read_text())
    assert (result["n"], sum(row["n"] for row in result["per_class"])) == (tested, tested)
    videos = pq.read_table(root / name / "new" / "predictions.parquet")["video_id"].to_pylist()
    assert len(videos) == len(set(videos)) == aligned


def test_damage_that_one_rank_meets_ends_all_with_a_message(jobs_done):
    root, codes, said = jobs_done
    assert dict(codes)["damaged"] == [1, 1] and not (root / "damaged" / "eval-by-text.json").exists()
    assert "Traceback" not in said and "has norm that are not finite; run `aligner verify" in said
    assert "another of the 2 processes ended before its part was done" in said


@pytest.mark.parametrize("videos", [0, 1, 4, 7])
@pytest.mark.parametrize("world", [1, 2, 3, 5])
def test_every_video_of_a_batch_belongs_to_one_rank(videos, world):
    parts = [Ranks(torch.device("cpu"), rank, world).part(list(range(videos))) for rank in range(world)]
    assert sorted(sum(parts, [])) == list(range(videos))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_torchrun_itself(jobs_done, tmp_path, learnable, label_set):
    options = [part for name, value in QUIET.items() for part in ("--set", f"{name}={value}")]
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "adapter",
        "train", "--alignments", learnable, "--labels", label_set, "--out", tmp_path / "run", *options,
    ]  # fmt: skip
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=120, start_new_session=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("trained on 36 of 36 videos") == 1
    assert done.stderr.count("epoch   1") == 1
    assert_close(tmp_path / "run", jobs_done[0] / "alone")
