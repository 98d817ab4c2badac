import pytest

from corpus_builder import artifact, build
from corpus_builder.config import CorpusConfig, CorpusError
from corpus_builder.embed import load_text_encoder
from corpus_builder.mine import Candidate
from corpus_builder.senses import Chooser, load_chooser
from corpus_builder.wordnet import open_lexicon

BAT = Candidate("bat", "bat", "noun")


@pytest.fixture(scope="module")
def lexicon(shared):
    return open_lexicon(shared / "nltk_data")


@pytest.mark.shared
def test_the_text_decides_and_what_was_weighed_is_told(lexicon):
    chooser = Chooser(lexicon, "extended")
    club, animal = chooser(BAT, "swinging bat at baseball"), chooser(BAT, "bat flying in a cave at night")
    assert (club.sense.name, animal.sense.name) == ("bat.n.05", "bat.n.01")
    assert {sense.name for sense in club.senses} == {sense.name for sense in lexicon.senses("bat")}
    assert len(club.scores) == len(club.senses) and club.margin > 0


@pytest.mark.shared
def test_dropped_phrases_and_mere_names_have_no_sense(lexicon):
    chooser = Chooser(lexicon, "first")
    assert chooser(Candidate("way", "way", "noun", "stop word"), "way").sense is None
    assert chooser(Candidate("dog bowl", "dog bowl", "compound"), "dog bowl").sense is None


@pytest.mark.shared
def test_the_head_of_a_phrase_is_what_the_phrase_is_a_kind_of(lexicon):
    tie = Candidate("tie", "tie", "head", within="bow tie")
    alone = Chooser(lexicon, "first")(Candidate("tie", "tie", "noun"), "")
    headed = Chooser(lexicon, "first")(tie, "tying bow tie")
    assert headed.sense.name == "necktie.n.01"
    assert {s.name for s in headed.senses} < {s.name for s in alone.senses}


@pytest.mark.shared
def test_clip_reads_glosses_with_the_model_it_is_given(lexicon, tiny_clip, other_clip):
    """Random weights choose at random, but always alike, and other weights otherwise."""
    text = "swinging bat at baseball"
    chosen = [
        load_chooser(lexicon, CorpusConfig(strategy="clip", sense_model=name), "cpu")(BAT, text)
        for name in (tiny_clip, tiny_clip, other_clip)
    ]
    assert chosen[0] == chosen[1] and chosen[0].scores != chosen[2].scores
    encoder = load_text_encoder(tiny_clip, device="cpu")
    at_hand = load_chooser(lexicon, CorpusConfig(strategy="clip"), "cpu", encoder)(BAT, text)
    assert at_hand == chosen[0]


@pytest.mark.shared
def test_clip_without_a_model_is_refused(lexicon):
    with pytest.raises(CorpusError, match="--strategy clip needs a CLIP.*--sense-model"):
        load_chooser(lexicon, CorpusConfig(strategy="clip"))


def test_a_model_without_use_is_refused():
    with pytest.raises(CorpusError, match="--sense-model is for --strategy clip or t5, got --strategy first"):
        CorpusConfig(strategy="first", sense_model="x")


@pytest.mark.shared
def test_a_build_with_clip_reads_with_its_own_model_and_says_so(shared, tiny_clip, tmp_path):
    (tmp_path / "labels.txt").write_text("swinging bat\nplaying piano\n")
    inputs = build.Inputs(labels=tmp_path / "labels.txt", nltk_data=shared / "nltk_data")
    config = CorpusConfig(taggers="wordnet", strategy="clip", body_parts=False)
    build.build_corpus(inputs, config, tiny_clip, None, tmp_path / "c", device="cpu")
    corpus = artifact.open_corpus(tmp_path / "c")
    assert corpus.manifest["config"]["strategy"] == "clip"
    bat = next(row for row in corpus.table.to_pylist() if row["name"] == "bat")
    chooser = load_chooser(
        open_lexicon(shared / "nltk_data"), CorpusConfig(strategy="clip", sense_model=tiny_clip), "cpu"
    )
    assert bat["sense"] == chooser(BAT, "swinging bat").sense.name
