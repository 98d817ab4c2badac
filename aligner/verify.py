"""Looking at an alignments folder without changing it: status, verification, one video's regions."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Int64

from aligner import artifact
from aligner.config import AlignerError

# fp16 rounds a unit vector's length by less than 1e-3.
UNIT_TOLERANCE = 2e-3


@dataclass(frozen=True)
class Status:
    """How far a run is: shards by state, videos, failures by stage and error, seconds left."""

    shards: dict[str, int]
    videos: dict[str, int]
    failures: dict[str, int]
    seconds_left: float | None

    @property
    def complete(self) -> bool:
        """Whether all shards are done."""
        return set(self.shards) <= {"done"}

    def lines(self) -> list[str]:
        """For people."""
        counts = ", ".join(f"{n} {state}" for state, n in self.shards.items())
        videos = self.videos
        lines = [
            f"shards: {counts}",
            f"videos: {videos['planned']} planned, {videos['ok']} ok, {videos['failed']} failed",
        ]
        lines += [f"  failed at {what}: {n}" for what, n in self.failures.items()]
        if self.seconds_left is not None and not self.complete:
            left = videos["planned"] - videos["ok"] - videos["failed"]
            pace = f", at {left / self.seconds_left:.2f} videos/s" if self.seconds_left else ""
            lines.append(f"about {self.seconds_left:.0f} s left for one process{pace}")
        return lines


def status(out: Path) -> Status:
    """Read manifest and markers.

    Raises:
        AlignerError: not an alignments folder.
    """
    manifest = artifact.read_manifest(out)
    begun = artifact.begun_shards(out)
    states, videos, failures = Counter[str](), Counter[str](), Counter[str]()
    seconds = timed = 0.0
    for shard in range(manifest["num_shards"]):
        state, marker = artifact.look_at(out, shard, artifact.shard_fingerprint(manifest, shard))
        states["running" if state == "todo" and shard in begun else state] += 1
        if marker is None or state != "done":
            continue
        videos.update(marker["counts"])
        failures.update(
            f"{row['stage']} ({row['error']})" for row in artifact.failures_of(out, shard, marker)
        )
        if (spent := artifact.read_timings(out, shard).get("seconds")) is not None:
            seconds, timed = seconds + spent, timed + marker["counts"]["planned"]
    done = {"planned": manifest["videos"], "ok": videos["ok"], "failed": videos["failed"]}
    # At the pace of the shards whose timings are known.
    left = (done["planned"] - done["ok"] - done["failed"]) * seconds / timed if timed else None
    return Status(dict(sorted(states.items())), done, dict(sorted(failures.items())), left)


def verify(out: Path) -> list[str]:
    """Every problem found in an alignments folder, one sentence each; empty when it is whole.

    Raises:
        AlignerError: not an alignments folder, or a manifest that cannot be read.
    """
    manifest = artifact.read_manifest(out)
    if problems := check_manifest(out, manifest):
        return problems
    return [f"shard {shard}: {text}" for shard, problems in check_shards(out, manifest) for text in problems]


def check_shards(out: Path, manifest: dict[str, Any]) -> Iterator[tuple[int, list[str]]]:
    """Every shard with the problems that were found in it; manifest and plan are taken to be whole."""
    planned: dict[int, list[str]] = {shard: [] for shard in range(manifest["num_shards"])}
    for row in artifact.read_videos(out).select(["video_id", "shard"]).to_pylist():
        planned[row["shard"]].append(row["video_id"])
    for shard, videos in planned.items():
        yield shard, _check_shard(out, shard, videos, manifest)


def check_manifest(out: Path, manifest: dict[str, Any]) -> list[str]:
    """Problems of the manifest, the plan and the entity table, without which shards mean nothing."""
    problems = artifact.damaged_files(out, manifest)
    if artifact.manifest_fingerprint(manifest) != manifest["fingerprint"]:
        problems.append("manifest.json was changed: its fingerprint does not fit its content")
    listed = manifest.get("shard_fingerprints")
    if not problems and listed not in (
        None,
        artifact.shard_fingerprints(manifest, artifact.read_videos(out)),
    ):
        problems.append("manifest.json was changed: its shard_fingerprints do not fit the plan")
    return problems


def _check_shard(out: Path, shard: int, planned: list[str], manifest: dict[str, Any]) -> list[str]:
    marker = artifact.read_whole_marker(out, shard)
    if marker is None:
        damaged = "its marker is damaged" if (out / artifact.marker_name(shard)).exists() else "not done"
        return [f"{damaged}; run `aligner run` again"]
    if marker["fingerprint"] != artifact.shard_fingerprint(manifest, shard):
        return ["its marker belongs to other settings or other videos; run `aligner run` again"]
    rows, failures = out / artifact.shard_name(shard), out / artifact.failures_name(shard)
    hashes = {rows: marker["sha256"], failures: marker["failures_sha256"]}
    problems = []
    for file, wanted in hashes.items():
        if not file.is_file():
            problems.append(f"{file.name} is missing")
        elif artifact.file_sha256(file) != wanted:
            problems.append(f"{file.name} was changed or damaged (sha256 differs from the marker)")
    if problems:
        return problems + _damage(rows)
    try:
        return _check_coverage(out, shard, planned, marker) + _check_rows(rows, marker, manifest)
    except (AlignerError, pa.ArrowException, OSError) as error:
        return [f"it cannot be read: {str(error).splitlines()[0]}"]


def _check_coverage(out: Path, shard: int, planned: list[str], marker: dict[str, Any]) -> list[str]:
    failed = [row["video_id"] for row in artifact.read_failures(out, shard)]
    if sorted([*marker["videos"], *failed]) == sorted(planned):
        return []
    return [f"{len(marker['videos'])} ok and {len(failed)} failed videos do not cover the plan"]


def _damage(rows: Path) -> list[str]:
    """Where a file that is not as it was can no longer be read, by its page checksums."""
    if not rows.is_file():
        return []
    try:
        pq.read_table(rows, page_checksum_verification=True)
    except (pa.ArrowException, OSError) as error:
        return [f"{rows.name} cannot be read: {str(error).splitlines()[0]}"]
    return []


def _check_rows(path: Path, marker: dict[str, Any], manifest: dict[str, Any]) -> list[str]:
    with pq.ParquetFile(path, page_checksum_verification=True) as file:
        if not file.schema_arrow.equals(artifact.schema_of(manifest), check_metadata=True):
            return ["its schema is not the one of the manifest"]
        if file.metadata.num_rows != marker["rows"]:
            return [f"{file.metadata.num_rows} rows, the marker says {marker['rows']}"]
        problems = []
        for group in range(file.metadata.num_row_groups):
            table = file.read_row_group(group)
            here = {video: place for video, place in marker["videos"].items() if place["row_group"] == group}
            if sum(place["rows"] for place in here.values()) != len(table):
                problems.append(f"row group {group} does not end on a video boundary")
            for video, place in here.items():
                rows = table.slice(place["offset"], place["rows"])
                problems += [f"{video}: {text}" for text in check_video(video, rows, manifest)]
    return problems


def check_video(video: str, rows: pa.Table, manifest: dict[str, Any]) -> list[str]:
    """Problems in the rows of one video."""
    tokens = manifest["regions"] + 1
    frames = manifest["frames"] * artifact.view_count(manifest)
    if set(rows["video_id"].to_pylist()) != {video} or len(rows) != frames * tokens:
        return [f"expected {frames * tokens} rows of this video"]
    problems = []
    order = (rows["frame_index"].to_numpy() + _views(rows) * manifest["frames"]) * tokens
    if not np.array_equal(order + rows["region_index"].to_numpy(), np.arange(frames * tokens)):
        problems.append("rows are not in order of view, frame and region")
    if not (rows["patches"].to_numpy().reshape(frames, tokens).sum(1) == manifest["patches"]).all():
        problems.append(f"the regions of a frame do not sum to {manifest['patches']} patches")
    return problems + _check_vectors(rows) + _check_matches(rows, manifest["corpus"]["entities"])


def _check_vectors(rows: pa.Table) -> list[str]:
    column = rows.schema.field("embedding")
    wanted = (rows["region_index"].to_numpy() == 0) | (not column.nullable)
    if not np.array_equal(rows["embedding"].is_valid().to_numpy(), wanted):
        return ["an embedding is missing, or there where the store has none"]
    vectors = artifact.vectors(rows).astype(np.float32)
    lengths = np.linalg.norm(vectors, axis=1)
    if not np.isfinite(lengths).all():
        return ["an embedding has NaN or infinity"]
    if (np.abs(lengths - 1) > UNIT_TOLERANCE + _rounding(rows, vectors.shape[1])).any():
        return ["an embedding is not of unit length"]
    return []


def _rounding(rows: pa.Table, dim: int) -> np.ndarray | float:
    """The most that int8 can change a row's length: half a step in each of ``dim`` directions."""
    return rows["scale"].to_numpy() * dim**0.5 / 2 if "scale" in rows.column_names else 0.0


