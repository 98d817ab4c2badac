"""The figures of BENCHMARKS.md on the drawn world: ``python -m benchmarks.toyworld --out out/benchmarks``.

One set of videos and one cache, several models and controls, several training seeds. Epochs are chosen by the
validation split; the test split is read once, at the end. Finished runs are kept: start again after an interruption.
"""

import argparse
import json
import platform
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pipelines.config import PipelineConfig, check_config
from pipelines.demo import BLEND, MERGE, demo_config, draw, order_accuracy
from pipelines.toyworld import TINYCLIP
from pipelines.workflow import Layout, RunReport, run_pipeline

COMMON: dict[str, Any] = {"blocks": 2, "epochs": 20, "threads": 1}
TRACKS: dict[str, Any] = {"queries": "tracks", "context": "cls"}
PAPER: dict[str, Any] = {"queries": "aligned", "context": "pooled", "time_codes": False}
REGIONS: dict[str, Any] = {"queries": "aligned", "context": "regions"}
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "clip": ("CLIP, mean of frames, no training", {"model": "mean_pool"}),
    "ata": ("adapt-then-align: temporal transformer over cls", {"model": "adapt_then_align"}),
    "paper": ("paper's form: one entity query a frame, pooled context", PAPER),
    "paper-scrambled": ("- control: entity of every region scrambled", {**PAPER, "identities": "scrambled"}),
    "regions": ("entity queries over all regions (position, size, time)", REGIONS),
    "regions-scrambled": ("- control: entities scrambled", {**REGIONS, "identities": "scrambled"}),
    "regions-learned": ("- control: learned queries instead of entities", {**REGIONS, "queries": "learned"}),
    "tracks": ("entity tracks, cls context", TRACKS),
    "tracks-scrambled": ("- control: entities scrambled", {**TRACKS, "identities": "scrambled"}),
    "tracks-permuted": ("- control: entities renamed consistently", {**TRACKS, "identities": "permuted"}),
    "tracks-regions": ("entity tracks over all regions", {"queries": "tracks", "context": "regions"}),
}
FEW: tuple[str, ...] = ("ata", "paper", "tracks", "tracks-scrambled")
SHOTS = 4


def build(out: Path, seeds: list[int]) -> PipelineConfig:
    """Every model and seed as an adapter of one config."""
    config = demo_config(out, "full", 0)
    raw = config.model_dump(mode="json", exclude_none=True)
    adapters: dict[str, Any] = {}
    for name, (_, options) in MODELS.items():
        for seed in seeds if options.get("model") != "mean_pool" else seeds[:1]:
            adapters[f"{name}-s{seed}"] = {"labels": "seen", **COMMON, **options, "seed": seed}
            if name in FEW:
                few = {"shots": SHOTS, "epochs": 40}
                adapters[f"{name}-few-s{seed}"] = {"labels": "seen", **COMMON, **options, "seed": seed, **few}
    raw["adapters"] = adapters
    full = [name for name in adapters if "-few-" not in name]
    unseen = {"labels": "unseen", "split": "zeroshot", "adapters": full}
    raw["labels"]["all"] = {"file": str(out / "videos" / "all.txt")}
    raw["evaluations"] = [
        {"name": "val", "labels": "seen", "split": "val"},
        {"name": "test", "labels": "seen", "split": "test"},
        {"name": "reversed", "labels": "seen", "split": "test", "reverse_time": True, "adapters": full},
        {"name": "zeroshot", **unseen},
        {"name": "zeroshot-blend", **unseen, "blend": BLEND},
        {"name": "generalised", "labels": "all", "split": "zeroshot", "blend": BLEND, "adapters": full},
    ]
    raw.pop("report", None)
    return check_config(raw, out)


def spread(values: list[float]) -> str:
    """``mean ± standard deviation`` in percent."""
    mean = 100 * statistics.fmean(values)
    return f"{mean:.1f} ± {100 * statistics.stdev(values):.1f}" if len(values) > 1 else f"{mean:.1f}"


def table(layout: Layout, report: RunReport, seeds: list[int]) -> list[str]:
    """The Markdown table of all models."""
    columns: dict[str, Callable[[str, str], float | None]] = {
        "val": lambda name, seed: _top1(report, f"{name}-{seed}", "val"),
        "test": lambda name, seed: _top1(report, f"{name}-{seed}", "test"),
        "order": lambda name, seed: order_accuracy(layout, f"{name}-{seed}"),
        "reversed": lambda name, seed: _top1(report, f"{name}-{seed}", "reversed"),
        f"{SHOTS}-shot": lambda name, seed: _top1(report, f"{name}-few-{seed}", "test"),
        "zero-shot": lambda name, seed: _top1(report, f"{name}-{seed}", "zeroshot"),
        "zero-shot, blended": lambda name, seed: _top1(report, f"{name}-{seed}", "zeroshot-blend"),
        "generalised, blended": lambda name, seed: _top1(report, f"{name}-{seed}", "generalised"),
    }
    lines = ["| model | parameters | " + " | ".join(columns) + " |", "|---" * (len(columns) + 2) + "|"]
    for name, (title, _) in MODELS.items():
        present = [f"s{seed}" for seed in seeds if f"{name}-s{seed}" in report.scores]
        cells = []
        for measure in columns.values():
            values = [value for seed in present if (value := measure(name, seed)) is not None]
            cells.append(spread(values) if values else "-")
        lines.append(
            f"| {title} | {_parameters(layout, f'{name}-{present[0]}')} | " + " | ".join(cells) + " |"
        )
    return lines


def _top1(report: RunReport, adapter: str, evaluation: str) -> float | None:
    found = report.scores.get(adapter, {}).get(evaluation)
    return None if found is None else float(found["top1"])


def _parameters(layout: Layout, adapter: str) -> str:
    counts = json.loads((layout.run(adapter) / "manifest.json").read_text())
    return f"{counts['parameters'] / 1e6:.2f} M" if counts.get("parameters") else "0"


def main() -> None:
    """Draw, run, and write ``table.md`` and ``scores.json``."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("out/benchmarks"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    options = parser.parse_args()
    out = options.out.resolve()
    draw(out, "full", 0, print)
    config, layout = build(out, options.seeds), Layout(out)
    report = run_pipeline(config, lambda line: None if line.endswith("...") else print(line, flush=True))
    facts = json.loads((TINYCLIP / "training.json").read_text())
    lines = [
        f"Seeds {options.seeds}; merge {MERGE}; {platform.machine()}, Python {platform.python_version()}; "
        f"tiny CLIP after {facts['images']} images.",
        "",
        *table(layout, report, options.seeds),
    ]
    (out / "table.md").write_text("\n".join(lines) + "\n")
    (out / "scores.json").write_text(json.dumps(report.scores, indent=1, sort_keys=True))
    print("\n".join(lines))


if __name__ == "__main__":
    main()
