"""Fixtures of this stage's tests."""

import json

import pytest


@pytest.fixture(scope="session")
def tiny_builtin(tmp_path_factory):
    """Name of a tiny architecture known to open_clip by name alone, with a context of 16 tokens."""
    import open_clip

    config = {
        "embed_dim": 16,
        "vision_cfg": {"image_size": 16, "layers": 1, "width": 16, "head_width": 8, "patch_size": 8},
        "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
    }
    folder = tmp_path_factory.mktemp("architectures")
    (folder / "tiny-builtin.json").write_text(json.dumps(config))
    open_clip.add_model_config(folder)
    return "tiny-builtin"
