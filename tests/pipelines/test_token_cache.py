"""Tuning from stored tokens: the same training as from videos, begun where it was stopped, never of other tokens."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

from aligner.engine import Stop
from pipelines import token_cache
from pipelines.cli import app
from pipelines.config import PipelineConfig
from pipelines.errors import PipelineError
from pipelines.finetune import NAME, Session, inputs_of
from pipelines.token_cache import TokenCache, TokenFeed
from pipelines.tuning_config import TuneConfig

TUNED: dict[str, Any] = {
    "last_blocks": 1,
    "batch_size": 4,
    "micro_batch": 2,
    "epochs": 2,
    "warmup": 0.0,
    "lr_encoder": 1e-3,
    "decode_workers": 1,
    "device": "cpu",
}
PLAIN = {"augment": "none"}
DRAWN = {"mixup": 0.0, "cutmix": 0.0, "cache_draws": 2}


def opened(miniature: PipelineConfig, **options: Any) -> Session:
    return Session.open(inputs_of(miniature.out), TuneConfig(**TUNED | options), {})


def cache_of(session: Session, folder: Path) -> TokenCache:
    cache = TokenCache(folder, session.tuner, session.config, session.alignments.frames, {})
    cache.plan(session.data.train.samples, session.data.val.samples)
    return cache


def trained(miniature: PipelineConfig, folder: Path, **options: Any) -> tuple[dict[str, torch.Tensor], list]:
    """Weights and history of a tuning, without the writing of its results."""
    session, stop = opened(miniature, **options), Stop()
    folder.mkdir()
    if session.config.cached:
        session.cache_tokens(folder, stop, print)
    progress = session.train(folder, stop, print)
    return session.tuner.weights(), progress.history


@pytest.mark.parametrize("pictures", [PLAIN, DRAWN], ids=["as they are", "drawn"])
def test_training_from_tokens_is_training_from_videos(
    miniature: PipelineConfig, tmp_path: Path, pictures: dict[str, Any]
) -> None:
    weights, history = trained(miniature, tmp_path / "videos", **pictures)
    stored, told = trained(miniature, tmp_path / "stored", **pictures, cache_tokens="fp32")
    assert told == history and len(history) == 2
    assert all(torch.equal(weights[name], stored[name]) for name in weights)


def test_half_the_bits_change_the_loss_by_less_than_a_hundredth(
    miniature: PipelineConfig, tmp_path: Path
) -> None:
    """What is left are near ties: between tokens that merge, and between entities of a region."""
    losses = []
    for store in ("fp16", "fp32"):
        session = opened(miniature, **PLAIN, cache_tokens=store)
        session.cache_tokens(tmp_path / store, Stop(), print)
        losses.append(session.validate()["val_loss"])
    assert losses[0] == pytest.approx(losses[1], rel=1e-2) and losses[0] != losses[1]
    half, full = (
        load_file(tmp_path / store / "tokens" / "views-00000.safetensors") for store in ("fp16", "fp32")
    )
    torch.testing.assert_close(half["x"].float(), full["x"], rtol=2**-11, atol=1e-7)
    assert all(torch.equal(half[name], full[name]) for name in ("sizes", "source", "place", "times"))


def test_the_command_leaves_no_tokens_behind_unless_asked(miniature: PipelineConfig, tmp_path: Path) -> None:
    options = (
        "--last-blocks 1 --augment none --cache-tokens fp16 --epochs 1 --batch-size 4 --device cpu".split()
    )
    given = ["finetune", str(miniature.out), *options, "--decode-workers", "1"]
    for out, more in (("kept", ["--cache-folder", str(tmp_path / "tokens")]), ("gone", [])):
        result = CliRunner().invoke(app, [*given, *more, "--out", str(tmp_path / out)])
        assert result.exit_code == 0, result.output
        assert "tokens before block 2: 1 shards" in result.output
        assert (tmp_path / out / "runs" / NAME / "manifest.json").is_file()
        assert not (tmp_path / out / "tuning").exists()
    assert sorted(path.name for path in (tmp_path / "tokens").iterdir()) == [
        "manifest.json",
        "views-00000.safetensors",
    ]


def test_what_is_stored_takes_what_was_announced(miniature: PipelineConfig, tmp_path: Path) -> None:
    session = opened(miniature, **PLAIN, cache_tokens="fp16")
    cache = cache_of(session, tmp_path)
    assert "MB in" in cache.make_room(1)
    cache.write(session.feed, lambda: False)
    stored = load_file(tmp_path / "views-00000.safetensors")
    times = stored.pop("times")
    assert cache.bytes(1) == sum(value.numel() * value.element_size() for value in stored.values())
    assert times.shape == (9, 4) and stored["x"].shape == (9, 4, 17 - 3, 32)
    assert torch.equal(stored["sizes"][..., 1:].sum(-1), torch.full((9, 4), 16, dtype=torch.int64))


def test_a_writing_that_was_stopped_goes_on(
    miniature: PipelineConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(token_cache, "VIDEOS", 4)
    session = opened(miniature, **PLAIN, cache_tokens="fp32")
    whole, broken = (cache_of(session, tmp_path / name) for name in ("whole", "broken"))
    for cache in (whole, broken):
        cache.make_room(1)
    whole.write(session.feed, lambda: False)
    passes = iter(range(100))
    broken.write(session.feed, lambda: next(passes) == 2)
    assert [shard.file for shard in broken.missing()] == [
        "views-00001.safetensors",
        "views-00002.safetensors",
    ]
    first = (tmp_path / "broken" / "views-00000.safetensors").stat().st_mtime_ns
    broken.write(session.feed, lambda: False)
    assert (tmp_path / "broken" / "views-00000.safetensors").stat().st_mtime_ns == first
    files = sorted(path.name for path in (tmp_path / "whole").iterdir())
    assert files == sorted(path.name for path in (tmp_path / "broken").iterdir()) and len(files) == 4
    for name in files:
        assert (tmp_path / "broken" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_a_stop_while_tokens_are_written_ends_the_tuning(miniature: PipelineConfig, tmp_path: Path) -> None:
    session, stop, said = opened(miniature, **PLAIN, cache_tokens="fp32"), Stop(), []
    stop.ask()
    session.cache_tokens(tmp_path, stop, said.append)
    assert not isinstance(session.feed, TokenFeed) and len(said) == 1
    assert session.train(tmp_path, stop, said.append).history == []


def test_videos_without_frames_are_left_out(miniature: PipelineConfig, tmp_path: Path) -> None:
    session = opened(miniature, **PLAIN, cache_tokens="fp32")
    lost = session.data.train.samples[0]
    session.feed.paths[lost.video_id] = tmp_path / "lost.mp4"
    cache = cache_of(session, tmp_path)
    cache.make_room(1)
    cache.write(session.feed, lambda: False)
    feed = TokenFeed(cache, 3)
    steps = feed.steps(session.data.train.samples, 1, 0)
    assert sum(len(clips.times) for passes in steps for clips in passes) == len(session.data.train) - 1
    assert cache.views(lost.video_id) == 0


def test_other_or_damaged_tokens_are_refused(miniature: PipelineConfig, tmp_path: Path) -> None:
    cache = cache_of(opened(miniature, **PLAIN, cache_tokens="fp32"), tmp_path)
    cache.make_room(1)
    for options in (
        {"cache_tokens": "fp16"},
        {"last_blocks": 2},
        {"proportional_attention": True},
        {"shots": 1},
    ):
        other = opened(miniature, **PLAIN | {"cache_tokens": "fp32"} | options)
        with pytest.raises(PipelineError, match="tokens of another tuning: .*there, .*--cache-folder"):
            cache_of(other, tmp_path)
    cache_of(opened(miniature, **PLAIN, cache_tokens="fp32", lr_encoder=1e-4), tmp_path)
    (tmp_path / "views-00000.safetensors").write_bytes(b"damaged")
    with pytest.raises(PipelineError, match="delete it"):
        TokenFeed(cache, 3)


def test_too_large_a_cache_is_refused_before_it_is_made(miniature: PipelineConfig, tmp_path: Path) -> None:
    cache = cache_of(opened(miniature, **PLAIN, cache_tokens="fp32", cache_gb=1e-6), tmp_path)
    with pytest.raises(PipelineError, match=r"0\.1 MB in .* --cache-gb 1e-06\. Raise it"):
        cache.make_room(1)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"cache_tokens": "fp16", "augment": "none"}, "give --last-blocks N too"),
        ({"cache_tokens": "fp16", "last_blocks": 1}, "--mixup 0 --cutmix 0"),
        (
            {"cache_tokens": "fp16", "last_blocks": 1, "augment": "none", "cache_draws": 2},
            "all draws are alike",
        ),
        ({"cache_tokens": "int8"}, "--cache-tokens is 'int8'"),
        ({"cache_draws": 0}, "--cache-draws is 0"),
    ],
)
def test_impossible_options_are_refused(options: dict[str, Any], told: str) -> None:
    with pytest.raises(PipelineError, match=told):
        TuneConfig(**options)
