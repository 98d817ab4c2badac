"""The official lists of videos and classes as their authors published them: which file, how it numbers classes.

Lists name classes by number, and every file of classes numbers them anew, so a number never leaves this module:
videos come out with the name of their class. Files are looked for as they lie in the public repositories
(ViFi-CLIP and OST, Text4Vis, Open-VCLIP) and as ``splits/`` and ``labels/`` of a folder of copies; gzip is read.
"""

import csv
import gzip
import hashlib
import io
import json
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from adapter.config import AdapterError, reason
from adapter.labels import clean_name, name_key

_SUFFIX = re.compile(r"\.(avi|mp4|webm|mkv|mov|mpg|mpeg|m4v)$", re.IGNORECASE)
_FRAMES = re.compile(r"\s\d+$")


@dataclass(frozen=True)
class ListFile:
    """A published list of videos.

    ``paths`` are the places it may lie at; ``classes`` names the file of classes that numbers it.
    ``alphabetical``: it numbers the classes in alphabetical order, whatever order that file has. ``named``: the
    name of every video holds its class, so the numbering can be checked. ``videos`` is the published size.
    """

    paths: tuple[str, ...]
    classes: str
    alphabetical: bool = False
    named: bool = False
    videos: int | None = None


@dataclass(frozen=True)
class Classes:
    """Names of classes in the order of their numbers, as the file spells them."""

    names: tuple[str, ...]
    file: str
    sha256: str


@dataclass(frozen=True)
class VideoList:
    """A list that was read: videos as listed, each with the name of its class."""

    name: str
    file: str
    sha256: str
    videos: tuple[str, ...]
    labels: tuple[str, ...]
    classes: Classes
    published: int | None = None

    def described(self) -> dict[str, str | int | None]:
        """What a report says of the list."""
        return {
            "name": self.name,
            "file": self.file,
            "sha256": self.sha256,
            "videos": len(self.videos),
            "published_videos": self.published,
            "classes_file": self.classes.file,
            "classes_sha256": self.classes.sha256,
        }


def keys(videos: Iterable[str], by_name: bool) -> list[str]:
    """What videos of several lists are compared by: their paths without the suffix of the container.

    ``by_name`` takes the last part of it alone, which is what the lists of one data set agree on.
    """
    paths = [_SUFFIX.sub("", video.replace("\\", "/")) for video in videos]
    return [path.rsplit("/", 1)[-1] for path in paths] if by_name else paths


def is_video(name: str) -> bool:
    """Whether a file has the suffix of a container of videos."""
    return _SUFFIX.search(name) is not None


def names_are_unique(videos: Sequence[str]) -> bool:
    """Whether videos can be told apart by their names alone."""
    return len(set(keys(videos, True))) == len(videos)


def shared_videos(first: Sequence[str], second: Sequence[str]) -> list[str]:
    """Videos of ``second`` that are in ``first`` too, in the order of ``second``."""
    by_name = names_are_unique(first) and names_are_unique(second)
    known = set(keys(first, by_name))
    return [video for video, key in zip(second, keys(second, by_name), strict=True) if key in known]


def open_list(root: Path, name: str, as_numbered: bool = False) -> VideoList:
    """Read the list ``name`` of ``LISTS`` below the folder ``root``.

    ``as_numbered`` takes the numbers as the file of classes has them, even where the names of the videos say
    otherwise. Raises ``AdapterError`` for a missing or malformed file, a number or class without counterpart, a
    video listed twice, and a file of classes in another order.
    """
    spec = LISTS[name]
    file, classes = _find(root, spec.paths, f"list {name}"), open_classes(root, spec.classes)
    if spec.alphabetical and not as_numbered:
        classes = Classes(tuple(sorted(classes.names, key=clean_name)), classes.file, classes.sha256)
    data = _read(file)
    rows = _rows(data, file)
    _check_rows(rows, classes, file)
    if spec.named and not as_numbered:
        _check_order(rows, classes, file)
    videos, numbers = zip(*rows, strict=True)
    labels = tuple(classes.names[number] for number in numbers)
    sha256 = hashlib.sha256(data).hexdigest()
    return VideoList(name, _relative(file, root), sha256, videos, labels, classes, spec.videos)


