"""Videos to shards: prepare an alignments folder, then fill it shard by shard.

A shard is a pure function of plan, settings, model and corpus (engine.py), so a process may be killed at any
moment and run again, and the shards come out with the same bytes as if nothing had happened.
"""

import json
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import torch

from aligner import artifact, config, corpus, decode, encoder, launch, match, plan
from aligner.config import AlignConfig, AlignerError, ChangedSettings
from aligner.engine import Job, Stop, Stopped, fill
from aligner.pixels import RESIZER
from aligner.progress import Progress, make_progress
from aligner.views import Sampling, view_table

FEW_REGIONS = 4

VIEW_SETTINGS = ("sampling", "draws", "stride", "clips", "crops", "seed")

# Passes of fewer frames leave a GPU idle.
FULL_PASS = 64

Loaded = tuple[torch.nn.Module, dict[str, Any]]
"""A model in memory and its ModelInfo, as ``encoder.load_clip`` gives them."""


@dataclass
class AlignReport:
    """What a run did: ``planned == ok + failed`` once all shards of this process are done."""

    out: str
    shards: int
    skipped_shards: int = 0
    done_shards: int = 0
    planned: int = 0
    ok: int = 0
    failed: int = 0
    stopped: bool = False
    lost_processes: int = 0
    given_up: dict[int, str] = field(default_factory=dict)
    failures_by_stage: dict[str, int] = field(default_factory=dict)
    ignored_files: dict[str, int] = field(default_factory=dict)
    ignored_columns: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def complete(self) -> bool:
        """Whether every shard of this process is done."""
        return self.skipped_shards + self.done_shards == self.shards

    @property
    def exit_code(self) -> int:
        """0 done, 2 done with failed videos, 75 stopped by a signal, 1 not done."""
        if not self.complete:
            return config.EXIT_REQUEUE if self.stopped else config.EXIT_NOT_DONE
        return config.EXIT_DONE_WITH_FAILURES if self.failed else config.EXIT_DONE

    def count(self, counts: dict[str, Any]) -> None:
        """Add the counts of a finished shard."""
        self.planned += counts["planned"]
        self.ok += counts["ok"]
        self.failed += counts["failed"]
        stages = Counter(self.failures_by_stage) + Counter(counts["stages"])
        self.failures_by_stage = dict(sorted(stages.items()))

    def sentence(self) -> str:
        """For people."""
        if not self.complete:
            done = self.done_shards + self.skipped_shards
            given_up = "; ".join(f"shard {shard}: {how}" for shard, how in sorted(self.given_up.items()))
            how = "stopped" if self.stopped else f"given up: {given_up}"
            return f"{how}; {done} of {self.shards} shards done; run again to go on"
        work = f"{self.done_shards} shards in {self.seconds:.1f} s" if self.done_shards else "nothing to do"
        stages = ", ".join(f"{stage} {n}" for stage, n in self.failures_by_stage.items())
        failed = f"{self.failed} failed ({stages}; see `aligner status`)" if self.failed else "0 failed"
        return f"{work}: {self.planned} videos, {self.ok} ok, {failed}"

    def to_dict(self) -> dict[str, Any]:
        """For ``--json``."""
        return asdict(self) | {"complete": self.complete, "exit_code": self.exit_code}


def counts_of(out: Path, shard: int, marker: dict[str, Any]) -> dict[str, Any]:
    """What a finished shard adds to a report: videos ``planned``, ``ok`` and ``failed``, these by ``stages``."""
    stages = Counter(row["stage"] for row in artifact.failures_of(out, shard, marker))
    return marker["counts"] | {"stages": dict(stages)}


# Preparing.


def prepare(settings: AlignConfig, only_plan: bool = False, loaded: Loaded | None = None) -> Job:
    """Plan the videos, load model and corpus, and write or reuse the manifest of the alignments folder.

    With ``only_plan`` nothing will be computed: the device is that of other processes, perhaps on other machines.
    ``loaded`` is the settings' model where the caller has it in memory already.

    Raises:
        ChangedSettings: the folder was begun with other settings, and ``force`` is not set.
        AlignerError: anything else that does not fit together, or a folder that is not ours.
    """
    if settings.force and settings.shares_work:
        raise AlignerError(
            "--force in one of several processes would delete the others' work; run `aligner plan --force`"
        )
    job, entities = load(settings, only_plan, loaded)
    videos, manifest = _publish(settings, job.plan, entities, job.manifest)
    return replace(job, plan=videos, manifest=manifest)


