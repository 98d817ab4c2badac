import os
import subprocess
import sys

import pytest

from corpus_builder import build
from corpus_builder.config import CorpusConfig, CorpusError
from corpus_builder.disambiguate import Choice
from corpus_builder.entities import Found
from corpus_builder.mine import Candidate
from corpus_builder.relations import expand
from corpus_builder.wordnet import SEEN_FILES, open_lexicon


@pytest.fixture(scope="module")
def lexicon(shared):
    return open_lexicon(shared / "nltk_data")


def find(lexicon, label, synset, source="label", reason=None):
    sense = lexicon.sense(synset)
    return Found(label, Candidate(sense.form, sense.form, "noun", reason), source, Choice(sense, 0.0))


@pytest.mark.shared
def test_known_relations(lexicon):
    bicycle = [sense.name for sense in lexicon.related("bicycle.n.01")]
    assert {"handlebar.n.01", "pedal.n.02", "bicycle_wheel.n.01"} <= set(bicycle)
    assert bicycle.index("handlebar.n.01") < bicycle.index("velocipede.n.01")
    horse = {sense.name for sense in lexicon.related("horse.n.01")}
    assert "withers.n.01" in horse and "horsemeat.n.01" not in horse
    assert "backboard.n.01" in {sense.name for sense in lexicon.related("basketball.n.01")}
    assert all(s.lexname in SEEN_FILES for name in ("car.n.01", "tennis.n.01") for s in lexicon.related(name))


@pytest.mark.shared
def test_things_of_a_name_take_turns_up_to_the_limit_and_nothing_twice(lexicon):
    found = [find(lexicon, "a", "bicycle.n.01"), find(lexicon, "a", "horse.n.01")]
    added = expand(found, lexicon, 4)
    assert len(added) == 4 and {item.source for item in added} == {"related"}
    bicycle, horse = (lexicon.related(name) for name in ("bicycle.n.01", "horse.n.01"))
    assert [item.key for item in added] == [bicycle[0].name, horse[0].name, bicycle[1].name, horse[1].name]
    keys = [item.key for item in expand([*found, find(lexicon, "a", bicycle[0].name)], lexicon, 100)]
    assert len(keys) == len(set(keys)) and bicycle[0].name not in keys


@pytest.mark.shared
def test_only_what_a_label_names_and_keeps_is_expanded(lexicon):
    assert not expand([find(lexicon, None, "bicycle.n.01", "caption")], lexicon, 5)
    assert not expand([find(lexicon, "a", "bicycle.n.01", reason="deny list")], lexicon, 5)


@pytest.mark.shared
def test_a_build_adds_them_and_counts_them(shared, tmp_path):
    (tmp_path / "labels.txt").write_text("fixing bicycle\nzumba\n")
    inputs = build.Inputs(labels=tmp_path / "labels.txt", nltk_data=shared / "nltk_data")
    report = build.mine_corpus(inputs, CorpusConfig(taggers="wordnet", body_parts=False, related=5))
    added = [item for item in report.kept if item.source == "related"]
    assert len(added) == 5 and {item.label for item in added} == {"fixing bicycle"}
    assert added[0].contexts == ("related to bicycle in fixing bicycle",)
    with pytest.raises(CorpusError, match="--related is -1"):
        CorpusConfig(related=-1)


@pytest.mark.shared
def test_the_order_of_related_things_is_one_in_every_process(shared):
    program = (
        "import sys\nfrom pathlib import Path\nfrom corpus_builder.wordnet import open_lexicon\n"
        "lexicon = open_lexicon(Path(sys.argv[1]))\n"
        "for name in ('horse.n.01', 'nail.n.01', 'camel.n.01'):\n"
        "    print([s.name for s in lexicon.related(name)], lexicon.sense(name).signature)\n"
    )
    told = {
        subprocess.run(
            [sys.executable, "-c", program, str(shared / "nltk_data")],
            env={**os.environ, "PYTHONHASHSEED": str(seed)},
            capture_output=True,
            check=True,
        ).stdout
        for seed in (1, 2)
    }
    assert len(told) == 1
