"""Which videos, in which shards: a function of inputs and settings, never of the number of workers.

A plan that was begun only grows: new videos go into new shards, so that finished shards stay as they are.
"""

import math
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import pandas as pd

from aligner.config import AlignerError, ChangedSettings, did_you_mean

VIDEO_EXTENSIONS = frozenset(".3gp .avi .flv .m4v .mkv .mov .mp4 .mpeg .mpg .mts .ogv .ts .webm .wmv".split())
MANIFEST_COLUMNS = ("path", "label", "split", "seconds")
SPLITS = {
    **{"train": "train", "training": "train", "test": "test", "testing": "test"},
    **dict.fromkeys(("val", "valid", "validation"), "val"),
}
# Names that other tools give to the column ``path``.
PATH_SYNONYMS = ("video", "file", "filename", "video_path")


class Row(NamedTuple):
    """A video as the input names it: a path, and what a manifest may say about it."""

    path: str
    label: str | None = None
    split: str | None = None
    seconds: float | None = None


@dataclass(frozen=True)
class VideoItem:
    """One planned video; ``bytes`` is 0 for a missing file, which becomes a failure row in its turn."""

    video_id: str
    label: str | None
    split: str | None
    bytes: int
    shard: int
    seconds: float | None = None

    def same_content(self, other: "VideoItem") -> bool:
        """Whether another plan says the same of this video; shard and duration are no content."""
        return replace(self, shard=0, seconds=None) == replace(other, shard=0, seconds=None)


@dataclass(frozen=True)
class Plan:
    """All videos sorted by id, each with its shard, and what was ignored on the way.

    ``ignored`` counts files by extension, ``ignored_columns`` are those of a manifest. A shard may have lost
    all its videos, so ``num_shards`` is a fact of its own. ``grown`` counts videos that joined a plan that was
    begun.
    """

    root: Path
    items: tuple[VideoItem, ...]
    num_shards: int
    ignored: dict[str, int] = field(default_factory=dict)
    ignored_columns: tuple[str, ...] = ()
    grown: int = 0

    @cached_property
    def _by_shard(self) -> list[list[VideoItem]]:
        shards: list[list[VideoItem]] = [[] for _ in range(self.num_shards)]
        for item in self.items:
            shards[item.shard].append(item)
        return shards

    def shard(self, shard: int) -> list[VideoItem]:
        """The videos of one shard, in order of their ids."""
        return self._by_shard[shard]

    def path(self, item: VideoItem) -> Path:
        """Where the file of a video is."""
        return self.root / item.video_id

    @cached_property
    def missing(self) -> int:
        """Number of videos whose file is not there."""
        return sum(item.bytes == 0 and not self.path(item).is_file() for item in self.items)

    def warnings(self) -> list[str]:
        """What looks like a mistake but need not be one."""
        warnings = []
        if self.grown:
            warnings.append(f"{self.grown} new videos joined the plan, in new shards behind those it had")
        if self.missing == len(self.items):
            warnings.append(
                f"ALL {self.missing} VIDEOS ARE MISSING below {self.root}, the first is "
                f"{self.items[0].video_id}: probably a wrong --videos-root"
            )
        if self.ignored_columns:
            named = ", ".join(f"{name!r}{_hint(name)}" for name in self.ignored_columns)
            warnings.append(f"ignored columns of the manifest: {named}")
        return warnings

    def counts(self) -> dict[str, Any]:
        """What goes into manifests and reports."""
        return {
            "videos": len(self.items),
            "shards": self.num_shards,
            "bytes": sum(item.bytes for item in self.items),
            "missing": self.missing,
            "labels": len({item.label for item in self.items} - {None}),
            "ignored": self.ignored,
            "ignored_columns": list(self.ignored_columns),
        }


def _hint(column: str) -> str:
    return did_you_mean(column.strip().lower(), MANIFEST_COLUMNS)


def make_plan(
    videos: Path, videos_per_shard: int, root: Path | None = None, allow_outside_root: bool = False
) -> Plan:
    """Plan a folder (recursively through links, by file extension) or a manifest.

    In a folder ``CLASS/clip.mp4`` has its class as label. If every first-level folder with videos is named
    like a split (train, training, val, valid, validation, test, testing; in any case), that is the split,
    as train, val or test, and the second level is the label.

    Raises:
        AlignerError: nothing there, no video in it, no column ``path``, a video named twice or outside the
        root.
    """
    if not videos.exists():
        raise AlignerError(f"--videos {videos} does not exist; give a folder of videos or a manifest")
    # Absolute, for a path below a relative folder would be joined to that folder a second time.
    videos = Path(os.path.abspath(videos))
    folder = videos if videos.is_dir() else videos.parent
    root = folder if root is None else Path(os.path.abspath(root))
    ignored: dict[str, int] = {}
    columns: tuple[str, ...] = ()
    if videos.is_dir():
        found, ignored = _scan(videos)
        rows = [row._replace(path=str(videos / row.path)) for row in _rows_of_paths(found)]
    else:
        rows, columns = read_manifest(videos)
    rows = [row._replace(path=_relative(row.path, root, allow_outside_root)) for row in rows]
    if not rows:
        raise AlignerError(
            f"no videos in {videos}; extensions looked for: {' '.join(sorted(VIDEO_EXTENSIONS))}"
        )
    _refuse_twice(rows, videos)
    items = [
        VideoItem(row.path, row.label, row.split, _size(root / row.path), 0, row.seconds)
        for row in sorted(rows, key=lambda row: row.path)
    ]
    return Plan(root, *in_shards(items, videos_per_shard), ignored, columns)


