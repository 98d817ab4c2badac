"""``alt predict``: one's own videos through a trained run, from files to a table, a file and a report."""

import csv
import json
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from pipelines.config import PipelineConfig, check_config, inputs_only
from pipelines.errors import PipelineError
from pipelines.workflow import CONFIG_FILE, Layout, Say, refuse_foreign

OWN = frozenset(
    "alignments labels videos.csv predictions.parquet predictions.json predictions.csv explanations.json "
    "report.html".split()
)


@dataclass(frozen=True)
class Prediction:
    """Best labels of one video with their probabilities; ``error`` instead when it could not be read."""

    video: str
    labels: list[str]
    probabilities: list[float]
    error: str | None = None


@dataclass(frozen=True)
class Source:
    """What a prediction needs of an earlier ``alt run``: its config, its folder and one of its adapters."""

    config: PipelineConfig
    layout: Layout
    adapter: str


def find_source(run: Path) -> Source:
    """The pipeline folder that a run belongs to, and the run's adapter; ``run`` is as in ``find_pipeline``.

    Raises:
        PipelineError: no trained run there, or one that ``alt run`` did not make.
    """
    config, layout = find_pipeline(run)
    return Source(config, layout, _adapter_name(run, layout.root, config))


def find_pipeline(run: Path) -> tuple[PipelineConfig, Layout]:
    """Config and folder of an earlier ``alt run``; ``run`` is ``OUT/runs/NAME``, or ``OUT`` itself.

    Raises:
        PipelineError: no such folder.
    """
    for root in (run, *run.parents[:2]):
        if (root / CONFIG_FILE).is_file():
            raw = yaml.safe_load((root / CONFIG_FILE).read_text(encoding="utf-8"))
            return check_config(raw, root, CONFIG_FILE, inputs=False), Layout(root)
    raise PipelineError(
        f"--run {run} has no {CONFIG_FILE} beside or above it; give the --out folder of an `alt run` or `alt demo`, "
        "or one of its runs/NAME. With stages run by hand, use `aligner run` and `adapter predict`"
    )


def _adapter_name(run: Path, root: Path, config: PipelineConfig) -> str:
    # Beside those of the config there may be one that `alt finetune` made.
    names = dict.fromkeys([*config.adapters, *sorted(path.name for path in (root / "runs").glob("*"))])
    trained = [name for name in names if (Layout(root).run(name) / "manifest.json").is_file()]
    if not trained:
        raise PipelineError(f"{root} holds no trained adapter; `alt run {root / CONFIG_FILE}` trains one")
    if run == root:
        return config.report.adapter if config.report and config.report.adapter in trained else trained[0]
    if run.name not in trained:
        raise PipelineError(f"--run {run} is not a trained adapter; there are {', '.join(trained)}")
    return run.name


def predict_videos(
    videos: Sequence[Path],
    labels: Path,
    run: Path,
    out: Path | None = None,
    label_column: str | None = None,
    topk: int = 5,
    say: Say = lambda line: None,
) -> list[Prediction]:
    """Predict the action in each video among the labels of a file.

    Videos are files or folders of videos. ``out`` (a folder) receives ``predictions.json``, ``predictions.csv``,
    ``report.html`` and the artifacts behind them; without it they are thrown away.

    Raises:
        PipelineError: no video, or a run that cannot be used.
    """
    if topk < 1:
        raise PipelineError(f"--topk is {topk}; it must be at least 1")
    source = find_source(run.resolve())
    files = _video_files(videos)
    if out is None:
        with tempfile.TemporaryDirectory(prefix="alt-predict-") as folder:
            return _predict(files, labels, source, Path(folder), label_column, topk, say, report=False)
    refuse_foreign(out, OWN)
    out.mkdir(parents=True, exist_ok=True)
    return _predict(files, labels, source, out.resolve(), label_column, topk, say, report=True)


