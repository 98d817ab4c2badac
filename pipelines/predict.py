"""``alt predict``: one's own videos through a trained run or zero-shot, from files to a table, a file and a report."""

import csv
import json
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, fields
from itertools import groupby
from pathlib import Path
from typing import Any

import yaml

from pipelines.config import PipelineConfig, check_config, inputs_only
from pipelines.errors import PipelineError
from pipelines.towers import Towers
from pipelines.windows import Action, Windows, clock, timeline, windows_of
from pipelines.workflow import CONFIG_FILE, Layout, Say, layout_of, refuse_foreign
from pipelines.zero_shot import NAME as ZERO_SHOT
from pipelines.zero_shot import ZeroShot, build_entities, zero_shot_config

OWN = frozenset(
    "alignments corpus labels runs videos.csv labels.json words.txt predictions.parquet predictions.json "
    "predictions.csv timeline.json timeline.csv explanations.json report.html".split()
)
LABELS_FILE = "labels.json"
LISTS = frozenset(".txt .csv .jsonl .parquet".split())
SHOWN = 40  # videos or windows in the report


@dataclass(frozen=True)
class Prediction:
    """Best labels of a video or of a window of it, with their probabilities; ``error`` instead if it cannot be read.

    ``start_s`` and ``end_s`` are the window's, in seconds; None where the video was looked at as a whole.
    """

    video: str
    labels: list[str]
    probabilities: list[float]
    error: str | None = None
    start_s: float | None = None
    end_s: float | None = None


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
    return Source(config, layout, _adapter_name(run, layout, config))


def find_pipeline(run: Path) -> tuple[PipelineConfig, Layout]:
    """Config and folder of an earlier ``alt run``; ``run`` is ``OUT/runs/NAME``, or ``OUT`` itself.

    Raises:
        PipelineError: no such folder.
    """
    for root in (run, *run.parents[:2]):
        if (root / CONFIG_FILE).is_file():
            raw = yaml.safe_load((root / CONFIG_FILE).read_text(encoding="utf-8"))
            return check_config(raw, root, CONFIG_FILE, inputs=False), layout_of(root)
    raise PipelineError(
        f"--run {run} has no {CONFIG_FILE} beside or above it; give the --out folder of an `alt run` or `alt demo`, "
        "or one of its runs/NAME. With stages run by hand, use `aligner run` and `adapter predict`"
    )


def _adapter_name(run: Path, layout: Layout, config: PipelineConfig) -> str:
    root = layout.root
    # Beside those of the config there may be one that `alt finetune` made.
    names = dict.fromkeys([*config.adapters, *sorted(path.name for path in (root / "runs").glob("*"))])
    trained = [name for name in names if (layout.run(name) / "manifest.json").is_file()]
    if not trained:
        raise PipelineError(f"{root} holds no trained adapter; `alt run {root / CONFIG_FILE}` trains one")
    if run == root:
        return config.report.adapter if config.report and config.report.adapter in trained else trained[0]
    if run.name not in trained:
        raise PipelineError(f"--run {run} is not a trained adapter; there are {', '.join(trained)}")
    return run.name


def predict_videos(
    videos: Sequence[Path],
    labels: Path | Sequence[str],
    run: Path | None = None,
    out: Path | None = None,
    label_column: str | None = None,
    topk: int = 5,
    say: Say = lambda line: None,
    *,
    zero_shot: ZeroShot | None = None,
    windows: Windows | None = None,
    max_mb: float = 20.0,
    report: bool = True,
    towers: Towers | None = None,
) -> list[Prediction]:
    """Predict the action in each video among some labels, with a run of ``alt run`` or an open_clip model alone.

    Videos are files, folders of videos, or lists of them (txt, csv, jsonl or parquet with a column ``path``); a name
    such as ``clip.mp4#t=10,20`` is a part of a file. ``labels`` are a file or the labels themselves. ``out`` (a folder)
    receives ``predictions.json``, ``predictions.csv``, ``report.html`` (unless ``report`` is False) and the artifacts
    behind them; without it they are thrown away. With ``windows`` every window is a prediction of its own, and
    ``timeline.json`` and ``timeline.csv`` are written. No more than a few frames of a few windows are in memory,
    however long the videos. The model is loaded once, and not at all if ``towers`` have it already.

    Raises:
        PipelineError: no video, no label, a run that cannot be used, or neither or both of ``run`` and ``zero_shot``.
    """
    if topk < 1:
        raise PipelineError(f"--top is {topk}; it must be at least 1")
    if (run is None) == (zero_shot is None):
        raise PipelineError(
            "give either --run FOLDER (of an `alt run` or `alt demo`), or --model and --pretrained for zero-shot "
            "predictions without any training, such as --model ViT-B-16 --pretrained openai"
        )
    using = zero_shot or find_source((run or Path()).resolve())
    clips = cut_clips(find_videos(videos), windows)
    if out is None:
        with tempfile.TemporaryDirectory(prefix="alt-predict-") as folder:
            asked = Asked(
                clips, labels_section(labels, label_column, Path(folder)), using, Path(folder), topk
            )
            return _predict(asked, say, towers)
    refuse_foreign(out, OWN)
    out.mkdir(parents=True, exist_ok=True)
    work = out.resolve()
    asked = Asked(
        clips, labels_section(labels, label_column, work), using, work, topk, windows, max_mb, report
    )
    return _predict(asked, say, towers)


