"""Videos to shards: prepare an alignments folder, then fill it shard by shard.

A shard is a pure function of plan, settings, model and corpus. It is written under a temporary name,
checked, renamed, and its marker comes last; so a process may be killed at any moment and run again, and the
shards come out with the same bytes as if nothing had happened.
"""

import json
import signal
import sys
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from PIL import Image
from torch import Tensor

from aligner import artifact, config, corpus, decode, encoder, match, plan, regions
from aligner.config import AlignConfig, AlignerError, ChangedSettings
from aligner.progress import Progress, make_progress

FEW_REGIONS = 4


class Stopped(Exception):
    """SIGTERM or SIGINT asked for a clean stop; the shard at hand is given up."""


@dataclass(frozen=True)
class Job:
    """Everything a shard needs: settings, plan, model, corpus and the manifest that they agree on."""

    config: AlignConfig
    plan: plan.Plan
    encoder: encoder.RegionEncoder
    matcher: match.Matcher
    manifest: dict[str, Any]

    @property
    def schema(self) -> pa.Schema:
        """Schema of the shards."""
        return artifact.schema_of(self.manifest)

    def fingerprint(self, shard: int) -> str:
        """What the marker of a shard carries."""
        return artifact.shard_fingerprint(self.manifest, shard)

    def my_shards(self) -> list[int]:
        """Shards of this process."""
        return list(range(self.config.shard_index, self.plan.num_shards, self.config.num_shards))


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
        """0 done, 2 done with failed videos, 1 not done."""
        if not self.complete:
            return config.EXIT_NOT_DONE
        return config.EXIT_DONE_WITH_FAILURES if self.failed else config.EXIT_DONE

    def count(self, out: Path, shard: int, marker: dict[str, Any]) -> None:
        """Add the counts of a finished shard."""
        self.planned += marker["counts"]["planned"]
        self.ok += marker["counts"]["ok"]
        self.failed += marker["counts"]["failed"]
        stages = Counter(row["stage"] for row in artifact.read_failures(out, shard))
        self.failures_by_stage = dict(sorted((Counter(self.failures_by_stage) + stages).items()))

    def sentence(self) -> str:
        """For people."""
        if not self.complete:
            done = self.done_shards + self.skipped_shards
            return f"stopped: {done} of {self.shards} shards done; run again to go on"
        work = f"{self.done_shards} shards in {self.seconds:.1f} s" if self.done_shards else "nothing to do"
        stages = ", ".join(f"{stage} {n}" for stage, n in self.failures_by_stage.items())
        failed = f"{self.failed} failed ({stages}; see `aligner status`)" if self.failed else "0 failed"
        return f"{work}: {self.planned} videos, {self.ok} ok, {failed}"

    def to_dict(self) -> dict[str, Any]:
        """For ``--json``."""
        return asdict(self) | {"complete": self.complete, "exit_code": self.exit_code}


# Preparing.


def prepare(settings: AlignConfig) -> Job:
    """Plan the videos, load model and corpus, and write or reuse the manifest of the alignments folder.

    Raises:
        ChangedSettings: the folder was begun with other settings, and ``force`` is not set.
        AlignerError: anything else that does not fit together, or a folder that is not ours.
    """
    if settings.force and settings.num_shards > 1:
        raise AlignerError(
            "--force in one of several processes would delete the others' work; run `aligner plan --force`"
        )
    found = plan.make_plan(
        settings.videos,
        settings.videos_per_shard,
        settings.videos_root,
        settings.allow_outside_root,
        settings.frame_rate,
    )
    entities = corpus.load_corpus(settings.corpus)
    clip, model_info = encoder.load_clip(settings.model, settings.pretrained)
    corpus.check_model(entities, model_info)
    device = pick_device(settings.device)
    tower = encoder.ClipRegionEncoder(
        clip,
        settings.merge,
        proportional_attention=settings.proportional_attention,
        dense=settings.dense,
        precision=settings.precision,
        device=device,
    )
    matcher = match.Matcher(torch.tensor(entities.embeddings, device=device), settings.top_k)
    content = _manifest_content(settings, entities, tower, model_info, encoder.preprocess_config(clip))
    videos, manifest = _publish(settings, found, entities, content)
    return Job(settings, videos, tower, matcher, manifest)


