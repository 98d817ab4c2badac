"""``aligner repair``: what is damaged is set aside, so that the next run makes exactly that again.

Shards are made from videos and can be made again; manifest, plan and entity table say what a shard is, and can only be
restored to the very bytes that the manifest records: the entity table from the corpus, the plan from the videos.
"""

import contextlib
import hashlib
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from aligner import artifact
from aligner.config import EXIT_DONE, EXIT_NOT_DONE, AlignerError
from aligner.corpus import ENTITIES
from aligner.plan import Plan, make_plan
from aligner.verify import check_manifest, check_shards

# A younger temporary file may belong to a run that is at work.
LEFTOVER_AGE_S = 600.0


@dataclass
class Repair:
    """What was wrong in a folder and what became of it.

    ``set_aside`` and ``not_done`` are shards, the former with what was wrong in them; ``lost`` is what no shard can be
    judged without, one sentence each; the other lists are file names.
    """

    out: str
    dry_run: bool
    set_aside: dict[int, list[str]] = field(default_factory=dict)
    not_done: list[int] = field(default_factory=list)
    poison_lists: list[str] = field(default_factory=list)
    restored: list[str] = field(default_factory=list)
    leftovers: list[str] = field(default_factory=list)
    young: list[str] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)

    @property
    def exit_code(self) -> int:
        """1 when something is lost that no run can make again."""
        return EXIT_NOT_DONE if self.lost else EXIT_DONE

    def lines(self) -> list[str]:
        """For people: what was done, and what to do next."""
        done = "would be " if self.dry_run else ""
        lines = [f"{done}restored: {name}" for name in self.restored]
        for shard, problems in self.set_aside.items():
            lines += [f"shard {shard}: {text}" for text in problems] + [f"shard {shard}: {done}set aside"]
        lines += [f"{name}: cannot be read, {done}set aside" for name in self.poison_lists]
        if self.leftovers:
            lines.append(f"{done}removed: {len(self.leftovers)} temporary files of killed runs")
        if self.young:
            lines.append(f"left: {len(self.young)} temporary files of the last minutes (is a run at work?)")
        return lines + self._next()

    def _next(self) -> list[str]:
        if self.lost:
            return [f"lost: {text}" for text in self.lost] + ["the shards were neither judged nor touched"]
        shards = sorted([*self.set_aside, *self.not_done])
        if not shards:
            return ["every shard is whole: nothing has to be made again"]
        return [f"{len(self.not_done)} other shards are not done yet"] * bool(self.not_done) + [
            make_again(shards)
        ]


def make_again(shards: list[int], changed: bool = False) -> str:
    """The command that comes next, for people."""
    option = " and --allow-changed-videos" if changed else ""
    listed = ",".join(map(str, shards[:20])) + (",..." if shards[20:] else "")
    return f"next: `aligner run` with the options of before{option}; it makes shards {listed} and no others"


def repair(
    out: Path, *, dry_run: bool = False, corpus: Path | None = None, videos: Plan | None = None
) -> Repair:
    """Set damaged shards aside and remove what killed runs left.

    Args:
        out: an alignments folder at which no run is at work.
        dry_run: only say what would be done.
        corpus: the corpus that the folder was made with, to restore the entity table from.
        videos: the videos as planned afresh, to restore the plan from.

    Raises:
        AlignerError: the manifest cannot be read; without it nobody knows what the files are.
    """
    manifest = _manifest(out)
    done = Repair(out.name, dry_run)
    _restore(out, manifest, corpus, videos, done)
    _remove_leftovers(out, done)
    # In a dry run a file that would be restored is still missing.
    problems = [text for text in check_manifest(out, manifest) if text.split(" ")[0] not in done.restored]
    if problems or (dry_run and done.restored):
        done.lost = [f"{text}. {_cure(text)}" for text in problems]
        return done
    for shard, found in check_shards(out, manifest):
        if found:
            _judge(out, shard, found, manifest, done)
        _check_poison(out, shard, done)
    return done


def repair_and_report(
    out: Path, *, dry_run: bool, corpus: Path | None, videos: tuple[str, str | None, bool] | None
) -> Repair:
    """``repair`` with the videos planned afresh from --videos, --videos-root and --allow-outside-root."""
    planned = None
    if videos is not None:
        settings = _manifest(out)["config"]
        planned = make_plan(videos[0], settings["videos_per_shard"], *videos[1:], settings["frame_rate"])
    return repair(out, dry_run=dry_run, corpus=corpus, videos=planned)