def open_classes(root: Path, name: str) -> Classes:
    """Read the file of classes ``name`` of ``CLASSES`` below the folder ``root``."""
    return read_classes(_find(root, CLASSES[name], f"classes of {name}"), root)


def has_classes(root: Path, name: str) -> bool:
    """Whether the file of classes ``name`` of ``CLASSES`` is below the folder ``root``."""
    return _look(root, CLASSES[name]) is not None


def read_classes(file: Path, root: Path | None = None) -> Classes:
    """Read names of classes: CSV ``id,name``, JSON ``{"0": name}`` or one name a line.

    ``sha256`` is of the file unpacked. Raises ``AdapterError`` where numbers are not 0 to n - 1 or two names
    mean the same class.
    """
    data = _read(file)
    text = _decode(data, file)
    plain = file.name.removesuffix(".gz")
    try:
        if plain.endswith(".csv"):
            pairs = [(int(row["id"]), row["name"]) for row in csv.DictReader(io.StringIO(text))]
        elif plain.endswith(".json"):
            pairs = [(int(number), str(name)) for number, name in json.loads(text).items()]
        else:
            pairs = list(enumerate(line for line in text.splitlines() if line.strip()))
    except (KeyError, ValueError, TypeError, AttributeError) as error:
        raise AdapterError(
            f"{file} is no file of classes ({reason(error)}); it needs columns id and name, a JSON object of "
            "number and name, or one name a line"
        ) from error
    numbers = [number for number, _ in pairs]
    if not pairs or sorted(numbers) != list(range(len(pairs))):
        raise AdapterError(
            f"{file} numbers {len(pairs)} classes, but not as 0 to {len(pairs) - 1}, each once"
        )
    names = tuple(name.strip() for _, name in sorted(pairs))
    _check_distinct(names, str(file))
    return Classes(names, _relative(file, root or file.parent), hashlib.sha256(data).hexdigest())


def _check_distinct(names: Sequence[str], what: str) -> None:
    count = Counter(map(name_key, names))
    if twice := [name for name in names if count[name_key(name)] > 1]:
        raise AdapterError(f"{what} names a class twice: {', '.join(twice[:4])}; remove one of them")


def _find(root: Path, paths: Sequence[str], what: str) -> Path:
    found = _look(root, paths)
    if found is None:
        raise AdapterError(
            f"--lists {root} lacks the {what}: looked for {', '.join(paths)} (also with .gz); give the folder of a "
            "copy of the public repository, or put the file there"
        )
    return found


def _look(root: Path, paths: Sequence[str]) -> Path | None:
    # A copy may lie right in the folder, under the first name.
    for path in (*paths, PurePosixPath(paths[0]).name):
        for name in (path, f"{path}.gz"):
            if (root / name).is_file():
                return root / name
    return None


def _read(file: Path) -> bytes:
    data = file.read_bytes()
    try:
        return gzip.decompress(data) if file.suffix == ".gz" else data
    except (OSError, EOFError) as error:
        raise AdapterError(f"{file} cannot be unpacked ({reason(error)}); get it again") from error


def _decode(data: bytes, file: Path) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise AdapterError(f"{file} is no UTF-8 text ({reason(error)}); get it again") from error


def _rows(data: bytes, file: Path) -> list[tuple[str, int]]:
    """``video class``, ``folder frames class`` or ``video,class`` a line."""
    separator = "," if file.name.removesuffix(".gz").endswith(".csv") else None
    rows = []
    for place, line in enumerate(_decode(data, file).splitlines(), start=1):
        if not line.strip():
            continue
        video, *number = line.strip().rsplit(separator, 1)
        if not number or not number[0].strip().isdigit():
            raise AdapterError(
                f"{file}, line {place} is '{line[:80]}'; expected a video and the number of its class"
            )
        video = video if _SUFFIX.search(video) else _FRAMES.sub("", video)
        rows.append((video, int(number[0])))
    if not rows:
        raise AdapterError(f"{file} lists no video; get it again")
    return rows


