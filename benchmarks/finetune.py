"""Memory and speed of ``alt finetune`` by precision, checkpointing and merging: ``python -m benchmarks.finetune``.

Random weights and random pixels, since neither changes what a step costs: forward pass, live alignment with 5,000
entities, adapter, loss, backward pass, step of the optimiser. Decoding and augmentation are not in it (see
benchmarks/decode.py). Needs a GPU; where there is none it says so and measures nothing, unless a device is given.
"""

import argparse
import json
import time

import torch
import torch.nn.functional as F

from adapter.config import make_settings
from adapter.model import Shape, build_model
from aligner.encoder import load_clip
from pipelines.errors import PipelineError
from pipelines.tuned_encoder import TunedEncoder
from pipelines.tuner import Clips, Tuner
from pipelines.tuning_config import TuneConfig

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


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", default=["ViT-B-16", "ViT-L-14"])
    parser.add_argument("--merges", nargs="+", type=int, default=[0, 8])
    parser.add_argument("--precisions", nargs="+", default=["fp32", "bf16", "fp16"])
    parser.add_argument("--frames", type=int, default=8)
    parser.add_argument("--clips", type=int, default=4, help="clips in one forward pass")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--device", default=None, help="by default a GPU, without which nothing is measured")
    given = parser.parse_args()
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
