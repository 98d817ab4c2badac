from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from corpus_builder.disambiguate import disambiguate, words_of
from corpus_builder.wordnet import Sense, open_lexicon

ANIMAL = Sense("bat.n.01", "bat", "nocturnal mouselike mammal", "noun.animal", 0)
TURN = Sense("bat.n.02", "bat", "(baseball) a turn trying to get a hit", "noun.act", 1)
CLUB = Sense("bat.n.05", "bat", "a club used for hitting a ball in various games", "noun.artifact", 2)
IDEA = Sense("bat.n.09", "bat", "a notion", "noun.cognition", 3)
BAT = (ANIMAL, TURN, CLUB, IDEA)


def test_without_evidence_the_most_frequent_visible_sense_wins():
    assert disambiguate("bat", BAT, []).sense == ANIMAL
    assert disambiguate("bat", (TURN, CLUB), []).sense == CLUB


def test_the_context_turns_the_choice():
    assert disambiguate("bat", BAT, ["swing", "club", "ball"]).sense == CLUB


def test_an_act_is_preferred_where_acts_are_meant():
    assert disambiguate("bat", BAT, [], act=True).sense == TURN


def test_its_own_name_is_no_evidence():
    assert disambiguate("bat", BAT, ["bat"]).scores == disambiguate("bat", BAT, []).scores


def test_strategies():
    assert disambiguate("bat", BAT, ["baseball"], "first").sense == ANIMAL
    # NLTK's Lesk compares bare tokens: "ball" stands in the club's gloss alone
    assert disambiguate("bat", BAT, ["ball", "hitting"], "lesk").sense == CLUB


def test_a_phrase_means_what_it_heads_rather_than_what_it_also_names():
    bush = Sense("christmas_bush.n.01", "christmas tree", "Australian shrub", "noun.plant", 0)
    tree = Sense("christmas_tree.n.05", "christmas tree", "an ornamented evergreen", "noun.artifact", 4)
    assert disambiguate("christmas tree", (bush, tree), []).sense == tree
    # one word alone has counts behind its ranks, which decide
    alone = [replace(sense, form="tree") for sense in (bush, tree)]
    assert disambiguate("tree", alone, []).sense.rank == 0


def test_a_sense_that_was_counted_more_is_likelier():
    animal, club = replace(ANIMAL, count=0), replace(CLUB, count=40)
    assert disambiguate("bat", (ANIMAL, CLUB), []).sense == ANIMAL
    assert disambiguate("bat", (animal, club), []).sense == club


def test_a_plural_listed_by_itself_means_itself():
    glass = Sense("glass.n.01", "glass", "a brittle solid", "noun.substance", 1)
    worn = Sense("spectacles.n.01", "glasses", "a frame with lenses", "noun.artifact", 0)
    assert disambiguate("glasses", (worn, glass), []).sense == worn


def test_an_action_asks_through_the_verbs_above_it_but_not_through_the_phrase_itself():
    tree, fruit = (
        Sense(f"fig.n.0{rank + 1}", "fig", gloss, f"noun.{file}", rank)
        for rank, (gloss, file) in enumerate([("a tree", "artifact"), ("its fruit", "food")])
    )
    asks = {"nibbling": frozenset({"nibbling", "eat"})}
    assert disambiguate("fig", (tree, fruit), ["nibbling"], asks=asks).margin > 1
    assert disambiguate("fig", (tree, fruit), ["nibbling"], asks=asks).sense == fruit
    own = disambiguate("fig", (tree, fruit), ["fig"], asks={"fig": frozenset({"eat"})})
    assert own.scores == disambiguate("fig", (tree, fruit), []).scores


def test_what_an_action_asks_is_answered_by_what_a_sense_is_a_kind_of():
    game = replace(IDEA, kinds=frozenset({"game.n.01"}))
    assert disambiguate("bat", (ANIMAL, game), ["play"]).sense == game
    assert disambiguate("bat", (ANIMAL, game), []).sense == ANIMAL


def test_no_senses_and_one_sense():
    assert disambiguate("zumba", (), ["dance"]).sense is None
    choice = disambiguate("bat", (CLUB,), ["x"])
    assert choice.sense == CLUB and choice.margin == 0.0


@given(
    st.lists(st.sampled_from(["ball", "night", "swing", "ride", "play", "mouse", "turn", "club"]), max_size=6)
)
def test_the_margin_is_the_lead_and_word_order_is_nothing(context):
    choice = disambiguate("bat", BAT, context)
    ordered = sorted(choice.scores, reverse=True)
    assert choice.margin == pytest.approx(ordered[0] - ordered[1]) and choice.margin >= 0
    assert disambiguate("bat", BAT, context[::-1]) == choice


def test_stems_meet():
    assert words_of(["hammered nails"]) == words_of(["hammering nail"])


KNOWN = [
    ("bat", "swinging bat at baseball", "bat.n.05"),
    ("bat", "bat flying in a cave at night", "bat.n.01"),
    ("racket", "swinging tennis racket", "racket.n.04"),
    ("drum", "playing drums", "drum.n.01"),
    ("bow", "shoot bow", "bow.n.04"),
    ("bow", "playing violin with bow", "bow.n.02"),
    ("bow", "tying a bow", "bow.n.01"),
    ("ball", "kick ball", "ball.n.01"),
    ("clay", "clay pottery making", "clay.n.01"),
    ("bass guitar", "playing bass guitar", "bass_guitar.n.01"),
    ("nails", "cutting nails", "nail.n.01"),
    ("nail", "hammering nail", "nail.n.02"),
    ("pool", "playing pool", "pool.n.09"),
    ("pool", "swimming in pool", "pool.n.01"),
    ("pool", "cleaning pool", "pool.n.01"),
    ("horse", "riding horse", "horse.n.01"),
    ("horse", "gymnast vaulting on horse", "horse.n.02"),
    ("trunk", "elephant trunk", "proboscis.n.02"),
    ("trunk", "chopping tree trunk", "trunk.n.01"),
    ("hair", "brushing hair", "hair.n.01"),
    ("leg", "waxing legs", "leg.n.01"),
    ("card", "shuffling cards", "card.n.01"),
    ("eye", "apply eye makeup", "eye.n.01"),
    ("chess", "playing chess", "chess.n.02"),
    ("cricket", "playing cricket", "cricket.n.02"),
    ("chip", "eating chips", "chip.n.04"),
    ("foot", "shuffling feet", "foot.n.01"),
    ("glasses", "adjusting glasses", "spectacles.n.01"),
    ("person", "punching person", "person.n.01"),
    ("fire", "juggling fire", "fire.n.01"),
    ("hands", "washing hands", "hand.n.01"),
    ("plant", "watering plants", "plant.n.02"),
    ("table", "setting table", "table.n.02"),
    ("christmas tree", "decorating the christmas tree", "christmas_tree.n.05"),
]


@pytest.mark.shared
@pytest.mark.parametrize(("phrase", "label", "sense"), KNOWN)
def test_known_answers_on_labels(shared, phrase, label, sense):
    lexicon = open_lexicon(shared / "nltk_data")
    senses = lexicon.senses(phrase)
    assert disambiguate(phrase, senses, lexicon.lemmas(label.split())).sense.name == sense