def _views(rows: pa.Table) -> Int64[np.ndarray, " rows"]:
    """The view of every row; 0 in versions that had no views."""
    if "view" not in rows.column_names:
        return np.zeros(len(rows), np.int64)
    return rows["view"].to_numpy().astype(np.int64)


def _check_matches(rows: pa.Table, entities: int) -> list[str]:
    problems = []
    ids, scores = artifact.lists(rows["topk_entity"]), artifact.lists(rows["topk_score"])
    if ids.min() < 0 or ids.max() >= entities:
        problems.append(f"an entity id lies outside the corpus of {entities}")
    if not np.isfinite(scores).all():
        problems.append("a score is NaN or infinite")
    elif (np.diff(scores, axis=1) > 0).any():
        problems.append("scores do not descend")
    return problems


def summary(out: Path) -> list[str]:
    """The manifest in a few lines."""
    manifest = artifact.read_manifest(out)
    model, settings = manifest["model"], manifest["config"]
    weights = "RANDOM WEIGHTS" if model["random_weights"] else model["pretrained"] or "its own weights"
    return [
        f"alignments of {manifest['videos']} videos in {manifest['num_shards']} shards, "
        f"made {manifest['created']}",
        f"model: {model['name']} ({weights}, weights {model['weights_sha256'][:12]})",
        f"frames: {settings['frames']} per view, {artifact.view_count(manifest)} view(s) per video "
        f"({settings.get('sampling')}), {settings['image_size'][0]} px, {settings['decoder']}",
        f"regions: {manifest['regions']} of {manifest['patches']} patches (merge {settings['merge']}), "
        f"{manifest['dim']} dimensions, {settings['precision']}, stored as {artifact.store_of(manifest)}",
        f"entities: top {manifest['top_k']} of {manifest['corpus']['entities']}",
        f"fingerprint: {manifest['fingerprint'][:12]}",
    ]