@dataclass(frozen=True)
class Clip:
    """A video file, or one of its windows; ``video_id`` names it in the artifacts."""

    file: Path
    video_id: str
    window: tuple[float, float] | None = None


@dataclass(frozen=True)
class Asked:
    """Everything one prediction needs: what of which videos, which labels, with what, and where to."""

    clips: list[Clip]
    labels: dict[str, Any]
    using: "Source | ZeroShot"
    work: Path
    topk: int = 5
    windows: Windows | None = None
    max_mb: float = 20.0
    report: bool = False

    @property
    def root(self) -> Path:
        """Folder that the clips' ids are relative to."""
        return _common_root([clip.file for clip in self.clips])


def find_videos(videos: Sequence[Path]) -> list[Path]:
    """All video files that files, folders and lists name, each once.

    Raises:
        PipelineError: none, a folder without any, or a list that cannot be read.
    """
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
        elif path.suffix.lower() in LISTS and path.is_file():
            files += _listed(path)
        else:
            # A file that is missing or unreadable becomes a row with its reason, so that one of many stops nothing.
            files.append(path)
    if not files:
        raise PipelineError("no videos given; name files, folders or lists of files")
    return list(dict.fromkeys(file.resolve() for file in files))


def _listed(path: Path) -> list[Path]:
    from aligner.config import AlignerError
    from aligner.plan import read_manifest

    try:
        rows, _ = read_manifest(path)
    except AlignerError as error:
        raise PipelineError(f"the list of videos cannot be used: {error}") from error
    if not rows:
        raise PipelineError(f"{path} lists no video")
    return [path.parent / row.path for row in rows]


def cut_clips(files: Sequence[Path], windows: Windows | None) -> list[Clip]:
    """What is to be predicted: the files, or all windows of each; a file that cannot be read stays whole."""
    from aligner.plan import part_of
    from aligner.sources import part_name

    root = _common_root(list(files))
    clips = []
    for file in files:
        name = file.relative_to(root).as_posix()
        place, part = part_of(str(file))
        if windows is None or part is not None:
            clips.append(Clip(Path(place), name, part))
            continue
        found = windows_of(file, windows)
        clips += [Clip(file, part_name(name, *window), window) for window in found] or [Clip(file, name)]
    return clips


def labels_section(labels: Path | Sequence[str], label_column: str | None, work: Path) -> dict[str, Any]:
    """The config section of the user's labels; typed ones are put into a file."""
    if isinstance(labels, Path):
        return {"file": str(labels.resolve()), "label_column": label_column}
    names = list(dict.fromkeys(name.strip() for name in labels if name.strip()))
    if not names:
        raise PipelineError(
            "no labels given; --labels FILE names a file, --label 'riding a bicycle' types one"
        )
    file = work / LABELS_FILE
    file.write_text(json.dumps(names, ensure_ascii=False) + "\n", encoding="utf-8")
    return {"file": str(file)}


