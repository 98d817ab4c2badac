"""``alt finetune``: gradients where they belong, the cached run as its beginning, the same end after any stop."""

import json
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from adapter.alignments import open_alignments
from adapter.dataset import Sample, VideoDataset, collate
from adapter.evaluate import open_all, score
from aligner.encoder import ClipRegionEncoder, load_clip
from pipelines.cli import app
from pipelines.config import PipelineConfig, load_config
from pipelines.errors import PipelineError
from pipelines.finetune import NAME, Session, carry_over, finetune, inputs_of
from pipelines.predict import find_source
from pipelines.tuned_encoder import TunedEncoder, live_batch, write_clip
from pipelines.tuner import Clips, out_of_memory_told
from pipelines.tuning_config import TuneConfig
from pipelines.workflow import run_pipeline

QUIET: dict[str, Any] = {
    "augment": "none",
    "batch_size": 4,
    "micro_batch": 4,
    "epochs": 2,
    "warmup": 0.0,
    "device": "cpu",
}
MODES: dict[str, dict[str, Any]] = {"full": {}, "last": {"last_blocks": 1}, "prompts": {"prompts": 3}}
NOISELESS = {"noise": "never", "dropout": 0.0}


def opened(miniature: PipelineConfig, fresh: bool = True, **options: Any) -> Session:
    set_options = NOISELESS if fresh else {}
    return Session.open(inputs_of(miniature.out, fresh), TuneConfig(**QUIET | options), dict(set_options))


def first_clips(session: Session) -> Clips:
    with session.feed:
        return next(next(session.feed.steps(session.data.train.samples, 1, 0)))


@pytest.fixture(scope="module")
def four(miniature: PipelineConfig) -> Clips:
    """Four clips of the training videos; the loader has nothing to do with most tests."""
    return first_clips(opened(miniature))


@pytest.mark.parametrize("mode", MODES)
def test_only_what_is_to_learn_changes(miniature: PipelineConfig, four: Clips, mode: str) -> None:
    session = opened(miniature, **MODES[mode], lr_encoder=1e-3, lr_adapter=1e-3)
    before = {name: value.clone() for name, value in session.clip.state_dict().items()}
    session.tuner.learn(four, 0.1, 4)
    patches = session.clip.visual.conv1.weight.grad
    session.tuner.step(1.0)
    changed = {
        name for name, value in session.clip.state_dict().items() if not torch.equal(value, before[name])
    }
    tower = {name for name in before if name.startswith("visual.")}
    block = {name for name in tower if name.startswith("visual.transformer.resblocks.1.")}
    assert changed == {"full": tower, "last": block, "prompts": {"visual.prompts"}}[mode]
    assert (patches is not None and bool(patches.abs().sum() > 0)) == (mode == "full")
    assert {f"visual.{name}" for name in session.tuner.encoder.learned()} == changed


@pytest.mark.parametrize("mode", MODES)
def test_checkpointing_changes_no_gradient(miniature: PipelineConfig, four: Clips, mode: str) -> None:
    found = []
    for checkpointing in (False, True):
        session = opened(miniature, **MODES[mode], checkpointing=checkpointing)
        session.tuner.learn(four, 0.1, 4)
        found.append({name: weight.grad for name, weight in session.tuner.encoder.learned().items()})
    plain, checkpointed = found
    assert all(torch.equal(plain[name], checkpointed[name]) for name in plain)


def test_gradients_of_a_step_do_not_depend_on_its_passes(miniature: PipelineConfig, four: Clips) -> None:
    whole, parts = opened(miniature), opened(miniature)
    whole.tuner.learn(four, 0.1, 4)
    for start in range(4):
        part = Clips(*(value[start : start + 1] for value in (four.frames, four.times, four.target)))
        parts.tuner.learn(part, 0.1, 4)
    for one, other in zip(
        whole.tuner.encoder.learned().values(), parts.tuner.encoder.learned().values(), strict=True
    ):
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-3, atol=1e-6)


