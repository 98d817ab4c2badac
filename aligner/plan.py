"""Which videos, in which shards: a function of inputs and settings, never of the number of workers.

A plan that was begun only grows: new videos go into new shards, so that finished shards stay as they are.
"""

import gc
import glob
import math
import os
import posixpath
import re
import stat
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path, PurePath
from typing import Any, NamedTuple

import pandas as pd
import pyarrow as pa

from aligner.config import AlignerError, ChangedSettings, did_you_mean
from aligner.sources import (
    Source,
    is_frame_folder,
    is_url,
    list_store,
    pictures_of,
    read_tar,
    shown,
    split_part,
    stored_size,
    suffix,
)

VIDEO_EXTENSIONS = frozenset(".3gp .avi .flv .m4v .mkv .mov .mp4 .mpeg .mpg .mts .ogv .ts .webm .wmv".split())
MANIFEST_COLUMNS = ("path", "label", "split", "seconds")
SPLITS = {
    **{"train": "train", "training": "train", "test": "test", "testing": "test"},
    **dict.fromkeys(("val", "valid", "validation"), "val"),
}
# Frames a second of a folder of pictures.
FRAME_RATE = 30.0
_TAR = re.compile(r".*?\.tar/", re.IGNORECASE)
# What no path can hold, or no text: undecodable bytes come as lone surrogates.
_NO_TEXT = re.compile("[\0\ud800-\udfff]")
# File systems on a network answer one question slowly and many at a time quickly; each thread takes some in a row.
STAT_THREADS, STAT_CHUNK = 32, 500
# Names that other tools give to the column ``path``.
PATH_SYNONYMS = ("video", "file", "filename", "video_path")


