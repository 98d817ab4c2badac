"""``alt predict`` on the command line; the work is in ``predict.py``."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from pipelines.errors import PipelineError
from pipelines.options import EXIT_DONE, EXIT_DONE_WITH_FAILURES, AsJson, Quiet, errors, say

_WITHOUT = "Without a run"


def predict_cli(
    videos: Annotated[
        list[Path], typer.Argument(help="Video files, folders of them, or lists (txt, csv, jsonl, parquet).")
    ],
    labels: Annotated[
        Path | None, typer.Option(help="File of labels to choose from (txt, csv, json).")
    ] = None,
    label: Annotated[
        list[str] | None,
        typer.Option(help="A label, typed; repeatable, or several with commas between them."),
    ] = None,
    run: Annotated[
        str | None,
        typer.Option(help="Out folder of `alt run` or `alt demo`, one of its runs/NAME, or hf://OWNER/NAME."),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            help="Instead of a run, any open_clip model: ViT-B-16, hf-hub:ORG/REPO or local-dir:FOLDER.",
            rich_help_panel=_WITHOUT,
        ),
    ] = None,
    pretrained: Annotated[
        str | None, typer.Option(help="Its weights: a tag or a file.", rich_help_panel=_WITHOUT)
    ] = None,
    entities: Annotated[
        str,
        typer.Option(
            help="What regions are aligned with: labels (things mined from them) or none (the labels as they are).",
            rich_help_panel=_WITHOUT,
        ),
    ] = "labels",
    frames: Annotated[
        int, typer.Option(min=1, help="Frames of a video or window.", rich_help_panel=_WITHOUT)
    ] = 8,
    nltk_data: Annotated[
        Path | None,
        typer.Option(help="NLTK data folder to read first, for mining.", rich_help_panel=_WITHOUT),
    ] = None,
    device: Annotated[
        str, typer.Option(help="auto, cpu, cuda or cuda:N.", rich_help_panel=_WITHOUT)
    ] = "auto",
    window: Annotated[
        float | None,
        typer.Option(help="Predict every so many seconds of a long video, and write its timeline."),
    ] = None,
    stride: Annotated[
        float | None, typer.Option(help="Seconds from one window's start to the next. Default: the window.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder for predictions and timeline (csv, json) and report.html.")
    ] = None,
    label_column: Annotated[
        str | None, typer.Option(help="Column of the labels in a csv with several.")
    ] = None,
    topk: Annotated[int, typer.Option("--top", help="Labels to list for each video.")] = 5,
    max_mb: Annotated[float, typer.Option(help="Size of the report at most, in MB.")] = 20.0,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Predict the action in your own videos among your own labels.

    With --run by a trained adapter, whose labels yours need not be; with --model zero-shot, without any training. Exit
    codes: 0 done, 2 done but some videos could not be read, 1 not done.
    """
    with errors():
        from pipelines.hub import local
        from pipelines.predict import as_table, as_timeline, predict_videos
        from pipelines.windows import Windows, timeline
        from pipelines.zero_shot import ZeroShot

        if stride is not None and window is None:
            raise PipelineError(f"--stride {stride:g} is for --window; give --window SECONDS as well")
        if pretrained is not None and model is None:
            raise PipelineError(f"--pretrained {pretrained} is for --model; a run knows its own weights")
        windows = Windows(window, stride) if window is not None else None
        found = predict_videos(
            videos,
            _labels(labels, label),
            None if run is None else local(run),
            out,
            label_column,
            topk,
            say(quiet),
            zero_shot=ZeroShot(model, pretrained, entities, frames, device, nltk_data)
            if model is not None
            else None,
            windows=windows,
            max_mb=max_mb,
        )
    if as_json:
        typer.echo(json.dumps([asdict(item) for item in found], ensure_ascii=False))
    else:
        typer.echo(as_table(found, topk))
        if windows:
            typer.echo("\n" + as_timeline(timeline(found)))
    raise typer.Exit(EXIT_DONE_WITH_FAILURES if any(item.error for item in found) else EXIT_DONE)


def _labels(file: Path | None, typed: list[str] | None) -> Path | list[str]:
    if file is not None and typed:
        raise PipelineError("give the labels once: --labels FILE, or --label for each")
    if file is None:
        if not typed:
            raise PipelineError(
                "no labels given; --labels FILE names a file, --label 'riding a bicycle' types one"
            )
        return [part for text in typed for part in text.split(",")]
    if not file.is_file():
        raise PipelineError(f"there is no label file {file}; labels are typed with --label '{file}'")
    return file
