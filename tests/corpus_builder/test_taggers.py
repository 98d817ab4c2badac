import pytest

from corpus_builder.config import CorpusConfig, CorpusError
from corpus_builder.taggers import NltkTagger, SpacyTagger, WordnetTagger, load_taggers, tokenise
from corpus_builder.wordnet import open_lexicon


def test_tokens():
    assert tokenise("massaging person's head") == ["massaging", "person", "'s", "head"]
    assert tokenise("hurling (sport)") == ["hurling", "(", "sport", ")"]
    assert tokenise("it doesn't fit.") == ["it", "doesn't", "fit", "."]


@pytest.fixture(scope="module")
def taggers(shared):
    lexicon = open_lexicon(shared / "nltk_data")
    return [
        NltkTagger(shared / "nltk_data"),
        SpacyTagger(str(shared / "spacy/en_ewt_sm")),
        WordnetTagger(lexicon),
    ]


@pytest.mark.shared
def test_every_tagger_finds_the_noun_phrase(taggers):
    words = "a person is kicking the soccer ball .".split()
    for tagger in taggers:
        chunks = list(tagger.chunks([words, []]))
        assert len(chunks) == 2 and chunks[1] == []
        found = [" ".join(words[chunk.start : chunk.stop]) for chunk in chunks[0]]
        assert any(phrase.endswith("soccer ball") for phrase in found), (tagger.name, found)
        assert all(len(chunk.tags) == chunk.stop - chunk.start for chunk in chunks[0])


@pytest.mark.shared
def test_missing_spacy_pipeline_names_the_command_and_the_way_out(shared):
    config = CorpusConfig(taggers="spacy", spacy_model="en_no_such_pipeline")
    with pytest.raises(CorpusError, match="python -m spacy download en_no_such_pipeline.*--taggers nltk"):
        load_taggers(config, open_lexicon(shared / "nltk_data"))
