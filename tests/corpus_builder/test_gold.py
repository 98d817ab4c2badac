"""The gold set of word senses: whole in itself, scored by known answers, and met by the default strategy."""

import csv

import pytest

from benchmarks.senses import GOLD, GoldLabel, Score, evaluate, read_gold, score_label
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
        rows = list(csv.DictReader(stream))
    keys = [(row["dataset"], row["label"], row["entity"]) for row in rows]
    assert len(keys) == len(set(keys)) >= 300
    assert sum(row["split"] == "held_out" for row in rows) >= 130
    assert {row["split"] for row in rows if row["dataset"] == "kinetics_400"} == {"tune"}
    assert {row["split"] for row in rows if row["dataset"] != "kinetics_400"} == {"held_out"}


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


@pytest.mark.shared
def test_the_default_beats_the_baselines_on_labels_it_was_not_tuned_on(shared):
    told = {}
    for strategy in ("extended", "lesk", "first"):
        config = CorpusConfig(
            spacy_model=str(shared / "spacy/en_ewt_sm"), strategy=strategy, body_parts=False
        )
        told[strategy] = evaluate(read_gold(), config, shared / "nltk_data")["held_out"]
    assert told["extended"].accuracy > max(told["lesk"].accuracy, told["first"].accuracy)
    assert told["extended"].recall >= 0.95 and told["extended"].precision >= 0.9
