"""Miniature end to end: lists, alignments, a trained run, and the table of a protocol."""

import csv
import json
import shutil

import pytest
from typer.testing import CliRunner

from adapter.artifact import describe_file
from adapter.cli import app
from adapter.config import AdapterError, make_settings
from adapter.scoring import run_and_keep
from adapter.train import train

SETTINGS = {"blocks": 1, "epochs": 6, "lr": 2e-3, "batch_size": 8, "device": "cpu", "val_fraction": 0.25}


def arguments(split_one, mini):
    folders = [
        "--alignments",
        split_one / "alignments",
        "--labels",
        split_one / "labels",
        "--lists",
        mini.root,
    ]
    return [str(word) for word in folders]


def command(*words):
    done = CliRunner().invoke(app, ["protocol", *map(str, words)])
    return done.exit_code, done.output


def test_a_run_by_a_protocol(split_one, mini, tmp_path):
    code, text = command(
        "run", "hmdb51-few-shot-8", split_one / "run", *arguments(split_one, mini), "--device", "cpu"
    )
    assert code == 0, text
    result = json.loads((split_one / "run" / "protocol-hmdb51-few-shot-8.json").read_text())
    (part,) = result["parts"]
    assert (part["listed"], part["n"], part["classes"]) == (12, 10, 6)
    assert part["missing"] == ["v00_pushup_u_nm.avi"] and part["failed"] == {
        "v01_kick_u_nm.avi": "decode: truncated"
    }
    # The model learned, and it trained on the list's 8 videos of each class and 12 more.
    assert part["top1"] > 0.6 and part["training"] == {"listed": 48, "run": 60, "both": 48}
    assert result["runs"][0]["views"] == {"frames": 6} and result["runs"][0]["train_seed"] == 0
    assert "1 missing: v00_pushup_u_nm.avi" in text and result["lists"][0]["sha256"][:16] in text
    # The scores that it kept are a source that gives the same figures.
    scores = split_one / "run" / "scores-hmdb51-few-shot-8.parquet"
    out = tmp_path / "out" / "again.json"
    code, text = command("run", "hmdb51-few-shot-8", scores, "--lists", mini.root, "--out", out, "--json")
    again = json.loads(text)
    assert code == 0 and again == json.loads(out.read_text())
    assert again["table"] == result["table"] and again["parts"][0]["confusions"] == part["confusions"]


def test_a_second_run_gives_the_same_bytes(split_one, mini):
    names = ("protocol-hmdb51-few-shot-2.json", "scores-hmdb51-few-shot-2.parquet")
    hashes = []
    for _ in range(2):
        run_and_keep(
            "hmdb51-few-shot-2",
            [split_one / "run"],
            mini.root,
            split_one / "alignments",
            split_one / "labels",
            device="cpu",
        )
        hashes.append([describe_file(split_one / "run" / name) for name in names])
    assert hashes[0] == hashes[1]


def test_a_linear_probe_of_z(tmp_path, toy, mini, split_one, trained):
    names = mini.classes["hmdb51"]
    videos = [
        toy.world.video(mini.video(name, i), None, None, c, 900 + 50 * c + i)
        for c, name in enumerate(names)
        for i in range(9)
    ]
    alignments = toy.write_alignments(tmp_path / "a", videos)
    # A trained run of other videos and classes, as the paper's is of Kinetics-400.
    run = shutil.copytree(trained, tmp_path / "run")
    result = run_and_keep(
        "hmdb51-linear-probe", [run], mini.root, alignments, split_one / "labels", device="cpu"
    )
    assert [part["n"] for part in result["parts"]] == [12, 12, 12]
    assert result["table"]["top1"]["mean"] > 0.7
    probe = result["runs"][0]["probe"]
    assert probe["videos"] == 42 and probe["listed"] == 108 and probe["penalty"] > 0
    unlisted = [video for video in videos if "sword_exercise" not in video.video_id]
    alignments = toy.write_alignments(tmp_path / "b", unlisted)
    with pytest.raises(
        AdapterError, match="part split 1: .* holds no training videos of sword exercise; align"
    ):
        run_and_keep("hmdb51-linear-probe", [run], mini.root, alignments, split_one / "labels", device="cpu")


def test_a_run_that_trained_on_a_test_video_is_refused(tmp_path, toy, mini, split_one):
    names = mini.classes["hmdb51"]
    videos = [toy.world.video(mini.video(n, i), n, None, c, c) for c, n in enumerate(names) for i in (0, 5)]
    alignments = toy.write_alignments(tmp_path / "a", videos)
    train(
        alignments,
        split_one / "labels",
        tmp_path / "run",
        make_settings({"model": "mean_pool", "device": "cpu"}),
    )
    folders = [
        "--alignments",
        alignments,
        "--labels",
        split_one / "labels",
        "--lists",
        mini.root,
        "--device",
        "cpu",
    ]
    code, text = command("run", "hmdb51-few-shot-2", tmp_path / "run", *folders)
    assert code == 1 and "6 of its 12 videos trained run or chose its epoch" in text
    assert not (tmp_path / "run" / "protocol-hmdb51-few-shot-2.json").exists()