def _predict(asked: Asked, say: Say, towers: Towers | None) -> list[Prediction]:
    from adapter.evaluate import predict
    from aligner.artifact import all_failures
    from pipelines import stages

    layout, using = Layout(asked.work), asked.using
    config = own_config(asked)
    own = layout.labels("own")
    if towers is None:
        say(f"loading {config.model} {config.pretrained or ''}".rstrip())
        towers = Towers(config.model, config.pretrained, config.device)
    say(f"labels: {stages.build_labels(config, config.labels['own'], own, towers)}")
    warnings = label_warnings(config.model, own)
    for warning in warnings:
        say(f"warning: {warning}")
    if isinstance(using, ZeroShot):
        config = build_entities(config, layout, using.entities, say, towers)
    corpus = layout.corpus if isinstance(using, ZeroShot) else using.layout.corpus
    say(f"videos: {stages.align(config, layout, corpus, towers=towers)}")
    failed = {row["video_id"]: f"{row['stage']}: {row['message']}" for row in all_failures(layout.alignments)}
    rows: dict[str, Any] = {}
    table = asked.work / "predictions.parquet"
    run = _run_of(using, layout)
    if len(failed) < len(asked.clips):
        predict(run, layout.alignments, own, table, asked.topk, device=config.device)
        import pyarrow.parquet as pq

        rows = {row["video_id"]: row for row in pq.read_table(table).to_pylist()}
    found = [_prediction(clip, rows, failed) for clip in asked.clips]
    actions = timeline(found) if asked.windows else None
    _write(found, actions, asked.work)
    if asked.report and rows:
        say(f"report: {_draw(asked, config, run, actions, warnings)}")
    return found


def _run_of(using: "Source | ZeroShot", layout: Layout) -> Path:
    if not isinstance(using, ZeroShot):
        return using.layout.run(using.adapter)
    from adapter.zero_shot import write_zero_shot

    run = layout.run(ZERO_SHOT)
    write_zero_shot(layout.alignments, run, force=True)
    return run


def label_warnings(model: str, labels: Path) -> list[str]:
    """What makes predictions among these labels worth little: words that the model has never read, a single label."""
    from adapter.labels import open_labels
    from pipelines.toyworld import TINYCLIP
    from pipelines.toyworld.captions import unknown_words

    names, found = open_labels(labels).names, []
    if len(names) == 1:
        found.append(
            "there is one label alone, so its probability is 100 % whatever a video shows; give others to compare"
        )
    if model.startswith("local-dir:") and Path(model.partition(":")[2]).resolve() == TINYCLIP.resolve():
        unknown = {name: words for name in names if (words := unknown_words(name))}
        if unknown:
            named = "; ".join(f"'{name}': {', '.join(words)}" for name, words in list(unknown.items())[:5])
            found.append(
                f"the demo's tiny CLIP has never read some words of {len(unknown)} of {len(names)} labels ({named}), "
                "so what it says of them means nothing; use its own world's labels, or a real model: "
                "--model ViT-B-16 --pretrained openai"
            )
    return found


def _draw(
    asked: Asked, config: PipelineConfig, run: Path, actions: list[Action] | None, warnings: Sequence[str]
) -> str:
    from pipelines import stages

    layout, using = Layout(asked.work), asked.using
    how = f"--model {using.model}" if isinstance(using, ZeroShot) else f"--run {using.layout.root.name}"
    drawn = stages.Drawn(
        layout.alignments,
        run,
        layout.labels("own"),
        asked.work / "predictions.parquet",
        asked.root,
        layout.report,
        f"alt predict VIDEOS --labels LABELS {how} --out {asked.work.name}{_window_options(asked.windows)}",
        yaml.safe_dump(config.model_dump(mode="json", exclude_none=True), sort_keys=False),
        actions,
    )
    files = {clip.file for clip in asked.clips}
    what = next(iter(files)).name if len(files) == 1 else f"{len(files)} videos"
    title = f"{run.name} on {what}"
    return stages.draw_report(drawn, title, [], SHOWN, asked.max_mb, config.device, warnings)


def _window_options(windows: Windows | None) -> str:
    if windows is None:
        return ""
    stride = "" if windows.stride is None else f" --stride {windows.stride:g}"
    return f" --window {windows.seconds:g}{stride}"


