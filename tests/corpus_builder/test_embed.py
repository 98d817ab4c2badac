import json

import numpy as np
import open_clip
import pytest
import torch

from corpus_builder.config import CorpusError
from corpus_builder.embed import check_model, embed_labels, load_text_encoder, weights_sha256

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


def test_random_weights_are_seeded_marked_and_leave_the_generator_alone(tmp_path):
    config = {
        "embed_dim": 16,
        "vision_cfg": {"image_size": 16, "layers": 1, "width": 16, "head_width": 8, "patch_size": 8},
    }
    config["text_cfg"] = {"context_length": 16, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1}
    (tmp_path / "tiny-builtin.json").write_text(json.dumps(config))
    open_clip.add_model_config(tmp_path)
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    first = load_text_encoder("tiny-builtin", "none", device="cpu")
    assert torch.equal(torch.random.get_rng_state(), before)
    assert first.info["random_weights"] is True and first.info["pretrained"] == "none"
    assert first.info["weights_sha256"] == load_text_encoder("tiny-builtin", "none").info["weights_sha256"]


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
