"""The encoder equals open_clip without merging, keeps its promises with it, and refuses what it cannot do."""

from pathlib import Path

import open_clip
import pytest
import torch
from open_clip.transformer import VisionTransformer
from PIL import Image
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from aligner.config import AlignerError
from aligner.encoder import ClipRegionEncoder, load_clip, mix, published_preprocessing, weights_sha256
from aligner.towers import OpenClipBlock

TEXT = {"context_length": 77, "vocab_size": 64, "width": 16, "heads": 2, "layers": 1}


def clip(vision: dict, quick_gelu: bool = False, seed: int = 0) -> nn.Module:
    """A random CLIP with the given image tower and hardly any text tower."""
    torch.manual_seed(seed)
    model = open_clip.CLIP(32, vision, TEXT, quick_gelu=quick_gelu).eval()
    open_clip.model.set_model_preprocess_cfg(
        model, {**open_clip.transform.PreprocessCfg().__dict__, "size": vision["image_size"]}
    )
    return model


def small(**changes: object) -> dict:
    vision = {"image_size": 32, "layers": 3, "width": 32, "head_width": 16, "patch_size": 8}
    return vision | changes


@pytest.mark.parametrize(
    "model",
    [
        pytest.param(clip(small()), id="plain"),
        pytest.param(clip(small(), quick_gelu=True), id="quick-gelu"),
        pytest.param(clip(small(ls_init_value=0.3)), id="layer-scale"),
        pytest.param(clip(small(no_ln_pre=True, final_ln_after_pool=True)), id="norms"),
        pytest.param(clip(small(image_size=(32, 48))), id="not-square"),
        pytest.param(clip(small(patch_dropout=0.5)), id="patch-dropout"),
    ],
)
def test_without_merging_cls_equals_encode_image(model: nn.Module) -> None:
    height, width = model.visual.image_size
    pixels = torch.randn(4, 3, height, width)
    with torch.no_grad():
        wanted = model.encode_image(pixels)
    got = ClipRegionEncoder(model, 0)(pixels)
    assert (got.embeddings[:, 0] - wanted).abs().max() < 1e-5
    assert torch.equal(got.source, torch.arange(1, got.embeddings.shape[1]).expand(4, -1))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "dim"), [("ViT-B-32", 512), ("ViT-B-16", 512), ("coca_ViT-B-32", 512), ("ViT-B-16-SigLIP", 768)]
)
def test_without_merging_loaded_models_equal_encode_image(name: str, dim: int) -> None:
    model, info = load_clip(name, "none")
    assert info["random_weights"] and info["embed_dim"] == dim
    pixels = torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        wanted = model.encode_image(pixels, normalize=False)
    got = ClipRegionEncoder(model, 0)(pixels).embeddings
    assert (got[:, 0] - wanted).norm() < 1e-5 * wanted.norm()


@pytest.mark.parametrize(
    ("vision", "tokens"),
    [
        ({"image_size": 224, "patch_size": 16, "layers": 12}, 101),
        ({"image_size": 224, "patch_size": 14, "layers": 24}, 65),
    ],
)
def test_token_counts_and_sizes(vision: dict, tokens: int) -> None:
    model = clip({"width": 16, "head_width": 8, **vision})
    encoder = ClipRegionEncoder(model, 8)
    encoded = encoder(torch.randn(2, 3, 224, 224))
    assert encoded.embeddings.shape == (2, tokens, 32)
    assert encoder.regions == tokens - 1
    assert torch.equal(encoded.sizes.sum(1), torch.full((2,), encoder.patches + 1.0))
    assert torch.equal(encoded.sizes[:, 0], torch.ones(2))
    for frame in range(2):
        counted = torch.bincount(encoded.source[frame], minlength=tokens)[1:]
        assert torch.equal(counted.float(), encoded.sizes[frame, 1:])


@pytest.mark.parametrize(
    ("name", "merge", "gmacs"),
    [("ViT-B-16", 8, 13.10), ("ViT-L-14", 8, 49.86), ("ViT-B-16", 0, 17.56), ("ViT-L-14", 0, 81.01)],
)
def test_cost_per_frame(name: str, merge: int, gmacs: float) -> None:
    config = open_clip.get_model_config(name)
    # The meta device computes nothing and, unlike the CPU, lets the counter see the attention products.
    with torch.device("meta"):
        model = open_clip.CLIP(config["embed_dim"], config["vision_cfg"], TEXT)
        open_clip.model.set_model_preprocess_cfg(model, {"size": 224, "mean": (0.5,) * 3, "std": (0.5,) * 3})
        encoder = ClipRegionEncoder(model, merge, device="meta")
        pixels = torch.empty(1, 3, 224, 224)
    with FlopCounterMode(display=False) as counter:
        encoder(pixels)
    assert counter.get_total_flops() / 2e9 == pytest.approx(gmacs, rel=0.01)


