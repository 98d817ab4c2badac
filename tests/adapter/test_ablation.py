import json
import shutil

import numpy as np
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from adapter.ablation import ROWS, Column, Data, ablate, ablation_words, choose_rows, standard_columns
from adapter.cli import app
from adapter.config import AdapterError, make_settings
from adapter.measures import paired

ROW_NAMES = ["tip", "tracks", "tracks-random", "tracks-words"]
QUICK = {"blocks": 1, "epochs": 2, "width": 16, "batch_size": 8, "device": "cpu", "threads": 1}
SEEDS = (0, 1)


@pytest.fixture(scope="module")
def data(tmp_path_factory, toy, learnable):
    """Four classes to train on, two unseen; another corpus stands for random words."""
    folder = tmp_path_factory.mktemp("ablation")
    other = toy.replace(toy.world, entities=toy.world.entities[::-1].copy())
    words = toy.write_alignments(folder / "words", toy.world.learnable(), other)
    seen = toy.write_labels(folder / "seen", toy.classes[:4])
    unseen = toy.write_labels(folder / "unseen", toy.classes[4:], seed=5)
    return Data(learnable, seen, words), unseen


@pytest.fixture(scope="module")
def done(tmp_path_factory, data):
    """A finished ablation, and what it said."""
    out, said = tmp_path_factory.mktemp("done"), []
    columns = standard_columns("test", [2], data[1], "test", sensitivity=True)
    result = ablate(data[0], out, columns, choose_rows(ROW_NAMES), SEEDS, QUICK, {"epochs": 1}, said.append)
    return out, columns, result, said


def correct(out, run, name):
    table = pq.read_table(out / "runs" / run / f"predictions-{name}.parquet", columns=["video_id", "correct"])
    return {row["video_id"]: row["correct"] for row in table.to_pylist()}


def test_every_cell_is_what_its_runs_predicted(done):
    out, columns, result, said = done
    assert [row["name"] for row in result["rows"]] == ["clip", *ROW_NAMES]
    cell = result["cells"]["tracks"]["2-shot"]
    assert cell["runs"] == ["tracks-2shot-s0", "tracks-2shot-s1"] and cell["n"] == 12
    right = [np.mean(list(correct(out, run, "2-shot").values())) for run in cell["runs"]]
    assert cell["top1_by_run"] == right and cell["top1"]["mean"] == pytest.approx(np.mean(right))
    assert cell["top1"]["std"] == pytest.approx(np.std(right))
    assert result["cells"]["tracks"]["zero-shot"]["n"] == 6
    # Few shots have options of their own; what makes a row beats them.
    config = json.loads((out / "runs" / "tracks-2shot-s1" / "config.json").read_text())
    assert config | {"epochs": 1, "shots": 2, "seed": 1, "queries": "tracks", "context": "cls"} == config
    assert json.loads((out / "runs" / "tracks-s1" / "config.json").read_text())["epochs"] == 2
    assert len([line for line in said if "trained in" in line]) == 3 * 2 * 2 + 3


def test_what_no_seed_changes_runs_once(done):
    cells = done[2]["cells"]
    assert cells["clip"]["2-shot"]["runs"] == cells["clip"]["supervised"]["runs"] == ["clip-s0"]
    assert cells["tip"]["supervised"]["runs"] == ["clip-s0"]
    assert cells["tip"]["2-shot"]["runs"] == ["clip-2shot-s0", "clip-2shot-s1"]
    # A head of labelled videos says nothing of classes that have none.
    assert set(cells["tip"]) == {"supervised", "2-shot"}


def test_controls_are_compared_on_the_same_videos_and_seeds(done):
    out, _, result, _ = done
    found = {(c["control"], c["column"]): c for c in result["comparisons"]}
    assert set(found) == {
        (control, column) for control in ROW_NAMES[2:] for column in result["cells"]["tracks"]
    }
    pair = []
    for row in ("tracks", "tracks-random"):
        hits = [correct(out, run, "supervised") for run in result["cells"][row]["supervised"]["runs"]]
        pair.append(np.array([[one[video] for video in sorted(one)] for one in hits]))
    again = paired(*pair)
    one = found["tracks-random", "supervised"]
    assert one["difference"] == again["difference"] and one["sign_flip_p"] == again["sign_flip_p"]
    assert one["row"] == "tracks" and one["runs"] == 2


def test_the_random_words_are_other_alignments(done, data):
    manifest = json.loads((done[0] / "runs" / "tracks-words-s0" / "manifest.json").read_text())
    assert manifest["inputs"]["alignments"]["fingerprint"] == done[2]["inputs"]["random_words"]
    assert done[2]["inputs"]["random_words"] != done[2]["inputs"]["alignments"] and done[2]["left_out"] == []


