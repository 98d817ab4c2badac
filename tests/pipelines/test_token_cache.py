"""Tuning from stored tokens: the same training as from videos, begun where it was stopped, never of other tokens."""

import shutil
from dataclasses import replace
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


@pytest.fixture(autouse=True)
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(token_cache, "VIDEOS", 4)


@pytest.fixture(scope="module")
def stored(miniature: PipelineConfig, tmp_path_factory: pytest.TempPathFactory) -> tuple[Session, TokenCache]:
    """A session, and the fp32 tokens of its nine videos in three shards; tests do not change them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(token_cache, "VIDEOS", 4)
        session = opened(miniature, **PLAIN, cache_tokens="fp32")
        cache = cache_of(session, tmp_path_factory.mktemp("tokens"))
        assert "3 shards, 0.1 MB in" in cache.make_room(1)
        cache.write(session.feed, lambda: False)
    return session, cache


def test_half_the_bits_change_the_loss_by_less_than_a_hundredth(
    miniature: PipelineConfig, stored: tuple[Session, TokenCache], tmp_path: Path
) -> None:
    """What is left are near ties: between tokens that merge, and between entities of a region."""
    session, exact = stored
    full = replace(session, feed=TokenFeed(exact, 3))
    half = opened(miniature, **PLAIN, cache_tokens="fp16")
    half.cache_tokens(tmp_path, Stop(), print)
    losses = [session.validate()["val_loss"] for session in (full, half)]
    assert losses[1] == pytest.approx(losses[0], rel=1e-2) and losses[0] != losses[1]
    rough = load_file(tmp_path / "tokens" / "views-00000.safetensors")
    whole = load_file(exact.folder / "views-00000.safetensors")
    torch.testing.assert_close(rough["x"].float(), whole["x"], rtol=2**-11, atol=1e-7)
    assert all(torch.equal(rough[name], whole[name]) for name in ("sizes", "source", "place", "times"))


def test_the_command_keeps_tokens_where_it_is_asked_to(miniature: PipelineConfig, tmp_path: Path) -> None:
    options = (
        "--last-blocks 1 --augment none --cache-tokens fp16 --epochs 1 --batch-size 4 --device cpu".split()
    )
    place = ["--out", str(tmp_path / "out"), "--cache-folder", str(tmp_path / "tokens")]
    result = CliRunner().invoke(
        app, ["finetune", str(miniature.out), *options, "--decode-workers", "1", *place]
    )
    assert result.exit_code == 0, result.output
    assert "tokens before block 2: 3 shards" in result.output
    assert (tmp_path / "out" / "runs" / NAME / "manifest.json").is_file()
    assert not (tmp_path / "out" / "tuning").exists()
    assert len(list((tmp_path / "tokens").glob("views-*.safetensors"))) == 3


def test_what_is_stored_takes_what_was_announced(stored: tuple[Session, TokenCache]) -> None:
    _, cache = stored
    shards = [load_file(cache.folder / shard.file) for shard in cache.shards]
    times = [shard.pop("times") for shard in shards]
    assert [len(part) for part in times] == [4, 4, 1] and times[0].shape == (4, 4)
    tensors = [value for shard in shards for value in shard.values()]
    assert cache.bytes(1) == sum(value.numel() * value.element_size() for value in tensors)
    assert shards[0]["x"].shape == (4, 4, 17 - 3, 32)
    patches = shards[0]["sizes"][..., 1:].sum(-1)
    assert torch.equal(patches, torch.full_like(patches, 16))


def test_a_writing_that_was_stopped_goes_on(stored: tuple[Session, TokenCache], tmp_path: Path) -> None:
    session, whole = stored
    broken = cache_of(session, tmp_path)
    broken.make_room(1)
    passes, feed = iter(range(100)), session.feed
    broken.write(feed, lambda: next(passes) == 2)
    assert [shard.file for shard in broken.missing()] == [
        "views-00001.safetensors",
        "views-00002.safetensors",
    ]
    first = (tmp_path / "views-00000.safetensors").stat().st_mtime_ns
    broken.write(feed, lambda: False)
    assert (tmp_path / "views-00000.safetensors").stat().st_mtime_ns == first
    files = sorted(path.name for path in whole.folder.iterdir())
    assert files == sorted(path.name for path in tmp_path.iterdir()) and len(files) == 4
    for name in files:
        assert (tmp_path / name).read_bytes() == (whole.folder / name).read_bytes()


def test_a_stop_while_tokens_are_written_ends_the_tuning(miniature: PipelineConfig, tmp_path: Path) -> None:
    session, stop, said = opened(miniature, **PLAIN, cache_tokens="fp32"), Stop(), []
    stop.ask()
    session.cache_tokens(tmp_path, stop, said.append)
    assert not isinstance(session.feed, TokenFeed) and len(said) == 1
    assert not list((tmp_path / "tokens").glob("*.safetensors"))


def test_videos_without_frames_are_left_out(miniature: PipelineConfig, tmp_path: Path) -> None:
    """One of a full shard, and the only one of the last."""
    session = opened(miniature, **PLAIN, cache_tokens="fp32")
    samples = sorted(session.data.train.samples, key=lambda sample: sample.video_id)[:5]
    lost = [samples[0], samples[4]]
    for sample in lost:
        session.feed.paths[sample.video_id] = tmp_path / "lost.mp4"
    cache = TokenCache(tmp_path, session.tuner, session.config, session.alignments.frames, {})
    cache.plan(samples, [])
    cache.make_room(1)
    cache.write(session.feed, lambda: False)
    assert cache.missing() == []
    steps = TokenFeed(cache, 3).steps(samples, 1, 0)
    assert sum(len(clips.times) for passes in steps for clips in passes) == 3
    assert [cache.views(sample.video_id) for sample in samples] == [0, 1, 1, 1, 0]


def test_other_or_damaged_tokens_are_refused(
    miniature: PipelineConfig, stored: tuple[Session, TokenCache], tmp_path: Path
) -> None:
    shutil.copytree(stored[1].folder, tmp_path, dirs_exist_ok=True)
    for options in (
        {"cache_tokens": "fp16"},
        {"last_blocks": 2},
        {"proportional_attention": True},
        {"shots": 1},
    ):
        other = opened(miniature, **PLAIN | {"cache_tokens": "fp32"} | options)
        with pytest.raises(PipelineError, match="tokens of another tuning: .*there, .*--cache-folder"):
            cache_of(other, tmp_path)
    cache = cache_of(opened(miniature, **PLAIN, cache_tokens="fp32", lr_encoder=1e-4), tmp_path)
    assert not cache.missing()
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