def _video_files(videos: Sequence[Path]) -> list[Path]:
    from aligner.plan import VIDEO_EXTENSIONS

    files: list[Path] = []
    for path in videos:
        if path.is_dir():
            found = sorted(p for p in path.rglob("*") if p.suffix.lower() in VIDEO_EXTENSIONS)
            if not found:
                raise PipelineError(
                    f"{path} holds no video; known endings are {', '.join(sorted(VIDEO_EXTENSIONS))}"
                )
            files += found
        else:
            # A file that is missing or unreadable becomes a row with its reason, so that one of many stops nothing.
            files.append(path)
    if not files:
        raise PipelineError("no videos given; name files or folders")
    return list(dict.fromkeys(file.resolve() for file in files))


def _predict(
    files: list[Path],
    labels: Path,
    source: Source,
    work: Path,
    label_column: str | None,
    topk: int,
    say: Say,
    report: bool,
) -> list[Prediction]:
    from adapter.evaluate import predict
    from aligner.artifact import all_failures
    from pipelines import stages

    layout = Layout(work)
    config = _own_config(files, labels, source, work, label_column)
    say(f"labels: {stages.build_labels(config, config.labels['own'], layout.labels('own'))}")
    say(f"videos: {stages.align(config, layout, source.layout.corpus)}")
    table = work / "predictions.parquet"
    names = _names(files)
    failed = {row["video_id"]: f"{row['stage']}: {row['message']}" for row in all_failures(layout.alignments)}
    rows: dict[str, Any] = {}
    run = source.layout.run(source.adapter)
    if len(failed) < len(files):
        predict(run, layout.alignments, layout.labels("own"), table, topk, device=config.device)
        import pyarrow.parquet as pq

        rows = {row["video_id"]: row for row in pq.read_table(table).to_pylist()}
    found = [_prediction(str(file), names[file], rows, failed) for file in files]
    _write(found, work)
    if report and rows:
        say(f"report: {stages.write_predictions_report(config, run, layout, table)}")
    return found


def _own_config(
    files: list[Path], labels: Path, source: Source, work: Path, label_column: str | None
) -> PipelineConfig:
    """The source's config with the user's videos and labels in place of its own."""
    manifest = work / "videos.csv"
    root = _common_root(files)
    with manifest.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["path"])
        writer.writerows([name] for name in _names(files).values())
    raw = inputs_only(source.config)
    raw["out"] = str(work)
    raw["labels"] = {"own": {"file": str(labels.resolve()), "label_column": label_column}}
    templates = next(iter(source.config.labels.values())).templates
    if templates:
        raw["labels"]["own"]["templates"] = templates
    raw["alignments"] |= {"videos": str(manifest), "videos_root": str(root)}
    for key in ("protocols", "splits", "launcher"):
        raw["alignments"].pop(key, None)
    return check_config(raw, work, inputs=False)


def _common_root(files: list[Path]) -> Path:
    """The deepest folder above all files: video ids are relative to it."""
    root = files[0].parent
    while not all(file.is_relative_to(root) for file in files):
        root = root.parent
    return root


def _names(files: list[Path]) -> dict[Path, str]:
    root = _common_root(files)
    return {file: file.relative_to(root).as_posix() for file in files}


def _prediction(path: str, video_id: str, rows: dict[str, Any], failed: dict[str, str]) -> Prediction:
    if video_id in rows:
        row = rows[video_id]
        return Prediction(path, list(row["topk_label"]), [float(p) for p in row["topk_prob"]])
    return Prediction(path, [], [], failed.get(video_id, "not predicted"))


def _write(found: list[Prediction], work: Path) -> None:
    (work / "predictions.json").write_text(
        json.dumps([vars(item) for item in found], indent=2, ensure_ascii=False) + "\n", encoding="utf-8"
    )
    with (work / "predictions.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["video", "rank", "label", "probability", "error"])
        for item in found:
            ranked = enumerate(zip(item.labels, item.probabilities, strict=True), start=1)
            writer.writerows([item.video, rank, label, f"{p:.6f}", ""] for rank, (label, p) in ranked)
            if item.error:
                writer.writerow([item.video, "", "", "", item.error])
