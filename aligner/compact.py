"""``aligner compact``: many small shards, as a plan that grew has them, become full ones in a new folder.

The new folder is what a run with these settings would have planned and written from the start. Its rows are copied,
so a frame keeps the last bits that the passes of the old folder gave it.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from aligner import artifact, plan
from aligner.config import AlignerError
from aligner.engine import Timings, write_shard
from aligner.progress import Progress
from aligner.run import plan_table
from aligner.verify import verify

# Row groups that are kept in memory, of 16 MB each: small shards that were one run lie beside each other.
GROUPS = 16


@dataclass(frozen=True)
class Compacted:
    """Shards before and after, and how many of the latter were there already."""

    out: str
    shards_before: int
    shards: int
    skipped_shards: int
    videos: int

    def sentence(self) -> str:
        """For people."""
        work = f"{self.videos} videos: {self.shards_before} shards are {self.shards} in {self.out}"
        return f"{work} ({self.skipped_shards} were there); the old folder is as it was"


@dataclass(frozen=True)
class Copies:
    """The rows and failures of some videos, read from the shards that have them; what ``write_shard`` takes."""

    videos: list[str]
    source: "Shards"

    @property
    def frames_at_once(self) -> int:
        """The fewest frames at once of the shards that the videos come from."""
        shards = {self.source.shard_of[video] for video in self.videos}
        return min((self.source.marker(shard)["frames_at_once"] for shard in shards), default=0)

    def __iter__(self) -> Iterator[tuple[str, pa.Table | artifact.Failure]]:
        """In order of the ids."""
        return ((video, self.source.result(video)) for video in self.videos)


class Shards:
    """Random access to what a finished folder says of its videos, in flat memory."""

    def __init__(self, out: Path, table: pa.Table) -> None:
        self.out = out
        self.shard_of = dict(zip(table["video_id"].to_pylist(), table["shard"].to_pylist(), strict=True))
        self.group = lru_cache(GROUPS)(lambda shard, group: artifact.read_row_group(out, shard, group))
        self.marker = lru_cache(4 * GROUPS)(lambda shard: artifact.read_whole_marker(out, shard) or {})

    def result(self, video_id: str) -> pa.Table | artifact.Failure:
        """The rows of a video, or why it has none."""
        shard = self.shard_of[video_id]
        place = self.marker(shard)["videos"].get(video_id)
        if place is not None:
            rows = np.arange(place["offset"], place["offset"] + place["rows"])
            # A copy: a slice would keep its whole row group in memory until the shard is written.
            return self.group(shard, place["row_group"]).take(pa.array(rows))
        (row,) = (row for row in artifact.read_failures(self.out, shard) if row["video_id"] == video_id)
        return artifact.Failure(**row)

    def poison(self, videos: list[str]) -> dict[str, dict[str, str]]:
        """Which of some videos are on the poison lists, and why."""
        lists = [artifact.read_poison(self.out, shard) for shard in {self.shard_of[v] for v in videos}]
        return {video: why for listed in lists for video, why in listed.items() if video in set(videos)}


def compact(
    source: Path,
    out: Path,
    videos_per_shard: int | None = None,
    display: Callable[[int], Progress] = lambda total: Progress(),
) -> Compacted:
    """Write the alignments of ``source`` into ``out`` with full shards; what is done there is kept.

    Args:
        source: a finished alignments folder; it is only read.
        out: a folder that is absent, empty, or was begun by this command.
        videos_per_shard: videos of a full shard; by default as ``source`` was begun.
        display: makes a progress display for a number of videos.

    Raises:
        AlignerError: ``source`` is unfinished, damaged or of an older format, or ``out`` holds anything else.
    """
    manifest = _whole_manifest(source)
    if videos_per_shard is not None and videos_per_shard < 1:
        raise AlignerError(f"--videos-per-shard must be at least 1, got {videos_per_shard}")
    size = videos_per_shard or manifest["config"]["videos_per_shard"]
    before = artifact.read_videos(source)
    items = [plan.VideoItem(**row) for row in before.to_pylist()]
    planned = plan.Plan(source, *plan.in_shards(items, size))
    made = _begin(source, out, planned, _content(manifest, planned, size))
    states = [
        artifact.shard_state(out, s, artifact.shard_fingerprint(made, s)) for s in range(planned.num_shards)
    ]
    artifact.remove_leftovers(out, [shard for shard, state in enumerate(states) if state != "done"])
    shards = Shards(source, before)
    with display(len(items)) as progress:
        for shard, state in enumerate(states):
            videos = [item.video_id for item in planned.shard(shard)]
            if state != "done":
                _copy(out, shard, made, Copies(videos, shards))
            for _ in videos:
                progress.advance(True)
    done = states.count("done")
    return Compacted(str(out), manifest["num_shards"], planned.num_shards, done, len(items))


def _whole_manifest(source: Path) -> dict[str, Any]:
    """The manifest of a folder from which every row may be taken as it is."""
    manifest = artifact.read_manifest(source)
    if manifest["schema_version"] != artifact.SCHEMA_VERSION:
        raise AlignerError(
            f"{source} has version {manifest['schema_version']} of the format, expected "
            f"{artifact.SCHEMA_VERSION}: only what a run could continue can be compacted"
        )
    if problems := verify(source):
        more = f" and {len(problems) - 3} more problems" if problems[3:] else ""
        raise AlignerError(
            f"{source} is not whole: {'; '.join(problems[:3])}{more}. Finish it with `aligner run`, after "
            "`aligner repair` if it is damaged"
        )
    return manifest


def _content(manifest: dict[str, Any], planned: plan.Plan, size: int) -> dict[str, Any]:
    """The manifest of the new folder, but for what follows from its files."""
    derived = ("files", "settings_fingerprint", "shard_fingerprints", "fingerprint", "created")
    kept = {key: value for key, value in manifest.items() if key not in derived}
    rows = plan_table(planned).drop_columns(["seconds"]).to_pylist()
    return kept | {
        "config": manifest["config"] | {"videos_per_shard": size},
        "inputs": manifest["inputs"] | {"videos": {"fingerprint": artifact.canonical_sha256(rows)}},
        "counts": manifest["counts"] | {"shards": planned.num_shards},
        "num_shards": planned.num_shards,
    }


def _begin(source: Path, out: Path, planned: plan.Plan, content: dict[str, Any]) -> dict[str, Any]:
    """Write entity table, plan and manifest, or find that they are there.

    Raises:
        AlignerError: ``out`` is ``source``, or holds other alignments or other things.
    """
    if out.resolve() == source.resolve():
        raise AlignerError(f"{out} cannot be compacted into itself; give another folder")
    artifact.refuse_foreign(out)
    begun = (out / artifact.MANIFEST).is_file()
    if not begun:
        out.mkdir(parents=True, exist_ok=True)
        artifact.remove_start_leftovers(out)
        artifact.write_bytes(out / artifact.ENTITIES, (source / artifact.ENTITIES).read_bytes())
        artifact.write_table(out / artifact.VIDEOS, plan_table(planned))
        counts = {"rows": len(planned.items), "entities": content["corpus"]["entities"]}
        made = artifact.make_manifest(out, **counts, content=content)
        artifact.write_json(out / artifact.MANIFEST, made)
        return made
    made = artifact.read_manifest(out)
    wanted = content | {key: made.get(key) for key in ("files", "shard_fingerprints")}
    same = artifact.manifest_fingerprint(wanted) == made["fingerprint"]
    if not same or not plan_table(planned).equals(artifact.read_videos(out)):
        raise AlignerError(f"{out} holds other alignments than {source} would become; give another folder")
    return made


def _copy(out: Path, shard: int, manifest: dict[str, Any], copies: Copies) -> None:
    """Write one shard, after what is known of its videos that bring decoders down."""
    poison = copies.source.poison(copies.videos)
    if poison:
        artifact.write_json(out / artifact.poison_name(shard), {"videos": poison})
    write_shard(out, shard, manifest, copies.videos, copies, Timings())
