import pytest

from corpus_builder.config import CorpusConfig
from corpus_builder.mine import Limits, mine, readings, reasons, segments
from corpus_builder.sources import Mention, clean_name, label_mentions, read_labels
from corpus_builder.taggers import Chunk, NltkTagger, load_taggers
from corpus_builder.wordnet import open_lexicon


@pytest.fixture(scope="module")
def lexicon(shared):
    return open_lexicon(shared / "nltk_data")


@pytest.fixture(scope="module")
def taggers(shared, lexicon):
    config = CorpusConfig(spacy_model=str(shared / "spacy/en_ewt_sm"))
    return load_taggers(config, lexicon, shared / "nltk_data")


def candidates(text, taggers, lexicon, source="label", limits=Limits()):
    name = clean_name(text)
    return next(mine([Mention(name, name, text, source)], taggers, lexicon, limits))[1]


def kept(*args, **kwargs):
    return {item.entity for item in candidates(*args, **kwargs) if item.kept}


def test_remarks_in_brackets():
    assert segments("hurling (sport)") == [["hurling"], ["sport"]]
    assert segments("petting animal (not cat)") == [["petting", "animal"]]


KNOWN = {
    "shooting basketball": {"basketball"},
    "playing ice hockey": {"ice hockey"},
    "applying eye makeup": {"eye", "makeup", "eye makeup"},
    "ApplyEyeMakeup": {"eye", "makeup", "eye makeup"},
    "riding a bicycle": {"bicycle"},
    "brushing teeth": {"tooth"},
    "punching bag": {"punching bag"},
    "BoxingPunchingBag": {"punching bag"},
    "tapping guitar": {"guitar"},
    "chopping wood": {"wood"},
    "kick ball": {"ball"},
    "catching or throwing baseball": {"baseball"},
    "petting animal (not cat)": {"animal"},
    "massaging person's head": {"person", "head"},
    "swimming butterfly stroke": {"butterfly stroke", "stroke"},
    "balloon blowing": {"balloon"},
    "eating ice cream": {"ice cream"},
    "tying bow tie": {"bow tie", "tie"},
    "tai chi": {"tai chi"},
    "rock climbing": {"rock climbing", "rock"},
    "playing didgeridoo": {"didgeridoo"},
    "swimming": {"swimming"},
    "eat": {"eat"},
    "zumba": {"zumba"},
    "canoeing or kayaking": {"canoeing", "kayaking"},
    "Pushing something so it spins": {"pushing"},
}


@pytest.mark.shared
@pytest.mark.parametrize(("label", "entities"), KNOWN.items())
def test_known_labels(label, entities, taggers, lexicon):
    assert kept(label, taggers, lexicon) == entities


@pytest.mark.shared
def test_an_activity_counts_only_where_no_thing_is_named(taggers, lexicon):
    found = {item.entity: item for item in candidates("riding horse", taggers, lexicon)}
    assert found["riding"].reason == "activity of a named thing" and found["horse"].kept
    assert kept("riding", taggers, lexicon) == {"riding"}


@pytest.mark.shared
@pytest.mark.parametrize("name", ["kinetics_400", "ucf_101", "hmdb_51", "kinetics_600"])
def test_every_label_of_the_real_sets_is_covered(name, shared, taggers, lexicon):
    labels = read_labels(shared / f"data/labels/{name}_labels.csv")
    for mention, items in mine(label_mentions(labels), taggers, lexicon):
        entities = {item.entity for item in items if item.kept}
        assert 1 <= len(entities) <= 4, mention.label
        assert "something" not in entities


@pytest.mark.shared
def test_dropped_phrases_are_counted_by_reason(taggers, lexicon):
    items = candidates("passing American football (in game)", taggers, lexicon)
    assert reasons(items) == {"stop word": 1, "activity of a named thing": 1}
    short = candidates("eating ice cream", taggers, lexicon, limits=Limits(max_words=1))
    assert reasons(short)["too long"] == 1


@pytest.mark.shared
def test_captions_keep_things_and_drop_activities(taggers, lexicon):
    text = "a man is riding a brown horse near the fence"
    assert kept(text, taggers, lexicon, source="caption") == {"man", "horse", "fence"}


@pytest.mark.shared
def test_readings_keep_track_of_the_words(lexicon):
    words = ["tapping", "guitar"]
    for reading in readings(words, lexicon, carriers=True):
        pairs = zip(reading.tokens, reading.source, strict=True)
        assert all(words[index] == token for token, index in pairs if index is not None)
    assert len(readings(words, lexicon, carriers=True)) == 3
    assert len(readings(["archery"], lexicon, carriers=True)) == 2


class Whole:
    """Takes every sentence for one noun phrase: the worst tagger there can be."""

    name = "whole"

    def chunks(self, sentences):
        for words in sentences:
            yield [Chunk(0, len(words), ("NN",) * len(words))]


@pytest.mark.shared
def test_the_union_names_who_proposed(shared, lexicon):
    both = (Whole(), NltkTagger(shared / "nltk_data"))
    found = {item.entity: item for item in candidates("riding a bicycle", both, lexicon)}
    assert found["bicycle"].taggers == {"whole", "nltk"}
    assert kept("riding a bicycle", (Whole(),), lexicon) == {"bicycle"}


@pytest.mark.shared
def test_what_follows_a_subject_is_its_verb(taggers, lexicon):
    assert "roll" not in kept("Letting something roll along a flat surface", taggers, lexicon)
    assert "support" not in kept("Putting something onto something that cannot support it", taggers, lexicon)


@pytest.mark.shared
@pytest.mark.parametrize(
    ("label", "expected"),
    [
        ("BasketballDunk", {"basketball", "dunk"}),
        ("TennisSwing", {"tennis", "swing"}),
        ("gymnastics tumbling", {"gymnastics", "tumbling"}),
        ("punching person (boxing)", {"person", "boxing"}),
        ("HammerThrow", {"hammer throw", "hammer"}),
        ("sucking lolly", {"lolly"}),
        ("playing guitar", {"guitar"}),
        ("ride horse", {"horse"}),
        ("bench pressing", {"bench press", "bench"}),
    ],
)
def test_deeds_named_as_things_are_kept_and_verbs_are_not(label, expected, taggers, lexicon):
    assert kept(label, taggers, lexicon) == expected


@pytest.mark.shared
def test_the_lists_have_the_last_word(taggers, lexicon):
    limits = Limits(allow=frozenset({"side", "sauce"}), deny=frozenset({"guitar"}))
    items = {item.entity: item for item in candidates("playing guitar", taggers, lexicon, limits=limits)}
    assert items["guitar"].reason == "deny list"
    dropped = {item.entity: item.reason for item in candidates("moving to the side", taggers, lexicon)}
    assert dropped["side"] == "stop word"
    assert "side" in kept("moving to the side", taggers, lexicon, limits=limits)
