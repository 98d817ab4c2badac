import logging

import numpy as np
import open_clip
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from corpus_builder.config import CorpusError
from corpus_builder.embed import (
    OpenClip,
    check_model,
    embed_labels,
    lengths_of,
    load_text_encoder,
    weights_sha256,
)

TEXTS = ["bat: a club used for hitting a ball", "horse", "eye: the organ of sight"] * 25


@pytest.fixture(scope="module")
def encoder(tiny_clip):
    return load_text_encoder(tiny_clip, device="cpu")


def test_embeddings_are_open_clips_text_features_of_unit_length(encoder, tiny_clip):
    model = open_clip.create_model(tiny_clip).eval()
    tokens = open_clip.get_tokenizer(tiny_clip)(TEXTS)
    with torch.inference_mode():
        expected = model.encode_text(tokens, normalize=True).numpy()
    found = encoder.encode(TEXTS)
    assert found.dtype == np.float32 and found.shape == (75, 32)
    np.testing.assert_allclose(found, expected, atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-6)
    assert encoder.encode([]).shape == (0, 32)


WORDS = st.sampled_from("a bat the horse club used for hitting ball in eye organ of sight".split())
PHRASES = st.lists(WORDS, min_size=1, max_size=90).map(" ".join)


@settings(max_examples=25, deadline=None)
@given(texts=st.lists(PHRASES, min_size=1, max_size=40), random=st.randoms(use_true_random=False))
def test_a_text_has_its_vector_in_whatever_order_and_company_it_is_embedded(encoder, texts, random):
    found = encoder.encode(texts)
    order = list(range(len(texts)))
    random.shuffle(order)
    np.testing.assert_array_equal(encoder.encode([texts[row] for row in order]), found[order])
    some = order[: 1 + len(order) // 3]
    np.testing.assert_array_equal(encoder.encode([texts[row] for row in some]), found[some])
    np.testing.assert_array_equal(encoder.encode(texts[:1]), found[:1])


def test_a_model_that_reads_its_padding_is_given_all_of_it(encoder):
    tokens = encoder._tokenizer(["a bat", "the horse used for hitting"])
    assert lengths_of(encoder._model, tokens) == [4, 8]
    assert lengths_of(torch.nn.Linear(1, 1), tokens) == [77, 77]


def test_half_precision_is_near_single_and_for_gpus(encoder, tiny_clip):
    # the CPU's bf16 stands in for the GPU's: the same path, which users are kept from
    half = OpenClip(encoder._model, encoder._tokenizer, encoder.info, "cpu", "bf16")
    found, expected = half.encode(TEXTS[:3]), encoder.encode(TEXTS[:3])
    assert not np.array_equal(found, expected) and (found * expected).sum(axis=1).min() > 0.999
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-6)
    with pytest.raises(CorpusError, match="--precision bf16 needs a GPU, the device is cpu"):
        load_text_encoder(tiny_clip, device="cpu", precision="bf16")
    with pytest.raises(CorpusError, match="--precision is 'bf61'.*did you mean 'bf16'"):
        load_text_encoder(tiny_clip, device="cpu", precision="bf61")


def test_the_model_is_identified_by_its_weights_and_never_by_a_path(encoder, tiny_clip, other_clip):
    info = encoder.info
    assert info["name"] == "local-dir:tinyrandom" and info["pretrained"] is None
    assert info["embed_dim"] == 32 and info["random_weights"] is False
    other = load_text_encoder(other_clip, device="cpu").info
    assert (
        other["weights_sha256"]
        != info["weights_sha256"]
        == load_text_encoder(tiny_clip).info["weights_sha256"]
    )


def test_the_hash_sees_names_shapes_and_values():
    def model(**weights):
        module = torch.nn.Module()
        for name, value in weights.items():
            module.register_buffer(name, value)
        return weights_sha256(module)

    base = model(a=torch.zeros(2, 3))
    assert base == model(a=torch.zeros(2, 3, dtype=torch.float16))
    assert len({base, model(b=torch.zeros(2, 3)), model(a=torch.zeros(3, 2)), model(a=torch.ones(2, 3))}) == 4


