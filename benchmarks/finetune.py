"""Memory and speed of ``alt finetune`` by precision, checkpointing and merging: ``python -m benchmarks.finetune``.

``--stored`` compares epochs of the last blocks from stored tokens and from videos instead, on whatever device there is.

Random weights and random pixels, since neither changes what a step costs: forward pass, live alignment with 5,000
entities, adapter, loss, backward pass, step of the optimiser. Decoding and augmentation are not in it (see
benchmarks/decode.py). Needs a GPU; where there is none it says so and measures nothing, unless a device is given.
"""

import argparse
import json
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F

from adapter.config import make_settings
from adapter.model import Shape, build_model
from aligner.encoder import load_clip
from aligner.engine import Stop
from pipelines.config import check_config
from pipelines.errors import PipelineError
from pipelines.finetune import Inputs, Session, inputs_of
from pipelines.toyworld.lexicon import write_nltk_data
from pipelines.toyworld.videos import frames_of, write_video
from pipelines.toyworld.vocabulary import ACTION_BY_LABEL
from pipelines.tuned_encoder import TunedEncoder
from pipelines.tuner import Clips, Tuner
from pipelines.tuning_config import TuneConfig
from pipelines.workflow import run_pipeline

ENTITIES, CLASSES, TOP_K = 5_000, 400, 16
WARM_UP = 3


def make_tuner(model: str, merge: int, frames: int, config: TuneConfig, device: torch.device) -> Tuner:
    """A model with random weights (``local-dir:`` ones are read) and a new adapter, ready to learn."""
    clip, info = load_clip(model, None if model.startswith("local-dir:") else "none")
    settings, dim = make_settings(config.adapter_options()), info["embed_dim"]
    entities, labels = (F.normalize(torch.randn(n, dim, device=device), dim=-1) for n in (ENTITIES, CLASSES))
    encoder = TunedEncoder(clip, merge, "none", config, device)
    adapter = build_model(settings.model, Shape(dim, frames)).to(device)
    return Tuner(encoder, adapter, entities, labels, TOP_K, settings.train, config)


def measure(
    model: str, merge: int, frames: int, steps: int, config: TuneConfig, device: torch.device
) -> dict:
    """Clips a second and peak memory of ``steps`` steps, or that the memory was too small."""
    row = {
        **{"model": model.rpartition("/")[2], "merge": merge, "frames": frames, "clips": config.micro_batch},
        **{"precision": config.precision, "checkpointing": config.checkpointing, "steps": steps},
    }
    torch.manual_seed(0)
    try:
        tuner = make_tuner(model, merge, frames, config, device)
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        pixels = torch.randn(config.micro_batch, frames, 3, *tuner.encoder.input_size, device=device)
        times = torch.arange(frames, device=device).float().expand(config.micro_batch, -1)
        target = F.one_hot(torch.arange(config.micro_batch, device=device) % CLASSES, CLASSES).float()
        clips = Clips(pixels, times, target)
        for step in range(WARM_UP + steps):
            if step == WARM_UP:
                started = _now(device)
            tuner.learn(clips, config.label_smoothing, config.micro_batch)
            tuner.step(1.0)
        seconds = _now(device) - started
    except PipelineError as error:
        return row | {"error": str(error)}
    peak = round(torch.cuda.max_memory_allocated(device) / 2**30, 2) if device.type == "cuda" else None
    return row | {"clips_per_s": round(steps * config.micro_batch / seconds, 2), "peak_gib": peak}


def drawn_run(root: Path, model: str, merge: int, frames: int, videos: int) -> Inputs:
    """A finished `alt run` over drawn videos of two seconds and 256 pixels, all of them for training."""
    labels = list(ACTION_BY_LABEL)[:4]
    rows = ["path,label,split"]
    for number in range(videos):
        label = labels[number % len(labels)]
        write_video(root / f"{number}.mp4", frames_of(ACTION_BY_LABEL[label], (number, 0), 48, 256), 24)
        rows.append(f"{number}.mp4,{label},train")
    (root / "videos.csv").write_text("\n".join(rows) + "\n")
    (root / "labels.txt").write_text("\n".join(labels) + "\n")
    write_nltk_data(root / "nltk_data")
    raw = {
        **{"out": "out", "model": model, "nltk_data": "nltk_data"},
        **({} if model.startswith("local-dir:") else {"pretrained": "none"}),
        "corpus": {"labels": "labels.txt", "taggers": "nltk"},
        "labels": {"train": {"file": "labels.txt"}},
        "alignments": {"videos": "videos.csv", "frames": frames, "merge": merge},
        "adapters": {"alt": {"labels": "train", "epochs": 1, "val_fraction": 0.0}},
    }
    run_pipeline(check_config(raw, root), lambda line: None)
    return inputs_of(root / "out")


