"""What has been done already: a stage is skipped when neither its options, its inputs nor its code changed."""

import hashlib
import json
import os
from pathlib import Path
from typing import Any

LEDGER = "ledger.json"


def sha256_of(value: Any) -> str:
    """Hash of a JSON-able value, independent of the order of keys."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def file_sha256(path: Path) -> str:
    """Hash of a file's bytes; a missing file has a hash of its own, so that it counts as a change."""
    if not path.is_file():
        return "missing"
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def folder_listing(folder: Path) -> str:
    """Hash of names, sizes and times of all files below a folder."""
    rows = sorted(
        (path.relative_to(folder).as_posix(), path.stat().st_size, path.stat().st_mtime_ns)
        for path in folder.rglob("*")
        if path.is_file()
    )
    return sha256_of(rows)


def write_text(path: Path, text: str) -> None:
    """Write a file whole or not at all; processes that write the same one do not disturb each other."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    partial.write_text(text, encoding="utf-8")
    os.replace(partial, path)


class Ledger:
    """One JSON file: stage name -> key of the last successful run and the fingerprint of what it made."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / LEDGER
        self._entries: dict[str, dict[str, str]] = {}
        if self._path.is_file():
            try:
                self._entries = json.loads(self._path.read_text(encoding="utf-8"))
            except ValueError:
                # A damaged ledger only costs work: every stage runs again.
                self._entries = {}

    def done(self, stage: str, key: str, output: str) -> bool:
        """Whether the stage ran with this key and its output is still what it made then."""
        return self._entries.get(stage) == {"key": key, "output": output}

    def record(self, stage: str, key: str, output: str) -> None:
        """Remember a finished stage; written atomically."""
        self._entries[stage] = {"key": key, "output": output}
        write_text(self._path, json.dumps(self._entries, indent=2, sort_keys=True) + "\n")
