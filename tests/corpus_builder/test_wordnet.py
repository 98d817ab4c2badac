import shutil
import zipfile

import nltk
import pytest

from corpus_builder.config import BODY_PARTS, CorpusError
from corpus_builder.taggers import NltkTagger
from corpus_builder.wordnet import find_data, open_lexicon


@pytest.fixture(scope="module")
def lexicon(shared):
    return open_lexicon(shared / "nltk_data")


def test_missing_data_names_the_one_command(tmp_path, monkeypatch):
    monkeypatch.setattr(nltk.data, "path", [])
    with pytest.raises(CorpusError, match="python -m nltk.downloader wordnet averaged_perceptron_tagger_eng"):
        open_lexicon(tmp_path)
    with pytest.raises(CorpusError, match="--nltk-data DIR or NLTK_DATA"):
        find_data("corpora/wordnet")


def test_data_folders_of_several_calls_stay_apart(tmp_path, monkeypatch):
    monkeypatch.setattr(nltk.data, "path", [str(tmp_path / "own")])
    folders = {name: tmp_path / name / "taggers/t" for name in ("own", "one", "two")}
    for folder in folders.values():
        folder.mkdir(parents=True)

    def found(name=None, resource="taggers/t"):
        return str(find_data(resource, name and tmp_path / name, elsewhere=True)).rstrip("/")

    # "one" is asked for again after "two" has come to NLTK's path, and neither is NLTK's own
    assert [found(name) for name in ("one", "two", "one", None)] == [
        str(folders[name]) for name in ("one", "two", "one", "own")
    ]
    (tmp_path / "two/taggers/other").mkdir()
    with pytest.raises(CorpusError, match="'.*one'"):
        found("one", "taggers/other")


@pytest.mark.shared
def test_lookup_finds_plurals_compounds_and_joined_spellings(lexicon):
    assert lexicon.lookup(["ice", "hockey"]) == "ice hockey"
    assert lexicon.lookup(["sky", "diving"]) == "skydiving"
    assert lexicon.lookup(["potatoes"]) == "potato"
    assert lexicon.lookup(["teeth"]) == "tooth"
    assert lexicon.lookup(["side", "kick"]) is None
    assert lexicon.lookup(["krumping"]) is None
    assert lexicon.lookup(["pullup"]) == "pull-up" and lexicon.lookup(["shotput"]) == "shot put"
    assert lexicon.lookup(["sandcastle"]) is None


@pytest.mark.shared
def test_a_plural_that_is_a_noun_itself_keeps_both_readings(lexicon):
    assert lexicon.forms(["hands"]) == ("hands", "hand")
    senses = lexicon.senses("hands")
    assert senses[0].form == "hands" and any(sense.name == "hand.n.01" for sense in senses)
    assert [sense.rank for sense in senses] == list(range(len(senses)))


@pytest.mark.shared
def test_senses_are_nouns_with_gloss_and_file_and_no_generals(lexicon):
    clay = lexicon.senses("clay")
    assert clay[0].name == "clay.n.01" and clay[0].lexname == "noun.substance"
    assert not any("general" in sense.gloss for sense in clay)
    assert all(".n." in sense.name for sense in lexicon.senses("run"))


@pytest.mark.shared
@pytest.mark.parametrize(
    ("word", "gerund"), [("riding", True), ("krumping", True), ("swing", False), ("king", False)]
)
def test_gerunds(lexicon, word, gerund):
    assert lexicon.is_gerund(word) is gerund


@pytest.mark.shared
def test_an_activity_goes_by_its_gerund_or_by_what_is_derived(lexicon):
    assert lexicon.activity("eat")[0].gloss == "the act of consuming food"
    assert any(sense.name == "dressing.n.07" for sense in lexicon.activity("bandaging"))
    assert lexicon.activity("krumping") == ()


@pytest.mark.shared
def test_an_activity_that_is_a_noun_goes_by_its_own_senses_first(lexicon):
    jumps = [sense.name for sense in lexicon.activity("jump")]
    assert jumps.index("jump.n.06") < jumps.index("jumping.n.01")
    assert [sense.rank for sense in lexicon.activity("jump")] == list(range(len(jumps)))


@pytest.mark.shared
def test_a_sense_tells_its_count_and_kinds_its_topics_too(lexicon):
    person, body = lexicon.senses("person")[:2]
    assert person.count > 1000 > body.count >= 0
    assert {"penalty.n.04", "game.n.01"} <= lexicon.sense("penalty.n.04").kinds


@pytest.mark.shared
def test_what_is_done_under_a_word(lexicon):
    assert {"sip", "drink"} <= lexicon.asks("sip")
    assert "sport" in lexicon.asks("tennis") and "sport" not in lexicon.asks("guitar") | lexicon.asks("hit")
    assert "use" in lexicon.asks("use") and "use" not in lexicon.asks("exercise")


@pytest.mark.shared
def test_within_holds_every_hypernym(lexicon):
    assert {"bow_tie.n.01", "necktie.n.01", "garment.n.01", "entity.n.01"} <= lexicon.within("bow_tie.n.01")


@pytest.mark.shared
def test_every_body_part_has_its_stored_sense(lexicon):
    for name, synset in BODY_PARTS:
        sense = next(sense for sense in lexicon.senses(name) if sense.name == synset)
        assert sense.lexname == "noun.body", name


@pytest.mark.shared
def test_a_folder_and_a_zip_of_the_same_data_are_the_same_wordnet(shared, tmp_path, lexicon):
    with zipfile.ZipFile(shared / "nltk_data/corpora/wordnet.zip") as archive:
        archive.extractall(tmp_path / "corpora")
    tmp_path.chmod(0o700)
    unpacked = open_lexicon(tmp_path)
    assert unpacked is not lexicon
    assert unpacked.senses("bat") == lexicon.senses("bat")
    assert unpacked.sha256() == lexicon.sha256()
    shutil.rmtree(tmp_path / "corpora")


@pytest.mark.shared
def test_a_relative_data_folder_with_parents_in_it_is_found(shared):
    roundabout = shared / "spacy" / ".." / "nltk_data"
    assert NltkTagger(roundabout).name == "nltk" and open_lexicon(roundabout).lookup(["dogs"]) == "dog"


KINDS = {
    "beach.n.01": "scene",
    "kitchen.n.01": "scene",
    "street.n.01": "scene",
    "gymnasium.n.02": "scene",
    "forest.n.01": "scene",
    "guitar.n.01": "object",
    "horse.n.01": "animal",
    "hand.n.01": "body part",
    "pizza.n.01": "food",
    "basketball.n.01": "activity",
    "snow.n.02": "substance",
    "crowd.n.01": "group",
    "idea.n.01": "other",
}


@pytest.mark.shared
@pytest.mark.parametrize(("synset", "kind"), KINDS.items())
def test_kinds(shared, synset, kind):
    lexicon = open_lexicon(shared / "nltk_data")
    assert lexicon.kind(lexicon.sense(synset)) == kind
