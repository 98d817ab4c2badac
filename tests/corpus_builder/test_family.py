import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from aligner.corpus import load_corpus
from corpus_builder import artifact, build, family
from corpus_builder.cli import app
from corpus_builder.config import CorpusConfig, CorpusError, split_sources
from corpus_builder.embed import load_text_encoder

ROOT = Path(__file__).resolve().parents[2]
CONFIG = CorpusConfig(taggers="wordnet", related=3)


@pytest.fixture(scope="module")
def inputs(shared, tmp_path_factory):
    folder = tmp_path_factory.mktemp("family")
    (folder / "l.txt").write_text(
        "playing guitar\nfeeding horse\ncutting nails\nzumba\nswimming\nriding camel\n"
    )
    (folder / "x.json").write_text(
        json.dumps({"zumba": ["dance floor", "mirror"], "feeding horse": ["barn"]})
    )
    return build.Inputs(
        labels=folder / "l.txt", expansions=(folder / "x.json",), nltk_data=shared / "nltk_data"
    )


@pytest.fixture(scope="module")
def made(inputs, tiny_clip, tmp_path_factory):
    out = tmp_path_factory.mktemp("family") / "f"
    return out, family.compare_corpora(inputs, CONFIG, tiny_clip, None, out, device="cpu")


MEMBERS = ["labels", "labels+wordnet", "labels+wordnet+llm", "random"]


def contents(out):
    """Bytes of every file; of a manifest all but the time."""
    found = {}
    for path in sorted(path for path in out.rglob("*") if path.is_file()):
        data = path.read_bytes()
        if path.name == artifact.MANIFEST:
            data = json.dumps(json.loads(data) | {"created": None}).encode()
        found[path.relative_to(out).as_posix()] = data
    return found


def keys(folder):
    return set(artifact.open_corpus(folder).table["key"].to_pylist())


@pytest.mark.shared
def test_members_are_corpora_that_add_one_source_at_a_time(made):
    out, told = made
    assert list(told["members"]) == MEMBERS
    assert json.loads((out / family.COMPARISON).read_text()) == told
    for name in MEMBERS:
        corpus = artifact.open_corpus(out / name)
        assert all(artifact.verify_files(corpus).values())
        assert len(load_corpus(out / name).names) == told["members"][name]["entities"]
    one, two, three = (keys(out / name) for name in MEMBERS[:3])
    assert one < two < three and "barn.n.01" in three - two
    assert len(keys(out / "random")) == len(three) and not keys(out / "random") & three


@pytest.mark.shared
@pytest.mark.parametrize("name", MEMBERS[:3])
def test_a_member_is_what_a_build_of_its_sources_gives(made, inputs, tiny_clip, tmp_path, name):
    sources = artifact.open_corpus(made[0] / name).manifest["config"]["sources"]
    config = replace(CONFIG, sources=tuple(sources))
    build.build_corpus(inputs, config, tiny_clip, None, tmp_path / "c", device="cpu")
    alone, member = (artifact.open_corpus(folder) for folder in (tmp_path / "c", made[0] / name))
    assert alone.table.drop(["embedding"]).equals(member.table.drop(["embedding"]))
    np.testing.assert_allclose(alone.embeddings, member.embeddings, atol=1e-6)
    assert alone.manifest["counts"] == member.manifest["counts"]
    assert (alone.folder / artifact.CANDIDATES).read_bytes() == (
        member.folder / artifact.CANDIDATES
    ).read_bytes()


@pytest.mark.shared
def test_the_comparison_agrees_with_the_tables(made):
    out, told = made
    for pair in told["overlap"]:
        one, two = keys(out / pair["first"]), keys(out / pair["second"])
        assert pair["shared_keys"] == len(one & two)
        assert pair["jaccard"] == pytest.approx(len(one & two) / len(one | two), abs=1e-4)
    assert len(told["overlap"]) == 6
    for name, figures in told["members"].items():
        corpus = artifact.open_corpus(out / name)
        cosines = corpus.embeddings @ corpus.embeddings.T
        np.fill_diagonal(cosines, -1)
        assert figures["neighbour_cosine"] == pytest.approx(cosines.max(axis=1).mean(), abs=1e-5)
        assert figures["by_source"] == corpus.manifest["counts"]["entities_by_source"]
    labels = told["members"]["labels"]
    assert labels["coverage"] == 1 and labels["mentions_held"] == labels["mentions"]
    assert told["members"]["random"]["coverage"] == told["members"]["random"]["listed_per_label"] == 0