def test_scores_have_the_gradient_of_the_cosine(miniature: PipelineConfig, four: Clips) -> None:
    """The reference gathers the chosen columns of the full table of cosines."""
    session = opened(miniature)
    encoder, matcher = session.tuner.encoder, session.tuner.matcher
    nobody = torch.full((4,), -1)
    batch = live_batch(encoder, matcher, four.frames, four.times, nobody)
    weights = torch.randn(batch.topk_score.shape, generator=torch.manual_seed(0))
    (batch.topk_score * weights).sum().backward()
    found = encoder.tower.module.conv1.weight.grad.clone()
    encoder.tower.module.zero_grad()
    unit = torch.nn.functional.normalize(encoder.encode(four.frames.flatten(0, 1)).embeddings, dim=-1)
    table = (unit @ matcher.entities.T).unflatten(0, four.frames.shape[:2])
    chosen = table.topk(batch.topk_entity.shape[-1]).indices
    assert torch.equal(chosen.sort().values, batch.topk_entity.sort().values)
    (table.gather(-1, batch.topk_entity) * weights).sum().backward()
    torch.testing.assert_close(found, encoder.tower.module.conv1.weight.grad, rtol=1e-3, atol=1e-5)


def test_at_step_0_a_tuning_is_the_cached_run(miniature: PipelineConfig) -> None:
    """The same alignments as in the cache but for its fp16, and so the logits that `adapter eval` gives."""
    session = opened(miniature, fresh=False, proportional_attention=True)
    inputs = session.inputs
    assert inputs.run is not None
    cached = open_alignments(inputs.alignments)
    with session.feed:
        ((samples, (clips,)),) = session.feed.scored(session.data.val.samples)
        logits = session.tuner.score([clips])
    live = live_batch(
        session.tuner.encoder, session.tuner.matcher, clips.frames, clips.times, clips.target.argmax(1)
    )
    batch = collate([VideoDataset(cached, [sample])[0] for sample in samples])
    assert torch.equal(live.topk_entity, batch.topk_entity)
    assert torch.equal(live.mask, batch.mask) and torch.equal(live.label, batch.label)
    for name, near in {
        "topk_score": 1e-5,
        "norms": 1e-4,
        "geometry": 1e-6,
        "times": 1e-5,
        "embeddings": 1e-3,
    }.items():
        torch.testing.assert_close(getattr(live, name).detach(), getattr(batch, name), rtol=near, atol=near)
    scored = score(open_all(inputs.run, inputs.alignments, inputs.labels, "cpu"), samples)
    assert scored.video_ids == tuple(sample.video_id for sample in samples)
    np.testing.assert_allclose(logits.numpy(), scored.logits, atol=0.02)
    assert np.ptp(scored.logits) > 1


@pytest.mark.parametrize("rates", [(3e-3, 0.0), (1e-3, 3e-3)], ids=["tower alone", "both"])
def test_four_videos_are_learnt_by_heart(
    miniature: PipelineConfig, four: Clips, rates: tuple[float, float]
) -> None:
    config = TuneConfig(**QUIET, lr_encoder=rates[0], lr_adapter=rates[1])
    session = Session.open(inputs_of(miniature.out, fresh=True), config, NOISELESS | {"whiten_labels": True})
    losses = []
    for _ in range(50):
        losses.append(session.tuner.learn(four, 0.0, 4)["loss"] / 4)
        session.tuner.step(1.0)
    assert losses[-1] < 0.05 < losses[0]
    assert torch.equal(session.tuner.score([four]).argmax(1), four.target.argmax(1))


