"""Which videos, in which shards: a function of inputs and settings, never of the number of workers."""

import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path, PurePosixPath
from typing import Any

import pandas as pd

from aligner.config import AlignerError, did_you_mean

VIDEO_EXTENSIONS = frozenset(".3gp .avi .flv .m4v .mkv .mov .mp4 .mpeg .mpg .mts .ogv .ts .webm .wmv".split())
MANIFEST_COLUMNS = ("path", "label", "split")
SPLITS = {
    **{"train": "train", "training": "train", "test": "test", "testing": "test"},
    **dict.fromkeys(("val", "valid", "validation"), "val"),
}
# Names that other tools give to the column ``path``.
PATH_SYNONYMS = ("video", "file", "filename", "video_path")

Row = tuple[str, str | None, str | None]


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
    """All videos sorted by id, contiguous shards, and what was ignored on the way.

    ``ignored`` counts files by extension, ``ignored_columns`` are those of a manifest.
    """

    root: Path
    items: tuple[VideoItem, ...]
    ignored: dict[str, int] = field(default_factory=dict)
    ignored_columns: tuple[str, ...] = ()

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

    @cached_property
    def missing(self) -> int:
        """Number of videos whose file is not there."""
        return sum(not self.path(item).is_file() for item in self.items)

    def warnings(self) -> list[str]:
        """What looks like a mistake but need not be one."""
        warnings = []
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


def make_plan(videos: Path, videos_per_shard: int, root: Path | None = None) -> Plan:
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
        rows = [(str(videos / path), label, split) for path, label, split in _rows_of_paths(found)]
    else:
        rows, columns = read_manifest(videos)
    rows = [(_relative(path, root), label, split) for path, label, split in rows]
    if not rows:
        raise AlignerError(
            f"no videos in {videos}; extensions looked for: {' '.join(sorted(VIDEO_EXTENSIONS))}"
        )
    _refuse_twice(rows, videos)
    items = (
        VideoItem(video_id, label, split, _size(root / video_id), place // videos_per_shard)
        for place, (video_id, label, split) in enumerate(sorted(rows, key=lambda row: row[0]))
    )
    return Plan(root, tuple(items), ignored, columns)


def _scan(folder: Path) -> tuple[list[PurePosixPath], dict[str, int]]:
    """Videos below a folder, relative to it, and the number of other files by extension."""
    found, ignored = [], Counter[str]()
    for parent, names in _walk(folder, ignored):
        for name in names:
            path = Path(parent, name).relative_to(folder)
            if path.suffix.lower() in VIDEO_EXTENSIONS and not _hidden(path):
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
    return str(path), label[0] if label else None, split


def read_manifest(path: Path) -> tuple[list[Row], tuple[str, ...]]:
    """(path, label, split) of each row of a csv, parquet, jsonl or txt manifest, and its other columns.

    Empty cells are None.

    Raises:
        AlignerError: an unknown format, no column ``path``, an empty path, or a cell that is no text.
    """
    frame = _read_table(path)
    names = [str(column) for column in frame.columns]
    if "path" not in names:
        raise AlignerError(
            f"{path.name}: no column 'path'{_synonym(names)}; columns are path[,label][,split]"
        )
    ignored = tuple(name for name in names if name not in MANIFEST_COLUMNS)
    frame = frame.reindex(columns=list(MANIFEST_COLUMNS))
    rows = []
    for place, cells in enumerate(frame.itertuples(index=False), 1):
        if not all(pd.api.types.is_scalar(cell) for cell in cells):
            raise AlignerError(f"{path.name}: row {place} has a list where one text was expected")
        video, label, split = (_text(cell) for cell in cells)
        if video is None:
            raise AlignerError(f"{path.name}: row {place} has no path")
        rows.append((video, label, split))
    return rows, ignored


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


def _relative(path: str, root: Path) -> str:
    """POSIX path below the root; the identity of a video must not depend on the machine."""
    relative = os.path.relpath(root / path, root)
    if relative.split(os.sep)[0] == os.pardir:
        raise AlignerError(
            f"{path} lies outside the videos' root {root}; give --videos-root, a folder above it"
        )
    return Path(relative).as_posix()


def _refuse_twice(rows: list[Row], videos: Path) -> None:
    twice = [video_id for video_id, n in Counter(row[0] for row in rows).items() if n > 1]
    if twice:
        raise AlignerError(f"{videos.name} names {len(twice)} videos more than once, the first is {twice[0]}")


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0