@pytest.mark.shared
def test_each_text_is_embedded_once(made, tiny_clip):
    class Counting:
        info = load_text_encoder(tiny_clip, device="cpu").info
        asked: list[str] = []

        def encode(self, texts):
            self.asked.extend(texts)
            return np.arange(len(texts), dtype=np.float32)[:, None]

    encoder = Counting()
    shared = family.SharedEncoder(encoder, ["a", "b", "a", "c"])
    assert shared.encode(["c", "a"]).ravel().tolist() == [2, 0]
    assert shared.encode(["b"]).ravel().tolist() == [1] and encoder.asked == ["a", "b", "c"]


@pytest.mark.shared
def test_what_is_done_is_kept_and_what_is_not_of_these_inputs_is_made(made, inputs, tiny_clip):
    out, told = made
    before = contents(out)
    written = {path: path.stat().st_mtime_ns for path in out.rglob(artifact.ENTITIES)}
    (out / "labels+wordnet" / artifact.MANIFEST).unlink()
    (out / "random" / artifact.INDEX).write_bytes(b"x" * (out / "random" / artifact.INDEX).stat().st_size)
    said = []
    again = family.compare_corpora(inputs, CONFIG, tiny_clip, None, out, device="cpu", say=said.append)
    assert again == told and contents(out) == before
    kept = {path.parent.name for path, time in written.items() if path.stat().st_mtime_ns == time}
    assert kept == {"labels", "labels+wordnet+llm"}
    said.clear()
    family.compare_corpora(inputs, CONFIG, tiny_clip, None, out, device="cpu", say=said.append)
    assert sorted(said) == sorted(f"{name}: kept, made from the same inputs" for name in MEMBERS)


@pytest.mark.shared
def test_another_seed_makes_the_random_member_only(made, inputs, tiny_clip, tmp_path):
    said = []
    given = (inputs, CONFIG, tiny_clip, None, made[0])
    family.compare_corpora(*given, seed=1, match="lexname", device="cpu", say=said.append)
    assert "random: written" in said and len(said) == 4
    family.compare_corpora(*given, device="cpu")


@pytest.mark.shared
def test_size_cuts_every_member_by_the_rule(inputs, tiny_clip, tmp_path):
    config = replace(CONFIG, size=7)
    told = family.compare_corpora(inputs, config, tiny_clip, None, tmp_path / "f", device="cpu")
    assert {figures["entities"] for figures in told["members"].values()} == {7}
    table = artifact.open_corpus(tmp_path / "f" / "labels").table
    assert table["source"].to_pylist()[:6] == ["label"] * 6
    dropped = pq.read_table(tmp_path / "f" / "labels" / artifact.CANDIDATES)["reason"].to_pylist()
    assert dropped.count(build.BEYOND) == 26 and build.LEFT_OUT in dropped
    with pytest.raises(CorpusError, match="^labels: --size is 500, but there are 33 entities"):
        family.compare_corpora(
            inputs, replace(CONFIG, size=500), tiny_clip, None, tmp_path / "g", device="cpu"
        )


# Loading torch and WordNet takes seconds, so one parent does it and forks the processes that are to be killed.
CHAOS = """
import json, os, random, signal, sys, time
from pathlib import Path
import corpus_builder.embed
from corpus_builder import build, family
from corpus_builder.config import CorpusConfig
from corpus_builder.wordnet import open_lexicon
labels, expansions, nltk_data, model, out = sys.argv[1:]
inputs = build.Inputs(labels=Path(labels), expansions=(Path(expansions),), nltk_data=Path(nltk_data))
open_lexicon(inputs.nltk_data).nouns()
def run():
    family.compare_corpora(inputs, CorpusConfig(taggers="wordnet", related=3), model, None, Path(out), device="cpu")
randomly = random.Random(0)
for member in ("labels", "labels+wordnet", "labels+wordnet+llm", "random", "none"):
    for _ in range(2):
        child = os.fork()
        if child == 0:
            run()
            os._exit(0)
        # killed at a random moment after the member has been begun, if the work is not done by then
        ended, end = 0, time.monotonic() + 60
        while not ended and not (Path(out) / member).is_dir() and time.monotonic() < end:
            time.sleep(0.001)
            ended = os.waitpid(child, os.WNOHANG)[0]
        if not ended:
            time.sleep(randomly.uniform(0, 0.02))
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
        print(len(list(Path(out).glob("*/manifest.json"))), flush=True)
run()
"""


