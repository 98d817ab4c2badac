"""Where the bytes of a video lie: a file, a part of one, a member of a tar, an object of a store, a folder of pictures.

A part is written as the W3C's media fragments are: ``clip.mp4#t=10,20`` is what lies between those seconds.

Nothing is unpacked or copied, and no name from an archive becomes a path. Addresses may carry secrets
(``user:password@``, signed queries): only ``shown`` may be printed or written.
"""

import io
import json
import os
import re
import tarfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import urlsplit

from aligner.config import AlignerError

PICTURE_EXTENSIONS = frozenset(".bmp .jpeg .jpg .png .webp".split())
LABEL_EXTENSIONS = (".json", ".cls", ".txt")
LABEL_BYTES = 1 << 20
_PART = re.compile(r"(.+)#t=(\d+(?:\.\d+)?),(\d+(?:\.\d+)?)")
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")
# What fsspec needs beside itself for a protocol.
_PACKAGES = {
    **dict.fromkeys(("s3", "s3a"), "s3fs"),
    **dict.fromkeys(("gs", "gcs"), "gcsfs"),
    **dict.fromkeys(("abfs", "abfss", "az", "adl"), "adlfs"),
    **dict.fromkeys(("http", "https"), "aiohttp"),
    **dict.fromkeys(("sftp", "ssh"), "paramiko"),
}


@dataclass(frozen=True)
class Source:
    """``bytes`` bytes from ``offset`` of a file or address; or a folder of pictures with its frame rate.

    ``part`` is the seconds of it that count, from and up to, by its own clock; by default all.
    """

    place: str
    offset: int | None = None
    bytes: int = 0
    frame_rate: float | None = None
    part: tuple[float, float] | None = None

    @property
    def file(self) -> Path | None:
        """The file, where it is one as a whole."""
        local = self.offset is None and self.frame_rate is None and not is_url(self.place)
        return Path(self.place) if local else None

    def open(self) -> io.IOBase:
        """The bytes, to read and seek in.

        Raises:
            OSError: as the file system tells it.
            AlignerError: no package for the protocol of the address.
        """
        file = _open_url(self.place) if is_url(self.place) else open(self.place, "rb")
        return file if self.offset is None else io.BufferedReader(Window(file, self.offset, self.bytes))


def suffix(name: str) -> str:
    """Extension of a file name in small letters, as ``Path.suffix`` has it, for a million names."""
    stem, dot, kind = name.rpartition(".")
    return (dot + kind).lower() if stem and kind else ""


def as_json(place: Path | Source) -> dict[str, Any]:
    """What tells another process where a video is; it may hold secrets, and is neither written nor shown."""
    return {"path": os.path.abspath(place)} if isinstance(place, Path) else dict(vars(place))


def from_json(told: dict[str, Any]) -> Path | Source:
    """The inverse of ``as_json``."""
    if "path" in told:
        return Path(told["path"])
    part = told.get("part")
    return Source(**told | {"part": tuple(part) if part else None})


def part_name(path: str, start_s: float, end_s: float) -> str:
    """How a part of a video is named, to the millisecond."""
    start, end = (f"{value:.3f}".rstrip("0").rstrip(".") for value in (start_s, end_s))
    return f"{path}#t={start},{end}"


def split_part(name: str) -> tuple[str, tuple[float, float] | None]:
    """The video and the seconds that a name asks for; None where it names a whole.

    Raises:
        AlignerError: a part that ends before it begins.
    """
    found = _PART.fullmatch(name)
    if found is None:
        return name, None
    start, end = float(found[2]), float(found[3])
    if not start < end:
        raise AlignerError(f"{name}: a part must end after it begins, as in clip.mp4#t=10,20")
    return found[1], (start, end)


