"""Runs, corpora, label sets and alignments on the Hugging Face hub.

An address is ``hf://[datasets/]OWNER/NAME[@REVISION][/FOLDER]``, as the hub's own file system writes them: runs are
model repositories, the others data sets. What is pushed was verified and is named in ``pipelines/parcel.py``; what is
pulled is verified before it is used.
"""

import os
import re
import shutil
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipelines.cards import card
from pipelines.errors import PipelineError
from pipelines.parcel import CARD, MANIFEST, Parcel, local_paths, pack, read_kind, size_of, verify
from pipelines.workflow import Say

SCHEME = "hf://"
FORM = "hf://[datasets/]OWNER/NAME[@REVISION][/FOLDER]"
# The hub advises against commits of very many files.
FILES_PER_COMMIT = 200
_NAME = r"[\w.-]+"
_ADDRESS = re.compile(
    rf"(?:hf://)?(?:(models|datasets)/)?({_NAME}/{_NAME})(?:@([^/@]+))?(?:/(.+?))?/?", re.ASCII
)
_OWN = {CARD, ".gitattributes"}


@dataclass(frozen=True)
class Address:
    """A place on the hub; ``repo_type`` is None where the address did not tell."""

    repo_id: str
    repo_type: str | None = None
    revision: str | None = None
    folder: str = ""

    @property
    def kind(self) -> str:
        """``model`` or ``dataset``."""
        return self.repo_type or "model"

    def __str__(self) -> str:
        kind = "datasets/" if self.repo_type == "dataset" else ""
        revision = f"@{self.revision}" if self.revision else ""
        return f"{SCHEME}{kind}{self.repo_id}{revision}{f'/{self.folder}' if self.folder else ''}"


@dataclass(frozen=True)
class Pushed:
    """What was pushed, or would be: files with their sizes; ``url`` and ``commit`` are None in a dry run."""

    repo_id: str
    repo_type: str
    kind: str
    files: dict[str, int]
    url: str | None = None
    commit: str | None = None


def is_address(text: str | Path) -> bool:
    """Whether a run, corpus or alignments folder is one on the hub (``hf:/`` is what a ``Path`` makes of ``hf://``)."""
    return str(text).startswith(("hf://", "hf:/"))


def parse(text: str) -> Address:
    """An address, with or without ``hf://``; raises ``PipelineError`` where it is none."""
    match = _ADDRESS.fullmatch(re.sub(r"^hf:/(?!/)", SCHEME, text))
    if not match:
        raise PipelineError(f"{text} is no address on the hub; expected {FORM}")
    kind, repo_id, revision, folder = match.groups()
    repo_type = {"models": "model", "datasets": "dataset"}.get(kind)
    return Address(repo_id, repo_type, revision and revision.replace("%2F", "/"), folder or "")


def local(place: str | Path) -> Path:
    """A folder on this machine: a path as it is, an address downloaded into the hub's cache and verified.

    Raises:
        PipelineError: nothing there, no right to read it, no network, or no whole artifact.
    """
    if not is_address(place):
        return Path(place)
    address = parse(str(place))
    found = Path(_download(address)) / address.folder
    _verify(found, address)
    return found