def in_shards(
    items: Sequence[VideoItem], videos_per_shard: int, first: int = 0
) -> tuple[tuple[VideoItem, ...], int]:
    """The videos, in their order, with balanced shards from ``first`` on, and the number of shards then."""
    count = -(-len(items) // videos_per_shard)
    shards = balanced(_weights(items), count)
    placed = (replace(item, shard=first + shard) for item, shard in zip(items, shards, strict=True))
    return tuple(placed), first + count


def _weights(items: Sequence[VideoItem]) -> list[float]:
    """How much work each video is: seconds; bytes at the average rate, or as they are, where these lack."""
    known = [item for item in items if item.seconds is not None]
    seconds, size = sum(item.seconds or 0.0 for item in known), sum(item.bytes for item in known)
    rate = seconds / size if seconds and size else 1.0
    return [item.bytes * rate if item.seconds is None else item.seconds for item in items]


def balanced(weights: Sequence[float], shards: int) -> list[int]:
    """A shard for every weight: equal numbers (to one), and loads that differ by no more than one weight.

    Weights are dealt in rounds, the heaviest first; in a round every shard gets one, the lightest shard the
    heaviest. If loads differed by at most the largest weight before a round they do so after it: of two
    shards the one that was lighter gains at least as much. Ties go by place, so the result is a function.
    """
    order = sorted(range(len(weights)), key=lambda place: (-weights[place], place))
    loads, chosen = [0.0] * shards, [0] * len(weights)
    for start in range(0, len(order), max(shards, 1)):
        lightest = sorted(range(shards), key=lambda shard: (loads[shard], shard))
        for shard, place in zip(lightest, order[start : start + shards], strict=False):
            loads[shard] += weights[place]
            chosen[place] = shard
    return chosen


def grow(found: Plan, before: Plan, videos_per_shard: int, allow_changed: bool = False) -> Plan:
    """The plan that was begun, with the new videos of ``found`` in new shards behind its own.

    With ``allow_changed`` removed videos leave their shards and changed ones stay in theirs.

    Raises:
        ChangedSettings: videos were removed or changed, and that is not allowed; they are named.
    """
    had = {item.video_id: item for item in before.items}
    there = {item.video_id for item in found.items}
    removed = [video_id for video_id in had if video_id not in there]
    kept = [item for item in found.items if item.video_id in had]
    changed = [item.video_id for item in kept if not item.same_content(had[item.video_id])]
    if (removed or changed) and not allow_changed:
        raise ChangedSettings(_what_changed(removed, changed))
    new, shards = in_shards(
        [item for item in found.items if item.video_id not in had], videos_per_shard, before.num_shards
    )
    old = [replace(item, shard=had[item.video_id].shard) for item in kept]
    items = sorted([*old, *new], key=lambda item: item.video_id)
    return replace(found, items=tuple(items), num_shards=shards, grown=len(new))


def _what_changed(removed: list[str], changed: list[str]) -> str:
    lines = [
        f"\n  {what}: {', '.join(names[:10])}" + (f" and {len(names) - 10} more" if len(names) > 10 else "")
        for what, names in (("removed", removed), ("changed in size, label or split", changed))
        if names
    ]
    return (
        f"{len(removed)} videos of the plan were removed and {len(changed)} changed:{''.join(lines)}\n"
        "Put them back, give --allow-changed-videos to make their shards again, or --force to start over"
    )


def _scan(folder: Path) -> tuple[list[PurePosixPath], dict[str, int]]:
    """Videos below a folder, relative to it, and the number of other files by extension."""
    found, ignored = [], Counter[str]()
    for parent, names in _walk(folder, ignored):
        for name in names:
            path = Path(parent, name).relative_to(folder)
            if not _is_text(str(path)):
                ignored["(name is not UTF-8)"] += 1
            elif path.suffix.lower() in VIDEO_EXTENSIONS and not _hidden(path):
                found.append(PurePosixPath(path.as_posix()))
            else:
                ignored[path.suffix.lower() or "(none)"] += 1
    return found, dict(sorted(ignored.items()))


def _walk(folder: Path, ignored: Counter[str]) -> Iterator[tuple[str, list[str]]]:
    """Every folder below, also through links, with its files; counts the folders that it cannot enter."""
    above = {str(folder): {os.path.realpath(folder)}}
    unreadable = partial(_count_unreadable, ignored)
    for parent, folders, names in os.walk(folder, followlinks=True, onerror=unreadable):
        chain = above.pop(parent)
        real = {name: os.path.realpath(os.path.join(parent, name)) for name in folders}
        # A folder that lies within itself, by way of a link, has no end.
        entered = [name for name in folders if real[name] not in chain]
        if len(entered) < len(folders):
            ignored["(link to a folder above)"] += len(folders) - len(entered)
        folders[:] = entered
        above |= {os.path.join(parent, name): chain | {real[name]} for name in entered}
        yield parent, names


def _count_unreadable(ignored: Counter[str], _: OSError) -> None:
    ignored["(unreadable folder)"] += 1


def _hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)


