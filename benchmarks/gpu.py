"""Frames a second of the encoder and its matching on a GPU: ``python -m benchmarks.gpu``.

Random frames go through the engine's own passes (copy, normalise, encode, match, copy back), with and without merging,
for every precision and size of pass; random weights compute as fast as any. ``busy`` is the share of the time in
which the GPU was at work, by its own clock: what is missing from 100 % is what the rest of the run could not hide.
Decoding and writing are not in it. Without a GPU it says so and measures nothing, unless ``--device cpu`` is given.
"""

import argparse
import sys
import time
from collections import deque
from collections.abc import Iterator
from itertools import product
from pathlib import Path

import numpy as np
import torch
from torch import nn

from aligner import encoder, engine, match, plan
from aligner.config import GPU_PASS, PRECISIONS, AlignConfig, AlignerError

HEAD = "| model | merge | precision | frames in a pass | at once | frames/s | busy, % |\n|---|---|---|---|---|---|---|"


def job(clip: nn.Module, config: AlignConfig, size: int, entities: int, device: torch.device) -> engine.Job:
    """What the engine needs of a run to encode: no videos, and random entities."""
    tower = encoder.ClipRegionEncoder(
        clip, config.merge, precision=config.precision, compiled=config.compile, device=device
    )
    pixels = encoder.preprocess_config(clip)
    side = pixels["size"]
    settings = {
        "frames_per_pass": size,
        "image_size": [side, side] if isinstance(side, int) else list(side),
        **{name: pixels[name] for name in ("mean", "std", "resize_mode", "interpolation")},
        "fill_color": pixels.get("fill_color", 0),
    }
    vectors = torch.randn(entities, tower.dim, generator=torch.Generator().manual_seed(0))
    matcher = match.Matcher(nn.functional.normalize(vectors, dim=1).to(device), config.top_k)
    return engine.Job(config, plan.Plan(Path(), (), 0), tower, matcher, {"config": settings})


def measure(made: engine.Job, passes: int) -> tuple[float, float, int]:
    """Frames a second, share of the time in which the device worked, and frames that fitted at once."""
    encode = engine.FrameEncoder(made)
    shape = (encode.size, *made.manifest["config"]["image_size"], 3)
    frames = list(np.random.default_rng(0).integers(0, 256, shape, np.uint8))
    encode(frames, engine.Timings())  # the first pass starts libraries, compiles and finds what fits
    timings, running = engine.Timings(), deque()
    start = time.perf_counter()
    for _ in range(passes):
        running.append(encode.start(frames))
        while len(running) > encode.ahead:
            running.popleft()(timings)
    while running:
        running.popleft()(timings)
    seconds = time.perf_counter() - start
    return passes * encode.size / seconds, (timings.encode + timings.match) / seconds, encode.at_once


def rows(given: argparse.Namespace, device: torch.device) -> Iterator[str]:
    """A table row for each choice; one for which there is no memory says so."""
    for model in given.models:
        for merge, precision, size in product(given.merge, given.precision, given.frames):
            config = AlignConfig(
                "", Path(), model, merge=merge, precision=precision, compile=given.compile, top_k=given.top_k
            )
            clip, _ = encoder.load_clip(model, None if ":" in model else "none")
            name = f"| {model.rpartition('/')[2]} | {merge} | {precision} | {size} |"
            try:
                rate, busy, at_once = measure(job(clip, config, size, given.entities, device), given.passes)
            except AlignerError as error:
                yield f"{name} {error} |"
                continue
            yield f"{name} {at_once} | {rate:.1f} | {100 * busy:.0f} |"


def main(arguments: list[str] | None = None) -> None:
    """Print the table, and what it was measured on."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", nargs="+", default=["ViT-B-16", "ViT-L-14"])
    parser.add_argument("--merge", nargs="+", type=int, default=[0, 8])
    parser.add_argument("--precision", nargs="+", default=list(PRECISIONS))
    parser.add_argument("--frames", nargs="+", type=int, default=[64, GPU_PASS], help="frames in a pass")
    parser.add_argument("--passes", type=int, default=20)
    parser.add_argument("--entities", type=int, default=10_000)
    parser.add_argument("--top-k", type=int, default=AlignConfig.top_k)
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--device", default="cuda")
    given = parser.parse_args(arguments)
    if given.device.startswith("cuda") and not torch.cuda.is_available():
        print("no GPU here: nothing was measured (--device cpu measures the CPU)", file=sys.stderr)
        return
    device = torch.device(given.device)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    print(
        f"{name}, torch {torch.__version__}, {given.entities} entities{', compiled' * given.compile}\n\n{HEAD}"
    )
    for row in rows(given, device):
        print(row, flush=True)


if __name__ == "__main__":
    main()