def pull(text: str, out: Path, say: Say = lambda line: None) -> str:
    """Download an artifact into a new folder, verify it, and only then give it its name; returns its kind.

    Where it was interrupted the same command goes on.

    Raises:
        PipelineError: as ``local``, or something is at ``out`` already.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise PipelineError(f"--out {out} is there already; give a new or empty folder")
    address, work = parse(text), out.absolute().with_name(f".{out.name}.pull")
    say(f"downloading {address} ...")
    _download(address, work)
    kind = _verify(work / address.folder, address)
    shutil.rmtree(work / ".cache", ignore_errors=True)
    if out.exists():
        out.rmdir()
    (work / address.folder).replace(out)
    shutil.rmtree(work, ignore_errors=True)
    return kind


def _verify(folder: Path, address: Address) -> str:
    if not (folder / MANIFEST).is_file():
        raise PipelineError(
            f"{address} holds no {MANIFEST}, so no artifact of this toolkit; `alt push` makes such"
        )
    try:
        return verify(folder)
    except ValueError as error:
        raise PipelineError(f"what came from {address} is not whole: {error}") from error


def _download(address: Address, to: Path | None = None) -> str:
    patterns = f"{address.folder}/*" if address.folder else None
    with _explained(address):
        return _api().snapshot_download(
            address.repo_id,
            repo_type=address.kind,
            revision=address.revision,
            allow_patterns=patterns,
            local_dir=to,
        )


def push(
    path: Path,
    repo: str,
    private: bool = False,
    dry_run: bool = False,
    license: str | None = None,
    allow_local_paths: bool = False,
    say: Say = lambda line: None,
) -> Pushed:
    """Push an artifact's folder to a repository on the hub, made if it is not there; manifests go last.

    Args:
        path: a run, corpus, label set or alignments folder, or that of an ``alt run``.
        repo: ``OWNER/NAME``, with or without ``hf://``.
        private: for a repository that is made.
        dry_run: only say what would be pushed; needs neither network nor token.
        license: the card's licence field, an identifier of the hub such as ``mit``.
        allow_local_paths: push files that name folders of this machine, too.
        say: called with lines for people.

    Raises:
        PipelineError: a damaged artifact, paths of this machine in it, no token, no right, no network, or a repository
            that holds other things.
    """
    address = parse(repo)
    parcel = prepare(path, address.repo_id, license, allow_local_paths)
    if address.revision or address.folder:
        raise PipelineError(
            f"{repo}: a push makes the main branch of a whole repository; give OWNER/NAME alone"
        )
    if address.repo_type not in (None, parcel.repo_type):
        raise PipelineError(
            f"{repo} is a {address.repo_type} repository, but {parcel.kind} belongs in one of kind {parcel.repo_type}; "
            f"give {address.repo_id}"
        )
    sizes = {name: size_of(content) for name, content in parcel.files.items()}
    if dry_run:
        return Pushed(address.repo_id, parcel.repo_type, parcel.kind, sizes)
    place = Address(address.repo_id, parcel.repo_type)
    with _explained(place):
        url, commit = _upload(parcel, place, private, say)
    return Pushed(address.repo_id, parcel.repo_type, parcel.kind, sizes, url, commit)


def prepare(path: Path, repo_id: str, license: str | None = None, allow_local_paths: bool = False) -> Parcel:
    """The parcel of a folder with its card, verified and free of local paths; raises ``PipelineError`` otherwise."""
    parcel = pack(path)
    found = [] if allow_local_paths else local_paths(parcel)
    if found:
        raise PipelineError(
            f"{len(found)} files name folders of this machine, such as {'; '.join(found[:3])}; mend them, or push them "
            "as they are with --allow-local-paths"
        )
    return Parcel(
        parcel.kind,
        parcel.source,
        parcel.manifest,
        {CARD: card(parcel, repo_id, license).encode(), **parcel.files},
        parcel.config,
    )


def _upload(parcel: Parcel, place: Address, private: bool, say: Say) -> tuple[str, str]:
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, get_token

    if not get_token():
        raise PipelineError(
            "no token for the hub; `hf auth login` stores one, or set HF_TOKEN (with the right to write)"
        )
    api, where = _api(), {"repo_id": place.repo_id, "repo_type": parcel.repo_type}
    url = str(api.create_repo(private=private, exist_ok=True, **where))
    stale = _stale(set(api.list_repo_files(**where)), parcel, place)
    names, commit = list(parcel.files), ""
    for start in range(0, len(names), FILES_PER_COMMIT):
        part = names[start : start + FILES_PER_COMMIT]
        last = start + FILES_PER_COMMIT >= len(names)
        operations: list[Any] = [CommitOperationAdd(name, _opened(parcel.files[name])) for name in part]
        operations += [CommitOperationDelete(name) for name in stale if last]
        what = f"{parcel.kind} {parcel.manifest['fingerprint'][:12]}"
        with warnings.catch_warnings():
            # A run's own tables (its videos, its predictions) belong in a model repository.
            warnings.filterwarnings("ignore", message="It seems that you are about to commit a data file")
            commit = api.create_commit(operations=operations, commit_message=f"Add {what}", **where).oid
        say(f"{min(start + FILES_PER_COMMIT, len(names))} of {len(names)} files are there")
    return url, commit


def _opened(content: Path | bytes) -> str | bytes:
    return str(content.resolve()) if isinstance(content, Path) else content


def _stale(there: set[str], parcel: Parcel, place: Address) -> list[str]:
    """Files of an earlier push that this one does not have; a repository of other things is refused."""
    others = sorted(there - set(parcel.files) - _OWN)
    if others and MANIFEST not in there:
        raise PipelineError(
            f"{place} holds other things ({', '.join(others[:3])}); give a repository that is new or made by `alt push`"
        )
    return others


def _api() -> Any:
    from huggingface_hub import HfApi

    from pipelines import __version__

    # The client reads this variable when it is imported; in a notebook that may be too early.
    endpoint = os.environ.get("HF_ENDPOINT", "").rstrip("/") or None
    return HfApi(endpoint, library_name="alt-toolkit", library_version=__version__)


@contextmanager
def _explained(address: Address) -> Iterator[None]:
    """What may go wrong between here and the hub, in words."""
    from huggingface_hub import errors

    try:
        yield
    except errors.GatedRepoError as error:
        raise PipelineError(
            f"{address} is gated: ask for access on its page, and log in with `hf auth login`"
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise PipelineError(_not_found(address)) from error
    except errors.RevisionNotFoundError as error:
        raise PipelineError(
            f"{address} has no revision {address.revision}; leave it out for the main branch"
        ) from error
    except errors.LocalEntryNotFoundError as error:
        raise PipelineError(_unreachable(address, error)) from error
    except errors.HfHubHTTPError as error:
        status = getattr(error.response, "status_code", None)
        if status in (401, 403):
            raise PipelineError(
                f"the hub refuses {address} ({status}): the token has not the right; `hf auth login` stores another"
            ) from error
        raise PipelineError(
            f"the hub answered {status} for {address}: {_first_line(error)}; try again later"
        ) from error
    except Exception as error:
        # The client's transport (httpx, httpx2) has errors of its own for a network that is not there.
        network = isinstance(error, ConnectionError) or type(error).__module__.startswith("httpx")
        if not network:
            raise
        raise PipelineError(_unreachable(address, error)) from error


def _not_found(address: Address) -> str:
    other = Address(address.repo_id, "dataset" if address.kind == "model" else "model")
    kinds: Sequence[str] = ("runs", "corpora, label sets and alignments")
    held = kinds[address.kind == "dataset"]
    words = f"there is no {address.kind} repository {address.repo_id} ({held} are of this kind)"
    try:
        _api().repo_info(other.repo_id, repo_type=other.kind)
    except Exception:  # whatever is wrong there, this only looks for a better hint
        return f"{words}, or it is private and your token may not read it; `hf auth login` stores a token"
    return f"{words}, but one of kind {other.kind}: {other}"


def _unreachable(address: Address, error: Exception) -> str:
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return f"{address} is not in the cache, and HF_HUB_OFFLINE=1 forbids to download it; unset it"
    return (
        f"cannot reach the hub for {address} ({_first_line(error)}), and it is not in the cache; check the network or "
        "HF_ENDPOINT. A folder that somebody copied works as well as an address"
    )


def _first_line(error: Exception) -> str:
    return next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)


__all__ = ["Address", "Pushed", "is_address", "local", "parse", "prepare", "pull", "push", "read_kind"]
