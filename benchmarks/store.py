"""What a store of embeddings costs and saves, on the drawn world: ``python -m benchmarks.store --out out/store``.

The demo's videos are aligned once with every store. Sizes are those of the shards, beside what ``bytes_per_video``
says; reading is the adapter's, all videos once, in turns and by medians (ratios hold on a busy machine, seconds do
not); accuracy is on validation, of the epoch that it chose, for entity tracks (no region's embedding needed) and for
all regions: trained and scored on the store, and trained on fp16 and scored on the store. Finished folders are kept:
start again after an interruption.
"""

import argparse
import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from adapter.alignments import Alignments, open_alignments
from adapter.config import make_settings
from adapter.dataset import select, split_videos
from adapter.evaluate import open_all, score
from aligner.artifact import bytes_per_video
from aligner.config import STORES
from benchmarks.toyworld import COMMON, REGIONS, TRACKS, spread
from pipelines.config import PipelineConfig, check_config
from pipelines.demo import SIZES, demo_config, draw
from pipelines.workflow import Layout, run_pipeline

MODELS: dict[str, dict[str, Any]] = {"tracks": TRACKS, "regions": REGIONS}


def build(root: Path, store: str, size: str, seeds: list[int], epochs: int) -> PipelineConfig:
    """The demo's corpus and videos with one store, and every model that it can train."""
    raw = demo_config(root, size, 0).model_dump(mode="json", exclude_none=True)
    raw["out"] = str(root / store)
    raw["alignments"]["store"] = store
    raw["evaluations"] = []
    raw.pop("report", None)
    raw["adapters"] = {
        f"{name}-s{seed}": {"labels": "seen", **COMMON, **options, "epochs": epochs, "seed": seed}
        for name, options in MODELS.items()
        if usable(store, name)
        for seed in seeds
    }
    return check_config(raw, root)


def seconds(alignments: Alignments) -> float:
    """Time to read every video once, in the order of the shards, nothing kept from before."""
    alignments._groups.clear()
    start = time.perf_counter()
    for _ in alignments.read(sorted(alignments.index, key=alignments.group_of)):
        pass
    return time.perf_counter() - start


def usable(store: str, name: str) -> bool:
    """Whether a model reads nothing that a store lacks."""
    return store != "topk" or not make_settings(MODELS[name]).model.reads_regions


def accuracy(trained: Layout, scored: Layout, name: str, seeds: list[int]) -> str:
    """Validation accuracy over seeds of models trained on one store and scored on another."""
    return spread([validation(trained.run(f"{name}-s{seed}"), scored) for seed in seeds])


def validation(run: Path, scored: Layout) -> float:
    """Share of validation videos whose class has the highest logit."""
    opened = open_all(run, scored.alignments, scored.labels("seen"), "cpu")
    samples = select(opened.alignments, split_videos(opened.alignments, "val"), opened.labels).samples
    found = score(opened, samples)
    return float((found.logits.argmax(1) == found.truth).mean())


def rows(root: Path, seeds: list[int], rounds: int) -> Iterator[str]:
    """One table row for each store."""
    layouts = {store: Layout(root / store) for store in STORES}
    opened = {store: open_alignments(layout.alignments) for store, layout in layouts.items()}
    times = [{store: seconds(alignments) for store, alignments in opened.items()} for _ in range(rounds)]
    for store, alignments in opened.items():
        shape = alignments.frames, alignments.tokens, alignments.dim
        videos = len(alignments.index)
        size = sum(path.stat().st_size for path in layouts[store].alignments.glob("shard-*.parquet"))
        told = bytes_per_video(*shape, alignments.manifest["top_k"], store)
        pace = statistics.median(turn[store] for turn in times)
        ratio = statistics.median(turn["fp16"] / turn[store] for turn in times)
        cells = [f"{size / videos / 1e3:.1f}", f"{told / 1e3:.1f}", f"{videos / pace:.0f}", f"{ratio:.2f}"]
        for trained in (layouts[store], layouts["fp16"]):
            cells += [
                accuracy(trained, layouts[store], name, seeds) if usable(store, name) else "-"
                for name in MODELS
            ]
        yield f"| {store} | {' | '.join(cells)} |"


def main() -> None:
    """Draw, align, train, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("out/store"))
    parser.add_argument("--size", choices=list(SIZES), default="small")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=9)
    options = parser.parse_args()
    root = options.out.resolve()
    draw(root, options.size, 0, print)
    for store in STORES:
        config = build(root, store, options.size, options.seeds, options.epochs)
        run_pipeline(config, lambda line: None if line.endswith("...") else print(line, flush=True))
    heads = ["store", "kB a video", "estimate", "videos/s read", "as often as fp16"]
    heads += [f"{name}, trained on {store}" for store in ("it", "fp16") for name in MODELS]
    print(f"| {' | '.join(heads)} |")
    print("|---" * len(heads) + "|")
    print("\n".join(rows(root, options.seeds, options.rounds)), flush=True)


if __name__ == "__main__":
    main()