@contextmanager
def no_collector() -> Iterator[None]:
    """Let the garbage collector rest: it would look through the tuples of all videos again and again, for nothing."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


class Row(NamedTuple):
    """A video as the input names it: a path, and what a manifest may say about it."""

    path: str
    label: str | None = None
    split: str | None = None
    seconds: float | None = None
    bytes: int | None = None
    offset: int | None = None
    url: str | None = None


class VideoItem(NamedTuple):
    """One planned video; ``bytes`` is 0 for a missing file, which becomes a failure row in its turn."""

    video_id: str
    label: str | None
    split: str | None
    bytes: int
    shard: int
    seconds: float | None = None
    offset: int | None = None

    @property
    def splits(self) -> tuple[str, ...]:
        """The splits that it is in, which the column joins by ``+``."""
        return tuple(self.split.split("+")) if self.split else ()

    def same_content(self, other: "VideoItem") -> bool:
        """Whether another plan says the same of this video; shard and duration are no content."""
        mine, others = (self.video_id, self.label, self.split), (other.video_id, other.label, other.split)
        return mine == others and (self.bytes, self.offset) == (other.bytes, other.offset)


@dataclass(frozen=True)
class Plan:
    """All videos sorted by id, each with its shard, and what was ignored on the way.

    ``ignored`` counts files by extension, ``ignored_columns`` are those of a manifest. A shard may have lost
    all its videos, so ``num_shards`` is a fact of its own. ``grown`` counts videos that joined a plan that was
    begun. ``root`` is a folder or an address, ``urls`` are the addresses that a manifest gives in full; both may
    hold secrets and are never written down.
    """

    root: Path | str
    items: tuple[VideoItem, ...]
    num_shards: int
    ignored: dict[str, int] = field(default_factory=dict)
    ignored_columns: tuple[str, ...] = ()
    grown: int = 0
    frame_rate: float = FRAME_RATE
    urls: dict[str, str] = field(default_factory=dict, repr=False)

    @cached_property
    def _by_shard(self) -> list[list[VideoItem]]:
        shards: list[list[VideoItem]] = [[] for _ in range(self.num_shards)]
        for item in self.items:
            shards[item.shard].append(item)
        return shards

    def shard(self, shard: int) -> list[VideoItem]:
        """The videos of one shard, in order of their ids."""
        return self._by_shard[shard]

    def path(self, item: VideoItem) -> Path | Source:
        """Where a video is: a file, or anything else that can be read."""
        if item.video_id in self.urls:
            return Source(self.urls[item.video_id])
        if isinstance(self.root, str):
            return Source(_below(self.root, item.video_id))
        if item.offset is not None:
            tar = item.video_id[: _TAR.match(item.video_id).end() - 1]  # type: ignore[union-attr]
            return Source(str(self.root / tar), item.offset, item.bytes)
        place, part = part_of(os.path.join(self.root, item.video_id))
        path = Path(place)
        rate = self.frame_rate if path.is_dir() else None
        return path if rate is None and part is None else Source(str(path), frame_rate=rate, part=part)

    @cached_property
    def missing(self) -> int:
        """Number of videos whose file is not there."""
        empty = (self.path(item) for item in self.items if item.bytes == 0)
        return sum(not path.is_file() if isinstance(path, Path) else _is_missing(path) for path in empty)

    def warnings(self) -> list[str]:
        """What looks like a mistake but need not be one."""
        warnings = []
        if self.grown:
            warnings.append(f"{self.grown} new videos joined the plan, in new shards behind those it had")
        if self.missing == len(self.items):
            warnings.append(
                f"ALL {self.missing} VIDEOS ARE MISSING below {shown(str(self.root))}, the first is "
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


def _is_missing(source: Source) -> bool:
    return is_url(source.place) or not os.path.exists(source.place)


def part_of(path: str) -> tuple[str, tuple[float, float] | None]:
    """A path and the part that it asks for, unless a file has just this name."""
    place, part = split_part(path)
    return (path, None) if part is None or os.path.exists(path) else (place, part)


@no_collector()
def items_of(table: pa.Table) -> tuple[VideoItem, ...]:
    """The videos of a plan as it was written, a column for each field."""
    columns = {name: table[name].to_pylist() for name in VideoItem._fields}
    columns |= {name: _shared(columns[name]) for name in ("label", "split")}
    return tuple(map(VideoItem, *columns.values()))


def _shared(texts: Iterable[str | None]) -> list[str | None]:
    """The same texts, equal ones as one object: a million labels are few."""
    known: dict[str | None, str | None] = {}
    return [known.setdefault(text, text) for text in texts]


def _hint(column: str) -> str:
    return did_you_mean(column.strip().lower(), MANIFEST_COLUMNS)


@no_collector()
def make_plan(
    videos: Path | str,
    videos_per_shard: int,
    root: Path | str | None = None,
    allow_outside_root: bool = False,
    frame_rate: float = FRAME_RATE,
) -> Plan:
    """Plan a folder (recursively through links), tars, a manifest, or what lies below an address.

    In a folder ``CLASS/clip.mp4`` has its class as label. If every first-level folder with videos is named
    like a split (train, training, val, valid, validation, test, testing; in any case), that is the split,
    as train, val or test, and the second level is the label. A video is a file with one of VIDEO_EXTENSIONS,
    such a member of a ``.tar``, or a folder of numbered pictures; a manifest may also name parts of local videos, as
    ``clip.mp4#t=10,20`` does from second 10 up to 20.

    Raises:
        AlignerError: nothing there, no video in it, no column ``path``, a video named twice or outside the
        root.
    """
    ignored = Counter[str]()
    columns: tuple[str, ...] = ()
    if is_url(str(videos)):
        root, name = str(videos), shown(str(videos))
        rows = _stored(str(videos), ignored)
    else:
        # Absolute, for a path below a relative folder would be joined to that folder a second time.
        name, videos = str(videos), Path(os.path.abspath(videos))
        root = _root(videos, root)
        rows, columns = _local_rows(videos, name, ignored)
        rows = [_identified(row, root, allow_outside_root) for row in rows]
    if not rows:
        raise AlignerError(
            f"no videos in {name}; extensions looked for: {' '.join(sorted(VIDEO_EXTENSIONS))}"
        )
    _refuse_twice(rows, name)
    rows.sort(key=lambda row: row.path)
    items = [
        VideoItem(row.path, row.label, row.split, size, 0, row.seconds, row.offset)
        for row, size in zip(rows, _sizes(rows, root), strict=True)
    ]
    counted = {kind: count for kind, count in sorted(ignored.items()) if count}
    urls = {row.path: row.url for row in rows if row.url}
    placed = in_shards(items, videos_per_shard)
    return Plan(root, *placed, counted, columns, frame_rate=frame_rate, urls=urls)


def refuse_absent(videos: str) -> None:
    """Raise AlignerError where a path, or a pattern, is nothing that is there; an address is believed."""
    if not (is_url(videos) or Path(videos).exists() or glob.glob(os.path.abspath(videos), recursive=True)):
        raise AlignerError(f"--videos {videos} does not exist; give a folder of videos, tars or a manifest")


def _root(videos: Path, root: Path | str | None) -> Path | str:
    if root is None:
        return videos if videos.is_dir() else videos.parent
    return str(root) if is_url(str(root)) else Path(os.path.abspath(root))


def _local_rows(videos: Path, name: str, ignored: Counter[str]) -> tuple[list[Row], tuple[str, ...]]:
    """Rows with absolute paths, or those of a manifest, and the columns that it has beside."""
    if videos.is_dir():
        below = os.path.join(videos, "")
        return [row._replace(path=below + row.path) for row in _scan(videos, ignored)], ()
    if not videos.exists() and (matches := sorted(glob.glob(str(videos), recursive=True))):
        return [row for match in matches for row in _rows_of_file(Path(match), Row(match), ignored)], ()
    refuse_absent(name)
    if videos.suffix.lower() == ".tar":
        return _rows_of_file(videos, Row(str(videos)), ignored), ()
    return read_manifest(videos)


def _rows_of_file(path: Path, row: Row, ignored: Counter[str]) -> list[Row]:
    """The row of a video file, or those of the videos in a tar, which inherit its split and label."""
    kind = suffix(path.name)
    if kind in VIDEO_EXTENSIONS:
        return [row]
    if kind != ".tar":
        ignored[kind or "(none)"] += 1
        return []
    return [
        row._replace(
            path=f"{row.path}/{video.name.removeprefix('./')}",
            label=video.label or row.label,
            bytes=video.bytes,
            offset=video.offset,
        )
        for video in read_tar(path, VIDEO_EXTENSIONS, ignored)
    ]


def _stored(url: str, ignored: Counter[str]) -> list[Row]:
    """Videos below an address, with labels and splits as in a folder."""
    sizes = {name: size for name, size in list_store(url) if _is_video(name, ignored)}
    return [row._replace(bytes=sizes[row.path]) for row in _rows_of_paths(list(sizes))]


def _is_video(path: str, ignored: Counter[str]) -> bool:
    kind = suffix(posixpath.basename(path))
    video = kind in VIDEO_EXTENSIONS and not _hidden(path) and _is_text(path)
    ignored[kind or "(none)"] += not video
    return video


def _below(root: str, video_id: str) -> str:
    """The address of a video; what follows a question mark belongs to all of them."""
    base, mark, query = root.partition("?")
    return f"{base.rstrip('/')}/{video_id}{mark}{query}"


def in_shards(
    items: Sequence[VideoItem], videos_per_shard: int, first: int = 0
) -> tuple[tuple[VideoItem, ...], int]:
    """The videos, in their order, with balanced shards from ``first`` on, and the number of shards then."""
    count = -(-len(items) // videos_per_shard)
    shards = balanced(_weights(items), count)
    placed = (item._replace(shard=first + shard) for item, shard in zip(items, shards, strict=True))
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


@no_collector()
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
    old = [item._replace(shard=had[item.video_id].shard) for item in kept]
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


def _scan(folder: Path, ignored: Counter[str]) -> list[Row]:
    """Videos below a folder, relative to it; other files are counted by extension."""
    found: list[str] = []
    tars: set[str] = set()
    for parent, names in _walk(folder, ignored):
        below = "" if parent == str(folder) else Path(parent).relative_to(folder).as_posix() + "/"
        if is_frame_folder(names) and below:
            found.append(below.removesuffix("/"))
            names = sorted({*names} - {*pictures_of(names)})
        for name in names:
            path, kind = below + name, suffix(name)
            if not _is_text(path):
                ignored["(name is not UTF-8)"] += 1
            elif kind in {*VIDEO_EXTENSIONS, ".tar"} and not _hidden(path):
                found.append(path)
                tars |= {path} if kind == ".tar" else set()
            else:
                ignored[kind or "(none)"] += 1
    rows = _rows_of_paths(found)
    return [
        one
        for row in rows
        for one in (_rows_of_file(folder / row.path, row, ignored) if row.path in tars else [row])
    ]


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


def _hidden(path: str) -> bool:
    return "/." in f"/{path}"


def _rows_of_paths(paths: list[str]) -> list[Row]:
    """(path, label, split): a class may be called "test", so the first level is splits as a whole or not."""
    first = {path.partition("/")[0] for path in paths if "/" in path}
    splits = all(name.lower() in SPLITS for name in first)
    return [_row_of_path(path, splits) for path in paths]


def _row_of_path(path: str, splits: bool) -> Row:
    folders = path.split("/")[:-1]
    split = SPLITS[folders[0].lower()] if folders and splits else None
    label = folders[1:2] if split else folders[:1]
    # Interned: a million labels are few.
    return Row(path, sys.intern(label[0]) if label else None, split)


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
    videos, labels, splits, durations = (
        _texts(list(frame[name]), path.name) if name in names else [None] * len(frame)
        for name in MANIFEST_COLUMNS
    )
    columns = zip(videos, _shared(labels), _shared(splits), durations, strict=True)
    rows = []
    for place, (video, label, split, seconds) in enumerate(columns, 1):
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
    """Whether a path can be written down."""
    return _NO_TEXT.search(path) is None


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


def _texts(cells: list[Any], manifest: str) -> list[str | None]:
    scalars = list(map(pd.api.types.is_scalar, cells))
    if not all(scalars):
        place = scalars.index(False) + 1
        raise AlignerError(f"{manifest}: row {place} has a list where one text was expected")
    return [_text(cell) for cell in cells]


def _text(cell: Any) -> str | None:
    if not isinstance(cell, str):
        cell = "" if pd.isna(cell) else str(cell)
    return cell.strip() or None


def _identified(row: Row, root: Path | str, allow_outside: bool) -> Row:
    """A row whose path is its video id: below the root, for it must not depend on the machine.

    What counts is the path as written, absolute or with ``..``: a link within the root is followed, as it is
    the work of whoever owns the root and not of whoever wrote the manifest.
    """
    if is_url(row.path):
        plain = shown(row.path)
        below = f"{shown(str(root)).rstrip('/')}/"
        inside = plain.startswith(below) and is_url(str(root))
        relative, url = plain.removeprefix(below) if inside else plain, row.path
        outside = not inside or ".." in relative.split("/")
    elif isinstance(root, str):
        relative, url = posixpath.normpath(row.path), None
        outside = relative.startswith(("/", "../")) or relative == ".."
    else:
        relative, url = _relative(os.path.join(root, row.path), os.path.join(root, "")), None
        outside = relative.split("/")[0] == os.pardir
    if outside and not (allow_outside and (url or isinstance(root, Path))):
        raise AlignerError(
            f"{shown(row.path)} lies outside the videos' root {shown(str(root))}; give --videos-root, a folder "
            "above it, or --allow-outside-root if you trust the manifest"
        )
    return row if (relative, url) == (row.path, row.url) else row._replace(path=relative, url=url)


def _relative(path: str, below: str) -> str:
    """An absolute path seen from a folder, as POSIX writes it; most lie below it, which is told quickly."""
    path = os.path.normpath(path)
    relative = path[len(below) :] if path.startswith(below) else os.path.relpath(path, below)
    return relative if os.sep == "/" else Path(relative).as_posix()


def _refuse_twice(rows: list[Row], name: str) -> None:
    twice = [video_id for video_id, n in Counter(row.path for row in rows).items() if n > 1]
    if twice:
        raise AlignerError(
            f"{PurePath(name).name} names {len(twice)} videos more than once, the first is {twice[0]}"
        )


def _sizes(rows: list[Row], root: Path | str) -> list[int]:
    """Sizes of all videos, asked for by many threads at once."""
    place = os.fspath(root)
    chunks = [rows[start : start + STAT_CHUNK] for start in range(0, len(rows), STAT_CHUNK)]
    with ThreadPoolExecutor(STAT_THREADS) as pool:
        found = pool.map(lambda chunk: [bytes_of(row, place) for row in chunk], chunks)
        return [size for sizes in found for size in sizes]


def bytes_of(row: Row, root: str) -> int:
    """Size of a video; 0 when it is missing."""
    if row.bytes is not None:
        return row.bytes
    if row.url or is_url(root):
        return stored_size(row.url or _below(root, row.path))
    path, _ = part_of(os.path.join(root, row.path))
    try:
        found = os.stat(path)
    except OSError:
        return 0
    if stat.S_ISDIR(found.st_mode):
        return sum(os.stat(os.path.join(path, name)).st_size for name in pictures_of(os.listdir(path)))
    return found.st_size if stat.S_ISREG(found.st_mode) else 0
