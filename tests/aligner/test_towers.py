"""Every kind of ViT tower: equal to encode_image without merging, sound with it; other towers are refused."""

import open_clip
import pytest
import torch
from open_clip.timm_model import TimmModel
from PIL import Image
from timm.models.eva import Eva
from timm.models.vision_transformer import ResPostBlock
from timm.models.vision_transformer import VisionTransformer as TimmViT
from torch import nn

from aligner.config import DENSE, AlignerError
from aligner.encoder import ClipRegionEncoder, load_clip, preprocess_config, rope_of
from aligner.towers import tower_of
from corpus_builder.embed import load_text_encoder

TEXT = {"context_length": 77, "vocab_size": 64, "width": 16, "heads": 2, "layers": 1}
SIZE, PATCH, DIM = 32, 4, 24
PATCHES = (SIZE // PATCH) ** 2
SMALL = {"image_size": SIZE, "layers": 4, "width": 32, "head_width": 8, "patch_size": PATCH}


def stirred(model: nn.Module) -> nn.Module:
    """The model with every weight moved: zero biases and unit gammas would hide what is left out."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in model.visual.parameters():
            weight.add_(0.1 * torch.randn(weight.shape, generator=generator))
    open_clip.model.set_model_preprocess_cfg(
        model, {**vars(open_clip.transform.PreprocessCfg()), "size": SIZE}
    )
    return model.eval()


def own(**changes: object) -> nn.Module:
    """A small CLIP with open_clip's own image tower."""
    torch.manual_seed(0)
    quick_gelu = bool(changes.pop("quick_gelu", False))
    return stirred(open_clip.CLIP(DIM, SMALL | changes, TEXT, quick_gelu=quick_gelu))


def timm_vit(pool: str = "token", proj: str | None = "none", **changes: object) -> nn.Module:
    """A small CLIP whose image tower is timm's VisionTransformer within open_clip's TimmModel."""
    return with_trunk(TimmViT, pool, proj, changes | {"depth": 4})


def eva(pool: str = "token", proj: str | None = "none", **changes: object) -> nn.Module:
    """The same with timm's Eva."""
    return with_trunk(Eva, pool, proj, {"mlp_ratio": 2} | changes | {"depth": 4})


def with_trunk(kind: type[nn.Module], pool: str, proj: str | None, options: dict) -> nn.Module:
    """open_clip makes timm towers by name only: the trunk of its smallest is exchanged for one of our making."""
    torch.manual_seed(0)
    width = DIM if proj == "none" else 32
    vision = {"timm_model_name": "test_vit", "timm_pool": "token", "timm_proj": "linear", "image_size": SIZE}
    model = open_clip.CLIP(DIM, vision, TEXT)
    classes = DIM if proj is None else 0
    options = {"embed_dim": width, "num_heads": width // 8, "num_classes": classes} | options
    model.visual.trunk = kind(img_size=SIZE, patch_size=PATCH, global_pool=pool, **options)
    model.visual.head = nn.Sequential()
    if proj == "linear":
        model.visual.head.append(nn.Linear(width, DIM, bias=False))
    return stirred(model)


ROPE = {"use_rot_pos_emb": True}
TOWERS = {
    "own": own,
    "own-quick-gelu": lambda: own(quick_gelu=True),
    "own-average": lambda: own(pool_type="avg"),
    "own-clipa": lambda: own(pool_type="avg", final_ln_after_pool=True, no_ln_pre=True),
    "own-coca": lambda: own(attentional_pool=True, attn_pooler_queries=5, attn_pooler_heads=4),
    "own-layer-scale": lambda: own(ls_init_value=0.3, patch_dropout=0.5, pos_embed_type="sin_cos_2d"),
    "own-custom-blocks": lambda: own(
        block_type="custom",
        qk_norm=True,
        scale_heads=True,
        scale_attn_inner=True,
        scale_attn=True,
        scale_fc=True,
    ),
    "timm-clip": lambda: timm_vit(proj=None, pre_norm=True),
    "siglip": lambda: timm_vit("map", class_token=False),
    "siglip-with-class-token": lambda: timm_vit("map", reg_tokens=2),
    "map-over-prefix": lambda: timm_vit("map", reg_tokens=2, pool_include_prefix=True),
    "timm-average": lambda: timm_vit("avg", "linear", class_token=False),
    "timm-registers": lambda: timm_vit(reg_tokens=4, no_embed_class=True, init_values=0.3, qk_norm=True),
    "timm-registers-average": lambda: timm_vit("avg", reg_tokens=3, class_token=False),
    "timm-scaled-norms": lambda: timm_vit(scale_attn_norm=True, scale_mlp_norm=True, qkv_bias=False),
    "timm-post-norm": lambda: timm_vit(block_fn=ResPostBlock, init_values=0.3),
    "timm-patch-dropout": lambda: timm_vit(patch_drop_rate=0.5),
    "eva01": lambda: eva(proj=None),
    "eva02": lambda: eva(
        qkv_fused=False, swiglu_mlp=True, scale_mlp=True, scale_attn_inner=True, ref_feat_shape=(4, 4), **ROPE
    ),
    "eva-post-norm": lambda: eva(use_post_norm=True),
    "eva-layer-scale": lambda: eva("avg", init_values=0.3, patch_drop_rate=0.5, **ROPE),
    "eva-registers": lambda: eva(num_reg_tokens=3, no_embed_class=True, **ROPE),
    "eva-mixed-rope": lambda: eva(rope_type="mixed", use_abs_pos_emb=False, **ROPE),
    "eva-half-rope": lambda: eva(rope_type="dinov3", rope_rotate_half=True, qk_norm=True, **ROPE),
    "pe-core": lambda: eva(
        "map",
        "linear",
        attn_type="rope",
        use_pre_transformer_norm=True,
        rope_grid_offset=1.0,
        rope_grid_indexing="xy",
        attn_pool_num_heads=2,
        attn_pool_mlp_ratio=4.0,
        **ROPE,
    ),
}
every_tower = pytest.mark.parametrize("make", TOWERS.values(), ids=TOWERS.keys())
with_rope = pytest.mark.parametrize(
    "name", ["eva02", "eva-registers", "eva-mixed-rope", "eva-half-rope", "pe-core"]
)


def frames(count: int = 3, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(seed))


def relative(got: torch.Tensor, wanted: torch.Tensor) -> float:
    return float((got - wanted).norm(dim=-1).div(wanted.norm(dim=-1)).max())


@every_tower
def test_without_merging_the_frame_equals_encode_image(make) -> None:
    model, pixels = make(), frames()
    with torch.no_grad():
        wanted = model.encode_image(pixels)
    for dense in DENSE:
        got = ClipRegionEncoder(model, 0, dense=dense)(pixels)
        assert relative(got.embeddings[:, 0], wanted) < 1e-5
        assert got.embeddings.shape == (3, 1 + PATCHES, DIM)
        assert torch.equal(got.source, torch.arange(1, PATCHES + 1).expand(3, -1))


@every_tower
def test_merged_regions_are_a_partition_of_the_patches(make) -> None:
    encoder = ClipRegionEncoder(make(), 7)
    got = encoder(frames())
    assert encoder.regions == PATCHES - 4 * 7
    assert got.embeddings.shape == (3, 1 + encoder.regions, DIM)
    assert torch.equal(got.sizes[:, 0], torch.ones(3))
    for source, sizes in zip(got.source, got.sizes, strict=True):
        assert torch.equal(torch.bincount(source, minlength=1 + encoder.regions)[1:].float(), sizes[1:])
    assert got.sizes[:, 1:].min() >= 1


@every_tower
def test_merging_all_there_is_keeps_the_prefix_and_the_promises(make) -> None:
    encoder = ClipRegionEncoder(make(), PATCHES)
    got = encoder(frames(2))
    assert encoder.regions == got.source.max() == got.embeddings.shape[1] - 1
    assert torch.equal(got.sizes[:, 1:].sum(1), torch.full((2,), float(PATCHES)))
    assert got.embeddings.isfinite().all()


@every_tower
def test_dense_options_change_regions_and_nothing_else(make) -> None:
    model, pixels = make(), frames()
    plain = ClipRegionEncoder(model, 5)(pixels)
    for dense in ("value", "self"):
        got = ClipRegionEncoder(model, 5, dense=dense)(pixels)
        assert torch.equal(got.embeddings[:, 0], plain.embeddings[:, 0])
        assert torch.equal(got.source, plain.source) and torch.equal(got.sizes, plain.sizes)
        assert relative(got.embeddings[:, 1:], plain.embeddings[:, 1:]) > 1e-3


@pytest.mark.parametrize("name", ["own", "own-clipa", "own-coca", "siglip", "timm-registers", "timm-average"])
def test_identical_patches_merge_without_change(name: str) -> None:
    """Size-weighted means, attention and pooling make up for the copies, wherever positions do not differ."""
    model = TOWERS[name]()
    visual = model.visual
    place = visual.positional_embedding if name.startswith("own") else visual.trunk.pos_embed[0]
    with torch.no_grad():
        place[-PATCHES:] = place[-1]
    pixels = torch.tensor([0.3, -0.2, 0.9]).view(1, 3, 1, 1).expand(1, 3, SIZE, SIZE)
    with torch.no_grad():
        wanted = model.encode_image(pixels)
    got = ClipRegionEncoder(model, 9)(pixels)
    assert relative(got.embeddings[:, 0], wanted) < 1e-5
    alone = ClipRegionEncoder(model, 9, proportional_attention=False)(pixels)
    # Without the weights a copy less is a vote less, which only a token unlike the copies can notice.
    assert (relative(alone.embeddings[:, 0], wanted) > 1e-4) == (tower_of(model).prefix > 0)


@pytest.mark.parametrize("name", ["own-average", "timm-average", "timm-registers-average"])
def test_average_pooling_is_the_mean_of_the_regions_by_size(name: str) -> None:
    """With the norm before the mean and a linear head, the frame is the weighted mean of its regions."""
    model = TOWERS[name]()
    if name != "own-average":
        model.visual.trunk.norm, model.visual.trunk.fc_norm = model.visual.trunk.fc_norm, nn.Identity()
    got = ClipRegionEncoder(model, 6)(frames())
    weight = got.sizes[:, 1:, None] / PATCHES
    torch.testing.assert_close(
        got.embeddings[:, 0], (got.embeddings[:, 1:] * weight).sum(1), atol=1e-5, rtol=1e-4
    )


@pytest.mark.parametrize("name", ["own-coca", "siglip", "pe-core"])
def test_attention_pooling_of_one_token_is_its_region(name: str) -> None:
    """A region is what the tower's own head makes of that token alone."""
    tower = tower_of(TOWERS[name]())
    x = torch.randn(2, 5, 24 if name == "siglip" else 32)
    tower.prefix = 0
    with torch.no_grad():
        got = tower.regions(x)
        alone = torch.stack([tower.pool(x[:, [place]], None) for place in range(5)], 1)
    torch.testing.assert_close(got, alone)


@pytest.mark.parametrize(
    "name", ["own-coca", "siglip", "map-over-prefix", "pe-core", "own-clipa", "timm-average"]
)
def test_pooling_by_size_equals_pooling_of_copies(name: str) -> None:
    tower = tower_of(TOWERS[name]())
    width = 32 if name in ("own-coca", "own-clipa", "timm-average", "pe-core") else 24
    x = torch.randn(1, tower.prefix + 4, width)
    sizes = torch.cat([torch.ones(tower.prefix), torch.tensor([1.0, 3, 2, 5])])
    with torch.no_grad():
        wanted = tower.pool(x.repeat_interleave(sizes.long(), dim=1), None)
        got = tower.pool(x, sizes[None])
    torch.testing.assert_close(got, wanted, atol=1e-5, rtol=1e-4)


@with_rope
def test_rotary_tables_follow_the_tokens(name: str) -> None:
    """Rotating by a gathered table equals rotating first and gathering then."""
    tower = tower_of(TOWERS[name]())
    _, table = tower.embed(frames(2))
    block, heads = tower.blocks[1], 3 if name != "pe-core" else 4
    q = torch.randn(2, heads, tower.prefix + PATCHES, 8)
    place = torch.stack([torch.randperm(PATCHES)[:9] for _ in range(2)])
    index = torch.cat([torch.arange(tower.prefix).expand(2, -1), place + tower.prefix], 1)
    pick = index[:, None, :, None].expand(-1, heads, -1, 8)
    with torch.no_grad():
        wanted = block.rotate(q, rope_of(table[1], None)).gather(2, pick)
        got = block.rotate(q.gather(2, pick), rope_of(table[1], place))
    torch.testing.assert_close(got, wanted)


@every_tower
def test_blocks_can_be_run_in_two_parts(make) -> None:
    encoder = ClipRegionEncoder(make(), 7)
    with torch.no_grad():
        whole = encoder.encode(frames())
        for blocks in range(len(encoder.tower.blocks)):
            parts = encoder.upper(encoder.lower(frames(), blocks), blocks)
            assert all(torch.equal(getattr(whole, name), getattr(parts, name)) for name in vars(whole))


@pytest.mark.parametrize("name", ["own", "timm-registers", "siglip", "eva-registers", "pe-core"])
def test_gradients_reach_the_tower(name: str) -> None:
    model = TOWERS[name]()
    ClipRegionEncoder(model, 4).encode(frames(2)).embeddings.square().sum().backward()
    tower = tower_of(model)
    used = [weight.grad is not None and bool(weight.grad.any()) for weight in tower.module.parameters()]
    assert sum(used) > 0.9 * len(used)


@pytest.mark.parametrize("name", ["own-coca", "siglip", "eva02", "pe-core"])
def test_bf16_is_close_to_fp32(name: str) -> None:
    exact = ClipRegionEncoder(TOWERS[name](), 0)(frames()).embeddings
    rough = ClipRegionEncoder(TOWERS[name](), 0, precision="bf16")(frames()).embeddings
    assert nn.functional.cosine_similarity(exact, rough, dim=-1).min() > 0.99


@pytest.mark.parametrize(
    ("vision", "message"),
    [
        ({"layers": (1, 1, 1, 1), "width": 16, "image_size": 64, "head_width": 8}, "is a ModifiedResNet"),
        ({**SMALL, "block_type": "custom", "scaled_cosine_attn": True}, "scaled cosine attention"),
        ({**SMALL, "attentional_pool": "parallel"}, "parallel or cascaded"),
        ({**SMALL, "pool_type": "none"}, "pools by 'none'"),
    ],
)
def test_other_towers_are_refused(vision: dict, message: str) -> None:
    with pytest.raises(AlignerError, match=message) as refusal:
        tower_of(open_clip.CLIP(DIM, vision, TEXT))
    assert "ViT-B-16" in str(refusal.value) and "SigLIP" in str(refusal.value)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("test_convnext", "ConvNeXt"),
        ("resnet18", "ResNet"),
        ("vit_relpos_small_patch16_224", "VisionTransformerRelPos"),
        ("swin_tiny_patch4_window7_224", "SwinTransformer"),
    ],
)
def test_other_timm_towers_are_refused(name: str, kind: str) -> None:
    visual = TimmModel(name, DIM, pool="", proj="linear")
    with pytest.raises(AlignerError, match=f"is timm's {kind};.*Choose another --model"):
        tower_of(nn.ModuleDict({"visual": visual}))