def pick_device(name: str) -> torch.device:
    """The torch device; ``auto`` is a GPU where there is one."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise AlignerError(f"--device must be auto, cpu, cuda or cuda:N, got {name!r}") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise AlignerError(f"--device {name}: no usable GPU here; use --device cpu")
    return device


def frames_per_pass(settings: AlignConfig) -> int:
    """Frames in one forward pass of the encoder.

    A pass never holds frames of two videos: the shape of a matrix product may change its last bits, so a
    video's bytes would hang on its neighbours and on the batch size. ``--batch-frames`` only splits videos
    of more frames.
    """
    return min(settings.batch_frames, settings.frames)


def _manifest_content(
    settings: AlignConfig,
    entities: corpus.Corpus,
    tower: encoder.ClipRegionEncoder,
    model_info: dict[str, Any],
    pixels: dict[str, Any],
) -> dict[str, Any]:
    size = pixels["size"]
    byte_config = {
        "frames": settings.frames,
        "merge": tower.merge,
        "proportional_attention": settings.proportional_attention,
        "dense": settings.dense,
        "top_k": settings.top_k,
        "sampling": config.SAMPLING,
        "decoder": decode.DECODER,
        "image_size": [size, size] if isinstance(size, int) else list(size),
        "mean": list(pixels["mean"]),
        "std": list(pixels["std"]),
        "interpolation": pixels["interpolation"],
        "resize_mode": pixels["resize_mode"],
        "precision": settings.precision,
        "frames_per_pass": frames_per_pass(settings),
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
    if settings.num_shards == 1:
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
    _refuse_changes(out, manifest, content)
    before = _begun_plan(out, manifest, settings.allow_changed_videos)
    videos = plan.grow(found, before, settings.videos_per_shard, settings.allow_changed_videos)
    if plan_table(videos).equals(plan_table(before)) and not artifact.damaged_files(out, manifest):
        return videos, manifest
    if settings.num_shards > 1:
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
            items = tuple(plan.VideoItem(**row) for row in known.to_pylist())
            return plan.Plan(Path(), items, manifest["num_shards"])
        problems = artifact.damaged_files(out, manifest) or [f"{artifact.MANIFEST} does not fit the plan"]
    # Shards beside a damaged plan or entity table would be of no use to anybody.
    raise AlignerError(f"{out} is damaged: {'; '.join(problems)}. Give --force to start over")


def _write_plan(out: Path, videos: plan.Plan, content: dict[str, Any]) -> dict[str, Any]:
    """Write videos.parquet and, last, the manifest; the entity table is there already."""
    table = plan_table(videos)
    artifact.write_table(out / artifact.VIDEOS, table)
    rows = table.drop_columns(["seconds"]).to_pylist()
    planned = {
        "inputs": content["inputs"] | {"videos": {"fingerprint": artifact.canonical_sha256(rows)}},
        "counts": videos.counts(),
        "num_shards": videos.num_shards,
        "videos": len(table),
    }
    entities = content["corpus"]["entities"]
    manifest = artifact.make_manifest(out, rows=len(table), entities=entities, content=content | planned)
    artifact.write_json(out / artifact.MANIFEST, manifest)
    return manifest


def plan_table(videos: plan.Plan) -> pa.Table:
    """The plan as written to videos.parquet."""
    return pa.Table.from_pylist([vars(item) for item in videos.items], schema=artifact.VIDEOS_SCHEMA)


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
) -> AlignReport:
    """Fill all shards of this process that are not done yet.

    ``display`` makes a progress display for a number of videos; ``warn`` is told before the work begins.

    Raises:
        AlignerError: see ``prepare``. Bad videos raise nothing; they become failure rows and are counted.
    """
    start = time.monotonic()
    job = prepare(settings)
    shards = job.my_shards()
    states = {shard: artifact.shard_state(settings.out, shard, job.fingerprint(shard)) for shard in shards}
    todo = [shard for shard in shards if states[shard] != "done"]
    report = AlignReport(settings.out.name, len(shards), len(shards) - len(todo))
    report.ignored_files = job.plan.ignored
    report.ignored_columns = list(job.plan.ignored_columns)
    report.warnings = warnings_of(job)
    for text in report.warnings:
        warn(text)
    for shard in set(shards) - set(todo):
        report.count(settings.out, shard, artifact.read_marker(settings.out, shard) or {})
    _fill(job, todo, report, display)
    report.seconds = round(time.monotonic() - start, 3)
    return report


def warnings_of(job: Job) -> list[str]:
    """What a user should know before a long run."""
    warnings = job.plan.warnings()
    if job.manifest["regions"] < FEW_REGIONS:
        warnings.append(
            f"--merge {job.config.merge} leaves {job.manifest['regions']} regions of "
            f"{job.manifest['patches']} patches; use a smaller --merge for this model, or --merge auto"
        )
    if job.manifest["model"]["random_weights"]:
        warnings.append(
            "the model has random weights (--pretrained none): embeddings and entities mean nothing"
        )
    return warnings


def _fill(job: Job, todo: list[int], report: AlignReport, display: Callable[[int], Progress]) -> None:
    videos = sum(len(job.plan.shard(shard)) for shard in todo)
    if not todo:
        return
    with _stop_signals() as stop, display(videos) as progress:
        for shard in todo:
            try:
                marker = run_shard(job, shard, progress, stop)
            except Stopped:
                return
            report.count(job.config.out, shard, marker)
            report.done_shards += 1


@contextmanager
def _stop_signals() -> Iterator[threading.Event]:
    """An event that SIGTERM or SIGINT sets; only the main thread may listen to signals."""
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    names = (signal.SIGTERM, signal.SIGINT)
    before = [signal.signal(name, lambda *_: stop.set()) for name in names]
    try:
        yield stop
    finally:
        for name, handler in zip(names, before, strict=True):
            signal.signal(name, handler)


def run_shard(
    job: Job, shard: int, progress: Progress | None = None, stop: threading.Event | None = None
) -> dict[str, Any]:
    """Write one shard, its failures and its marker; the same bytes whenever and wherever it runs.

    Raises:
        Stopped: ``stop`` was set; nothing of this shard is left behind.
    """
    start = time.monotonic()
    out, items = job.config.out, job.plan.shard(shard)
    artifact.remove_leftovers(out, shard)
    failures: list[artifact.Failure] = []
    target = out / artifact.shard_name(shard)
    with artifact.atomic(target) as temporary:
        with artifact.ShardWriter(temporary, job.schema) as writer:
            for item, result in _decoded(job, items):
                if stop is not None and stop.is_set():
                    raise Stopped
                rows = _encoded(job, item, result)
                if isinstance(rows, artifact.Failure):
                    failures.append(rows)
                else:
                    writer.add(item.video_id, rows)
                if progress is not None:
                    progress.advance(not isinstance(rows, artifact.Failure))
        _reopen(temporary, writer)
    failed = out / artifact.failures_name(shard)
    artifact.write_table(failed, artifact.failures_table(failures))
    marker = {
        "shard": shard,
        "fingerprint": job.fingerprint(shard),
        "rows": writer.rows,
        "bytes": target.stat().st_size,
        "sha256": artifact.file_sha256(target),
        "failures_sha256": artifact.file_sha256(failed),
        "videos": writer.index,
        "counts": {"planned": len(items), "ok": len(writer.index), "failed": len(failures)},
        "timing": {"seconds": round(time.monotonic() - start, 3)},
    }
    assert len(items) == len(writer.index) + len(failures)
    artifact.write_json(out / artifact.marker_name(shard), marker)
    return marker


def _reopen(path: Path, writer: artifact.ShardWriter) -> None:
    """Read back the footer before the file gets its name."""
    with pq.ParquetFile(path) as file:
        same = file.schema_arrow.equals(writer.schema, check_metadata=True)
        if file.metadata.num_rows != writer.rows or not same:
            raise AlignerError(f"{path.name} does not read back as written; is the disk full or failing?")


@dataclass(frozen=True)
class Clip:
    """A decoded video: preprocessed frames [T, 3, H, W] and their timestamps in seconds [T]."""

    pixels: Tensor
    times_s: np.ndarray


Decoded = Clip | artifact.Failure


def _decoded(job: Job, items: list[plan.VideoItem]) -> Iterator[tuple[plan.VideoItem, Decoded]]:
    workers = job.config.decode_workers
    with ThreadPoolExecutor(workers, thread_name_prefix="decode") as pool:
        submit = (
            (
                item,
                pool.submit(read_clip, item, job.plan.path(item), job.config.frames, job.encoder.preprocess),
            )
            for item in items
        )
        yield from _ahead(submit, workers + 1)


def _ahead(
    submit: Iterable[tuple[plan.VideoItem, Future[Decoded]]], depth: int
) -> Iterator[tuple[plan.VideoItem, Decoded]]:
    """Results in order, with at most ``depth`` videos decoded ahead."""
    waiting: deque[tuple[plan.VideoItem, Future[Decoded]]] = deque()
    try:
        for pair in submit:
            waiting.append(pair)
            if len(waiting) > depth:
                item, future = waiting.popleft()
                yield item, future.result()
        while waiting:
            item, future = waiting.popleft()
            yield item, future.result()
    finally:
        for _, future in waiting:
            future.cancel()


def read_clip(
    item: plan.VideoItem, path: Path | decode.Source, count: int, preprocess: Callable[[Image.Image], Tensor]
) -> Decoded:
    """Decode and preprocess one video exactly as open_clip prepares pictures; a bad video is a Failure."""
    try:
        frames = decode.sample_frames(path, count)
        pixels = torch.stack([preprocess(Image.fromarray(frame.rgb)) for frame in frames])
    except decode.DecodeError as error:
        return artifact.Failure(item.video_id, error.stage, error.reason, str(error))
    except Exception as error:  # whatever a damaged file provokes in FFmpeg must cost one video, not the run
        return artifact.Failure(item.video_id, "decode", type(error).__name__, type(error).__doc__ or "")
    return Clip(pixels, np.array([frame.time_s for frame in frames]))


def _encoded(job: Job, item: plan.VideoItem, clip: Decoded) -> artifact.VideoRows | artifact.Failure:
    if isinstance(clip, artifact.Failure):
        return clip
    try:
        return video_rows(job, clip)
    except torch.OutOfMemoryError as error:
        raise AlignerError("the GPU ran out of memory; use a smaller --batch-frames") from error
    except AlignerError as error:
        return artifact.Failure(item.video_id, "encode", "not_finite", str(error))


def video_rows(job: Job, clip: Clip) -> artifact.VideoRows:
    """Encode the frames of one video and match every region.

    Raises:
        AlignerError: the encoder gave NaN or infinity.
    """
    parts = [job.encoder(part) for part in clip.pixels.split(frames_per_pass(job.config))]
    embeddings = torch.cat([part.embeddings for part in parts])
    frames, tokens, dim = embeddings.shape
    norm = embeddings.norm(dim=-1)
    unit = (embeddings / norm.unsqueeze(-1)).flatten(0, 1)
    matches = job.matcher(unit)
    shape = regions.region_geometry(torch.cat([part.source for part in parts]), tokens - 1, job.encoder.grid)
    return artifact.VideoRows(
        frame_index=np.repeat(np.arange(frames, dtype=np.int32), tokens),
        time_s=np.repeat(clip.times_s, tokens),
        region_index=np.tile(np.arange(tokens, dtype=np.int16), frames),
        patches=_rows(shape.patches, np.int16),
        centroid_xy=_rows(shape.centroid_xy, np.float32),
        box_xyxy=_rows(shape.box_xyxy, np.float32),
        patch_map=_rows(shape.patch_map, np.uint8),
        topk_entity=matches.entities.cpu().numpy().astype(np.int32),
        topk_score=matches.scores.cpu().numpy(),
        embedding=unit.cpu().numpy().astype(np.float16),
        norm=_rows(norm, np.float32),
    )


def _rows(values: Tensor, dtype: Any) -> np.ndarray:
    """[frames, regions, ...] as one row per region."""
    return values.flatten(0, 1).cpu().numpy().astype(dtype)


def run_and_report(settings: AlignConfig, quiet: bool, as_json: bool) -> int:
    """``aligner run``: progress and warnings on stderr, the result on stdout; returns the exit code."""
    report = run(
        settings,
        lambda total: make_progress(total, quiet),
        lambda text: sys.stderr.write(f"warning: {text}\n"),
    )
    sys.stdout.write((json.dumps(report.to_dict(), indent=2) if as_json else report.sentence()) + "\n")
    return report.exit_code