@dataclass(frozen=True)
class RegionLine:
    """One region of a video as ``inspect`` shows it; ``entities`` are (name, cosine), the best first."""

    frame: int
    time_s: float
    region: int
    patches: int
    box_xyxy: tuple[float, ...]
    entities: list[tuple[str, float]]
    view: int = 0


def region_lines(out: Path, video_id: str, top: int = 3, largest: int | None = None) -> list[RegionLine]:
    """The regions of a video with entity names; ``largest`` keeps the class token and that many per frame.

    Raises:
        AlignerError: an unknown or failed video, or ``top`` above what is stored.
    """
    manifest = artifact.read_manifest(out)
    if not 1 <= top <= manifest["top_k"]:
        raise AlignerError(f"--top must lie between 1 and {manifest['top_k']}, got {top}")
    names = artifact.read_entity_names(out)
    rows = artifact.read_video(out, video_id)
    ids, scores = artifact.lists(rows["topk_entity"]), artifact.lists(rows["topk_score"])
    if ids.max(initial=0) >= len(names) or ids.min(initial=0) < 0:
        raise AlignerError(f"{video_id} names entities that {out} lacks; `aligner verify {out}` says more")
    plain = [name for name in rows.schema.names if name not in ("topk_entity", "topk_score", "embedding")]
    lines = []
    for place, row in enumerate(rows.select(plain).to_pylist()):
        entities = [(names[i], float(s)) for i, s in zip(ids[place][:top], scores[place][:top], strict=True)]
        box = tuple(row[corner] for corner in ("x0", "y0", "x1", "y1"))
        lines.append(
            RegionLine(
                row["frame_index"],
                row["time_s"],
                row["region_index"],
                row["patches"],
                box,
                entities,
                row.get("view", 0),
            )
        )
    return lines if largest is None else _largest(lines, largest)


def _largest(lines: list[RegionLine], count: int) -> list[RegionLine]:
    frames: dict[tuple[int, int], list[RegionLine]] = {}
    for line in lines:
        frames.setdefault((line.view, line.frame), []).append(line)
    kept = []
    for cls, *others in frames.values():
        kept += [cls, *sorted(others, key=lambda line: (-line.patches, line.region))[:count]]
    return kept