def _rows_of_paths(paths: list[PurePosixPath]) -> list[Row]:
    """(path, label, split): a class may be called "test", so the first level is splits as a whole or not."""
    first = {path.parts[0] for path in paths if len(path.parts) > 1}
    splits = all(name.lower() in SPLITS for name in first)
    return [_row_of_path(path, splits) for path in paths]


def _row_of_path(path: PurePosixPath, splits: bool) -> Row:
    folders = path.parts[:-1]
    split = SPLITS[folders[0].lower()] if folders and splits else None
    label = folders[1:2] if split else folders[:1]
    return Row(str(path), label[0] if label else None, split)


def read_manifest(path: Path) -> tuple[list[Row], tuple[str, ...]]:
    """The rows of a csv, parquet, jsonl or txt manifest, and the columns that it has beside.

    Empty cells are None.

    Raises:
        AlignerError: an unknown format, no column ``path``, an empty path, a cell that is no text, or
        ``seconds`` that are no duration.
    """
    frame = _read_table(path)
    names = [str(column) for column in frame.columns]
    if "path" not in names:
        raise AlignerError(
            f"{path.name}: no column 'path'{_synonym(names)}; columns are path[,label][,split][,seconds]"
        )
    ignored = tuple(name for name in names if name not in MANIFEST_COLUMNS)
    frame = frame.reindex(columns=list(MANIFEST_COLUMNS))
    rows = []
    for place, cells in enumerate(frame.itertuples(index=False), 1):
        if not all(pd.api.types.is_scalar(cell) for cell in cells):
            raise AlignerError(f"{path.name}: row {place} has a list where one text was expected")
        video, label, split, seconds = (_text(cell) for cell in cells)
        if video is None or not _is_text(video):
            raise AlignerError(f"{path.name}: row {place} has no path, or one that no file can have")
        rows.append(Row(video, label, split, _seconds(seconds, f"{path.name}: row {place}")))
    return rows, ignored


def _seconds(text: str | None, where: str) -> float | None:
    try:
        seconds = None if text is None else float(text)
    except ValueError:
        seconds = math.nan
    if seconds is not None and not 0 <= seconds < math.inf:
        raise AlignerError(f"{where} has seconds {text!r}, expected a duration of 0 or more, or nothing")
    return seconds


def _is_text(path: str) -> bool:
    """Whether a path can be written down: undecodable bytes come as lone surrogates."""
    return "\0" not in path and not any("\ud800" <= letter <= "\udfff" for letter in path)


def _synonym(columns: list[str]) -> str:
    found = [name for name in columns if name.strip().lower() in (*PATH_SYNONYMS, "path")]
    return f" but {found[0]!r}, rename it to 'path'" if found else ""


def _read_table(path: Path) -> pd.DataFrame:
    readers = {
        ".csv": lambda: pd.read_csv(path, dtype=str, keep_default_na=False),
        ".parquet": lambda: pd.read_parquet(path),
        ".jsonl": lambda: pd.read_json(path, lines=True, dtype=False),
        ".txt": lambda: pd.DataFrame({"path": _lines(path)}),
    }
    if path.suffix.lower() not in readers:
        raise AlignerError(f"manifest {path.name}: expected one of {', '.join(readers)}")
    try:
        return readers[path.suffix.lower()]()
    except (ValueError, OSError, NotImplementedError) as error:
        raise AlignerError(f"manifest {path.name} cannot be read: {error}") from error


def _lines(path: Path) -> list[str]:
    return [line.strip() for line in path.read_text("utf-8").splitlines() if line.strip()]


def _text(cell: Any) -> str | None:
    return None if cell is None or pd.isna(cell) or str(cell).strip() == "" else str(cell).strip()


def _relative(path: str, root: Path, allow_outside: bool) -> str:
    """POSIX path below the root; the identity of a video must not depend on the machine.

    What counts is the path as written, absolute or with ``..``: a link within the root is followed, as it is
    the work of whoever owns the root and not of whoever wrote the manifest.
    """
    relative = os.path.relpath(root / path, root)
    if relative.split(os.sep)[0] == os.pardir and not allow_outside:
        raise AlignerError(
            f"{path} lies outside the videos' root {root}; give --videos-root, a folder above it, or "
            "--allow-outside-root if you trust the manifest"
        )
    return Path(relative).as_posix()


def _refuse_twice(rows: list[Row], videos: Path) -> None:
    twice = [video_id for video_id, n in Counter(row.path for row in rows).items() if n > 1]
    if twice:
        raise AlignerError(f"{videos.name} names {len(twice)} videos more than once, the first is {twice[0]}")


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0
