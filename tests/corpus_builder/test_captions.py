"""Captions are mined to one result, whatever the processes, the chunks and the kills on the way."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from corpus_builder import artifact, build, captions, reuse
from corpus_builder.captions import Tally, Work, caption_finds, clear_work, work_folder
from corpus_builder.config import CorpusConfig, CorpusError
from corpus_builder.coverage import coverage
from corpus_builder.disambiguate import Choice
from corpus_builder.mine import Candidate
from corpus_builder.wordnet import Sense

SUBJECTS = ("a man", "the woman", "a dog", "two players", "the 👍 boy")
VERBS = ("holds", "throws", "kicks", "rides", "carries")
OBJECTS = ("a red ball", "the bat", "a bicycle", "an umbrella and a cup", "his guitar", "a broom")


@pytest.fixture(scope="module")
def nltk_data(tmp_path_factory):
    """A small lexicon in WordNet's format and a tagger of its own: another WordNet than the real one."""
    from pipelines.toyworld.lexicon import write_nltk_data

    return write_nltk_data(tmp_path_factory.mktemp("nltk") / "nltk_data")


@pytest.fixture(scope="module")
def texts():
    rng = random.Random(0)
    return [f"{rng.choice(SUBJECTS)} {rng.choice(VERBS)} {rng.choice(OBJECTS)}" for _ in range(600)]


@pytest.fixture
def file(tmp_path, texts):
    path = tmp_path / "captions.txt"
    path.write_text("\n".join(texts) + "\n")
    return path


def mined(file, nltk_data, **options):
    """What is mined, without what differs by design: nothing."""
    config = CorpusConfig(taggers="nltk", body_parts=False, min_count=2)
    report = build.mine_corpus(build.Inputs(captions=file, nltk_data=nltk_data), config, **options)
    return report.found, report.counts


def build_command(file, nltk_data, model, out, *options):
    command = [sys.executable, "-m", "corpus_builder", "build", "--captions", str(file), "--taggers", "nltk"]
    command += [
        "--nltk-data",
        str(nltk_data),
        "--model",
        model,
        "--out",
        str(out),
        "--device",
        "cpu",
        *options,
    ]
    return command


def contents(folder: Path) -> dict[str, bytes]:
    """Every file but the time in the manifest."""
    found = {path.name: path.read_bytes() for path in folder.iterdir()}
    manifest = artifact.read_manifest(folder)
    assert manifest.pop("created")
    return found | {"manifest.json": repr(manifest).encode()}


@given(
    st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from(["x", "y", "z w"])), max_size=40),
    st.integers(1, 7),
)
def test_a_tally_does_not_depend_on_how_it_is_cut(mentions, size):
    """Chunks added one after the other give what one pass over all mentions gives."""

    def tally_of(part):
        tally = Tally()
        for entity, text in part:
            tally.add(Candidate(f"a {entity}", entity, "noun", taggers=frozenset({text[0]})), 1, [text])
        return tally

    whole, joined = tally_of(mentions), Tally()
    for start in range(0, len(mentions), size):
        part = tally_of(mentions[start : start + size])
        rows = [captions._row(phrase) for phrase in part.phrases.values()]
        joined.take(captions.pa.Table.from_pylist(rows, schema=captions.CHUNK_SCHEMA), 0)
    assert joined.phrases == whole.phrases and list(joined.phrases) == list(whole.phrases)


def test_a_list_made_for_another_wordnet_is_told(file, nltk_data, tmp_path):
    (tmp_path / "deny.txt").write_text("ball.n.01\nzither.n.01  # the drawn world has none\n")
    inputs = build.Inputs(captions=file, nltk_data=nltk_data, deny=tmp_path / "deny.txt")
    with pytest.raises(CorpusError, match="--deny names 1 synsets.*'zither.n.01'.*WordNet version"):
        build.mine_corpus(inputs, CorpusConfig(taggers="nltk"))


