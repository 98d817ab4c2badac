"""``alt demo``: the whole toolkit on the drawn world, against its baselines, ending in something to look at."""

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from pipelines.config import PipelineConfig, check_config
from pipelines.errors import PipelineError, did_you_mean
from pipelines.toyworld import TINYCLIP
from pipelines.workflow import Layout, RunReport, Say, read_scores, run_pipeline

# Videos per class and split, and epochs of training.
SIZES: dict[str, dict[str, Any]] = {
    "tiny": {"videos": {"train": 2, "val": 1, "test": 1, "zeroshot": 1}, "epochs": 1, "few_epochs": 1},
    "small": {
        "videos": {"train": 12, "val": 3, "test": 6, "zeroshot": 6},
        "epochs": 20,
        "few_epochs": 40,
    },
    "full": {
        "videos": {"train": 16, "val": 8, "test": 16, "zeroshot": 16},
        "epochs": 40,
        "few_epochs": 60,
    },
}
SHOTS = 4
BLEND = 0.5  # equal parts of the adapter and of zero-shot CLIP for classes never trained on
MERGE = 8  # as the tiny CLIP was trained: 64 patches become 32 regions
COLUMNS = ("all data", f"{SHOTS}-shot", "zero-shot", "order")
NOTE = (
    "Zero-shot: actions never trained on, adapter and zero-shot CLIP in equal parts. Order: of an action and the same "
    "played backwards, the right one is preferred (chance 50)."
)
COMMON: dict[str, Any] = {"blocks": 2}
ALT: dict[str, Any] = {"model": "alt", "variant": "label-tracks"}
PAPER: dict[str, Any] = {"model": "alt", "queries": "aligned", "context": "pooled", "time_codes": False}
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "zero_shot": ("CLIP, mean of frames, no training", {"model": "mean_pool"}),
    "adapt_then_align": ("adapt-then-align (cls only)", {"model": "adapt_then_align"}),
    "paper": ("ALT, the paper's pooled form", PAPER),
    "alt_random": ("ALT, random entities (control)", {**ALT, "identities": "scrambled"}),
    "alt": ("ALT, entity tracks read by labels", ALT),
}


@dataclass(frozen=True)
class DemoResult:
    """The finished demo: where it is, its table, and what ``alt run`` reported."""

    out: Path
    rows: list[list[str | float | None]]
    report: RunReport

    def text(self) -> str:
        """The table and the next steps, for a terminal."""
        lines = [f"{'top-1 accuracy, %':34}" + "".join(f"{name:>11}" for name in COLUMNS)]
        for name, *values in self.rows:
            lines.append(f"{name:34}" + "".join(f"{value:11.1f}" for value in values))
        lines.append(NOTE)
        lines.append(f"report: {Layout(self.out).report}")
        lines.append(f"next: alt predict VIDEO --labels FILE --run {self.out}")
        return "\n".join(lines)


def run_demo(out: Path, size: str, seed: int, say: Say, force: bool = False) -> DemoResult:
    """Draw the videos, run the pipeline, compare the models.

    Raises:
        PipelineError: an unknown size, or a package without the demo's model.
    """
    if size not in SIZES:
        raise PipelineError(
            f"--size is '{size}'{did_you_mean(size, SIZES)}; it must be one of {', '.join(SIZES)}"
        )
    if not (TINYCLIP / "open_clip_model.safetensors").is_file():
        raise PipelineError(
            f"the demo's model is missing from {TINYCLIP}; `python -m pipelines.toyworld.pretrain` makes it"
        )
    out = out.resolve()
    draw(out, size, seed, say, force)
    config = demo_config(out, size, seed)
    # Scored once, for the report and for the terminal, and only when all models are trained.
    rows = cache(lambda: comparison(config, Layout(out)))
    report = run_pipeline(config, say, force, tables=lambda *_: [results_table(rows())])
    return DemoResult(out, rows(), report)


