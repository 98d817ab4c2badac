"""Which region features name entities best: ``python -m benchmarks.dense``.

The demo world's tiny CLIP on unseen frames with unseen sprites, scored against the drawing (see
``pipelines.toyworld.pretrain.evaluate``), for every dense option of the encoder with proportional attention on and off.
"""

import argparse
from collections.abc import Iterator
from pathlib import Path

import torch

from aligner.config import DENSE
from aligner.encoder import load_clip
from pipelines.toyworld import pretrain

COLUMNS = {
    "acc_patch": "patches",
    "acc_object_patch": "object patches",
    "acc_region": "regions",
    "acc_object_region": "object regions",
    "acc_region_present": "present in region",
    "acc_frame_object": "frame",
}


def rows(frames: int) -> Iterator[str]:
    """One table row for each choice, in %."""
    model, _ = load_clip(f"local-dir:{Path(pretrain.__file__).parent / 'tinyclip'}")
    for dense in DENSE:
        for proportional in (True, False):
            scores = pretrain.evaluate(model, frames=frames, dense=dense, proportional_attention=proportional)
            cells = " | ".join(f"{100 * scores[name]:.1f}" for name in COLUMNS)
            yield f"| {dense} | {'on' if proportional else 'off'} | {cells} |"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--frames", type=int, default=2048)
    frames = parser.parse_args().frames
    torch.set_num_threads(1)
    print(f"| dense | proportional attention | {' | '.join(COLUMNS.values())} |")
    print("|---" * (2 + len(COLUMNS)) + "|")
    for row in rows(frames):
        print(row, flush=True)


if __name__ == "__main__":
    main()