@pytest.mark.shared
def test_corpora_of_two_wordnets_are_not_merged_nor_measured(shared, nltk_data, tiny_clip, tmp_path):
    (tmp_path / "labels.txt").write_text("throwing ball\nriding bicycle\n")
    made = {}
    for name, data in (("real", shared / "nltk_data"), ("drawn", nltk_data)):
        config = CorpusConfig(taggers="wordnet", body_parts=False)
        inputs = build.Inputs(labels=tmp_path / "labels.txt", nltk_data=data)
        build.build_corpus(inputs, config, tiny_clip, None, tmp_path / name, device="cpu")
        reuse.subset(tmp_path / name, tmp_path / f"{name}-part", reuse.Selection(top=2))
        made[name] = tmp_path / f"{name}-part"
    with pytest.raises(
        CorpusError, match="'.*real-part' has its senses from another version of WordNet.*drawn-part"
    ):
        reuse.merge([made["real"], made["drawn"]], tmp_path / "both")
    with pytest.raises(CorpusError, match="another version of WordNet.*the labels are mined with"):
        coverage(made["drawn"], tmp_path / "labels.txt", config, nltk_data=shared / "nltk_data")


def test_body_parts_are_found_in_another_wordnet_or_kept_by_name(file, nltk_data):
    """The stored senses are WordNet 3.0's; where one is missing the part of the body of that name is taken, if any."""
    lexicon = build.open_lexicon(nltk_data)
    report = build.mine_corpus(build.Inputs(captions=file, nltk_data=nltk_data), CorpusConfig(taggers="nltk"))
    parts = [item for item in report.found if item.source == "body_part"]
    assert [part.name for part in parts] == [name for name, _ in build.BODY_PARTS]
    for part, (name, _) in zip(parts, build.BODY_PARTS, strict=True):
        bodies = [sense.name for sense in lexicon.senses(name) if sense.lexname == "noun.body"]
        assert (part.choice.sense.name in bodies) if bodies else part.choice.sense is None
    assert report.inputs["wordnet"]["sha256"] == lexicon.sha256()


def test_processes_and_chunks_change_nothing(file, nltk_data, monkeypatch):
    alone = mined(file, nltk_data)
    monkeypatch.setattr(captions, "CHUNK", 70)
    assert mined(file, nltk_data) == alone
    assert mined(file, nltk_data, processes=2) == alone
    assert alone[1]["mentions"] == 600 and alone[1]["kept"] >= 8


