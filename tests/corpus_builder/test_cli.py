import csv
import json
import subprocess
import sys

import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from corpus_builder.cli import app

LABELS = ["labels", "--labels", "l.txt", "--out", "x", "--model", "ViT-B-16", "--pretrained"]
COMMANDS = ["mine", "build", "labels", "search", "inspect", "subset", "export"]


def run(*args, env=None):
    return CliRunner().invoke(app, [str(arg) for arg in args], env=env)


@pytest.mark.parametrize("command", [None, *COMMANDS])
def test_help_loads_nothing_heavy(command):
    arguments = [command, "--help"] if command else ["--help"]
    code = (
        "import sys\nfrom corpus_builder.cli import app\n"
        f"try:\n    app({arguments!r})\nexcept SystemExit as end:\n    assert not end.code\n"
        "heavy = set('torch spacy nltk pandas open_clip faiss pyarrow numpy'.split()) & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "Usage" in done.stdout


@pytest.mark.shared
def test_mine_writes_the_promised_columns(shared, tmp_path):
    (tmp_path / "l.csv").write_text("id,name\n0,ApplyEyeMakeup\n1,shooting basketball\n")
    out = tmp_path / "m.parquet"
    done = run(
        "mine", "--labels", tmp_path / "l.csv", "--spacy-model", shared / "spacy/en_ewt_sm",
        "--nltk-data", shared / "nltk_data", "--out", out, "--quiet",
    )  # fmt: skip
    assert done.exit_code == 0, done.stderr
    assert done.stderr == ""
    rows = pq.read_table(out).to_pylist()
    assert {"label", "entity", "sense", "source"} <= set(rows[0])
    assert ("shooting basketball", "basketball") in {(row["label"], row["entity"]) for row in rows}
    assert {row["source"] for row in rows} == {"label", "body_part"}
    assert len({(row["label"], row["entity"]) for row in rows}) == len(rows)


@pytest.mark.shared
def test_mine_writes_the_same_rows_in_every_format(shared, tmp_path):
    (tmp_path / "L.TXT").write_text("riding camel\nzumba\n")
    for suffix in ("parquet", "csv", "jsonl"):
        done = run(
            "mine", "--labels", tmp_path / "L.TXT", "--taggers", "nltk", "--no-body-parts",
            "--nltk-data", shared / "nltk_data", "--out", tmp_path / f"m.{suffix}", "--quiet",
        )  # fmt: skip
        assert done.exit_code == 0, done.stderr
    rows = pq.read_table(tmp_path / "m.parquet").to_pylist()
    assert {(row["entity"], row["sense"]) for row in rows} >= {("zumba", None)} and len(rows) == 2
    assert [json.loads(line) for line in (tmp_path / "m.jsonl").read_text().splitlines()] == rows
    with (tmp_path / "m.csv").open(newline="") as stream:
        told = list(csv.DictReader(stream))
    assert told == [
        {name: str("" if value is None else value) for name, value in row.items()} for row in rows
    ]


@pytest.mark.shared
def test_build_inspect_and_search(shared, tmp_path, tiny_clip):
    (tmp_path / "l.txt").write_text("riding camel\nplaying cello\n")
    out = tmp_path / "corpus"
    done = run(
        "build", "--labels", tmp_path / "l.txt", "--model", tiny_clip, "--taggers", "nltk", "--no-body-parts",
        "--nltk-data", shared / "nltk_data", "--out", out,
    )  # fmt: skip
    assert done.exit_code == 0, done.stderr
    assert "2 entities" in done.stdout
    done = run("inspect", out, "--verify", "--json")
    assert done.exit_code == 0 and json.loads(done.stdout)["entities"] == 2
    done = run("search", out, "a camel", "--k", 1, "--model", tiny_clip, "--json")
    assert done.exit_code == 0 and len(json.loads(done.stdout)) == 1
    done = run("search", out, "a camel")
    assert done.exit_code == 0 and "cello.n.01" in done.stdout
    data = (out / "entities.faiss").read_bytes()
    (out / "entities.faiss").write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    done = run("inspect", out, "--verify")
    assert done.exit_code == 1 and "entities.faiss changed since written" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["mine", "--out", "x.parquet"], "give --labels FILE, --captions FILE or both"),
        (["mine", "--labels", "nothing.csv", "--out", "x.parquet"], "nothing.csv: no such file"),
        (["mine", "--labels", "l.txt", "--taggers", "nltkk", "--out", "x.parquet"], "did you mean 'nltk'"),
        (
            ["labels", "--labels", "l.txt", "--model", "ViT-B-16", "--out", "x"],
            "needs --pretrained: one of openai",
        ),
        (["labels", "--labels", "e.txt", "--model", "ViT-B-16", "--out", "x"], "e.txt: the file is empty"),
        (
            ["labels", "--labels", "l.txt", "--model", "ViT-B-16", "--template", "x", "--out", "x"],
            "--template 'x'",
        ),
        (["build", "--labels", "l.txt", "--model", "ViT-X", "--out", "x"], "not an open_clip model"),
        (["inspect", "."], "found no manifest.json"),
        (["search", ".", "horse"], "corpus-builder build"),
        (["inspect", "."], "in '.'"),
        (["inspect", "x" * 300], f"'{'x' * 300}/manifest.json': File name too long"),
        (["mine", "--labels", "l.txt", "--out", "folder"], "--out 'folder' is a folder"),
        (["mine", "--labels", "l.txt", "--out", "m.xls"], "expected one of .parquet, .csv, .jsonl"),
        (["mine", "--labels", "l.txt", "--out", "l.txt/m.csv"], "below 'l.txt', which is a file"),
        ([*LABELS, "none", "--device", "foo"], "--device is 'foo', expected auto, cpu, cuda or cuda:N"),
        ([*LABELS, "none", "--device", "cuda:99"], "usable GPUs; use --device cpu"),
        (["labels", "--labels", "latin.csv", "--model", "x", "--out", "x"], "latin.csv is not UTF-8 text"),
        (["labels", "--labels", "latin.json", "--model", "x", "--out", "x"], "latin.json is not UTF-8 text"),
    ],
)
def test_errors_are_one_line_and_end_with_one(arguments, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "l.txt").write_text("riding horse\n")
    (tmp_path / "e.txt").write_text("")
    (tmp_path / "folder").mkdir()
    (tmp_path / "latin.csv").write_bytes("name\ncafé\n".encode("latin-1"))
    (tmp_path / "latin.json").write_bytes('["café"]'.encode("latin-1"))
    done = run(*arguments)
    assert done.exit_code == 1 and isinstance(done.exception, SystemExit)
    assert done.stderr.startswith("error: ") and message in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_missing_wordnet_names_the_command(tmp_path, monkeypatch):
    (tmp_path / "l.txt").write_text("riding horse\n")
    done = run(
        "mine", "--labels", tmp_path / "l.txt", "--nltk-data", tmp_path, "--out", tmp_path / "x.parquet"
    )
    assert done.exit_code == 1
    assert "python -m nltk.downloader wordnet averaged_perceptron_tagger_eng" in done.stderr


@pytest.mark.shared
def test_missing_spacy_pipeline_names_the_command(shared, tmp_path):
    (tmp_path / "l.txt").write_text("riding horse\n")
    done = run(
        "mine", "--labels", tmp_path / "l.txt", "--nltk-data", shared / "nltk_data",
        "--spacy-model", "en_core_web_nothing", "--out", tmp_path / "x.parquet",
    )  # fmt: skip
    assert done.exit_code == 1
    assert "python -m spacy download en_core_web_nothing" in done.stderr and "--taggers nltk" in done.stderr


def test_json_is_the_manifest(tmp_path, tiny_clip):
    (tmp_path / "l.txt").write_text("riding camel\nzumba\n")
    out = tmp_path / "labels"
    done = run(
        "labels", "--labels", tmp_path / "l.txt", "--model", tiny_clip, "--out", out, "--quiet", "--json"
    )
    assert done.exit_code == 0 and done.stderr == "", done.stderr
    assert json.loads(done.stdout) == json.loads((out / "manifest.json").read_text())
