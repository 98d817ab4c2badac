"""``aligner retry``: failed videos are decoded once more, and only shards that would gain by it are made again."""

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from aligner import artifact, plan
from aligner.config import EXIT_DONE, EXIT_DONE_WITH_FAILURES, AlignerError, did_you_mean
from aligner.decoding import CRASHED, TIMEOUT, Clip, Decoders
from aligner.pixels import Cutter
from aligner.progress import Progress
from aligner.repair import make_again
from aligner.sources import is_url
from aligner.views import Sampling

ENCODE = "encode"


@dataclass(frozen=True)
class Failed:
    """A failed video: where it is planned, and the kind of its failure."""

    item: plan.VideoItem
    stage: str
    error: str

    @property
    def kind(self) -> str:
        """As ``aligner status`` names it."""
        return f"{self.stage} ({self.error})"


@dataclass
class Retry:
    """What came of failed videos, by kind of failure: recovered, failing still (as now), and not tried at all."""

    out: str
    dry_run: bool
    recovered: dict[str, int] = field(default_factory=dict)
    failing: dict[str, int] = field(default_factory=dict)
    not_tried: dict[str, int] = field(default_factory=dict)
    videos: list[str] = field(default_factory=list)  # that recovered
    changed: list[str] = field(default_factory=list)  # of these, whose size is not the planned one
    set_aside: list[int] = field(default_factory=list)

    @property
    def exit_code(self) -> int:
        """0 when nothing that was tried fails still, 2 when something does."""
        return EXIT_DONE_WITH_FAILURES if self.failing else EXIT_DONE

    def lines(self) -> list[str]:
        """For people: counts, and what to do next."""
        lines = []
        for told, kinds in (
            ("recovered", self.recovered),
            ("failing still", self.failing),
            ("not tried", self.not_tried),
        ):
            lines += [f"{told}: {count} at {kind}" for kind, count in sorted(kinds.items())]
        if not lines:
            return ["no video failed: nothing to try again"]
        if not self.videos:
            return [*lines, "no video decodes that did not before: every shard stays as it is"]
        shards = ", ".join(map(str, self.set_aside))
        lines.append(f"{'would be ' if self.dry_run else ''}set aside: shards {shards}")
        if self.changed:
            lines.append(
                f"{len(self.changed)} of the recovered have another size than planned, such as {self.changed[0]}: "
                "the plan takes them only with --allow-changed-videos"
            )
        return [*lines, make_again(self.set_aside, bool(self.changed))]


@dataclass(frozen=True)
class Choice:
    """Which failures are tried again: of one stage, of one kind, and those on the poison list or not.

    What failed in the encoder is tried only when ``stage`` asks for it, for it decodes in any case.
    """

    stage: str | None = None
    error: str | None = None
    poisoned: bool = False

    def of(self, failures: list[Failed]) -> list[Failed]:
        """The failures to try.

        Raises:
            AlignerError: none has this stage or this kind.
        """
        _refuse_unknown("--stage", self.stage, {failed.stage for failed in failures})
        _refuse_unknown("--error", self.error, {failed.error for failed in failures})
        return [failed for failed in failures if self._takes(failed)]

    def _takes(self, failed: Failed) -> bool:
        asked = self.stage in (None, failed.stage) and self.error in (None, failed.error)
        consent = self.poisoned or failed.error not in (CRASHED, TIMEOUT)
        return asked and consent and (failed.stage != ENCODE or self.stage == ENCODE)


def _refuse_unknown(option: str, wanted: str | None, there: set[str]) -> None:
    if wanted is not None and wanted not in there:
        told = ", ".join(sorted(there)) or "none at all"
        raise AlignerError(
            f"no failure has {option} {wanted}{did_you_mean(wanted, there)}, expected one of: {told}"
        )


def retry(
    out: Path,
    videos_root: Path | str,
    choice: Choice = Choice(),
    *,
    workers: int = 2,
    video_seconds: float = 120.0,
    dry_run: bool = False,
    display: Callable[[int], Progress] = lambda total: Progress(),
) -> Retry:
    """Open and decode failed videos again, as a run would, and set the shards of those that decode now aside.

    Args:
        out: an alignments folder at which no run is at work.
        videos_root: folder or address that the ids of its videos are relative to.
        choice: which failures are tried; a poisoned video that decodes now is taken off its list.
        workers: processes that decode.
        video_seconds: time limit for one video.
        dry_run: decode, but set nothing aside.
        display: makes a progress display for a number of videos.

    Raises:
        AlignerError: not an alignments folder, or no failure is such as ``choice`` asks for.
    """
    manifest = artifact.read_manifest(out)
    failures = _failures(out, manifest)
    tried = choice.of(failures)
    planned = _plan(videos_root, tried, manifest)
    found = Retry(out.name, dry_run, not_tried=_counted({*failures} - {*tried}))
    recovered = []
    with (
        Decoders(workers, Cutter.of(manifest["config"]), video_seconds) as decoders,
        display(len(tried)) as progress,
    ):
        videos = ((failed, planned.path(failed.item)) for failed in tried)
        sampling = Sampling.of(manifest["config"])
        for failed, future in decoders.ahead(videos, sampling, workers, lambda failed: failed.item.video_id):
            clip = future.result()
            progress.advance(isinstance(clip, Clip))
            if isinstance(clip, Clip):
                recovered.append(failed)
            else:
                kind = f"{clip.stage} ({clip.error})"
                found.failing[kind] = found.failing.get(kind, 0) + 1
    _take(out, planned, recovered, found)
    return found


def _failures(out: Path, manifest: dict[str, Any]) -> list[Failed]:
    """The failures of all finished shards, in order of the plan."""
    kinds = {row["video_id"]: (row["stage"], row["error"]) for row in artifact.all_failures(out)}
    rows = artifact.read_videos(out).to_pylist()
    return [
        Failed(plan.VideoItem(**row), *kinds[row["video_id"]]) for row in rows if row["video_id"] in kinds
    ]


def _counted(failures: Iterable[Failed]) -> dict[str, int]:
    return dict(sorted(Counter(failed.kind for failed in failures).items()))


def _plan(root: Path | str, tried: list[Failed], manifest: dict[str, Any]) -> plan.Plan:
    """Where the videos are now; the addresses that a manifest gave in full are their ids."""
    items = tuple(failed.item for failed in tried)
    return plan.Plan(
        str(root) if is_url(str(root)) else Path(root).absolute(),
        items,
        manifest["num_shards"],
        frame_rate=manifest["config"].get("frame_rate", plan.FRAME_RATE),
        urls={item.video_id: item.video_id for item in items if is_url(item.video_id)},
    )


def _take(out: Path, planned: plan.Plan, recovered: list[Failed], found: Retry) -> None:
    """Report what recovered, and set its shards aside."""
    found.recovered = _counted(recovered)
    found.videos = [failed.item.video_id for failed in recovered]
    found.changed = [failed.item.video_id for failed in recovered if _other_size(planned, failed.item)]
    found.set_aside = sorted({failed.item.shard for failed in recovered})
    if found.dry_run:
        return
    for shard in found.set_aside:
        artifact.set_aside(out, artifact.shard_files(shard))
        artifact.remove_poison(out, shard, {*found.videos})


def _other_size(planned: plan.Plan, item: plan.VideoItem) -> bool:
    """Whether the plan would notice that a video was changed; a member of a tar lies where it was planned."""
    row = plan.Row(item.video_id, url=planned.urls.get(item.video_id))
    return item.offset is None and plan.bytes_of(row, str(planned.root)) != item.bytes
