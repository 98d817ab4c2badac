"""Which videos, in which shards: a function of inputs and settings, never of the number of workers."""

import os
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import pandas as pd

from aligner.config import AlignerError, did_you_mean

VIDEO_EXTENSIONS = frozenset(".3gp .avi .flv .m4v .mkv .mov .mp4 .mpeg .mpg .mts .ogv .ts .webm .wmv".split())
MANIFEST_COLUMNS = ("path", "label", "split")
SPLITS = {"train", "val", "validation", "test"}


@dataclass(frozen=True)
class VideoItem:
    """One planned video; ``bytes`` is 0 for a missing file, which becomes a failure row in its turn."""

    video_id: str
    label: str | None
    split: str | None
    bytes: int
    shard: int


@dataclass(frozen=True)
class Plan:
    """All videos sorted by id, contiguous shards, and what was ignored on the way (by file extension)."""

    root: Path
    items: tuple[VideoItem, ...]
    ignored: dict[str, int] = field(default_factory=dict)

    @property
    def num_shards(self) -> int:
        """Number of shards."""
        return self.items[-1].shard + 1

    def shard(self, shard: int) -> list[VideoItem]:
        """The videos of one shard."""
        return [item for item in self.items if item.shard == shard]

    def path(self, item: VideoItem) -> Path:
        """Where the file of a video is."""
        return self.root / item.video_id

    def counts(self) -> dict[str, Any]:
        """What goes into manifests and reports."""
        missing = sum(not self.path(item).is_file() for item in self.items)
        return {
            "videos": len(self.items),
            "shards": self.num_shards,
            "bytes": sum(item.bytes for item in self.items),
            "missing": missing,
            "labels": len({item.label for item in self.items} - {None}),
            "ignored": self.ignored,
        }


def make_plan(videos: Path, videos_per_shard: int, root: Path | None = None) -> Plan:
    """Plan a folder (recursively, by file extension) or a manifest.

    In a folder ``CLASS/clip.mp4`` has its class as label; with ``train``, ``val`` or ``test`` as the first
    level, that is the split and the second level is the label.

    Raises:
        AlignerError: nothing there, no video in it, an unknown column, a video named twice or outside the
        root.
    """
    if videos.is_dir():
        found, ignored = _scan(videos)
        root, rows = videos if root is None else root, [_row_of_path(path) for path in found]
        rows = [(_relative(str(videos / video_id), root), label, split) for video_id, label, split in rows]
    elif videos.is_file():
        root, ignored = videos.parent if root is None else root, {}
        rows = [(_relative(path, root), label, split) for path, label, split in read_manifest(videos)]
    else:
        raise AlignerError(f"--videos {videos} does not exist; give a folder of videos or a manifest")
    if not rows:
        raise AlignerError(
            f"no videos in {videos}; extensions looked for: {' '.join(sorted(VIDEO_EXTENSIONS))}"
        )
    _refuse_twice(rows, videos)
    items = (
        VideoItem(video_id, label, split, _size(root / video_id), place // videos_per_shard)
        for place, (video_id, label, split) in enumerate(sorted(rows, key=lambda row: row[0]))
    )
    return Plan(root, tuple(items), ignored)


def _scan(folder: Path) -> tuple[list[PurePosixPath], dict[str, int]]:
    """Videos below a folder, relative to it, and the number of other files by extension."""
    found, ignored = [], Counter[str]()
    for parent, _, names in os.walk(folder):
        for name in names:
            path = Path(parent, name).relative_to(folder)
            if path.suffix.lower() in VIDEO_EXTENSIONS and not _hidden(path):
                found.append(PurePosixPath(path.as_posix()))
            else:
                ignored[path.suffix.lower() or "(none)"] += 1
    return found, dict(sorted(ignored.items()))


def _hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)


def _row_of_path(path: PurePosixPath) -> tuple[str, str | None, str | None]:
    folders = path.parts[:-1]
    split = folders[0] if folders and folders[0].lower() in SPLITS else None
    label = folders[1:2] if split else folders[:1]
    return str(path), label[0] if label else None, split


def read_manifest(path: Path) -> list[tuple[str, str | None, str | None]]:
    """(path, label, split) of each row of a csv, parquet, jsonl or txt manifest; empty cells are None.

    Raises:
        AlignerError: an unknown format or column, no column ``path``, or an empty path.
    """
    frame = _read_table(path)
    for column in frame.columns:
        if column not in MANIFEST_COLUMNS:
            hint = did_you_mean(str(column), MANIFEST_COLUMNS)
            raise AlignerError(
                f"{path.name}: unknown column {column!r}{hint}; columns are {', '.join(MANIFEST_COLUMNS)}"
            )
    if "path" not in frame.columns:
        raise AlignerError(f"{path.name}: no column 'path'; columns are path[,label][,split]")
    frame = frame.reindex(columns=list(MANIFEST_COLUMNS))
    rows = [tuple(_text(cell) for cell in row) for row in frame.itertuples(index=False)]
    if any(row[0] is None for row in rows):
        empty = 1 + next(place for place, row in enumerate(rows) if row[0] is None)
        raise AlignerError(f"{path.name}: row {empty} has no path")
    return [(str(video), label, split) for video, label, split in rows]


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
    except (ValueError, OSError) as error:
        raise AlignerError(f"manifest {path.name} cannot be read: {error}") from error


def _lines(path: Path) -> list[str]:
    return [line.strip() for line in path.read_text("utf-8").splitlines() if line.strip()]


def _text(cell: Any) -> str | None:
    return None if cell is None or pd.isna(cell) or str(cell).strip() == "" else str(cell).strip()


def _relative(path: str, root: Path) -> str:
    """POSIX path below the root; the identity of a video must not depend on the machine."""
    relative = os.path.relpath(root / path, root)
    if relative.split(os.sep)[0] == os.pardir:
        raise AlignerError(
            f"{path} lies outside the videos' root {root}; give --videos-root, a folder above it"
        )
    return Path(relative).as_posix()


def _refuse_twice(rows: list[tuple[str, str | None, str | None]], videos: Path) -> None:
    twice = [video_id for video_id, n in Counter(row[0] for row in rows).items() if n > 1]
    if twice:
        raise AlignerError(f"{videos.name} names {len(twice)} videos more than once, the first is {twice[0]}")


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0