def test_the_table_has_a_line_a_row_and_says_what_was_not_measured(done):
    out, columns, result, _ = done
    text = (out / "ablation.md").read_text()
    assert text == "\n".join(ablation_words(result)) + "\n"
    assert json.loads((out / "ablation.json").read_text()) == result
    lines = [line for line in text.splitlines() if line.startswith("| ")]
    head = [cell.strip() for cell in lines[0].strip("|").split("|")]
    assert head[2:7] == [
        "supervised",
        *(f"supervised, {w}" for w in ("reversed", "shuffled", "scenes", "objects")),
    ]
    tip = [cell.strip() for cell in lines[2].strip("|").split("|")]
    top1 = result["cells"]["tip"]["supervised"]["top1"]
    assert (
        tip[:3] == ["mean of frames, Tip-Adapter's cache", "0", f"{100 * top1['mean']:.1f}"]
        and top1["n"] == 1
    )
    # The toy corpus tells no kinds; zero-shot is nothing that a cache of videos can do.
    assert tip[5:] == ["-", "-", tip[7], "-", "-"] and "±" in tip[7]
    (compared,) = (line for line in lines if line.startswith("| tracks - tracks-words |"))
    (one,) = (c for c in result["comparisons"] if (c["control"], c["column"]) == ("tracks-words", "2-shot"))
    place = [column["name"] for column in result["columns"]].index("2-shot")
    cell = compared.strip("|").split("|")[1 + place].split()
    assert float(cell[0]) == pytest.approx(100 * one["difference"], abs=0.06)
    assert cell[-1] == f"{one['sign_flip_p']:.2g}" and "at least 0.5 with 2 of them" in text


def test_a_second_run_does_nothing_and_a_lost_one_is_made_again(done, data, tmp_path):
    first, columns, result, _ = done
    out, said = tmp_path / "again", []
    shutil.copytree(first, out)
    arguments = (data[0], out, columns, choose_rows(ROW_NAMES), SEEDS, QUICK, {"epochs": 1}, said.append)
    assert ablate(*arguments) == result and said == []
    assert (out / "ablation.json").read_bytes() == (first / "ablation.json").read_bytes()
    (out / "runs" / "tracks-s1" / "manifest.json").unlink()
    (out / "runs" / "tracks-s0" / "eval-zero-shot.json").unlink()
    assert ablate(*arguments) == result
    assert [line.split(":")[0] for line in said] == [
        "tracks-s1",
        "tracks-s1, supervised",
        "tracks-s0, zero-shot",
        "tracks-s1, zero-shot",
        "tracks-s1, zero-shot-blended",
    ]
    said.clear()
    # Other options make another run, tested again.
    ablate(data[0], out, columns[:1], choose_rows(["tracks"]), [0], {**QUICK, "lr": 2e-3}, say=said.append)
    assert [line.split(":")[0] for line in said] == ["tracks-s0", "tracks-s0, supervised"]


def test_rows_without_random_words_are_named(data, tmp_path):
    columns = [Column("supervised", "test")]
    rows = [row for row in choose_rows(["tracks-words", "clip"]) if row.name != "tracks"]
    result = ablate(Data(data[0].alignments, data[0].labels), tmp_path, columns, rows, [0], QUICK)
    assert result["left_out"] == ["tracks-words"] and list(result["cells"]) == ["clip"]
    assert "Left out, they need --random-words: tracks-words." in ablation_words(result)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_every_row_is_a_form_and_a_control_differs_in_one_thing(row):
    form = make_settings({**row.options, "seed": 1}).flat()
    if row.control_of:
        (own,) = (other for other in ROWS if other.name == row.control_of)
        plain = make_settings({**own.options, "seed": 1}).flat()
        changed = {name for name in form if form[name] != plain[name]}
        assert changed == (
            {"queries"} if row.name.endswith("learned") else set() if row.random_words else {"identities"}
        )


def test_rows_bring_those_they_need():
    assert len({row.name for row in ROWS}) == len(ROWS) and choose_rows([]) == list(ROWS)
    assert [row.name for row in choose_rows(["knn", "tracks-sh*"])] == [
        "clip",
        "knn",
        "tracks",
        "tracks-shuffled",
    ]
    with pytest.raises(AdapterError, match="--rows trucks matches none of clip, tip"):
        choose_rows(["trucks"])


def test_what_would_not_be_a_comparison_is_refused(data, tmp_path, toy):
    rows, columns = choose_rows(["clip"]), [Column("supervised", "test")]
    with pytest.raises(
        AdapterError, match=r"column seen: 24 of 24 tested videos trained clip-s0 or chose its epoch"
    ):
        ablate(data[0], tmp_path / "a", [Column("seen", "train")], rows, [0], QUICK)
    with pytest.raises(AdapterError, match="give 1 to 20 different ones"):
        ablate(data[0], tmp_path / "b", columns, rows, [1, 1], QUICK)
    fewer = toy.write_alignments(tmp_path / "fewer", toy.world.learnable()[:-1])
    with pytest.raises(AdapterError, match="hold other videos; align the same ones"):
        ablate(Data(data[0].alignments, data[0].labels, fewer), tmp_path / "c", columns, rows, [0], QUICK)


def test_the_command_prints_the_table(data, tmp_path):
    where = ["--alignments", data[0].alignments, "--labels", data[0].labels, "--out", tmp_path / "out"]
    how = ["--rows", "knn", "--seeds", "1", "--shots", "2", "--set", "device=cpu"]
    found = CliRunner().invoke(app, [str(a) for a in ("ablate", *where, *how)])
    assert found.exit_code == 0, found.output
    assert (
        "| mean of frames, nearest neighbours | 0 | " in found.stdout and "clip-s0: trained" in found.stderr
    )
    again = CliRunner().invoke(app, [str(a) for a in ("ablate", *where, *how, "--json")])
    assert json.loads(again.stdout)["cells"].keys() == {"clip", "knn"} and again.stderr == ""
    wrong = CliRunner().invoke(app, [str(a) for a in ("ablate", *where, "--set", "epoch=3")])
    assert wrong.exit_code == 1 and "did you mean 'epochs'" in wrong.stderr
