"""A protocol's videos as a manifest that the aligner reads: path, label and split, from the official lists."""

import csv
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adapter.artifact import make_folder, write_atomic
from adapter.config import AdapterError
from adapter.lists import VideoList, is_video, keys, names_are_unique, open_list
from adapter.protocols import open_lists
from adapter.recipes import Recipe, find

COLUMNS = ("path", "label", "split")


@dataclass(frozen=True)
class Wanted:
    """A listed video with its class; ``split`` is train or test, empty where it is both by turns."""

    video: str
    label: str
    split: str


def write_manifest(
    name: str, root: Path, out: Path, videos: Path | None = None, run: int = 1
) -> dict[str, Any]:
    """Write the videos of protocol ``name`` that run number ``run`` needs; returns counts and what is missing.

    With ``videos`` the listed names are looked for anywhere below that folder, and those that are not there are
    left out and named; without, paths are as listed.
    """
    recipe = find(name)
    if out.suffix != ".csv":
        raise AdapterError(f"--out {out.name} ends in '{out.suffix}'; it must end in .csv")
    if not 1 <= run <= max(1, len(recipe.runs)):
        raise AdapterError(f"--run is {run}; {name} has runs 1 to {max(1, len(recipe.runs))}")
    wanted = _wanted(recipe, open_lists(recipe, root), run - 1)
    places = _below(videos, wanted) if videos is not None else {row.video: row.video for row in wanted}
    rows = [(places[row.video], row.label, row.split) for row in wanted if row.video in places]
    if not rows:
        raise AdapterError(_none_there(videos, wanted))
    make_folder(out.parent)
    write_atomic(out, lambda temporary: _write(temporary, rows))
    missing = [row.video for row in wanted if row.video not in places]
    count = {split: sum(row[2] == split for row in rows) for split in sorted({row[2] for row in rows})}
    return {"written": len(rows), "splits": count, "missing": missing}


def _wanted(recipe: Recipe, lists: Mapping[str, VideoList], run: int) -> list[Wanted]:
    """Every listed video of a run once, training videos first."""
    parts = [part for part in recipe.parts if part.run == run or recipe.probe]
    found: dict[str, Wanted] = {}
    for split in ("train", "test"):
        names = dict.fromkeys(
            name for part in parts for name in (part.train if split == "train" else part.test)
        )
        for one in (lists[name] for name in names):
            keyed = keys(one.videos, names_are_unique(one.videos))
            for key, video, label in zip(keyed, one.videos, one.labels, strict=True):
                found.setdefault(key, Wanted(video, label, "" if recipe.probe else split))
    return list(found.values())


def write_list_manifest(names: Sequence[str], root: Path, out: Path, videos: Path) -> dict[str, Any]:
    """Write the videos of all lists of several protocols, so that they are aligned once; returns counts.

    A video's split names every list that it is on, joined by ``+``: ``adapter train --split ucf101_train1``. Listed
    videos that are not below ``videos`` are left out and counted, by list.
    """
    labels: dict[str, Wanted] = {}
    members: dict[str, list[str]] = {}
    for name in dict.fromkeys(list_name for protocol in names for list_name in find(protocol).lists()):
        one = open_list(root, name)
        for key, video, label in zip(
            keys(one.videos, names_are_unique(one.videos)), one.videos, one.labels, strict=True
        ):
            labels.setdefault(key, Wanted(video, label, ""))
            members.setdefault(key, []).append(name)
    places = _below(videos, list(labels.values()))
    found = {key: row for key, row in labels.items() if row.video in places}
    if not found:
        raise AdapterError(_none_there(videos, list(labels.values())))
    rows = [(places[row.video], row.label, "+".join(members[key])) for key, row in found.items()]
    make_folder(out.parent)
    write_atomic(out, lambda temporary: _write(temporary, rows))
    counted = Counter(name for key in found for name in members[key])
    return {
        "written": len(rows),
        "splits": dict(counted),
        "missing": [row.video for key, row in labels.items() if key not in found],
    }


def _none_there(videos: Path | None, wanted: Sequence[Wanted]) -> str:
    return (
        f"{videos} holds none of the {len(wanted)} listed videos, such as {wanted[0].video}; their file names "
        "must be those of the lists"
    )


def _below(folder: Path, wanted: list[Wanted]) -> dict[str, str]:
    """Where the listed videos lie below a folder; two files of one listed name raise."""
    files = sorted(
        f.relative_to(folder).as_posix() for f in folder.rglob("*") if is_video(f.name) and f.is_file()
    )
    listed = [row.video for row in wanted]
    by_name = names_are_unique(listed)
    found: dict[str, list[str]] = defaultdict(list)
    for file, key in zip(files, keys(files, by_name), strict=True):
        found[key].append(file)
    places = {
        video: found[key] for video, key in zip(listed, keys(listed, by_name), strict=True) if key in found
    }
    if many := [files for files in places.values() if len(files) > 1]:
        raise AdapterError(
            f"--videos {folder}: {many[0][0]} and {many[0][1]} have one listed name; leave one out"
        )
    return {video: files[0] for video, files in places.items()}


def _write(path: Path, rows: list[tuple[str, str, str]]) -> None:
    with open(path, "w", encoding="utf-8", newline="") as handle:
        writer = csv.writer(handle, lineterminator="\n")
        writer.writerow(COLUMNS)
        writer.writerows(rows)
