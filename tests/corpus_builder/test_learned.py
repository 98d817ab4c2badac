import numpy as np
import pytest

from corpus_builder.config import CorpusError
from corpus_builder.embed import load_text_encoder
from corpus_builder.learned import ClipScorer, T5Scorer, choose, t5_question
from corpus_builder.wordnet import Sense

ANIMAL = Sense("bat.n.01", "bat", "nocturnal mouselike mammal", "noun.animal", 0)
CLUB = Sense("bat.n.05", "bat", "a club used for hitting a ball in various games", "noun.artifact", 2)
IDEA = Sense("bat.n.09", "bat", "a notion", "noun.cognition", 3)


def test_the_highest_score_wins_by_its_lead_and_ties_go_to_the_more_frequent():
    choice = choose(lambda *_: [0.1, 0.9, 0.4], "bat", "swinging a bat", (ANIMAL, CLUB, IDEA))
    assert choice.sense == CLUB and choice.margin == pytest.approx(0.5) and choice.scores == (0.1, 0.9, 0.4)
    assert choose(lambda *_: [0.5, 0.5], "bat", "", (ANIMAL, CLUB)).sense == ANIMAL


def test_one_sense_or_none_asks_no_model():
    def never(*_):
        raise AssertionError

    assert choose(never, "bat", "", (CLUB,)).sense == CLUB
    assert choose(never, "bat", "", ()).sense is None


def test_clip_scores_are_the_cosines_of_its_own_embeddings(tiny_clip):
    encoder = load_text_encoder(tiny_clip, device="cpu")
    scores = ClipScorer(encoder)("bat", "swinging a bat", (ANIMAL, CLUB))
    text, *glosses = (
        encoder.encode([t])[0] for t in ("swinging a bat", f"bat: {ANIMAL.gloss}", f"bat: {CLUB.gloss}")
    )
    np.testing.assert_allclose(scores, [gloss @ text for gloss in glosses], atol=1e-6)


def test_clip_prefers_the_sense_whose_text_is_the_context_itself(tiny_clip):
    scorer = ClipScorer(load_text_encoder(tiny_clip, device="cpu"))
    choice = choose(scorer, "bat", f"bat: {CLUB.gloss}", (ANIMAL, CLUB, IDEA))
    assert choice.sense == CLUB and max(choice.scores) == pytest.approx(1, abs=1e-5)


@pytest.fixture(scope="module")
def tiny_t5(tmp_path_factory):
    """A randomly initialised byte-level T5 in a folder, as a user without a network would give one."""
    transformers = pytest.importorskip("transformers", reason="the extra 'wsd' is not installed")
    import torch

    folder = tmp_path_factory.mktemp("t5")
    config = transformers.T5Config(
        vocab_size=384, d_model=16, d_kv=8, d_ff=32, num_layers=1, num_heads=2, decoder_start_token_id=0
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        transformers.T5ForConditionalGeneration(config).save_pretrained(folder)
    transformers.ByT5Tokenizer().save_pretrained(folder)
    return folder


def test_t5_scores_are_mean_log_likelihoods_whatever_the_other_senses(tiny_t5):
    """The model's own loss is the negative of the score: an independent computation of the same number."""
    import torch
    from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

    senses = (ANIMAL, CLUB)
    scores = T5Scorer(str(tiny_t5))("bat", "swinging a bat", senses)
    model, tokenizer = AutoModelForSeq2SeqLM.from_pretrained(tiny_t5), AutoTokenizer.from_pretrained(tiny_t5)
    question = tokenizer(t5_question("bat", "swinging a bat", senses), return_tensors="pt")
    for score, sense in zip(scores, senses, strict=True):
        with torch.no_grad():
            loss = model(**question, labels=tokenizer(sense.gloss, return_tensors="pt").input_ids).loss
        assert score == pytest.approx(-float(loss), abs=1e-4)


def test_t5_that_is_not_there_says_what_to_do(tmp_path):
    pytest.importorskip("transformers", reason="the extra 'wsd' is not installed")
    with pytest.raises(CorpusError, match="could not be loaded.*or choose --strategy extended"):
        T5Scorer(str(tmp_path / "nothing"))


def test_the_question_marks_the_word_in_its_context():
    question = t5_question("bat", "swinging bat", (CLUB,))
    assert question.endswith('context: swinging " bat "') and CLUB.gloss in question
    assert '(" bats ")' in t5_question("bats", "swinging a bat", (CLUB,))