def _check_rows(rows: Sequence[tuple[str, int]], classes: Classes, file: Path) -> None:
    if beyond := [(video, number) for video, number in rows if number >= len(classes.names)]:
        video, number = beyond[0]
        raise AdapterError(
            f"{file}: {len(beyond)} videos have classes that {classes.file} lacks (0 to "
            f"{len(classes.names) - 1}), such as {video}: {number}; it numbers another set of classes"
        )
    count = Counter(keys((video for video, _ in rows), False))
    if twice := [video for video, n in count.items() if n > 1]:
        raise AdapterError(
            f"{file} lists {len(twice)} videos twice, such as {twice[:3]}; every video counts once"
        )
    found = {number for _, number in rows}
    if lost := [name for number, name in enumerate(classes.names) if number not in found]:
        raise AdapterError(
            f"{file} has no video of {len(lost)} of the {len(classes.names)} classes of {classes.file}: "
            f"{', '.join(lost[:5])}; the list is cut short, or numbers another set of classes"
        )


def _check_order(rows: Sequence[tuple[str, int]], classes: Classes, file: Path) -> None:
    said = [name_key(name) for name in classes.names]
    wrong = [(video, classes.names[n]) for video, n in rows if said[n] not in name_key(video)]
    if wrong:
        video, name = wrong[0]
        raise AdapterError(
            f"{classes.file} numbers the classes in another order than {file.name}: {len(wrong)} of {len(rows)} "
            f"videos get another class than their name says, such as {video}: '{name}'; use the file of classes "
            "that was published with the list"
        )


def _relative(file: Path, root: Path) -> str:
    return file.relative_to(root).as_posix() if file.is_relative_to(root) else file.name


# ------------------------------------------------------------------ what was published

SPLITS = (1, 2, 3)
SHOTS = (2, 4, 8, 16)
# Short name here, name of ViFi-CLIP's folders, name of the files of halves.
_SETS = {"hmdb51": "hmdb", "ucf101": "ucf", "ssv2": "ssv2", "k400": "k400"}
_TESTS = {"hmdb51": (1530, 1530, 1530), "ucf101": (3783, 3734, 3696)}
_TRAINS = {"hmdb51": (3570, 3570, 3570), "ucf101": (9537, 9586, 9624)}
_K600 = {
    "vifi": (14084, 13978, 14136),
    "text4vis": (14119, 14067, 14161),
    "open_vclip": (7276, 7226, 7261),
}
_HALVES = {"hmdb51": (780, 750), "ucf101": (2088, 1695), "ssv2": (17562, 7215), "k400": (9944, 9933)}
_CLASSES = {"hmdb51": 51, "ucf101": 101, "ssv2": 174}
_BASES = {"hmdb51": 26, "ucf101": 51, "ssv2": 87, "k400": 200}

CLASSES: dict[str, tuple[str, ...]] = {
    "hmdb51": ("labels/hmdb_51_labels.csv", "lists/hmdb51_labels.csv", "zs_label_db/hmdb-index2cls.json"),
    "ucf101": ("labels/ucf_101_labels.csv", "lists/ucf_labels.csv", "zs_label_db/ucf101-index2cls.json"),
    "ssv2": ("labels/ssv2_labels.csv",),
    "k400": ("labels/kinetics_400_labels.csv", "lists/kinetics_400_labels.csv"),
    "k600": ("labels/kinetics_600_labels.csv",),
    **{f"k600_{i}": (f"labels/ZS_split{i}_K600.csv", f"lists/k600/k160_labels_split{i}.csv") for i in SPLITS},
    **{f"k600_open_vclip_{i}": (f"zs_label_db/k600_split{i}/k600-openset-index2cls.json",) for i in SPLITS},
    **{
        f"{name}_{half}": (f"labels/{stem}_{half}_labels.csv",)
        for name, stem in zip(_SETS, ("hmdb_51", "ucf_101", "ssv2_174", "kinetics_400"), strict=True)
        for half in ("base", "novel")
    },
}