def heads(tokens: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    q, k, v = torch.randn(3, 1, 4, tokens, 8, dtype=torch.float64, generator=generator)
    return q, k, v


@pytest.mark.parametrize("dense", ["none", "self"])
def test_size_weighted_attention_equals_attention_to_copies(dense: str) -> None:
    q, k, v = heads(5)
    sizes = torch.tensor([[1.0, 3, 1, 2, 4]], dtype=torch.float64)
    copy = torch.arange(5).repeat_interleave(sizes[0].long())
    wanted = mix(q[:, :, copy], k[:, :, copy], v[:, :, copy], dense=dense)
    got = mix(q, k, v, sizes, dense)
    torch.testing.assert_close(got[:, :, copy], wanted)


def test_dense_attention_is_as_published() -> None:
    q, k, v = heads(6)
    weights = [(one @ one.transpose(-1, -2) / 8**0.5).softmax(-1) for one in (q, k)]
    torch.testing.assert_close(mix(q, k, v, dense="self"), sum(weights) @ v)
    assert torch.equal(mix(q, k, v, dense="value"), v)


def test_value_path_is_the_last_block_with_every_token_on_its_own() -> None:
    """MaskCLIP's features, computed by open_clip's own block on sequences of one token."""
    model, pixels = clip(small()), torch.randn(2, 3, 32, 32)
    visual = model.visual
    with torch.no_grad():
        x = visual._embeds(pixels)
        for block in visual.transformer.resblocks[:-1]:
            x = block(x)
        alone = visual.transformer.resblocks[-1](x.flatten(0, 1).unsqueeze(1)).view_as(x)
        wanted = visual.ln_post(alone) @ visual.proj
    got = ClipRegionEncoder(model, 0, dense="value")(pixels).embeddings
    torch.testing.assert_close(got[:, 1:], wanted[:, 1:], atol=1e-5, rtol=1e-4)


def test_merging_metric_is_the_keys_of_the_block() -> None:
    model = clip(small())
    block = model.visual.transformer.resblocks[0]
    nn.init.normal_(block.attn.in_proj_bias)
    x = torch.randn(2, 5, 32)
    with torch.no_grad():
        keys = block.ln_1(x) @ block.attn.in_proj_weight[32:64].T + block.attn.in_proj_bias[32:64]
        _, got, _ = OpenClipBlock(block).project(x)
    torch.testing.assert_close(got, keys.view(2, 5, 2, 16).transpose(1, 2))


@pytest.mark.parametrize(
    ("patches", "layers", "pairs"),
    [(196, 12, 8), (256, 24, 8), (49, 12, 2), (576, 24, 18), (256, 32, 6), (64, 12, 3), (729, 27, 20)],
)
def test_automatic_merge_keeps_the_papers_proportions(patches: int, layers: int, pairs: int) -> None:
    from aligner.merging import automatic_merge

    assert automatic_merge(patches, layers) == pairs
    assert patches - pairs * layers >= patches / 4


def test_automatic_merge_is_what_the_encoder_does() -> None:
    encoder = ClipRegionEncoder(clip(small(image_size=64)), "auto")
    assert encoder.merge == 3 and encoder.regions == 64 - 3 * 3
    assert encoder(torch.randn(1, 3, 64, 64)).embeddings.shape[1] == 56


def test_frames_do_not_see_each_other() -> None:
    encoder = ClipRegionEncoder(clip(small()), 2)
    pixels = torch.randn(5, 3, 32, 32)
    order = torch.tensor([3, 0, 4, 1, 2])
    straight, permuted = encoder(pixels), encoder(pixels[order])
    torch.testing.assert_close(permuted.embeddings, straight.embeddings[order])
    assert torch.equal(permuted.source, straight.source[order])


def test_proportional_attention_changes_only_what_follows_a_merge() -> None:
    pixels, model = torch.randn(2, 3, 32, 32), clip(small())
    weighed, plain = (ClipRegionEncoder(model, 2, proportional_attention=on)(pixels) for on in (True, False))
    assert not torch.allclose(weighed.embeddings, plain.embeddings)
    weighed, plain = (ClipRegionEncoder(model, 0, proportional_attention=on)(pixels) for on in (True, False))
    assert torch.equal(weighed.embeddings, plain.embeddings)


def test_regions_of_equal_patches_merge_without_change() -> None:
    """Merging identical tokens changes nothing: size-weighted means and attention make up for copies."""
    model = clip(small())
    with torch.no_grad():
        model.visual.positional_embedding[1:] = model.visual.positional_embedding[1]
    pixels = torch.ones(1, 3, 32, 32) * torch.tensor([0.3, -0.2, 0.9]).view(1, 3, 1, 1)
    wanted = model.encode_image(pixels)
    got = ClipRegionEncoder(model, 4)(pixels)
    assert got.embeddings.shape[1] == 5
    torch.testing.assert_close(got.embeddings[:, 0], wanted, atol=1e-5, rtol=0)


def test_bf16_is_close_to_fp32() -> None:
    pixels = torch.randn(2, 3, 32, 32)
    exact = ClipRegionEncoder(clip(small()), 0)(pixels).embeddings
    rough = ClipRegionEncoder(clip(small()), 0, precision="bf16")(pixels).embeddings
    assert torch.nn.functional.cosine_similarity(exact, rough, dim=-1).min() > 0.999


def test_weights_from_a_file_get_the_preprocessing_of_their_published_kin() -> None:
    siglip = published_preprocessing("ViT-B-16-SigLIP2")
    assert siglip["mean"] == siglip["std"] == (0.5, 0.5, 0.5) and siglip["resize_mode"] == "squash"
    assert published_preprocessing("ViT-B-16")["mean"] == open_clip.OPENAI_DATASET_MEAN
    # Some weights of ViT-L-14 want other colours: only the tag can tell.
    assert published_preprocessing("ViT-L-14") == {"interpolation": "bicubic", "resize_mode": "shortest"}


def test_preprocessing_equals_open_clip() -> None:
    model = clip(small())
    picture = Image.effect_mandelbrot((90, 50), (-3, -2.5, 2, 2.5), 100).convert("RGB")
    wanted = open_clip.image_transform(32, is_train=False)(picture)
    assert torch.equal(ClipRegionEncoder(model, 0).preprocess(picture), wanted)


def test_loading_a_folder(tiny_clip: str, other_clip: str) -> None:
    model, info = load_clip(tiny_clip)
    assert isinstance(model.visual, VisionTransformer) and not model.training
    assert info["name"] == "local-dir:tinyrandom" and info["pretrained"] is None
    assert info["weights_sha256"] == weights_sha256(load_clip(tiny_clip)[0])
    assert info["weights_sha256"] != load_clip(other_clip)[1]["weights_sha256"]


def test_weights_hash_is_as_specified() -> None:
    import hashlib

    layer = nn.BatchNorm1d(2)
    digest = hashlib.sha256()
    for name in ("bias", "num_batches_tracked", "running_mean", "running_var", "weight"):
        tensor = layer.state_dict()[name]
        digest.update(name.encode() + str(tuple(tensor.shape)).encode() + tensor.numpy().tobytes())
    assert weights_sha256(layer) == digest.hexdigest()
    assert weights_sha256(layer.half().float()) == weights_sha256(layer.half())


@pytest.mark.parametrize(
    ("model", "pretrained", "message"),
    [
        ("ViT-B-61", "none", "unknown model 'ViT-B-61' .*did you mean 'ViT-B-16'"),
        ("ViT-B-16", None, "--pretrained is needed for ViT-B-16: one of .*openai.* or none"),
        ("ViT-B-16", "openia", "did you mean 'openai'"),
        ("local-dir:/nowhere", None, "open_clip_config.json is missing"),
        ("local-dir:/nowhere", "openai", "must be omitted"),
    ],
)
def test_bad_model_choices(model: str, pretrained: str | None, message: str) -> None:
    with pytest.raises(AlignerError, match=message):
        load_clip(model, pretrained)


def test_random_weights_are_seeded_and_leave_the_generator_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    from aligner import encoder

    monkeypatch.setattr(open_clip, "list_models", lambda: ["tiny"])
    monkeypatch.setattr(open_clip, "create_model", lambda *_, **__: clip_from_current_seed())
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    hashes = {encoder.load_clip("tiny", "none")[1]["weights_sha256"] for _ in range(2)}
    assert len(hashes) == 1
    assert torch.equal(before, torch.random.get_rng_state())


def clip_from_current_seed() -> nn.Module:
    model = open_clip.CLIP(32, small(), TEXT)
    open_clip.model.set_model_preprocess_cfg(model, open_clip.transform.PreprocessCfg(size=32).__dict__)
    return model


def test_an_unreadable_checkpoint_is_one_clear_error(tmp_path: object) -> None:
    broken = tmp_path / "weights.safetensors"
    broken.write_bytes(b"not a checkpoint")
    with pytest.raises(AlignerError, match="--model RN50 with --pretrained .* could not be loaded"):
        load_clip("RN50", str(broken))


def test_weights_that_are_not_here_are_one_error_and_no_noise(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(AlignerError, match="--model ViT-B-32.*weights are not on this machine.*fetched once"):
        load_clip("ViT-B-32", "openai")
    assert not caplog.records