def test_prompts_are_tokens_that_every_block_sees_anew(tiny_clip: str) -> None:
    """The reference puts them among the tokens of each block and throws away what becomes of them."""
    clip, _ = load_clip(tiny_clip)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        encoder = TunedEncoder(clip, 0, "none", TuneConfig(prompts=3), torch.device("cpu"))
    pixels = torch.randn(2, 3, 32, 32)
    found = encoder(pixels).embeddings
    with torch.no_grad():
        x = clip.visual._embeds(pixels)
        for prompts, block in zip(clip.visual.prompts, clip.visual.transformer.resblocks, strict=True):
            x = block(torch.cat([x, prompts.expand(2, -1, -1)], 1))[:, :-3]
        expected = clip.visual.ln_post(x) @ clip.visual.proj
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    plain = ClipRegionEncoder(load_clip(tiny_clip)[0], 0)(pixels).embeddings
    assert not torch.allclose(found, plain, atol=1e-3)


@pytest.mark.parametrize("mode", ["full", "prompts"])
def test_the_written_model_is_the_one_in_memory(
    miniature: PipelineConfig, four: Clips, mode: str, tmp_path: Path
) -> None:
    from corpus_builder.embed import load_text_encoder

    session = opened(miniature, **MODES[mode], lr_encoder=1e-3)
    session.tuner.learn(four, 0.1, 4)
    session.tuner.step(1.0)
    info = write_clip(session.clip, session.inputs.model, tmp_path / "clip")
    written = {path.name for path in (tmp_path / "clip").iterdir()}
    assert (
        written
        == {"open_clip_config.json", "open_clip_model.safetensors"}
        | {
            "full": set(),
            "prompts": {"prompts.safetensors"},
        }[mode]
    )
    again, found = load_clip(f"local-dir:{tmp_path / 'clip'}")
    assert found == info and found["weights_sha256"] != session.alignments.model["weights_sha256"]
    assert load_text_encoder(f"local-dir:{tmp_path / 'clip'}").info == info
    encoder = ClipRegionEncoder(again, session.tuner.encoder.merge, proportional_attention=False)
    pixels = four.frames.flatten(0, 1)
    one, other = encoder(pixels), session.tuner.encoder(pixels)
    assert torch.equal(one.embeddings, other.embeddings) and torch.equal(one.source, other.source)


def test_weights_tuned_from_random_ones_are_still_known_as_random(tiny_clip: str, tmp_path: Path) -> None:
    from corpus_builder.embed import load_text_encoder

    clip, _ = load_clip(tiny_clip)
    for random in (True, False):
        info = write_clip(clip, tiny_clip, tmp_path / "clip", random)
        assert info["random_weights"] is random
        assert load_text_encoder(f"local-dir:{tmp_path / 'clip'}", device="cpu").info == info