def own_config(asked: Asked) -> PipelineConfig:
    """The source's config, or one for zero-shot, with the user's videos and labels in place of its own."""
    work, using, labels = asked.work, asked.using, dict(asked.labels)
    manifest = work / "videos.csv"
    with manifest.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "seconds"])
        writer.writerows([clip.video_id, _seconds(clip)] for clip in asked.clips)
    if isinstance(using, ZeroShot):
        return zero_shot_config(using, labels, manifest, asked.root, work)
    raw = inputs_only(using.config)
    raw["out"] = str(work)
    raw["labels"] = {"own": labels}
    templates = next(iter(using.config.labels.values())).templates
    if templates:
        raw["labels"]["own"]["templates"] = templates
    raw["alignments"] |= {"videos": str(manifest), "videos_root": str(asked.root)}
    for key in ("protocols", "splits", "launcher"):
        raw["alignments"].pop(key, None)
    return check_config(raw, work, inputs=False)


def _seconds(clip: Clip) -> float | None:
    return None if clip.window is None else round(clip.window[1] - clip.window[0], 3)


def _common_root(files: list[Path]) -> Path:
    """The deepest folder above all files: video ids are relative to it."""
    root = files[0].parent
    while not all(file.is_relative_to(root) for file in files):
        root = root.parent
    return root


def _prediction(clip: Clip, rows: dict[str, Any], failed: dict[str, str]) -> Prediction:
    path, window = str(clip.file), clip.window or (None, None)
    if clip.video_id in rows:
        row = rows[clip.video_id]
        return Prediction(path, list(row["topk_label"]), [float(p) for p in row["topk_prob"]], None, *window)
    return Prediction(path, [], [], failed.get(clip.video_id, "not predicted"), *window)


def _write(found: list[Prediction], actions: list[Action] | None, work: Path) -> None:
    _write_json(work / "predictions.json", [vars(item) for item in found])
    rows: list[list[Any]] = []
    for item in found:
        place = [item.video, item.start_s, item.end_s]
        ranked = enumerate(zip(item.labels, item.probabilities, strict=True), start=1)
        rows += [[*place, rank, label, f"{p:.6f}", ""] for rank, (label, p) in ranked]
        rows += [[*place, "", "", "", item.error]] if item.error else []
    _write_csv(
        work / "predictions.csv", ["video", "start_s", "end_s", "rank", "label", "probability", "error"], rows
    )
    for name in ("timeline.json", "timeline.csv"):
        (work / name).unlink(missing_ok=True)
    if actions is not None:
        _write_json(work / "timeline.json", [action.to_json() for action in actions])
        columns = [field.name for field in fields(Action)]
        _write_csv(work / "timeline.csv", columns, [list(vars(action).values()) for action in actions])


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _write_csv(path: Path, columns: list[str], rows: list[list[Any]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        writer.writerows(rows)


def as_table(found: Sequence[Prediction], shown: int = 3) -> str:
    """Predictions as text in columns: video, its window if there are any, and the best labels with probabilities."""
    timed = any(item.start_s is not None for item in found)
    root = _common_root([Path(item.video) for item in found])
    rows = []
    for item in found:
        name = Path(item.video).relative_to(root).as_posix()
        when = (
            ""
            if item.start_s is None or item.end_s is None
            else f"{clock(item.start_s)} - {clock(item.end_s)}"
        )
        best = [f"{p:4.0%}  {label}" for label, p in zip(item.labels, item.probabilities, strict=True)][
            :shown
        ]
        rows.append(
            [name, *([when] if timed else []), *([f"not read: {item.error}"] if item.error else best)]
        )
    return in_columns(rows)


def as_timeline(actions: Sequence[Action]) -> str:
    """A timeline as text, under the name of each video."""
    parts = []
    for video, members in groupby(actions, key=lambda action: action.video):
        rows = [
            [f"  {clock(one.start_s)} - {clock(one.end_s)}", f"{one.probability:4.0%}  {one.label}"]
            for one in members
        ]
        parts.append(f"{Path(video).name}\n{in_columns(rows)}")
    return "\n".join(parts)


def in_columns(rows: Sequence[Sequence[str]]) -> str:
    """Rows of texts, every column as wide as its longest, the last as it is."""
    widths = [max(len(row[at]) for row in rows if at < len(row) - 1) for at in range(max(map(len, rows)) - 1)]
    return "\n".join(
        "  ".join([*(text.ljust(width) for text, width in zip(row[:-1], widths, strict=False)), row[-1]])
        for row in rows
    )
