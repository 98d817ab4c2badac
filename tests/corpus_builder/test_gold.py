"""The gold set of word senses: whole in itself, scored by known answers, and met by the default strategy."""

import csv

import pytest

from benchmarks.senses import GOLD, TUNED, GoldLabel, Score, evaluate, read_gold, score_label
from corpus_builder.config import CorpusConfig
from corpus_builder.disambiguate import Choice
from corpus_builder.entities import Found
from corpus_builder.mine import Candidate
from corpus_builder.wordnet import Sense, open_lexicon

BAT = Sense("bat.n.05", "bat", "a club", "noun.artifact", 0)
ANIMAL = Sense("bat.n.01", "bat", "a mammal", "noun.animal", 0)


def find(entity, sense=None, reason=None):
    return Found("x", Candidate(entity, entity, "noun", reason), "label", Choice(sense, 0.0))


def test_the_gold_set_is_large_enough_and_has_no_row_twice():
    with (GOLD / "gold_senses.csv").open(encoding="utf-8", newline="") as stream:
        keys = [(row["dataset"], row["label"], row["entity"]) for row in csv.DictReader(stream)]
    assert len(keys) == len(set(keys)) >= 500
    splits = {split: [gold for gold in read_gold() if gold.split == split] for split in (*TUNED, "test")}
    wanted = {
        split: sum(entity in g.must for g in part for entity in g.senses) for split, part in splits.items()
    }
    assert wanted["tune"] >= 110 and wanted["tune2"] >= 110 and wanted["test"] >= 150


def test_no_label_of_the_test_split_was_tuned_on():
    named = {split: {g.label.lower() for g in read_gold() if g.split == split} for split in (*TUNED, "test")}
    assert named["test"] and not named["test"] & (named["tune"] | named["tune2"])


def test_every_entity_with_a_sense_is_wanted_or_allowed():
    for gold in read_gold():
        assert gold.senses.keys() <= gold.must | gold.may, gold.label
        assert not gold.must & gold.may, gold.label


@pytest.mark.shared
def test_every_sense_is_a_noun_of_wordnet(shared):
    lexicon = open_lexicon(shared / "nltk_data")
    for gold in read_gold():
        for entity, senses in gold.senses.items():
            for name in senses:
                assert lexicon.sense(name) is not None, f"{gold.label}: {entity} = {name}"


def test_scores_of_known_answers():
    gold = GoldLabel(
        "x", "tune", frozenset({"bat", "zumba"}), frozenset({"ball"}), {"bat": frozenset({"bat.n.05"})}
    )
    score = Score()
    score_label(gold, [find("bats", BAT), find("ball"), find("sun"), find("zumba", reason="too long")], score)
    assert (score.right, score.with_sense) == (1, 1)
    assert (score.found, score.wanted) == (1, 2) and score.recall == 0.5
    assert (score.fitting, score.kept) == (2, 3)
    assert score.errors == ["missed: x: zumba", "extra: x: sun"]
    score_label(gold, [find("bat", ANIMAL)], score)
    assert (score.right, score.with_sense) == (1, 2) and score.accuracy == 0.5
    assert "sense: x: bat is bat.n.05, got bat.n.01" in score.errors


def test_halves_by_margin_of_known_answers():
    score = Score(margins=[(2.0, True), (0.1, False), (3.0, True), (0.2, True)])
    assert score.halves() == (0.5, 1.0)


@pytest.fixture(scope="module")
def told(shared):
    """Scores of the strategies that need no model, by strategy and split."""
    found = {}
    for strategy in ("extended", "lesk", "first"):
        config = CorpusConfig(
            spacy_model=str(shared / "spacy/en_ewt_sm"), strategy=strategy, body_parts=False
        )
        found[strategy] = evaluate(read_gold(), config, shared / "nltk_data")
    return found


@pytest.mark.shared
def test_the_default_keeps_its_bounds_on_labels_it_was_not_tuned_on(told):
    test = told["extended"]["test"]
    assert test.accuracy >= 0.85 and test.recall >= 0.95 and test.precision >= 0.9


@pytest.mark.shared
@pytest.mark.parametrize("split", ["tune", "tune2", "test"])
def test_the_default_leaves_the_baselines_behind(told, split):
    extended, lesk, first = (told[name][split].accuracy for name in ("extended", "lesk", "first"))
    assert extended >= lesk + 0.15 and extended >= first + 0.05


@pytest.mark.shared
def test_a_larger_margin_is_a_surer_choice(told):
    lower, upper = told["extended"]["test"].halves()
    assert upper >= 0.95 and upper >= lower + 0.1