def test_a_second_run_reads_what_the_first_mined(file, nltk_data, tmp_path, monkeypatch):
    monkeypatch.setattr(captions, "CHUNK", 100)
    work = tmp_path / "work"
    first = mined(file, nltk_data, work=work)
    chunks = sorted(work.glob("chunk-*.parquet"))
    assert len(chunks) == 6
    chunks[4].unlink()
    damaged = bytearray(chunks[2].read_bytes())
    damaged[len(damaged) // 3] ^= 1
    chunks[2].write_bytes(damaged)
    mine, again = captions.mine, []
    monkeypatch.setattr(captions, "mine", lambda texts, *rest: again.append(1) or mine(texts, *rest))
    assert mined(file, nltk_data, work=work) == first
    assert len(again) == 2, "the missing and the damaged chunk alone are mined again"
    clear_work(work)
    assert not work.exists()


def test_chunks_of_other_captions_or_settings_are_not_used(file, nltk_data, tmp_path, texts):
    work = tmp_path / "work"
    mined(file, nltk_data, work=work)
    file.write_text("\n".join(reversed(texts)) + "\na kite\n")
    assert mined(file, nltk_data, work=work) == mined(file, nltk_data)


def test_a_foreign_work_folder_is_left_alone(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(CorpusError, match="holds other things; move it away"):
        Work.open(tmp_path, {})
    clear_work(tmp_path)
    assert (tmp_path / "notes.txt").read_text() == "mine"
    Work.open(tmp_path / "ours", {})
    (tmp_path / "ours" / "notes.txt").write_text("mine")
    clear_work(tmp_path / "ours")
    assert [path.name for path in (tmp_path / "ours").iterdir()] == ["notes.txt"]


def test_the_first_captions_that_differ_vote_and_the_surest_of_the_winners_is_told():
    senses = [Sense(f"bat.n.0{rank + 1}", "bat", "", "noun.artifact", rank) for rank in range(2)]
    votes = {f"text {i}": Choice(senses[i % 3 > 0], i / 10) for i in range(20)}
    tally = Tally()
    for text in votes:
        tally.add(Candidate("bat", "bat", "noun"), 1, [text, text])
    [found] = caption_finds(tally, lambda candidate, text: votes[text], 1)
    # of texts 0 to 7 the senses are 0 1 1 0 1 1 0 1
    assert found.choice == Choice(senses[1], 0.7) and found.count == 20
    assert found.contexts == ("text 0", "text 1", "text 2")


def test_a_killed_miner_is_told_and_nothing_is_lost(file, nltk_data, tmp_path, monkeypatch):
    monkeypatch.setattr(captions, "CHUNK", 20)
    work, alone = tmp_path / "work", mined(file, nltk_data)
    read, ours = Work.read, os.getpid()

    def read_and_kill(self, number):
        if number == 10:
            children = Path(f"/proc/self/task/{ours}/children").read_text().split()
            for child in children:
                if b"spawn_main" in Path(f"/proc/{child}/cmdline").read_bytes():
                    os.kill(int(child), signal.SIGKILL)
        return read(self, number)

    monkeypatch.setattr(Work, "read", read_and_kill)
    with pytest.raises(CorpusError, match="was killed.*run the same command again"):
        mined(file, nltk_data, work=work, processes=2)
    kept = len(list(work.glob("chunk-*")))
    assert 0 < kept < 30
    monkeypatch.setattr(Work, "read", read)
    assert mined(file, nltk_data, work=work) == alone


@pytest.mark.exhaustive
@pytest.mark.slow
def test_a_build_killed_at_any_moment_comes_out_the_same(file, texts, nltk_data, tiny_clip, tmp_path):
    """SIGKILL of the real command at seeded moments, again and again until it is done; one against two processes."""
    file.write_text("\n".join(texts * 25) + "\n")
    whole = tmp_path / "whole"
    start = time.monotonic()
    subprocess.run(build_command(file, nltk_data, tiny_clip, whole, "--quiet"), check=True)
    took = time.monotonic() - start
    rng, out, kills = random.Random(1), tmp_path / "killed", 0
    for attempt in range(20):
        process = subprocess.Popen(
            build_command(file, nltk_data, tiny_clip, out, "--quiet", "--processes", "2")
        )
        try:
            process.wait(timeout=took * rng.uniform(0.3, 1.2) * (1 + attempt / 4))
            break
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            kills += 1
            assert not (out / artifact.MANIFEST).exists() or contents(out)
    assert process.returncode == 0 and kills >= 1
    assert contents(out) == contents(whole)
    assert not work_folder(out).exists() and not work_folder(whole).exists()


def test_workers_leave_with_their_parent(file, texts, nltk_data, tmp_path):
    file.write_text("\n".join(texts * 100) + "\n")
    command = [sys.executable, "-m", "corpus_builder", "mine", "--captions", str(file), "--taggers", "nltk"]
    command += [
        "--nltk-data",
        str(nltk_data),
        "--out",
        str(tmp_path / "m.csv"),
        "--processes",
        "2",
        "--quiet",
    ]
    process = subprocess.Popen(command)
    children: list[str] = []
    deadline = time.monotonic() + 60
    while len(children) < 2 and time.monotonic() < deadline:
        time.sleep(0.1)
        told = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        children = [c for c in told if b"spawn_main" in Path(f"/proc/{c}/cmdline").read_bytes()]
    time.sleep(3)  # until they are at work
    process.kill()
    process.wait()
    deadline = time.monotonic() + 60
    while any(Path(f"/proc/{child}").exists() for child in children) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert len(children) == 2 and not any(Path(f"/proc/{child}").exists() for child in children)
