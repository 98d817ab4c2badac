"""Command line of the aligner; options only, the work is in run.py and verify.py."""

import json
import os
from dataclasses import asdict, fields
from pathlib import Path
from typing import Annotated, Any

import typer

from aligner import __version__
from aligner.cli_slurm import app as slurm_app
from aligner.cli_store import app as store_app
from aligner.config import EXIT_NOT_DONE, AlignConfig, AlignerError, array_share, parse_merge
from aligner.options import AsJson, Commands, Folder, Quiet, RetryPoisoned, VideoSeconds, Workers, errors

app = typer.Typer(
    cls=Commands,
    help="Align the regions of video frames with the entities of a corpus, once, for a frozen CLIP.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
)

Videos = Annotated[
    str,
    typer.Option(
        help="Folder of videos (CLASS/clip.mp4 gives labels), tars, folders of pictures; a tar or pattern of tars; "
        "an address (s3://...); or a manifest csv, parquet, jsonl or txt."
    ),
]
FrameRate = Annotated[float, typer.Option(help="Frames a second of folders of pictures.")]
Corpus = Annotated[
    Path, typer.Option(help="Corpus folder from `corpus-builder build`, made with the same model.")
]
Model = Annotated[str, typer.Option(help="open_clip model: ViT-B-16, hf-hub:ORG/REPO or local-dir:FOLDER.")]
Pretrained = Annotated[
    str | None, typer.Option(help="Weights of a built-in model: a tag, a file, or `none` for random weights.")
]
Out = Annotated[Path, typer.Option(help="Alignments folder to write; an unfinished one is continued.")]
Root = Annotated[str | None, typer.Option(help="Folder or address that video ids are relative to.")]
OutsideRoot = Annotated[
    bool, typer.Option("--allow-outside-root", help="Let a manifest name videos outside the root.")
]
AllowChanged = Annotated[
    bool,
    typer.Option(
        "--allow-changed-videos",
        help="Go on though planned videos were removed or changed; redo their shards.",
    ),
]
Frames = Annotated[int, typer.Option(help="Frames per view of a video.")]
Sampled = Annotated[
    str,
    typer.Option(
        help="Which frames: uniform (the middle of equal segments), tsn (a random place in each) or dense "
        "(neighbours, --stride apart)."
    ),
]
Draws = Annotated[int, typer.Option(help="Random draws of tsn, each a view.")]
Stride = Annotated[
    int | None,
    typer.Option(help="Frames of the video from one frame of dense to the next.", show_default=False),
]
Clips = Annotated[int, typer.Option(help="Clips of uniform or dense, evenly placed, each a view.")]
Crops = Annotated[int, typer.Option(help="Crops of each clip, each a view: 1, or 3 along the longer side.")]
Seed = Annotated[int, typer.Option(help="Seed of the random draws of tsn.")]
Colours = Annotated[
    str, typer.Option(help="Mean and deviation of colours: model (its weights' own), clip or imagenet.")
]
Merge = Annotated[
    Any,
    typer.Option(
        parser=parse_merge,
        metavar="N|auto",
        help="Token pairs merged in every encoder block; 0 keeps all patches, auto scales with their number.",
    ),
]
TopK = Annotated[int, typer.Option(help="Entities stored per region.")]
Proportional = Annotated[
    bool,
    typer.Option(
        "--proportional-attention/--no-proportional-attention",
        help="Let merged tokens count by their size in attention.",
    ),
]
Dense = Annotated[
    str, typer.Option(help="Attention of the regions in the last block: none (the model's), value or self.")
]
Precision = Annotated[str, typer.Option(help="Arithmetic of the encoder: fp32, bf16 or fp16.")]
Preprocess = Annotated[
    str, typer.Option(help="Where pictures are cut to size: cpu (in the decoders) or device (after them).")
]
Compile = Annotated[bool, typer.Option("--compile", help="Compile the encoder with torch.compile.")]
Store = Annotated[
    str, typer.Option(help="Embeddings to keep: fp16, int8 (half the bytes) or topk (of frames alone).")
]
PerShard = Annotated[int, typer.Option(help="Videos per shard, the unit of resuming.")]
BatchFrames = Annotated[
    int | None,
    typer.Option(
        help="Frames in a forward pass, across videos (default: one video's, on a GPU 256); "
        "kept as the folder was begun.",
        show_default=False,
    ),
]
Grace = Annotated[
    float, typer.Option(help="Time that SIGTERM or SIGUSR1 leaves to finish the shard at hand.")
]
Processes = Annotated[
    Any,
    typer.Option(
        parser=parse_merge,
        metavar="N|auto",
        help="Processes that share the shards; auto is one per GPU, on Ray as many as fit.",
    ),
]
Launcher = Annotated[str, typer.Option(help="Where these processes run: local (this machine) or ray.")]
RayAddress = Annotated[
    str | None,
    typer.Option(help="Ray cluster (default: RAY_ADDRESS, a running one, else one of this machine)."),
]
RayCpus = Annotated[int, typer.Option(help="Processor cores that a process on Ray asks for.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")]
Force = Annotated[bool, typer.Option("--force", help="Start over in an existing alignments folder.")]


