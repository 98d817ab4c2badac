import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from adapter.config import VARIANTS, AdapterError, ModelConfig, make_settings
from adapter.dataset import Batch
from adapter.flops import (
    Setting,
    adapter_macs,
    alignment_macs,
    cost,
    encoder_macs,
    find_tower,
    tokens_after,
)
from adapter.model import build_model

# The corpus size that fits the paper's costs (README): between the 8,200 of B/16 and what L/14 leaves room for.
ENTITIES = 10_000


@pytest.mark.parametrize(
    ("name", "merge", "gmacs", "tokens"),
    [
        ("ViT-B-16", 0, 17.56, 197),
        ("ViT-B-16", 8, 13.10, 101),
        ("ViT-L-14", 0, 81.01, 257),
        ("ViT-L-14-quickgelu", 8, 49.86, 65),
    ],
)
def test_encoders_cost_what_is_published(name, merge, gmacs, tokens):
    tower = find_tower(name)
    assert encoder_macs(tower, merge) / 1e9 == pytest.approx(gmacs, abs=0.005)
    assert tokens_after(tower, merge)[-1] == tokens


@pytest.mark.parametrize(
    ("name", "blocks", "frames", "paper"),
    [
        ("ViT-B-16", 4, 16, 219),
        ("ViT-B-16", 4, 32, 436),
        ("ViT-L-14", 6, 16, 826),
        ("ViT-L-14", 6, 32, 1649),
    ],
)
def test_the_whole_model_costs_what_the_paper_says(name, blocks, frames, paper):
    config, tower = make_settings({"variant": "paper", "blocks": blocks}).model, find_tower(name)
    at = Setting(tower.dim, frames, tokens_after(tower, 8)[-1], ENTITIES, 16)
    assert cost(config, at, tower, 8).total / 1e9 == pytest.approx(paper, rel=0.03)


FORMS = [
    *({"variant": variant} for variant in VARIANTS),
    {"queries": "tracks", "context": "cls", "tracks": 5},
    {"queries": "tracks", "context": "regions", "tracks": 99, "width": 24, "heads": 3},
    {"queries": "learned", "context": "pooled", "pool": "attention", "time_codes": "learned"},
    {"queries": "cls", "ffn": "each", "kernel": 5, "ffn_ratio": 2, "mlp_ratio": 3},
    {"rematch": True, "pool": "attention", "context": "pooled", "width": 64},
    {"model": "mean_pool"},
]


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_the_count_equals_torchs_on_the_real_model(form):
    config = make_settings({"blocks": 2, **form}).model
    at = Setting(32, 6, 5, 11, 3, 7)
    batch, entities = meta_batch(at), torch.empty(at.entities, at.dim, device="meta")
    labels = torch.empty(at.classes, at.dim, device="meta")
    # The meta device computes nothing and, unlike the CPU, lets the counter see the attention products.
    with torch.device("meta"):
        model = build_model(config, at.shape).eval().requires_grad_(False)
    with FlopCounterMode(display=False) as counter:
        model.encoder(batch, entities, labels)
    assert counter.get_total_flops() == 2 * adapter_macs(config, at)


def meta_batch(at):
    tokens = 1, at.frames, at.tokens

    def empty(*shape, kind=torch.float32):
        return torch.empty(*shape, dtype=kind, device="meta")

    return Batch(
        empty(*tokens, at.dim),
        empty(*tokens),
        empty(*tokens, at.top_k, kind=torch.int64),
        empty(*tokens, at.top_k),
        empty(*tokens, 3),
        empty(1, at.frames),
        empty(*tokens, kind=torch.bool),
        empty(1, kind=torch.int64),
    )


def test_alignment_costs_what_the_form_aligns():
    at = Setting(512, 8, 101, 1000, 16)
    one = 8 * 1000 * 512
    macs = {align: alignment_macs(ModelConfig(align=align), at) for align in ("all", "regions", "cls")}
    assert macs == {"all": 101 * one, "regions": 100 * one, "cls": one}
    assert alignment_macs(ModelConfig(queries="tracks"), at) == 100 * one
    for form in ({"queries": "learned"}, {"queries": "cls"}, {"model": "adapt_then_align"}):
        assert alignment_macs(ModelConfig(**form), at) == 0


def test_towers_are_found_or_the_message_helps():
    assert find_tower("128,4,8,64,128").patches == 64
    with pytest.raises(AdapterError, match=r"did you mean 'ViT-B-16'\?\).*WIDTH,LAYERS,PATCH,IMAGE,DIM"):
        find_tower("ViT-B-61")
    with pytest.raises(AdapterError, match="five numbers"):
        find_tower("128,4,8,64")