@pytest.mark.exhaustive
@pytest.mark.shared
def test_killed_at_random_moments_and_run_again_gives_the_same_bytes(made, inputs, tiny_clip, tmp_path):
    given = [inputs.labels, inputs.expansions[0], inputs.nltk_data, tiny_clip, tmp_path / "f"]
    done = subprocess.run(
        [sys.executable, "-c", CHAOS, *map(str, given)], cwd=ROOT, capture_output=True, text=True, timeout=280
    )
    assert done.returncode == 0, done.stderr
    finished = [int(line) for line in done.stdout.split()]
    assert len(finished) == 10 and finished == sorted(finished) and finished[0] < 4, done.stdout
    assert contents(tmp_path / "f") == contents(made[0])


@pytest.mark.shared
def test_other_things_in_the_folder_are_refused(inputs, tiny_clip, tmp_path):
    (tmp_path / "photos").mkdir()
    with pytest.raises(CorpusError, match="holds other things .photos."):
        family.compare_corpora(inputs, CONFIG, tiny_clip, None, tmp_path, device="cpu")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["build", "--sources", "labels"], "--sources is 'labels', expected one of label, caption"),
        (["build", "--sources", "label,captoin"], "did you mean 'caption'"),
        (["build", "--sources", "caption"], "--sources names caption, which needs --captions FILE"),
        (["build", "--sources", "expansion"], "--sources names expansion, which needs --expansions FILE"),
        (["build", "--sources", "related"], "which needs --related N"),
        (["build", "--sources", "body_part", "--no-body-parts"], "which --no-body-parts leaves out"),
        (["build", "--size", "0"], "--size is 0, expected at least 1 entity"),
        (["ablate", "--match", "x"], "--match is 'x', expected one of none, lexname, concreteness"),
    ],
)
def test_errors_are_one_line(arguments, message, tiny_clip, tmp_path):
    (tmp_path / "l.txt").write_text("riding horse\n")
    given = ["--labels", tmp_path / "l.txt", "--model", tiny_clip, "--out", tmp_path / "x", "--device", "cpu"]
    done = CliRunner().invoke(app, [str(word) for word in (*arguments, *given, "--quiet")])
    assert done.exit_code == 1 and message in done.stderr and len(done.stderr.strip().splitlines()) == 1


def test_sources_are_put_in_order_once():
    assert split_sources("caption, label,label") == ("label", "caption") and split_sources(None) == ()


@pytest.mark.exhaustive
@pytest.mark.shared
@pytest.mark.slow
def test_the_family_of_kinetics_400(shared, tiny_clip, tmp_path):
    arguments = ["ablate", "--labels", shared / "data/labels/kinetics_400_labels.csv", "--related", 5,
        "--spacy-model", shared / "spacy/en_ewt_sm", "--nltk-data", shared / "nltk_data", "--model", tiny_clip,
        "--match", "lexname", "--device", "cpu", "--quiet", "--json", "--out", tmp_path / "f"]  # fmt: skip
    done = CliRunner().invoke(app, [str(word) for word in arguments])
    assert done.exit_code == 0, done.stderr
    members = json.loads(done.stdout)["members"]
    assert list(members) == ["labels", "labels+wordnet", "random"]
    assert members["labels"]["labels"] == 400 and members["labels"]["coverage"] == 1
    assert (
        members["random"]["entities"]
        == members["labels+wordnet"]["entities"]
        > 2 * members["labels"]["entities"]
    )
    assert members["random"]["coverage"] == 0
    true, drawn = (artifact.open_corpus(tmp_path / "f" / name).table for name in ("labels+wordnet", "random"))
    shares = [
        {
            name: table["lexname"].to_pylist().count(name) / len(table)
            for name in ("noun.artifact", "noun.body")
        }
        for table in (true, drawn)
    ]
    assert shares[0] == pytest.approx(shares[1], abs=0.05)