def _config(options: dict[str, Any], **changes: Any) -> AlignConfig:
    """The settings among a command's options."""
    names = {field.name for field in fields(AlignConfig)}
    return AlignConfig(**{name: value for name, value in options.items() if name in names} | changes)


def _refuse_absent(config: AlignConfig) -> None:
    """A mistyped path is told before torch is imported, which takes seconds."""
    from aligner.artifact import checked_manifest
    from aligner.corpus import CONTRACT
    from aligner.plan import refuse_absent

    refuse_absent(str(config.videos))
    checked_manifest(config.corpus, CONTRACT)


def _warn(warnings: list[str]) -> None:
    for text in warnings:
        typer.echo(f"warning: {text}", err=True)


def _version(asked: bool) -> bool:
    if asked:
        typer.echo(f"aligner {__version__}")
        raise typer.Exit
    return asked


@app.callback()
def main(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Align the regions of video frames with the entities of a corpus, once, for a frozen CLIP."""


@app.command()
def run(
    videos: Videos,
    corpus: Corpus,
    model: Model,
    out: Out,
    pretrained: Pretrained = None,
    frames: Frames = AlignConfig.frames,
    sampling: Sampled = AlignConfig.sampling,
    draws: Draws = AlignConfig.draws,
    stride: Stride = AlignConfig.stride,
    clips: Clips = AlignConfig.clips,
    crops: Crops = AlignConfig.crops,
    seed: Seed = AlignConfig.seed,
    colours: Colours = AlignConfig.colours,
    merge: Merge = AlignConfig.merge,
    top_k: TopK = AlignConfig.top_k,
    num_shards: Annotated[
        int | None, typer.Option(help="Processes that share the work (default: a SLURM array's, else 1).")
    ] = None,
    shard_index: Annotated[int | None, typer.Option(help="Which of them this one is, from 0.")] = None,
    shards: Annotated[
        str | None, typer.Option(help="Just these shards, such as 3,7-9, in place of a share.")
    ] = None,
    proportional_attention: Proportional = AlignConfig.proportional_attention,
    dense: Dense = AlignConfig.dense,
    precision: Precision = AlignConfig.precision,
    store: Store = AlignConfig.store,
    preprocess: Preprocess = AlignConfig.preprocess,
    compile: Compile = AlignConfig.compile,
    videos_per_shard: PerShard = AlignConfig.videos_per_shard,
    batch_frames: BatchFrames = AlignConfig.batch_frames,
    frame_rate: FrameRate = AlignConfig.frame_rate,
    videos_root: Root = None,
    allow_outside_root: OutsideRoot = False,
    allow_changed_videos: AllowChanged = False,
    device: Device = AlignConfig.device,
    decode_workers: Workers = AlignConfig.decode_workers,
    video_seconds: VideoSeconds = AlignConfig.video_seconds,
    retry_poisoned: RetryPoisoned = False,
    grace_seconds: Grace = AlignConfig.grace_seconds,
    processes: Processes = AlignConfig.processes,
    launcher: Launcher = AlignConfig.launcher,
    ray_address: RayAddress = AlignConfig.ray_address,
    ray_cpus: RayCpus = AlignConfig.ray_cpus,
    force: Force = False,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Plan, decode, encode, match and write all shards that are not done yet.

    Run the same command again to continue after an interruption. Exit codes: 0 done, 2 done with failed
    videos (see `aligner status`), 75 stopped by a signal (requeue the job), 1 not done.
    """
    with errors():
        if shards is not None and (num_shards is not None or shard_index is not None):
            raise AlignerError("give either --shards, or --num-shards and --shard-index")
        share = (1, 0) if shards else array_share(num_shards, shard_index, dict(os.environ))
        config = _config(locals(), num_shards=share[0], shard_index=share[1])
        _refuse_absent(config)
        from aligner.run import run_and_report

        raise typer.Exit(run_and_report(config, quiet=quiet, as_json=as_json))


@app.command()
def plan(
    videos: Videos,
    corpus: Annotated[Path | None, typer.Option(help="Corpus folder; not needed with --dry-run.")] = None,
    model: Annotated[str | None, typer.Option(help="open_clip model; not needed with --dry-run.")] = None,
    out: Annotated[Path | None, typer.Option(help="Alignments folder; not needed with --dry-run.")] = None,
    pretrained: Pretrained = None,
    frames: Frames = AlignConfig.frames,
    sampling: Sampled = AlignConfig.sampling,
    draws: Draws = AlignConfig.draws,
    stride: Stride = AlignConfig.stride,
    clips: Clips = AlignConfig.clips,
    crops: Crops = AlignConfig.crops,
    seed: Seed = AlignConfig.seed,
    colours: Colours = AlignConfig.colours,
    merge: Merge = AlignConfig.merge,
    top_k: TopK = AlignConfig.top_k,
    proportional_attention: Proportional = AlignConfig.proportional_attention,
    dense: Dense = AlignConfig.dense,
    precision: Precision = AlignConfig.precision,
    store: Store = AlignConfig.store,
    preprocess: Preprocess = AlignConfig.preprocess,
    compile: Compile = AlignConfig.compile,
    videos_per_shard: PerShard = AlignConfig.videos_per_shard,
    batch_frames: BatchFrames = AlignConfig.batch_frames,
    frame_rate: FrameRate = AlignConfig.frame_rate,
    videos_root: Root = None,
    allow_outside_root: OutsideRoot = False,
    allow_changed_videos: AllowChanged = False,
    device: Device = AlignConfig.device,
    force: Force = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only count and estimate; write nothing.")
    ] = False,
    probe: Annotated[
        int, typer.Option(help="With --dry-run: videos to decode and encode, for an estimate of time.", min=0)
    ] = 0,
    decode_workers: Workers = AlignConfig.decode_workers,
    as_json: AsJson = False,
) -> None:
    """Write the plan and the manifest only, for example before many processes start; or grow the plan.

    `--device` is that of the runs, for the size of a forward pass; with `cuda` no GPU needs to be here.
    `--dry-run` prints how many videos, shards and bytes there are, and which files were ignored; with --model and
    --corpus also what the shards will take on disk, and with `--probe N` how long it will take on --device.
    """
    with errors():
        if dry_run:
            _dry_run(locals())
            return
        if corpus is None or model is None or out is None:
            raise AlignerError("aligner plan needs --corpus, --model and --out (or --dry-run to only count)")
        config = _config(locals())
        _refuse_absent(config)
        from aligner.run import prepare, warnings_of

        job = prepare(config, only_plan=True)
        _warn(warnings_of(job))
        _print_counts(job.plan.counts(), as_json)


