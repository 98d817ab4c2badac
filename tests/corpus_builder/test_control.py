from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from corpus_builder.config import CorpusError
from corpus_builder.control import Reference, _quotas, draw
from corpus_builder.wordnet import CONCRETE_FILES, open_lexicon


@pytest.fixture(scope="module")
def lexicon(shared):
    return open_lexicon(shared / "nltk_data")


def keys(drawn):
    return [item.key for item in drawn.found]


@given(st.dictionaries(st.sampled_from("abcdef"), st.integers(1, 50), min_size=1), st.integers(1, 300))
def test_quotas_add_up_and_are_the_shares_to_within_one(counts, size):
    quotas = _quotas(counts, size, "lexname")
    assert quotas.total() == size
    for sort, number in counts.items():
        assert abs(quotas[sort] - number * size / sum(counts.values())) < 1
    assert _quotas(counts, sum(counts.values()), "lexname") == Counter(counts)


@pytest.mark.shared
def test_a_draw_is_repeatable_and_holds_the_smaller_one(lexicon):
    many = keys(draw(lexicon, 300, 7, Reference()))
    assert keys(draw(lexicon, 300, 7, Reference())) == many and len(set(many)) == 300
    assert keys(draw(lexicon, 100, 7, Reference())) == many[:100]
    assert set(keys(draw(lexicon, 300, 8, Reference()))) != set(many)


@pytest.mark.shared
def test_no_noun_is_or_is_called_as_a_true_entity_and_the_rest_stays(lexicon):
    free = draw(lexicon, 200, 0, Reference())
    gone = free.found[:50]
    reference = Reference(frozenset(keys(free)[:25]), frozenset(item.name for item in gone[25:]))
    drawn = draw(lexicon, 200, 0, reference)
    assert not set(keys(free)[:50]) & set(keys(drawn))
    assert not reference.names & {item.name for item in drawn.found}
    assert keys(drawn)[:150] == keys(free)[50:]


@pytest.mark.shared
def test_nouns_bear_the_gloss_and_headword_of_their_sense_and_are_no_individuals(lexicon):
    for item in draw(lexicon, 200, 3, Reference()).found:
        assert item.source == "random" and item.candidate.kept
        sense = item.choice.sense
        assert lexicon.sense(sense.name) == sense and item.name == sense.form
        assert not lexicon._reader.synset(sense.name).instance_hypernyms()


@pytest.mark.shared
def test_a_match_has_the_lexicographer_files_of_the_corpus_in_proportion(lexicon):
    files = {"noun.artifact": 30, "noun.body": 15, "noun.food": 5}
    drawn = draw(lexicon, 100, 0, Reference(lexnames=files), "lexname")
    assert Counter(item.choice.sense.lexname for item in drawn.found) == {k: 2 * v for k, v in files.items()}
    drawn = draw(lexicon, 100, 0, Reference(lexnames=files | {"noun.act": 50}), "concreteness")
    assert sum(item.choice.sense.lexname in CONCRETE_FILES for item in drawn.found) == 50
    assert drawn.unmatched == 0


@pytest.mark.shared
def test_where_a_file_has_too_few_nouns_others_stand_in_and_are_counted(lexicon):
    there = sum(n.lexname == "noun.Tops" and len(n.form.split()) <= 4 for n in lexicon.nouns())
    drawn = draw(lexicon, there + 9, 0, Reference(lexnames={"noun.Tops": 1}), "lexname")
    assert len(set(keys(drawn))) == there + 9 and drawn.unmatched == 9


@pytest.mark.shared
def test_errors(lexicon):
    with pytest.raises(CorpusError, match="--match is 'lexnam'.*did you mean 'lexname'"):
        draw(lexicon, 5, 0, Reference(), "lexnam")
    with pytest.raises(CorpusError, match="needs a corpus whose entities have senses"):
        draw(lexicon, 5, 0, Reference(), "lexname")


@pytest.mark.exhaustive
@pytest.mark.shared
def test_more_nouns_than_wordnet_has_are_refused(lexicon):
    with pytest.raises(CorpusError, match=r"--size is 90000, but WordNet has \d+ nouns to draw"):
        draw(lexicon, 90000, 0, Reference())