def measure_stored(inputs: Inputs, config: TuneConfig) -> dict:
    """Seconds of a second epoch from videos and from stored tokens, of the storing, and MB stored for each video."""
    row: dict = {"last_blocks": config.last_blocks, "store": config.cache_tokens}
    with tempfile.TemporaryDirectory() as folder:
        for source, store in (("videos", "none"), ("tokens", config.cache_tokens)):
            session = Session.open(inputs, replace(config, cache_tokens=store), {})
            if store != "none":
                started = _now(session.tuner.device)
                session.cache_tokens(Path(folder), Stop(), lambda line: None)
                row["storing_s"] = round(_now(session.tuner.device) - started, 2)
            row[f"{source}_s"] = _second_epoch(session)
        stored = sum(file.stat().st_size for file in Path(folder).rglob("*.safetensors"))
    row["mb_a_video"] = round(stored / 1e6 / len(session.data.train), 2)
    return row | {"ratio": round(row["videos_s"] / row["tokens_s"], 2)}


def _second_epoch(session: Session) -> float:
    """The first one starts processes and fills caches."""
    samples = session.data.train.samples
    with session.feed:
        for epoch in (1, 2):
            started = _now(session.tuner.device)
            for passes in session.feed.steps(samples, epoch, 0):
                for clips in passes:
                    session.tuner.learn(clips, 0.1, len(samples))
                session.tuner.step(1.0)
    return round(_now(session.tuner.device) - started, 2)


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def compare_stored(given: argparse.Namespace) -> None:
    """Rows of the first model and merging, in fp16 tokens."""
    model, merge = given.models[0], given.merges[-1]
    with tempfile.TemporaryDirectory() as folder:
        inputs = drawn_run(Path(folder), model, merge, given.frames, given.videos)
        for last_blocks in given.last_blocks:
            config = TuneConfig(
                last_blocks=last_blocks,
                cache_tokens="fp16",
                augment="none",
                batch_size=given.videos,
                micro_batch=min(given.clips, given.videos),
                device=given.device or "auto",
            )
            row = {
                "model": model.rpartition("/")[2],
                "merge": merge,
                "frames": given.frames,
                "videos": given.videos,
            }
            print(json.dumps(row | measure_stored(inputs, config)), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", default=["ViT-B-16", "ViT-L-14"])
    parser.add_argument("--merges", nargs="+", type=int, default=[0, 8])
    parser.add_argument("--precisions", nargs="+", default=["fp32", "bf16", "fp16"])
    parser.add_argument("--frames", type=int, default=8)
    parser.add_argument("--clips", type=int, default=4, help="clips in one forward pass")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--device", default=None, help="by default a GPU, without which nothing is measured")
    parser.add_argument(
        "--stored", action="store_true", help="epochs from stored tokens against epochs from videos"
    )
    parser.add_argument("--last-blocks", nargs="+", type=int, default=[1, 2, 4], help="with --stored")
    parser.add_argument("--videos", type=int, default=8, help="with --stored")
    given = parser.parse_args()
    if given.stored:
        compare_stored(given)
        return
    if given.device is None and not torch.cuda.is_available():
        print("no GPU here: nothing was measured (--device cpu measures a CPU)")
        return
    device = torch.device(given.device or "cuda")
    print(f"device: {torch.cuda.get_device_name(device) if device.type == 'cuda' else 'CPU'}")
    for model in given.models:
        for merge in given.merges:
            for precision in given.precisions:
                for checkpointing in (False, True):
                    config = TuneConfig(
                        precision=precision,
                        checkpointing=checkpointing,
                        micro_batch=given.clips,
                        device=str(device),
                    )
                    row = measure(model, merge, given.frames, given.steps, config, device)
                    print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