@pytest.fixture(scope="module")
def tuned(miniature: PipelineConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished tuning of the miniature's run, with all of the augmentation."""
    out = tmp_path_factory.mktemp("tuned") / "out"
    config = TuneConfig(
        epochs=2, batch_size=3, micro_batch=2, warmup=0.0, lr_encoder=1e-4, save_steps=1, device="cpu"
    )
    report = finetune(inputs_of(miniature.out), config, out)
    assert [line["epoch"] for line in report.history] == [1, 2] and not report.stopped
    assert all(np.isfinite(line["loss"]) for line in report.history)
    return out


def test_a_tuning_is_a_folder_to_go_on_with(miniature: PipelineConfig, tuned: Path) -> None:
    """`alt run` aligns with the tuned model, keeping corpus and labels, and `adapter eval` gives what training saw."""
    report = run_pipeline(load_config(tuned / "pipeline.yaml"), lambda line: None)
    assert report.steps == {"corpus": "up to date", "labels/train": "up to date", "alignments": "done"}
    assert find_source(tuned).adapter == NAME
    scored = open_all(tuned / "runs" / NAME, tuned / "alignments", tuned / "labels" / "train", "cpu")
    best = json.loads((tuned / "runs" / NAME / "manifest.json").read_text())["best_epoch"]
    lines = [json.loads(line) for line in (tuned / "runs" / NAME / "metrics.jsonl").read_text().splitlines()]
    videos = [
        Sample(v.video_id, scored.labels.match(v.label)) for v in scored.alignments.plan if v.split == "val"
    ]
    logits = torch.from_numpy(score(scored, videos).logits)
    loss = torch.nn.functional.cross_entropy(logits, torch.tensor([video.label for video in videos]))
    assert loss.item() == pytest.approx(lines[best - 1]["val_loss"], abs=0.01)
    assert not (tuned / "tuning").exists()


def test_corpus_and_labels_are_what_embedding_them_again_would_give(
    miniature: PipelineConfig, tuned: Path, tmp_path: Path
) -> None:
    from corpus_builder.artifact import open_corpus, open_labels
    from corpus_builder.build import build_labels
    from corpus_builder.reuse import re_embed

    model = f"local-dir:{tuned / 'clip'}"
    re_embed(miniature.out / "corpus", tmp_path / "corpus", model, None, device="cpu")
    carried, again = open_corpus(tuned / "corpus"), open_corpus(tmp_path / "corpus")
    assert np.array_equal(carried.embeddings, again.embeddings)
    assert carried.manifest["model"] == again.manifest["model"]
    assert carried.fingerprint != open_corpus(miniature.out / "corpus").fingerprint
    build_labels(miniature.labels["train"].file, model, None, tmp_path / "labels", device="cpu")
    carried, again = open_labels(tuned / "labels" / "train"), open_labels(tmp_path / "labels")
    assert np.array_equal(carried.embeddings, again.embeddings)
    source = open_corpus(miniature.out / "corpus")
    carry_over(miniature.out / "corpus", tmp_path / "twice", dict(source.manifest["model"]), tuned / "clip")
    origin = open_corpus(tmp_path / "twice").manifest["inputs"]["same_text_tower"]
    assert origin["fingerprint"] == source.fingerprint


OPTIONS = "--epochs 3 --batch-size 2 --micro-batch 2 --warmup 0 --lr-encoder 1e-4 --save-every 1 --device cpu".split()


def started(run: Path, out: Path) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-m", "pipelines", "finetune", str(run), "--out", str(out), *OPTIONS]
    )


def await_state(out: Path, after: int, process: subprocess.Popen) -> int:
    """Time of the next state that is saved."""
    state = out / "tuning" / "state.safetensors"
    while process.poll() is None:
        if state.is_file() and state.stat().st_mtime_ns != after:
            return state.stat().st_mtime_ns
        time.sleep(0.005)
    raise AssertionError(f"ended by itself with {process.returncode}")