class Window(io.RawIOBase):
    """A part of a file, as a file."""

    def __init__(self, file: io.IOBase, start: int, length: int) -> None:
        self._file, self._start, self._length, self._at = file, start, length, 0

    def readable(self) -> bool:
        """Yes."""
        return True

    def seekable(self) -> bool:
        """Yes."""
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Move within the part."""
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._length}[whence]
        self._at = max(0, base + offset)
        return self._at

    def readinto(self, buffer: Any) -> int:
        """Read up to the end of the part."""
        wanted = max(0, min(len(buffer), self._length - self._at))
        self._file.seek(self._start + self._at)
        data = self._file.read(wanted)
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)

    def close(self) -> None:
        """Close the file as well."""
        self._file.close()
        super().close()


# Stores, by fsspec.


def is_url(text: str) -> bool:
    """Whether this is an address and no path."""
    return _URL.match(text) is not None


def shown(url: str) -> str:
    """An address without user, password, query and fragment."""
    if not is_url(url):
        return url
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


def file_system(url: str) -> tuple[Any, str]:
    """The fsspec file system of an address, and the path in it.

    Raises:
        AlignerError: fsspec or the package for the protocol is missing, or nobody knows the protocol.
    """
    protocol = url.partition("://")[0].lower()
    try:
        from fsspec.core import url_to_fs

        return url_to_fs(url)
    except ImportError:
        packages = " ".join(("fsspec", *filter(None, [_PACKAGES.get(protocol)])))
        raise AlignerError(
            f"{protocol}:// needs packages that are not installed: pip install {packages}"
        ) from None
    except Exception as error:  # what a store's package says may repeat the address, secrets and all
        raise AlignerError(f"{shown(url)} cannot be opened ({type(error).__name__})") from None


def _open_url(url: str) -> io.IOBase:
    system, path = file_system(url)
    return system.open(path, "rb")


def list_store(url: str) -> list[tuple[str, int]]:
    """Path relative to the address, and size, of all files below it."""
    system, path = file_system(url)
    try:
        found = system.find(path, detail=True)
    except Exception as error:  # see file_system
        raise AlignerError(f"{shown(url)} cannot be listed ({type(error).__name__})") from None
    below = path.rstrip("/") + "/"
    return [
        (name.removeprefix(below), int(entry.get("size") or 0))
        for name, entry in sorted(found.items())
        if name.startswith(below)
    ]


def stored_size(url: str) -> int:
    """Size of an object; 0 when it is not there."""
    system, path = file_system(url)
    try:
        return int(system.size(path) or 0)
    except Exception:  # noqa: BLE001 - stores differ in how they say that something is missing
        return 0


# Tars in the manner of WebDataset.


@dataclass(frozen=True)
class Member:
    """A video in a tar: its name there, where its bytes lie, and its label."""

    name: str
    offset: int
    bytes: int
    label: str | None


def read_tar(path: Path, video_extensions: frozenset[str], ignored: Counter[str]) -> list[Member]:
    """The videos of a plain tar; what is beside it under the same key (json, cls, txt) gives the label.

    Only headers and labels are read. Members that are no plain files, or whose names are absolute, climb
    with ``..`` or are no text, are counted in ``ignored``, as is a tar that cannot be read (on).
    """
    videos: list[tarfile.TarInfo] = []
    labels: dict[str, dict[str, str]] = {}
    with open(path, "rb") as file:
        for member in _members(path, ignored):
            suffix = PurePosixPath(member.name).suffix.lower()
            if not member.isreg() or member.issparse():
                ignored["(no plain file in a tar)"] += not member.isdir()
            elif not _safe(member.name):
                ignored["(odd name in a tar)"] += 1
            elif suffix in video_extensions:
                videos.append(member)
            elif suffix in LABEL_EXTENSIONS and member.size <= LABEL_BYTES:
                file.seek(member.offset_data)
                text = file.read(member.size).decode("utf-8", "replace").strip()
                labels.setdefault(_key(member.name), {})[suffix] = text
            else:
                ignored[suffix or "(none)"] += 1
    return [
        Member(video.name, video.offset_data, video.size, _label(labels.get(_key(video.name), {}), ignored))
        for video in videos
    ]


def _members(path: Path, ignored: Counter[str]) -> Iterator[tarfile.TarInfo]:
    try:
        with tarfile.open(path, "r:", encoding="utf-8", errors="surrogateescape") as tar:
            yield from tar
    except (tarfile.TarError, OSError, ValueError, EOFError):
        ignored["(tar that cannot be read on)"] += 1


def _safe(name: str) -> bool:
    path = PurePosixPath(name)
    text = "\0" not in name and not any("\ud800" <= letter <= "\udfff" for letter in name)
    return text and not path.is_absolute() and ".." not in path.parts and str(path) == name.removeprefix("./")


def _key(name: str) -> str:
    """WebDataset's key: the name up to the first dot behind the last slash."""
    folder, slash, base = name.rpartition("/")
    return folder + slash + base.partition(".")[0]


def _label(texts: dict[str, str], ignored: Counter[str]) -> str | None:
    if ".json" in texts:
        try:
            content = json.loads(texts[".json"])
        except ValueError:
            ignored["(json in a tar that cannot be read)"] += 1
            content = None
        label = content.get("label") if isinstance(content, dict) else None
        if isinstance(label, str | int) and str(label).strip():
            return str(label).strip()
    return texts.get(".cls") or texts.get(".txt") or None


# Folders of pictures.


def is_frame_folder(names: list[str]) -> bool:
    """Whether the files of a folder are the frames of a video: two or more pictures, all with numbers."""
    pictures = pictures_of(names)
    return len(pictures) > 1 and all(re.search(r"\d$", Path(name).stem) for name in pictures)


def pictures_of(names: list[str]) -> list[str]:
    """The pictures among file names in natural order (``2.jpg`` before ``10.jpg``)."""
    pictures = (name for name in names if suffix(name) in PICTURE_EXTENSIONS)
    return sorted((name for name in pictures if not name.startswith(".")), key=_natural)


def _natural(name: str) -> tuple[list[tuple[bool, int, str]], str]:
    parts = re.findall(r"\d+|\D+", name)
    return [(False, int(part), "") if part.isdecimal() else (True, 0, part) for part in parts], name