def test_the_epoch_and_the_weights_do_not_depend_on_the_test_split(tmp_path, toy, label_set):
    """Test labels that are wrong, and test videos that show something else, give the same run bit by bit."""
    hashes, epochs = [], []
    for name, shift in (("right", 0), ("wrong", 1)):
        videos = toy.world.learnable(8)
        for video in videos:
            if video.split == "test" and shift:
                video.label = toy.classes[(toy.classes.index(video.label) + shift) % len(toy.classes)]
                video.seed += 7777
        alignments = toy.write_alignments(tmp_path / f"alignments {name}", videos)
        report = train(alignments, label_set, tmp_path / name, make_settings({**SETTINGS, "epochs": 3}))
        hashes.append(describe_file(tmp_path / name / "model.safetensors")["sha256"])
        epochs.append((report.best_epoch, report.best_val_top1))
    assert hashes[0] == hashes[1] and epochs[0] == epochs[1]


def test_what_lacks_is_said(split_one, mini, toy, tmp_path):
    code, text = command("run", "hmdb51-ep3", split_one / "run", "--lists", mini.root)
    assert code == 1 and "give --alignments and --labels to score it with" in text
    few = toy.write_labels(tmp_path / "few", mini.classes["hmdb51"][:5])
    folders = ["--alignments", split_one / "alignments", "--labels", few, "--lists", mini.root]
    code, text = command("run", "hmdb51-few-shot-2", split_one / "run", *folders)
    assert code == 1 and "has no scores for 1 of 6 candidates, such as 'sword'" in text
    code, text = command("run", "hmdb51-ep3", tmp_path / "none.parquet", "--lists", mini.root)
    assert code == 1 and "there is no file" in text
    code, text = command("run", "hmdb51-ep3", tmp_path, "--lists", mini.root, "--out", "x.txt")
    assert code == 1 and "it must end in .json" in text
    code, text = command("run", "k400-supervised", split_one / "run", *arguments(split_one, mini))
    assert code == 1 and "holds none of the videos of k400_base_test, k400_novel_test, such as v00_" in text


def test_protocols_are_listed_and_shown(mini):
    code, text = command("list")
    assert code == 0 and "hmdb51-ep3" in text and "k600-open-vclip" in text
    code, text = command("show", "hmdb51-base-to-novel", "--lists", mini.root)
    assert code == 0 and "runs, in this order: trained on s1" in text
    assert "novel s3: hmdb51_novel_test, trained on hmdb51_base_train3: 6 videos, 3 classes" in text
    code, text = command("show", "ucf101-ep1-numpy", "--json")
    assert json.loads(text)["parts"][3]["draw"] == {"scheme": "numpy", "index": 3}


def test_models_are_compared_from_files(split_one, mini):
    scores = split_one / "run" / "scores-hmdb51-few-shot-2.parquet"
    words = ["--first", scores, "--second", scores, "--lists", mini.root]
    code, text = command("compare", "hmdb51-few-shot-2", *words)
    assert (
        code == 0
        and "first - second +0.00 points [0.0, 0.0]" in text
        and "McNemar p = 1 (0 against 0" in text
    )


def test_manifests_of_protocols(tmp_path, mini):
    out, folder = tmp_path / "m.csv", tmp_path / "videos"
    for i in range(4):
        for name in ("sword", "kick"):
            (folder / name).mkdir(parents=True, exist_ok=True)
            (folder / name / mini.video(name, i).replace(".avi", ".mp4")).touch()
    code, text = command(
        "manifest", "hmdb51-base-to-novel", "--lists", mini.root, "--out", out, "--videos", folder, "--run", 2
    )
    assert code == 0 and "5 videos (4 test, 1 train)" in text and "not there: " in text
    rows = list(csv.DictReader(out.open()))
    # Run s2 trains on videos 3 to 18 of the base classes; kick is novel, so it is tested alone.
    assert [(row["path"], row["label"], row["split"]) for row in rows] == [
        ("sword/v03_sword_u_nm.mp4", "sword", "train"),
        ("sword/v00_sword_u_nm.mp4", "sword", "test"),
        ("sword/v01_sword_u_nm.mp4", "sword", "test"),
        ("kick/v00_kick_u_nm.mp4", "kick", "test"),
        ("kick/v01_kick_u_nm.mp4", "kick", "test"),
    ]
    code, text = command("manifest", "hmdb51-linear-probe", "--lists", mini.root, "--out", out)
    rows = list(csv.DictReader(out.open()))
    assert len(rows) == 120 and {row["split"] for row in rows} == {""} and "120 videos" in text
    (folder / "sword" / "v00_kick_u_nm.avi").touch()
    words = ["--lists", mini.root, "--out", out]
    for more, match in (
        (["--videos", folder], "have one listed name"),
        (["--videos", mini.root], "holds none of the 24 listed videos"),
        (["--run", 2], "--run is 2; hmdb51-few-shot-2 has runs 1 to 1"),
    ):
        code, text = command("manifest", "hmdb51-few-shot-2", *words, *more)
        assert code == 1 and match in text