def load(
    settings: AlignConfig, only_plan: bool = False, loaded: Loaded | None = None
) -> tuple[Job, corpus.Corpus]:
    """Plan the videos, load model and corpus, write nothing; the manifest holds what these settings decide.

    Raises:
        AlignerError: what is given does not fit together.
    """
    found = plan.make_plan(
        settings.videos,
        settings.videos_per_shard,
        settings.videos_root,
        settings.allow_outside_root,
        settings.frame_rate,
    )
    entities, tower, matcher, content = _load(settings, only_plan, loaded)
    return Job(settings, found, tower, matcher, content), entities


def join(settings: AlignConfig, root: Path | str, urls: dict[str, str], fingerprint: str) -> Job:
    """The job of a folder that another process has prepared, for a worker of a launcher; nothing is written.

    The plan is that of the folder: what was put beside the videos meanwhile is nobody's until the next run.

    Raises:
        AlignerError: the folder is not there, or not the one that was prepared.
    """
    try:
        manifest = artifact.read_manifest(settings.out)
    except AlignerError as error:
        raise AlignerError(f"{error} (every process must see this folder under the same path)") from None
    if manifest["fingerprint"] != fingerprint:
        raise AlignerError(f"{settings.out} is not the folder that was prepared, or another run changed it")
    _, tower, matcher, content = _load(settings)
    content["config"]["frames_per_pass"] = manifest["config"].get("frames_per_pass")
    _refuse_changes(settings.out, manifest, content)
    begun = _begun_plan(settings.out, manifest, allow_changed=False)
    videos = replace(begun, root=root, urls=urls, frame_rate=settings.frame_rate)
    return Job(settings, videos, tower, matcher, manifest)


def _load(
    settings: AlignConfig, only_plan: bool = False, loaded: Loaded | None = None
) -> tuple[corpus.Corpus, encoder.ClipRegionEncoder, match.Matcher, dict[str, Any]]:
    """The corpus, the model on its device, the matcher, and what the manifest says of them."""
    entities = corpus.load_corpus(settings.corpus)
    clip, model_info = loaded or encoder.load_clip(settings.model, settings.pretrained)
    corpus.check_model(entities, model_info)
    return entities, *fit_together(settings, entities, clip, model_info, only_plan)


def fit_together(
    settings: AlignConfig,
    entities: corpus.Corpus,
    clip: torch.nn.Module,
    model_info: dict[str, Any],
    only_plan: bool = False,
) -> tuple[encoder.ClipRegionEncoder, match.Matcher, dict[str, Any]]:
    """The tower on its device, the matcher of the entities, and what the manifest says of them.

    Raises:
        AlignerError: a tower that cannot be taken apart, or settings that do not fit it.
    """
    asked = pick_device(settings.device, must_exist=not only_plan)
    device = torch.device("cpu") if only_plan else asked
    tower = encoder.ClipRegionEncoder(
        clip,
        settings.merge,
        proportional_attention=settings.proportional_attention,
        dense=settings.dense,
        precision=settings.precision,
        compiled=settings.compile,
        device=device,
    )
    if tower.regions == 1 < tower.patches:
        raise AlignerError(
            f"--merge {settings.merge} leaves one region of {tower.patches} patches, the frame itself, so there would "
            "be nothing to align but frames; use a smaller --merge for this model, or --merge auto"
        )
    matcher = match.Matcher(torch.tensor(entities.embeddings, device=device), settings.top_k)
    pixels = encoder.preprocess_config(clip)
    return tower, matcher, _manifest_content(settings, entities, tower, model_info, pixels, asked)