def test_truncated_texts_are_counted(encoder):
    assert encoder.truncated(["short", "word " * 75, "word " * 76]) == 1


def test_labels_are_the_renormalised_mean_over_templates(encoder):
    templates = ["a photo of {}.", "a video of a person {}.", "{}"]
    found = embed_labels(["archery", "surfing"], templates, encoder)
    for row, name in enumerate(["archery", "surfing"]):
        mean = encoder.encode([template.format(name) for template in templates]).mean(axis=0)
        np.testing.assert_allclose(found[row], mean / np.linalg.norm(mean), atol=1e-6)


def test_random_weights_are_seeded_marked_and_leave_the_generator_alone(tiny_builtin):
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    first = load_text_encoder(tiny_builtin, "none", device="cpu")
    assert torch.equal(torch.random.get_rng_state(), before)
    assert first.info["random_weights"] is True and first.info["pretrained"] == "none"
    assert first.info["weights_sha256"] == load_text_encoder(tiny_builtin, "none").info["weights_sha256"]


def test_a_name_with_a_slash_is_the_model_with_its_own_tokenizer(tiny_builtin):
    dashed, slashed = (load_text_encoder(name, "none", "cpu") for name in (tiny_builtin, "tiny/builtin"))
    assert slashed.info == dashed.info
    assert (
        slashed.truncated(["word " * 14, "word " * 15]) == dashed.truncated(["word " * 14, "word " * 15]) == 1
    )
    np.testing.assert_array_equal(slashed.encode(["horse"]), dashed.encode(["horse"]))


@pytest.mark.parametrize(
    ("tag", "message"), [("openai", None), ("laion400m-e32", None), ("laion", "neither a")]
)
def test_tags_are_known_as_open_clip_knows_them(tag, message):
    if message is None:
        assert check_model("ViT-B/16", tag) == "ViT-B-16"
    else:
        with pytest.raises(CorpusError, match=message):
            check_model("ViT-B/16", tag)


def test_loading_random_weights_on_demand_warns_of_nothing(tiny_builtin, caplog, capfd):
    load_text_encoder(tiny_builtin, "none", "cpu")
    assert not caplog.records and capfd.readouterr() == ("", "")
    logging.warning("heard")
    assert caplog.messages == ["heard"]


def test_weights_that_cannot_be_had_are_one_error_with_full_stops(monkeypatch, caplog, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(
        CorpusError, match="--model ViT-B-32.*weights are not on this machine.*fetched once"
    ) as caught:
        load_text_encoder("ViT-B-32", "laion2b_s34b_b79k", "cpu")
    assert ".." not in str(caught.value).replace("...", "") and not caplog.records
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "pretrained", "message"),
    [
        ("ViT-B-61", "openai", "not an open_clip model .did you mean 'ViT-B-"),
        ("ViT-B-16", None, "needs --pretrained: one of openai"),
        ("ViT-B-16", "opnai", "neither a tag of ViT-B-16 nor a file .did you mean 'openai'"),
        ("local-dir:/nowhere", None, "holds no open_clip_config.json"),
        ("local-dir:/nowhere", "none", "leave out --pretrained"),
    ],
)
def test_bad_models_are_explained(name, pretrained, message):
    with pytest.raises(CorpusError, match=message):
        check_model(name, pretrained)


def test_a_folder_with_broken_weights_is_explained(tmp_path):
    (tmp_path / "open_clip_config.json").write_text("{}")
    (tmp_path / "open_clip_model.safetensors").write_bytes(b"no")
    with pytest.raises(CorpusError, match="could not be loaded"):
        load_text_encoder(f"local-dir:{tmp_path}")