def _manifest(out: Path) -> dict[str, Any]:
    try:
        return artifact.read_manifest(out)
    except AlignerError as error:
        raise AlignerError(
            f"{error}. Nothing was touched: put a copy of {artifact.MANIFEST} back if there is one; without it the "
            "shards can still be read as Parquet, but a run has to begin in another --out"
        ) from error


def _cure(problem: str) -> str:
    """What can be done about a problem of manifest, plan or entity table."""
    if problem.startswith(artifact.ENTITIES):
        return "`aligner repair --corpus CORPUS` restores it from the corpus that the folder was made with"
    if problem.startswith(artifact.VIDEOS):
        return (
            "`aligner repair --videos VIDEOS` restores it if the videos are as planned; else put a copy back"
        )
    return "It cannot be restored: undo the change or put a copy back; else `aligner run --force` starts over"


def _judge(out: Path, shard: int, found: list[str], manifest: dict[str, Any], done: Repair) -> None:
    """A shard with problems: set aside, or left to the next run, which makes it anyway."""
    marker = artifact.read_whole_marker(out, shard)
    other = marker is not None and marker["fingerprint"] != artifact.shard_fingerprint(manifest, shard)
    if other or not (out / artifact.marker_name(shard)).exists():
        done.not_done.append(shard)
        return
    done.set_aside[shard] = found
    if not done.dry_run:
        artifact.set_aside(out, artifact.shard_files(shard))


def _check_poison(out: Path, shard: int, done: Repair) -> None:
    try:
        artifact.read_poison(out, shard)
    except AlignerError:
        done.poison_lists.append(artifact.poison_name(shard))
        if not done.dry_run:
            artifact.set_aside(out, [artifact.poison_name(shard)])


def _remove_leftovers(out: Path, done: Repair) -> None:
    for path in artifact.leftovers(out):
        old = time.time() - path.stat().st_mtime >= LEFTOVER_AGE_S
        (done.leftovers if old else done.young).append(path.name)
        if old and not done.dry_run:
            path.unlink(missing_ok=True)


# Restoring what the manifest records.


def _restore(
    out: Path, manifest: dict[str, Any], corpus: Path | None, videos: Plan | None, done: Repair
) -> None:
    """Write damaged files anew where the recorded bytes can be had.

    Raises:
        AlignerError: the corpus or the videos given are not those that the folder was made with.
    """
    damaged = [text.split(" ")[0] for text in artifact.damaged_files(out, manifest)]
    copies = {}
    if corpus is not None and artifact.ENTITIES in damaged:
        copies[artifact.ENTITIES] = [(corpus / ENTITIES).read_bytes()]
    if videos is not None and artifact.VIDEOS in damaged:
        copies[artifact.VIDEOS] = _plans(out, manifest, videos)
    for name, candidates in copies.items():
        wanted = manifest["files"][name]["sha256"]
        same = [data for data in candidates if hashlib.sha256(data).hexdigest() == wanted]
        if not same:
            given = "corpus" if name == artifact.ENTITIES else "videos"
            raise AlignerError(
                f"{name} cannot be restored: these are not the {given} that {out} was made with"
            )
        done.restored.append(name)
        if not done.dry_run:
            artifact.write_bytes(out / name, same[0])


def _plans(out: Path, manifest: dict[str, Any], videos: Plan) -> list[bytes]:
    """The plan as it would be made now, and with the shards that the markers tell: that of one that grew."""
    from aligner.run import plan_table

    shards: dict[str, int] = {}
    for shard in range(manifest["num_shards"]):
        shards |= dict.fromkeys((artifact.read_whole_marker(out, shard) or {"videos": {}})["videos"], shard)
        with contextlib.suppress(AlignerError):  # damaged as well: the plan as it would be made now is left
            shards |= {row["video_id"]: shard for row in artifact.read_failures(out, shard)}
    items = tuple(item._replace(shard=shards.get(item.video_id, item.shard)) for item in videos.items)
    return [artifact.table_bytes(plan_table(plan)) for plan in (videos, replace(videos, items=items))]