def published(name: str) -> nn.Module:
    """A built-in model's image tower with random weights, without its text tower."""
    config = open_clip.get_model_config(name)
    torch.manual_seed(0)
    vision = config["vision_cfg"] | {"output_tokens": False}  # CoCa's own model asks for them and drops them
    model = open_clip.CLIP(config["embed_dim"], vision, TEXT, quick_gelu=config.get("quick_gelu", False))
    size = model.visual.image_size
    open_clip.model.set_model_preprocess_cfg(
        model, {**vars(open_clip.transform.PreprocessCfg()), "size": size}
    )
    return model.eval()


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        "ViT-B-32-quickgelu",
        "ViT-B-16",
        pytest.param("ViT-L-14-336", marks=pytest.mark.exhaustive),
        pytest.param("ViT-H-14", marks=pytest.mark.exhaustive),
        pytest.param("ViT-L-14-CLIPA", marks=pytest.mark.exhaustive),
        "coca_ViT-B-32",
        "ViT-B-16-SigLIP2",
        "EVA02-B-16",
        "PE-Core-T-16-384",
        "MobileCLIP-B",
        "ViTamin-S",
        "vit_medium_patch16_gap_256",
    ],
)
def test_published_towers_equal_encode_image(name: str) -> None:
    model = published(name)
    height, width = open_clip.transform.PreprocessCfg(**preprocess_config(model)).size
    pixels = torch.randn(1, 3, height, width, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        wanted = model.encode_image(pixels)
    assert relative(ClipRegionEncoder(model, 0)(pixels).embeddings[:, 0], wanted) < 1e-5
    merged = ClipRegionEncoder(model, "auto")
    got = merged(pixels)
    assert got.embeddings.shape == (1, 1 + merged.regions, merged.dim)
    assert got.sizes[:, 1:].sum() == merged.patches and got.source.unique().numel() == merged.regions


@pytest.mark.slow
@pytest.mark.exhaustive
def test_every_model_of_open_clip_is_supported_or_refused_by_name() -> None:
    """Which families are refused; all others can be taken apart (on the meta device, which computes nothing)."""
    refused: set[str] = set()
    for name in open_clip.list_models():
        config = open_clip.get_model_config(name)
        with torch.device("meta"):
            model = open_clip.CLIP(config["embed_dim"], config["vision_cfg"], TEXT)
        try:
            assert tower_of(model).dim == config["embed_dim"]
        except AlignerError as error:
            refused.add(str(error).split(";")[0].removeprefix("the image tower is "))
    assert refused == {
        "a ModifiedResNet",
        "timm's ConvNeXt",
        "timm's FastVit",
        "timm's SwinTransformer",
        "timm's VisionTransformerRelPos",
    }


def test_a_timm_model_is_loaded_with_its_own_preprocessing(timm_clip: str) -> None:
    model, info = load_clip(timm_clip)
    assert info["embed_dim"] == 96 == ClipRegionEncoder(model, "auto").dim
    half = [0.5, 0.5, 0.5]
    config = preprocess_config(model)
    assert (config["mean"], config["std"], config["resize_mode"]) == (half, half, "squash")
    # The whole width is squashed into the square, and white is 1, not 2.1 as with CLIP's statistics.
    picture = Image.new("RGB", (400, 100), "black")
    picture.paste((255, 255, 255), (0, 0, 100, 100))
    pixels = ClipRegionEncoder(model, 0).preprocess(picture)
    assert pixels.shape == (3, 160, 160)
    assert pixels.max() == 1 and pixels.min() == -1
    assert (pixels[0, 80] > 0).sum() == 40


def test_both_stages_agree_on_a_timm_model(timm_clip: str) -> None:
    assert load_text_encoder(timm_clip).info == load_clip(timm_clip)[1]
