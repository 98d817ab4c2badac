from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from corpus_builder.disambiguate import Choice
from corpus_builder.entities import Found, gather, judge, merge_pairs, unite, variant_key
from corpus_builder.mine import Candidate
from corpus_builder.wordlists import WordList
from corpus_builder.wordnet import Sense

NAIL = Sense("nail.n.01", "nail", "horny plate", "noun.body", 0)
PIN = Sense("nail.n.02", "nail", "a thin pointed piece of metal", "noun.artifact", 1)
MAKEUP = Sense("makeup.n.01", "makeup", "cosmetics applied to the face", "noun.artifact", 0)


def find(
    label, entity, sense=None, source="label", reason=None, count=1, role="noun", contexts=(), margin=0.0
):
    choice = Choice(sense, margin, (1.0,) if sense else (), (sense,) if sense else ())
    return Found(label, Candidate(entity, entity, role, reason), source, choice, count, contexts)


def test_entities_merge_by_sense_else_by_name_and_are_ordered():
    entities = gather(
        [
            find(None, "hand", source="body_part", role="body_part"),
            find("b", "nails", NAIL),
            find("a", "nails", NAIL, count=2),
            find("c", "nail", PIN),
            find("c", "eye makeup"),
            find("d", "eye makeup", source="expansion"),
            find("d", "way", reason="stop word"),
            find(None, "dog", source="caption", count=7),
        ]
    ).entities
    told = [(e.name, e.sources, e.sense and e.sense.name, e.count, sorted(e.labels)) for e in entities]
    assert told == [
        ("eye makeup", ("label", "expansion"), None, 2, ["c", "d"]),
        ("nail", ("label",), "nail.n.01", 3, ["a", "b"]),
        ("nail", ("label",), "nail.n.02", 1, ["c"]),
        ("dog", ("caption",), None, 7, []),
        ("hand", ("body_part",), None, 0, []),
    ]
    assert entities[2].text() == "nail: a thin pointed piece of metal"


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("eye makeup", "Eye Make-Ups"),
        ("t shirt", "T-shirts"),
        ("tire lever", "tyre levers"),
        ("theatre colour", "theater color"),
        ("dog's bowl", "dog bowl"),
        ("organised party", "organized parties"),
        ("ﬁre pit", "fire pit"),
    ],
)
def test_variants_have_one_key(first, second):
    assert variant_key(first) == variant_key(second)


@pytest.mark.parametrize(
    ("first", "second"),
    [("hour", "hor"), ("glass", "glas"), ("tour", "tor"), ("bus", "bu"), ("tiger", "tigre"), ("four", "for")],
)
def test_other_words_keep_their_own(first, second):
    assert variant_key(first) != variant_key(second)


def test_variants_without_a_sense_become_one_and_are_told():
    gathered = gather(
        [
            find("a", "eye make-up"),
            find("b", "Eye makeups", count=3),
            find("c", "eye make-up", contexts=("x",)),
        ]
    )
    (entity,) = gathered.entities
    assert (entity.name, entity.count, sorted(entity.labels)) == ("Eye makeups", 5, ["a", "b", "c"])
    assert entity.aliases == {"eye make-up"} and entity.contexts == ("x",)
    (merge,) = gathered.merges
    assert (merge.survivor, merge.merged.name, merge.reason) == ("Eye makeups", "eye make-up", "variant")


def test_a_variant_goes_into_the_one_sense_of_that_name_but_never_into_one_of_two():
    one = gather([find("a", "make-up", count=9), find("b", "makeup", MAKEUP)])
    assert [e.key for e in one.entities] == ["makeup.n.01"] and one.entities[0].count == 10
    two = gather([find("a", "Nails"), find("b", "nail", NAIL), find("c", "nail", PIN)])
    assert sorted(e.key for e in two.entities) == ["Nails", "nail.n.01", "nail.n.02"]


def test_senses_of_one_spelling_stay_apart():
    gathered = gather([find("a", "nail", NAIL), find("b", "nail", PIN)])
    assert len(gathered.entities) == 2 and not gathered.merges


def test_merging_pairs_adds_up():
    entities = gather([find("a", "horse"), find("b", "mare", count=2), find("c", "cup")]).entities
    names = [e.name for e in entities]
    pair = (names.index("horse"), names.index("mare"), 0.97)
    merged = merge_pairs(entities, [pair], "near-duplicate")
    horse = next(e for e in merged.entities if e.name == "horse")
    assert horse.count == 3 and horse.labels == {"a", "b"} and horse.aliases == {"mare"}
    assert merged.merges[0].cosine == 0.97 and len(merged.entities) == 2


names = st.sampled_from(
    ["eye makeup", "Eye-makeup", "eye make ups", "cup", "cups", "Cup", "dog bowl", "grey owl"]
)
finds = st.lists(st.builds(find, st.sampled_from("abc"), names, count=st.integers(1, 4)), max_size=12)


@given(finds, st.randoms(use_true_random=False))
def test_no_count_and_no_label_is_lost_and_the_order_of_finds_is_nothing(found, random):
    gathered = gather(found)
    assert sum(e.count for e in gathered.entities) == sum(f.count for f in found)
    assert {la for e in gathered.entities for la in e.labels} == {f.label for f in found}
    keys = {variant_key(e.name) for e in gathered.entities}
    assert len(keys) == len(gathered.entities)
    shuffled = found[:]
    random.shuffle(shuffled)
    assert gather(shuffled).entities == gathered.entities


@given(finds)
def test_uniting_keeps_the_survivors_key_and_name(found):
    entities = gather(found).entities
    for first in entities:
        for second in entities:
            both = unite(first, second)
            assert (both.key, both.name) == (first.key, first.name) and both.name not in both.aliases


TIME = Sense("time.n.01", "time", "an instance of something", "noun.time", 0)
NOBODY = WordList()


def reasons(found, allow=NOBODY, deny=NOBODY):
    return [item.candidate.reason for item in judge(found, allow, deny)]


def test_an_abstract_sense_goes_unless_it_is_all_its_class_name_holds():
    nail, time = find("a", "nail", NAIL), find("a", "time", TIME)
    assert reasons([nail, time]) == [None, "abstract sense"]
    assert reasons([time]) == [None]
    assert reasons([find(None, "time", TIME, source="caption")]) == ["abstract sense"]
    assert reasons([nail, time], allow=WordList(frozenset({"time"}))) == [None, None]
    assert reasons([nail, time], allow=WordList(synsets=frozenset({"time.n.01"}))) == [None, None]


def test_an_abstract_sense_that_belongs_to_a_game_stays():
    penalty = replace(TIME, name="penalty.n.04", kinds=frozenset({"penalty.n.04", "game.n.01"}))
    assert reasons([find("a", "nail", NAIL), find("a", "penalty", penalty)]) == [None, None]


def test_a_denied_synset_goes_and_denial_outranks_the_allow_list():
    both = [find("a", "nail", NAIL), find("b", "nail", PIN)]
    deny = WordList(synsets=frozenset({"nail.n.02"}))
    assert reasons(both, deny=deny) == [None, "deny list"]
    assert reasons(both, allow=WordList(frozenset({"nail"})), deny=deny) == [None, "deny list"]


def test_judging_revives_nothing_and_loses_nothing():
    found = [find("a", "way", reason="stop word"), find("a", "nail", NAIL)]
    assert judge(found, NOBODY, NOBODY) == found