def _list(name: str, paths: Iterable[str], classes: str, videos: int | None = None) -> ListFile:
    # The published lists of HMDB51 number its classes in alphabetical order. The published file of classes does
    # not: it swaps kick with kick ball, and sword with sword exercise.
    hmdb, named = name.startswith("hmdb51"), name.startswith(("hmdb51", "ucf101", "k600_open_vclip"))
    return ListFile(tuple(paths), classes, hmdb, named, videos)


def _published() -> dict[str, ListFile]:
    found: dict[str, ListFile] = {}

    def add(name: str, classes: str, videos: int | None, *paths: str) -> None:
        found[name] = _list(name, paths, classes, videos)

    for data in ("hmdb51", "ucf101"):
        vifi = f"datasets_splits/{_SETS[data]}_splits"
        for i in SPLITS:
            at = f"lists/{data}/val_rgb_split_{i}.txt"
            vclip = f"zs_label_db/{'hmdb' if data == 'hmdb51' else data}_split{i}/test.csv"
            test = f"splits/zero_shot/{data}_val{i}.txt"
            add(f"{data}_test{i}", data, _TESTS[data][i - 1], test, f"{vifi}/val{i}.txt", at, vclip)
            train = f"splits/ucf101_hmdb51_train/{data}_train_rgb_split_{i}.txt"
            at = f"lists/{data}/train_rgb_split_{i}.txt"
            add(f"{data}_train{i}", data, _TRAINS[data][i - 1], train, at)
    at = "lists/hmdb51/hmdb_full_for_zeroshot.txt"
    add("hmdb51_full", "hmdb51", 6766, "splits/zero_shot/hmdb51_full.txt", at)
    for i in SPLITS:
        test = f"splits/zero_shot/k600_ZS_split{i}_eval.txt"
        vifi = f"datasets_splits/k600_splits/ZS_split{i}_K600_eval.txt"
        add(f"k600_vifi_{i}", f"k600_{i}", _K600["vifi"][i - 1], test, vifi)
        at = f"lists/k600/test_split{i}_exist.txt"
        add(f"k600_text4vis_{i}", f"k600_{i}", _K600["text4vis"][i - 1], at)
        at = f"zs_label_db/k600_split{i}/test.csv"
        add(f"k600_open_vclip_{i}", f"k600_open_vclip_{i}", _K600["open_vclip"][i - 1], at)
    for data, n in _CLASSES.items():
        for shots in SHOTS:
            at = f"splits/few_shot/{data}_train1_few_shot_{shots}.txt"
            vifi = f"datasets_splits/{_SETS[data]}_splits/train1_few_shot_{shots}.txt"
            add(f"{data}_few_shot_{shots}", data, n * shots, at, vifi)
    for data, short in _SETS.items():
        vifi = f"datasets_splits/base2novel_splits/{short}_splits"
        for half, n in zip(("base", "novel"), _HALVES[data], strict=True):
            at = f"splits/base_to_novel/{short}_{half}_val.txt"
            add(f"{data}_{half}_test", f"{data}_{half}", n, at, f"{vifi}/{half}_val.txt")
        for i in SPLITS:
            at = f"splits/base_to_novel/{short}_fs_base_s{i}_train.txt"
            add(
                f"{data}_base_train{i}",
                f"{data}_base",
                16 * _BASES[data],
                at,
                f"{vifi}/fs_base_s{i}_train.txt",
            )
    vifi = "datasets_splits/ssv2_splits/validation.txt"
    add("ssv2_test", "ssv2", 24777, "splits/few_shot/ssv2_validation.txt", vifi)
    add("k400_text4vis", "k400", 19796, "lists/k400/kinetics_video_val_se320.txt")
    return found


LISTS = _published()