def test_a_tuning_that_was_stopped_and_killed_ends_as_if_nothing_had_happened(
    miniature: PipelineConfig, tmp_path: Path
) -> None:
    process = started(miniature.out, tmp_path / "broken")
    saved = await_state(tmp_path / "broken", 0, process)
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 75
    process = started(miniature.out, tmp_path / "broken")
    await_state(tmp_path / "broken", saved, process)
    process.kill()
    assert process.wait(60) == -signal.SIGKILL
    for out in ("broken", "whole"):
        result = CliRunner().invoke(
            app,
            ["finetune", str(miniature.out), "--out", str(tmp_path / out), *OPTIONS, "--decode-workers", "1"],
        )
        assert result.exit_code == 0, result.output
    names = [
        "clip/open_clip_model.safetensors",
        f"runs/{NAME}/model.safetensors",
        f"runs/{NAME}/metrics.jsonl",
    ]
    for name in names:
        assert (tmp_path / "broken" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name


def test_a_state_of_other_options_is_not_gone_on_with(miniature: PipelineConfig, tmp_path: Path) -> None:
    session = opened(miniature)
    from pipelines.tuner import Progress, load_state, save_state

    save_state(tmp_path / "state", session.tuner, Progress(), session.key())
    other = opened(miniature, label_smoothing=0.2)
    with pytest.raises(PipelineError, match="other options or inputs"):
        load_state(tmp_path / "state", other.tuner, other.key())
    faster = opened(miniature, checkpointing=True, decode_workers=1)
    assert load_state(tmp_path / "state", faster.tuner, faster.key()) == Progress()
    (tmp_path / "state").write_bytes(b"damaged")
    with pytest.raises(PipelineError, match="--force begins anew"):
        load_state(tmp_path / "state", session.tuner, session.key())


def test_what_does_not_fit_is_refused(
    miniature: PipelineConfig, tuned: Path, tmp_path: Path, other_clip: str
) -> None:
    inputs, config = inputs_of(miniature.out), TuneConfig(**QUIET)
    with pytest.raises(PipelineError, match="finished tuning"):
        finetune(inputs, config, tuned)
    with pytest.raises(PipelineError, match="the model has 2 blocks"):
        opened(miniature, last_blocks=3)
    with pytest.raises(PipelineError, match="fp16 needs a GPU"):
        opened(miniature, precision="fp16")
    with pytest.raises(PipelineError, match="the form of run alt is settled"):
        Session.open(inputs, config, {"blocks": 2})
    with pytest.raises(PipelineError, match="an option of its own"):
        Session.open(inputs, config, {"epochs": 2})
    with pytest.raises(ValueError, match="another model"):
        Session.open(replace(inputs, model=other_clip), config, {})
    with pytest.raises(PipelineError, match="no such label set"):
        inputs_of(miniature.out, label_set="other")
    with pytest.raises(PipelineError, match="are not in .*videos, such as"):
        Session.open(replace(inputs, videos=miniature.alignments.videos.parent / "videos"), config, {})
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(PipelineError, match="thesis.txt"):
        finetune(inputs, config, tmp_path)


def test_too_little_memory_says_what_helps() -> None:
    with pytest.raises(PipelineError, match="--checkpointing.*--micro-batch.*--precision bf16"):
        with out_of_memory_told():
            raise torch.OutOfMemoryError("CUDA out of memory")


def test_a_loss_that_is_no_number_is_told(miniature: PipelineConfig, four: Clips) -> None:
    session = opened(miniature)
    broken = Clips(four.frames, four.times, four.target * float("inf"))
    with pytest.raises(PipelineError, match="try a lower --lr-encoder"):
        session.tuner.learn(broken, 0.0, 4)


def test_half_precision_counts_patches_exactly_and_stays_near(miniature: PipelineConfig, four: Clips) -> None:
    encoder = opened(miniature).tuner.encoder
    pixels = four.frames.flatten(0, 1)
    with torch.no_grad():
        full = encoder.encode(pixels)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            half = encoder.encode(pixels)
    assert torch.equal(half.sizes.sum(1), full.sizes.sum(1)) and torch.equal(half.sizes, half.sizes.round())
    frames = [found.embeddings[:, 0] for found in (full, half)]
    assert not torch.equal(*frames)
    assert torch.cosine_similarity(*frames).min() > 0.99


def test_the_benchmark_runs_on_a_cpu(tiny_clip: str) -> None:
    from benchmarks.finetune import measure

    for checkpointing in (False, True):
        config = TuneConfig(precision="fp32", checkpointing=checkpointing, micro_batch=2, device="cpu")
        row = measure(tiny_clip, 2, 2, 2, config, torch.device("cpu"))
        assert row["clips_per_s"] > 0 and row["peak_gib"] is None and "error" not in row


def test_the_benchmark_compares_stored_tokens(miniature: PipelineConfig) -> None:
    from benchmarks.finetune import measure_stored

    config = TuneConfig(**QUIET, last_blocks=1, cache_tokens="fp16", decode_workers=1)
    row = measure_stored(inputs_of(miniature.out), config)
    assert min(row["ratio"], row["storing_s"], row["mb_a_video"]) > 0