def draw(out: Path, size: str, seed: int, say: Say, force: bool = False) -> None:
    """Videos, lists, captions, lexicon and tagger; what is there already stays."""
    from pipelines.progress import bar
    from pipelines.toyworld.lexicon import write_nltk_data
    from pipelines.toyworld.videos import write_videos

    if not (out / "nltk_data").is_dir():
        write_nltk_data(out / "nltk_data")
    with bar("drawing videos") as advance:
        count = write_videos(out / "videos", seed, SIZES[size]["videos"], progress=advance, force=force)
    say(f"videos: {count} drawn, with labels, captions and a small lexicon")


def demo_config(out: Path, size: str, seed: int, inputs: bool = True) -> PipelineConfig:
    """The demo as a config of ``alt run``; the resolved file lies in the demo's folder."""
    videos = out / "videos"
    sizes = SIZES[size]
    adapters: dict[str, Any] = {}
    for name, (_, options) in MODELS.items():
        trained = options["model"] != "mean_pool"
        epochs = {"epochs": sizes["epochs"], "seed": seed} if trained else {}
        adapters[name] = {"labels": "seen", **COMMON, **options, **epochs}
        if trained:
            few = {"epochs": sizes["few_epochs"], "seed": seed, "shots": SHOTS}
            adapters[f"{name}-{SHOTS}shot"] = {"labels": "seen", **COMMON, **options, **few}
    raw = {
        "out": str(out),
        "model": f"local-dir:{TINYCLIP}",
        "nltk_data": str(out / "nltk_data"),
        "corpus": {
            "labels": str(videos / "all.txt"),
            "captions": str(videos / "captions.txt"),
            "taggers": "nltk",
            # The tiny CLIP knows six parts of a body, and the captions name them.
            "body_parts": False,
        },
        "labels": {
            "seen": {"file": str(videos / "labels.txt")},
            "unseen": {"file": str(videos / "unseen.txt")},
        },
        "alignments": {"videos": str(videos / "manifest.csv"), "frames": 8, "merge": MERGE, "top_k": 8},
        "adapters": adapters,
        "evaluations": [
            {"name": "test", "labels": "seen", "split": "test"},
            {
                "name": "zeroshot",
                "labels": "unseen",
                "split": "zeroshot",
                "blend": BLEND,
                "adapters": list(MODELS),
            },
        ],
        "report": {"adapter": "alt", "evaluation": "test", "videos": 24},
    }
    return check_config(raw, out, inputs=inputs)


def comparison(config: PipelineConfig, layout: Layout) -> list[list[str | float | None]]:
    """Rows of the table: model, all data, few-shot, zero-shot, temporal order; in percent."""
    scores = read_scores(config, layout)
    rows: list[list[str | float | None]] = []
    for name, (title, _) in MODELS.items():
        few = scores.get(f"{name}-{SHOTS}shot", scores[name])
        parts = (scores[name]["test"], few["test"], scores[name]["zeroshot"])
        rows.append([title, *(100 * part["top1"] for part in parts), 100 * order_accuracy(layout, name)])
    return rows


def results_table(rows: list[list[str | float | None]]) -> Any:
    """The rows as the report's table."""
    from pipelines.gather import Table

    rounded = [[title, *(round(float(value or 0), 1) for value in values)] for title, *values in rows]
    return Table("Results", ["model", *COLUMNS], rounded, f"Top-1 accuracy in %. {NOTE}")


def order_accuracy(layout: Layout, adapter: str, split: str = "test") -> float:
    """Share of reversible test videos whose label has a higher logit than the same motion played backwards."""
    from adapter.dataset import select
    from adapter.evaluate import open_all, score, split_videos
    from pipelines.toyworld.vocabulary import reversed_label

    opened = open_all(layout.run(adapter), layout.alignments, layout.labels("seen"))
    samples = select(opened.alignments, split_videos(opened.alignments, split), opened.labels).samples
    names = list(opened.labels.labels)
    partner = [names.index(other) if (other := reversed_label(name)) in names else -1 for name in names]
    pairs = [sample for sample in samples if partner[sample.label] >= 0]
    scores = score(opened, pairs)
    right = scores.logits[range(len(pairs)), scores.truth]
    wrong = scores.logits[range(len(pairs)), [partner[int(truth)] for truth in scores.truth]]
    return float((right > wrong).mean())
