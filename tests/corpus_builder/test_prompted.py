"""Learned prompts in CLIP's text tower, against the tower run with them among its tokens."""

import open_clip
import pytest
import torch

from corpus_builder.config import CorpusError
from corpus_builder.embed import load_text_encoder, text_features
from corpus_builder.prompted import prompted_features


@pytest.fixture(scope="module")
def encoder(tiny_clip):
    return load_text_encoder(tiny_clip, device="cpu")


def drawn(count):
    return torch.randn(2, count, 32, generator=torch.manual_seed(0))


def test_prompts_are_tokens_behind_the_start_that_every_block_sees_anew(encoder):
    """The reference puts them there, under the causal mask, and throws away what becomes of them."""
    model, prompts = encoder._model, drawn(3)
    tokens = encoder._tokenizer(["a photo of a cat.", "surfing"])
    with torch.no_grad():
        found = prompted_features(model, tokens, prompts)
        x = model.token_embedding(tokens) + model.positional_embedding
        mask = torch.full((80, 80), -torch.inf).triu(1)
        for block, own in zip(model.transformer.resblocks, prompts, strict=True):
            among = torch.cat([x[:, :1], own.expand(2, -1, -1), x[:, 1:]], dim=1)
            among = block(among, attn_mask=mask)
            x = torch.cat([among[:, :1], among[:, 4:]], dim=1)
        expected = model.ln_final(x)[torch.arange(2), tokens.argmax(1)] @ model.text_projection
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(found, model.encode_text(tokens), atol=1e-3)


def test_none_are_the_tower_itself_and_padding_may_be_cut(encoder):
    tokens = encoder._tokenizer(["a photo of a cat.", "surfing"])
    with torch.no_grad():
        plain = encoder._model.encode_text(tokens)
        torch.testing.assert_close(
            prompted_features(encoder._model, tokens, drawn(0)), plain, rtol=1e-4, atol=1e-6
        )
        whole, cut = (text_features(encoder._model, tokens, length, drawn(2)) for length in (77, 8))
    torch.testing.assert_close(whole, cut, rtol=1e-4, atol=1e-6)


def test_a_tower_of_another_build_is_refused():
    config = {"image_size": 32, "layers": 1, "width": 32, "head_width": 16, "patch_size": 8}
    text = {"context_length": 8, "vocab_size": 64, "width": 32, "heads": 2, "layers": 1}
    model = open_clip.CustomTextCLIP(32, config, text)
    with pytest.raises(CorpusError, match="CustomTextCLIP of another build"):
        prompted_features(model, torch.zeros(1, 8, dtype=torch.long), drawn(1))