def _dry_run(options: dict[str, Any]) -> None:
    """``plan --dry-run``: counts; sizes where model and corpus are known; times where a probe is asked for."""
    from aligner.plan import make_plan

    names = ("videos", "videos_per_shard", "videos_root", "allow_outside_root", "frame_rate")
    counted = make_plan(*(options[name] for name in names))
    _warn(counted.warnings())
    told = counted.counts()
    lines: list[str] = []
    if options["model"] is not None and options["corpus"] is not None:
        from aligner.estimate import dry_run

        more, lines = dry_run(_config(options, out=AlignConfig.out), options["probe"])
        told |= more
    elif options["probe"]:
        raise AlignerError("--probe needs --model and --corpus: it encodes and matches what it decodes")
    _print_counts(told, options["as_json"])
    if lines and not options["as_json"]:
        typer.echo("\n".join(lines))


@app.command()
def check_videos(
    videos: Annotated[str, typer.Argument(help="As for `run --videos`.", show_default=False)],
    report: Annotated[
        Path | None, typer.Option("--out", help="Also write a report: .csv, .parquet or .json.")
    ] = None,
    deep: Annotated[bool, typer.Option("--deep", help="Decode every frame, not only the first.")] = False,
    decode_workers: Annotated[int, typer.Option(min=1, help="Files that are read at the same time.")] = 2,
    video_seconds: Annotated[
        float, typer.Option(min=0.1, help="Give up a video that takes longer to read.")
    ] = 60.0,
    frame_rate: FrameRate = AlignConfig.frame_rate,
    videos_root: Root = None,
    allow_outside_root: OutsideRoot = False,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Probe all videos before a long run: codecs, sizes, durations, and which files are broken and why.

    The report can serve as a manifest (`--videos REPORT --videos-root VIDEOS`) that knows durations. Exit
    codes: 0 all good, 2 some are bad, 1 not done.
    """
    with errors():
        from aligner.plan import make_plan
        from aligner.probe import check_and_report

        code = check_and_report(
            make_plan(videos, 1, videos_root, allow_outside_root, frame_rate),
            report,
            deep=deep,
            workers=decode_workers,
            limit_s=video_seconds,
            quiet=quiet,
            as_json=as_json,
        )
        raise typer.Exit(code)


@app.command()
def status(out: Folder, as_json: AsJson = False) -> None:
    """Shards by state, failures by stage and error, and the time that is left."""
    with errors():
        from aligner.verify import status as read_status

        found = read_status(out)
    typer.echo(json.dumps(asdict(found), indent=2) if as_json else "\n".join(found.lines()))


@app.command()
def verify(out: Folder, as_json: AsJson = False) -> None:
    """Check hashes, checksums, schema, numbers and coverage; exit 1 with every problem listed."""
    with errors():
        from aligner.verify import verify as find_problems

        problems = find_problems(out)
    if as_json:
        typer.echo(json.dumps({"problems": problems}, indent=2))
    else:
        typer.echo("\n".join(problems) if problems else "ok", err=bool(problems))
    raise typer.Exit(EXIT_NOT_DONE if problems else 0)


@app.command()
def inspect(
    out: Folder,
    video_id: Annotated[str | None, typer.Argument(help="A video, to list its regions.")] = None,
    top: Annotated[int, typer.Option(help="Entities to show per region.")] = 3,
    regions: Annotated[int, typer.Option(help="Largest regions to show per frame.")] = 5,
    as_json: AsJson = False,
) -> None:
    """What an alignments folder holds; with a video, its regions and their entities."""
    with errors():
        from aligner.verify import region_lines, summary

        if video_id is None:
            lines = summary(out)
            typer.echo(json.dumps(lines, indent=2) if as_json else "\n".join(lines))
            return
        found = region_lines(out, video_id, top, regions)
    if as_json:
        typer.echo(json.dumps([asdict(line) for line in found], indent=2))
        return
    for line in found:
        names = ", ".join(f"{name} {score:.3f}" for name, score in line.entities)
        place = "whole frame" if line.region == 0 else f"region {line.region:3d} ({line.patches:3d} patches)"
        view = f"view {line.view}  " if found[-1].view else ""
        typer.echo(f"{view}{line.frame:3d}  {line.time_s:8.2f} s  {place:26s}  {names}")


def _print_counts(counts: dict[str, Any], as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps(counts, indent=2))
        return
    ignored = ", ".join(f"{n} {kind}" for kind, n in counts["ignored"].items()) or "none"
    typer.echo(
        f"{counts['videos']} videos ({counts['bytes'] / 1e6:.1f} MB, {counts['missing']} missing, "
        f"{counts['labels']} labels) in {counts['shards']} shards; ignored files: {ignored}; "
        f"ignored columns: {', '.join(counts['ignored_columns']) or 'none'}"
    )


app.add_typer(slurm_app, name="slurm")
app.add_typer(store_app)
