import json

import pytest
from typer.testing import CliRunner

from adapter.artifact import open_run
from adapter.cli import app
from adapter.config import AdapterError, ModelConfig, make_settings
from adapter.describe import describe
from adapter.flops import adapter_macs, alignment_macs, encoder_macs, find_tower

TOY_TOWER = "32,2,8,32,32"


def call(*arguments):
    return CliRunner().invoke(app, ["describe", *map(str, arguments)])


def test_a_form_is_described_on_the_papers_encoder_unless_told_otherwise():
    paper = make_settings({"variant": "paper"}).model
    found = describe(paper, given={"frames": 16}, views=3).to_json()
    assert found["setting"]["tokens"] == 101 and found["setting"]["dim"] == 512
    assert found["macs_per_view"]["encoder"] == 16 * encoder_macs(find_tower("ViT-B-16"), 8)
    assert found["macs"] == 3 * found["macs_per_view"]["total"]
    unmerged = describe(paper, given={"frames": 16, "merge": 0})
    assert unmerged.at.tokens == 197 and unmerged.cost.encoder == 16 * encoder_macs(find_tower("ViT-B-16"), 0)


def test_a_run_is_described_as_it_was_trained(toy, trained, learnable):
    run = open_run(trained)
    found = describe(None, trained, learnable)
    assert sum(found.parameters.values()) == run.manifest["parameters"]
    at = found.at
    assert (at.dim, at.frames, at.tokens, at.top_k) == (toy.dim, toy.frames, toy.regions + 1, toy.topk)
    assert at.entities == len(toy.world.entities)
    config = make_settings(run.config).model
    assert (found.cost.alignment, found.cost.adapter) == (
        alignment_macs(config, at),
        adapter_macs(config, at),
    )
    assert found.tower is None and found.cost.encoder is None
    known = describe(None, trained, given={"tower": TOY_TOWER, "merge": 4})
    assert known.at.tokens == 16 + 1 - 2 * 4 and known.cost.encoder == toy.frames * encoder_macs(
        find_tower(TOY_TOWER), 4
    )


def test_what_cannot_be_described_is_said(trained):
    with pytest.raises(AdapterError, match="pass --alignments, or --tower WIDTH"):
        describe(None, trained)
    with pytest.raises(AdapterError, match="ViT-B-16 has 512 dimensions, the run or the alignments have 32"):
        describe(None, trained, given={"tower": "ViT-B-16"})
    for name in ("frames", "entities"):
        with pytest.raises(AdapterError, match=f"--{name} is 0; it must be at least 1"):
            describe(ModelConfig(), given={name: 0})
    with pytest.raises(AdapterError, match="--views is 0"):
        describe(ModelConfig(), views=0)


def test_the_command_prints_both_tables(trained, learnable):
    words = call("--variant", "paper", "--frames", 16, "--views", 3).output
    assert "total                37.822" in words and "218.5 x 3 views = 655.4 GMACs" in words
    words = call(trained, "--alignments", learnable).output
    assert "unknown: --tower tells" in words
    found = json.loads(call("--variant", "paper", "--set", "mlp_ratio=4", "--json").output)
    assert found["model"]["mlp_ratio"] == 4 and found["parameters"]["total"] < 35e6
    refused = call(trained, "--variant", "paper")
    assert refused.exit_code == 1 and "has its own form; leave out RUN, or variant" in refused.output
