"""The figures of BENCHMARKS.md on the drawn world: ``python -m benchmarks.toyworld --out out/benchmarks``.

One set of videos and one cache; rows, controls and tests are those of ``adapter ablate``, over several training
seeds. Epochs are chosen by the validation split; the test split is read once, at the end. Finished runs are kept: start
again after an interruption. With ``--wordnet``, NLTK data with the whole WordNet, a second cache is aligned to random
nouns. Rows may be run in parts, some with fewer columns (``--shots``), and ``--join`` makes one table of the parts.
"""

import argparse
import json
import platform
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from adapter.ablation import ROWS, Column, Data, ablate, ablation_words, choose_rows, standard_columns
from pipelines import stages
from pipelines.config import PipelineConfig, check_config
from pipelines.demo import BLEND, MERGE, SIZES, demo_config, draw, order_accuracy
from pipelines.toyworld import TINYCLIP
from pipelines.workflow import Layout, run_pipeline

COMMON: dict[str, Any] = {"blocks": 2, "epochs": 20, "threads": 1}
FEW: dict[str, Any] = {"epochs": 40}
TRACKS, REGIONS = (
    dict(next(row for row in ROWS if row.name == name).options) for name in ("tracks", "regions")
)
SHOTS = (2, 4, 8)  # 16 are all training videos of a class


def build(out: Path, size: str) -> PipelineConfig:
    """The demo's videos, corpus, label sets and cache, without its adapters."""
    config = demo_config(out, size, 0)
    raw = config.model_dump(mode="json", exclude_none=True)
    raw["labels"]["all"] = {"file": str(out / "videos" / "all.txt")}
    raw |= {"adapters": {}, "evaluations": []}
    raw.pop("report", None)
    return check_config(raw, out)


def random_words(config: PipelineConfig, layout: Layout, nltk_data: Path) -> Path:
    """The same videos aligned to as many random nouns as the corpus has entities."""
    from corpus_builder.config import CorpusConfig
    from corpus_builder.unmined import draw_random

    other = Layout(layout.root / "random")
    draw_random(
        [layout.corpus],
        CorpusConfig(),
        config.model,
        config.pretrained,
        other.corpus,
        nltk_data=nltk_data,
        device=config.device,
        force=True,
    )
    print(f"random words: {stages.align(config, other)}", flush=True)
    return other.alignments


def columns(layout: Layout, shots: Sequence[int] = SHOTS) -> list[Column]:
    """Supervised with sensitivity, few-shot, zero-shot, and all classes as candidates."""
    found = standard_columns("test", shots, layout.labels("unseen"), "zeroshot", BLEND, sensitivity=True)
    everything = layout.labels("all")
    return [
        *found,
        Column("generalised", "zeroshot", everything),
        Column("generalised-blended", "zeroshot", everything, blend=BLEND),
    ]


def spread(values: list[float]) -> str:
    """``mean ± standard deviation`` in percent."""
    mean = 100 * statistics.fmean(values)
    return f"{mean:.1f} ± {100 * statistics.stdev(values):.1f}" if len(values) > 1 else f"{mean:.1f}"


def order_table(layout: Layout, result: Mapping[str, Any]) -> list[str]:
    """How often a label is preferred to the same motion played backwards (chance 50), by rows with a text head."""
    lines = ["| model | order |", "|---|---|"]
    for row in result["rows"]:
        if row["head"] == "text" and not row["random_words"]:
            runs = result["cells"][row["name"]]["supervised"]["runs"]
            lines.append(f"| {row['title']} | {spread([order_accuracy(layout, run) for run in runs])} |")
    return lines


def join(parts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Results of ``ablate`` on the same data and seeds, of other rows or columns, as one in the order of ``ROWS``.

    Raises:
        ValueError: parts of different seeds.
    """
    if len({tuple(part["seeds"]) for part in parts}) > 1:
        raise ValueError(f"parts have seeds {[part['seeds'] for part in parts]}; they must be the same")
    widest = max(parts, key=lambda part: len(part["columns"]))
    rows = {row["name"]: row for part in parts for row in part["rows"]}
    compared = {(c["row"], c["control"], c["column"]): c for part in parts for c in part["comparisons"]}
    known = [column["name"] for column in widest["columns"]]
    order = {row.name: place for place, row in enumerate(ROWS)}
    return {
        **widest,
        "rows": sorted(rows.values(), key=lambda row: order[row["name"]]),
        "cells": {
            name: {column: cell for part in parts for column, cell in part["cells"].get(name, {}).items()}
            for name in rows
        },
        "comparisons": [
            compared[key]
            for key in sorted(compared, key=lambda k: (order[k[0]], order[k[1]], known.index(k[2])))
        ],
    }


def compare(options: argparse.Namespace, layout: Layout) -> dict[str, Any]:
    """Draw, align and compare; or what was compared before, joined."""
    if options.join:
        return join([json.loads(file.read_text()) for file in options.join])
    out, wordnet = layout.root, options.wordnet
    draw(out, options.size, 0, print)
    config = build(out, options.size)
    run_pipeline(config, lambda line: None if line.endswith("...") else print(line, flush=True))
    words = random_words(config, layout, wordnet) if wordnet else None
    return ablate(
        Data(layout.alignments, layout.labels("seen"), words),
        out,
        columns(layout, options.shots),
        choose_rows(options.rows),
        options.seeds,
        COMMON,
        FEW,
        lambda line: print(line, flush=True),
    )


def main() -> None:
    """Run, and write ``table.md`` beside ``ablation.json``."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("out/benchmarks"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--rows", nargs="*", default=[], help="rows by name or pattern; default: all")
    parser.add_argument("--size", choices=list(SIZES), default="full")
    parser.add_argument(
        "--shots", type=int, nargs="*", default=list(SHOTS), help="videos a class of few-shot columns"
    )
    parser.add_argument("--wordnet", type=Path, help="NLTK data folder, for the control of random words")
    parser.add_argument(
        "--join", type=Path, nargs="+", help="run nothing, make one table of these ablation.json"
    )
    options = parser.parse_args()
    out = options.out.resolve()
    result = compare(options, Layout(out))
    facts = json.loads((TINYCLIP / "training.json").read_text())
    lines = [
        f"Seeds {result['seeds']}; merge {MERGE}; {platform.machine()}, Python {platform.python_version()}; "
        f"tiny CLIP after {facts['images']} images.",
        "",
        *ablation_words(result),
        "",
        *order_table(Layout(out), result),
    ]
    (out / "table.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