def pick_device(name: str, must_exist: bool = True) -> torch.device:
    """The torch device; ``auto`` is a GPU where there is one."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise AlignerError(f"--device must be auto, cpu, cuda or cuda:N, got {name!r}") from error
    if must_exist and device.type == "cuda" and not torch.cuda.is_available():
        raise AlignerError(f"--device {name}: no usable GPU here; use --device cpu")
    return device


def frames_per_pass(settings: AlignConfig, device: torch.device) -> int:
    """Frames in one forward pass of a folder that is begun now."""
    usual = config.GPU_PASS if device.type == "cuda" else settings.frames
    return settings.batch_frames or usual


def _manifest_content(
    settings: AlignConfig,
    entities: corpus.Corpus,
    tower: encoder.ClipRegionEncoder,
    model_info: dict[str, Any],
    pixels: dict[str, Any],
    device: torch.device,
) -> dict[str, Any]:
    size = pixels["size"]
    mean, std = encoder.colours(settings.colours, pixels)
    if settings.crops > 1 and pixels["resize_mode"] != "shortest":
        raise AlignerError(
            f"--crops {settings.crops}: the model takes whole frames (resize_mode {pixels['resize_mode']}), of which "
            "nothing overhangs; use --crops 1"
        )
    byte_config = {
        "frames": settings.frames,
        "merge": tower.merge,
        "proportional_attention": settings.proportional_attention,
        "dense": settings.dense,
        "top_k": settings.top_k,
        **{name: getattr(settings, name) for name in VIEW_SETTINGS},
        "decoder": decode.DECODER,
        "image_size": [size, size] if isinstance(size, int) else list(size),
        "colours": settings.colours,
        "mean": list(mean),
        "std": list(std),
        "interpolation": pixels["interpolation"],
        "resize_mode": pixels["resize_mode"],
        "precision": settings.precision,
        "store": settings.store,
        "preprocess": RESIZER if settings.preprocess == "cpu" else settings.preprocess,
        "compile": settings.compile,
        "fill_color": pixels.get("fill_color", 0),
        "frames_per_pass": frames_per_pass(settings, device),
        "videos_per_shard": settings.videos_per_shard,
        "frame_rate": settings.frame_rate,
    }
    return {
        "config": byte_config,
        "inputs": {"corpus": {"fingerprint": entities.fingerprint}},
        "model": model_info,
        "grid": list(tower.grid),
        "patches": tower.patches,
        "regions": tower.regions,
        "dim": tower.dim,
        "top_k": settings.top_k,
        "frames": settings.frames,
        "views": view_table(Sampling.of(byte_config), settings.crops),
        "corpus": {
            "fingerprint": entities.fingerprint,
            "entities": len(entities.names),
            "model": entities.model,
        },
    }


def _publish(
    settings: AlignConfig, found: plan.Plan, entities: corpus.Corpus, content: dict[str, Any]
) -> tuple[plan.Plan, dict[str, Any]]:
    """Plan and manifest: those in ``out`` if they say the same, grown by new videos, or written anew."""
    out = settings.out
    artifact.refuse_foreign(out)
    # One of several processes cannot know whether another is writing such a file right now.
    if not settings.shares_work:
        artifact.remove_start_leftovers(out)
    if (out / artifact.MANIFEST).is_file() and not settings.force:
        return _continue(settings, found, content)
    out.mkdir(parents=True, exist_ok=True)
    # Never without --force: tasks of an array may all be at this point at the same moment.
    if settings.force:
        artifact.start_over(out)
    artifact.write_bytes(out / artifact.ENTITIES, entities.entities_file.read_bytes())
    return found, _write_plan(out, found, content)


def _continue(
    settings: AlignConfig, found: plan.Plan, content: dict[str, Any]
) -> tuple[plan.Plan, dict[str, Any]]:
    """The plan that was begun, grown by new videos if there are any."""
    out = settings.out
    manifest = artifact.read_manifest(out)
    # Kept as begun: it may change the last bits, and is no reason to refuse.
    content["config"]["frames_per_pass"] = manifest["config"].get("frames_per_pass")
    _refuse_changes(out, manifest, content)
    before = _begun_plan(out, manifest, settings.allow_changed_videos)
    videos = plan.grow(found, before, settings.videos_per_shard, settings.allow_changed_videos)
    same = (videos.items, videos.num_shards) == (before.items, before.num_shards)
    if same and not artifact.damaged_files(out, manifest):
        return videos, manifest
    if settings.shares_work:
        raise AlignerError(
            f"the plan in {out} has to grow by {len(videos.items) - len(before.items)} videos, and one of "
            "several processes must not do that; run `aligner plan` with the same options once, then all again"
        )
    return videos, _write_plan(out, videos, content)


def _begun_plan(out: Path, manifest: dict[str, Any], allow_changed: bool) -> plan.Plan:
    """The plan in ``out``; a kill between plan and manifest leaves a plan that is ahead of its manifest.

    Raises:
        AlignerError: the entity table is damaged, or the plan is and not merely ahead.
    """
    problems = [text for text in artifact.damaged_files(out, manifest) if artifact.VIDEOS not in text]
    if not problems:
        table = artifact.read_videos(out)
        known = table.filter(pc.less(table["shard"], manifest["num_shards"]))
        if allow_changed or artifact.shard_fingerprints(manifest, known) == manifest["shard_fingerprints"]:
            return plan.Plan(Path(), plan.items_of(known), manifest["num_shards"])
        problems = artifact.damaged_files(out, manifest) or [f"{artifact.MANIFEST} does not fit the plan"]
    # Shards beside a damaged plan or entity table would be of no use to anybody.
    raise AlignerError(f"{out} is damaged: {'; '.join(problems)}. Give --force to start over")


def _write_plan(out: Path, videos: plan.Plan, content: dict[str, Any]) -> dict[str, Any]:
    """Write videos.parquet and, last, the manifest; the entity table is there already."""
    table = plan_table(videos)
    artifact.write_table(out / artifact.VIDEOS, table)
    fingerprint = artifact.table_sha256(table.drop_columns(["seconds"]))
    planned = {
        "inputs": content["inputs"] | {"videos": {"fingerprint": fingerprint}},
        "counts": videos.counts() | {"views": len(content["views"])},
        "num_shards": videos.num_shards,
        "videos": len(table),
    }
    entities = content["corpus"]["entities"]
    manifest = artifact.make_manifest(out, rows=len(table), entities=entities, content=content | planned)
    artifact.write_json(out / artifact.MANIFEST, manifest)
    return manifest


def plan_table(videos: plan.Plan) -> pa.Table:
    """The plan as written to videos.parquet."""
    columns = dict(zip(plan.VideoItem._fields, zip(*videos.items, strict=True), strict=True))
    arrays = [pa.array(columns[field.name], field.type) for field in artifact.VIDEOS_SCHEMA]
    return pa.Table.from_arrays(arrays, schema=artifact.VIDEOS_SCHEMA)


def _refuse_changes(out: Path, manifest: dict[str, Any], content: dict[str, Any]) -> None:
    wanted = {"package": artifact.PACKAGE, "schema_version": artifact.SCHEMA_VERSION, **content}
    changed = []
    for section in ("package", "schema_version", "config", "model"):
        changed += _differences(section, manifest[section], wanted[section])
    changed += _differences("corpus", manifest["inputs"].get("corpus"), content["inputs"]["corpus"])
    if changed:
        listed = "\n  ".join(changed)
        raise ChangedSettings(
            f"{out} was begun with other settings:\n  {listed}\nGive another --out, or --force to start over"
        )


def _differences(key: str, had: Any, wanted: Any) -> list[str]:
    if isinstance(had, dict) and isinstance(wanted, dict):
        names = sorted(had.keys() | wanted.keys())
        return [
            line for name in names for line in _differences(f"{key}.{name}", had.get(name), wanted.get(name))
        ]
    return [] if had == wanted else [f"{key}: got {wanted!r}, expected {had!r}"]


# Running.


def run(
    settings: AlignConfig,
    display: Callable[[int], Progress] = lambda total: Progress(),
    warn: Callable[[str], object] = lambda text: None,
    loaded: Loaded | None = None,
) -> AlignReport:
    """Fill all shards of this process, and of those it starts, that are not done yet.

    ``display`` makes a progress display for a number of videos; ``warn`` is told before the work begins. ``loaded`` is
    the settings' model where the caller has it in memory already, for programs that align one video after another.

    Raises:
        AlignerError: see ``prepare``. Bad videos raise nothing; they become failure rows and are counted.
    """
    start = time.monotonic()
    with launch.pool_of(settings) as pool:
        job = prepare(launch.planning(settings, pool)) if pool else prepare(settings, loaded=loaded)
        report, todo = _survey(job, pool is not None and pool.gpu)
        for text in report.warnings:
            warn(text)
        videos = sum(len(job.plan.shard(shard)) for shard in todo)
        work = partial(_launch, pool, launch.task_of(job, settings), warn) if pool else partial(_fill, job)
        del job  # with a pool the model is the workers' to hold
        if todo:
            with stop_signals(settings.grace_seconds) as stop, display(videos) as progress:
                work(todo, report, progress, stop)
    report.seconds = round(time.monotonic() - start, 3)
    return report


def _survey(job: Job, gpu: bool) -> tuple[AlignReport, list[int]]:
    """A report of what is done already, and the shards that are not."""
    out, shards = job.config.out, job.my_shards()
    if job.config.retry_poisoned:
        for shard in shards:
            artifact.forget_poison(out, shard)
    report, todo = AlignReport(out.name, len(shards)), []
    for shard in shards:
        state, marker = artifact.look_at(out, shard, job.fingerprint(shard))
        if marker and state == "done":
            report.skipped_shards += 1
            report.count(counts_of(out, shard, marker))
        else:
            todo.append(shard)
    report.ignored_files = job.plan.ignored
    report.ignored_columns = list(job.plan.ignored_columns)
    report.warnings = warnings_of(job, gpu)
    return report, todo


def warnings_of(job: Job, gpu: bool = False) -> list[str]:
    """What a user should know before a long run, which ``gpu`` says happens on GPUs, wherever the job is now."""
    warnings = job.plan.warnings()
    if job.manifest["regions"] < FEW_REGIONS:
        warnings.append(
            f"--merge {job.config.merge} leaves {job.manifest['regions']} regions of "
            f"{job.manifest['patches']} patches; use a smaller --merge for this model, or --merge auto"
        )
    size = job.frames_per_pass
    gpu = gpu or job.matcher.entities.device.type == "cuda"
    if gpu and size < min(FULL_PASS, job.config.batch_frames or size + 1):
        warnings.append(
            f"the folder was begun with passes of {size} frames, few for a GPU; begin it with --batch-frames "
            f"{config.GPU_PASS} (or on a GPU) to be faster"
        )
    if job.manifest["model"]["random_weights"]:
        warnings.append(
            "the model has random weights (--pretrained none): embeddings and entities mean nothing"
        )
    return warnings


def _fill(job: Job, todo: list[int], report: AlignReport, progress: Progress, stop: Stop) -> None:
    """In this process."""
    try:
        for shard, marker in fill(job, todo, progress, stop):
            report.count(counts_of(job.config.out, shard, marker))
            report.done_shards += 1
    except Stopped:
        report.stopped = True


def _launch(
    pool: launch.Pool,
    task: launch.Message,
    warn: Callable[[str], object],
    todo: list[int],
    report: AlignReport,
    progress: Progress,
    stop: Stop,
) -> None:
    """By the workers of a pool; progress goes by shards."""

    def done(shard: int, counts: dict[str, Any]) -> None:
        report.count(counts)
        report.done_shards += 1
        for place in range(counts["planned"]):
            progress.advance(place < counts["ok"])

    work = launch.Launch(pool, task, todo, stop)
    try:
        work.run(done, warn)
    except Stopped:
        report.stopped = True
    report.lost_processes = work.lost
    report.given_up = work.schedule.given_up


@contextmanager
def stop_signals(grace_s: float) -> Iterator[Stop]:
    """Listen to a scheduler's SIGTERM and SIGUSR1, which leave a grace time, and to Ctrl-C, which does not.

    Only the main thread may listen.
    """
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    grace = {"SIGTERM": grace_s, "SIGUSR1": grace_s, "SIGINT": 0.0}
    known = {getattr(signal, name): seconds for name, seconds in grace.items() if hasattr(signal, name)}
    before = {number: signal.signal(number, lambda got, _: stop.ask(known[got])) for number in known}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def run_shard(
    job: Job, shard: int, progress: Progress | None = None, stop: Stop | None = None
) -> dict[str, Any]:
    """Write one shard, its failures and its marker; the same bytes whenever and wherever it runs.

    Raises:
        Stopped: ``stop`` was asked for; nothing of this shard is left behind.
    """
    ((_, marker),) = fill(job, [shard], progress or Progress(), stop or Stop())
    return marker


def run_and_report(settings: AlignConfig, quiet: bool, as_json: bool) -> int:
    """``aligner run``: progress and warnings on stderr, the result on stdout; returns the exit code."""
    report = run(
        settings,
        lambda total: make_progress(total, quiet),
        lambda text: sys.stderr.write(f"warning: {text}\n"),
    )
    sys.stdout.write((json.dumps(report.to_dict(), indent=2) if as_json else report.sentence()) + "\n")
    return report.exit_code
