"""``alt push`` and ``alt pull``: round trips through a real server, nothing local given away, clear words on failure.

The server is a small Hugging Face hub: repositories in memory behind the endpoints that ``huggingface_hub`` uses. Small
text files are committed inline, others go through the LFS batch protocol, as on the hub; reading is free but for
private repositories, writing needs the token.
"""

import base64
import hashlib
import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from huggingface_hub import constants
from typer.testing import CliRunner

from pipelines import hub
from pipelines.cli import app
from pipelines.config import PipelineConfig
from pipelines.errors import PipelineError
from pipelines.parcel import local_paths, pack, verify
from pipelines.predict import find_source

RUNNER = CliRunner()
ROOT = Path(__file__).resolve().parents[2]

TOKEN = "hf_test"
INLINE = (".json", ".md", ".yaml", ".jsonl")


class Repo:
    """One repository with a line of commits, each all files by their names."""

    def __init__(self, private: bool) -> None:
        self.private = private
        self.commits: list[tuple[str, dict[str, bytes]]] = [("0" * 40, {})]

    def at(self, revision: str) -> tuple[str, dict[str, bytes]] | None:
        """Commit and files of a revision; None where there is none."""
        if revision == "main":
            return self.commits[-1]
        return next((commit for commit in self.commits if commit[0] == revision), None)

    def commit(self, files: dict[str, bytes]) -> str:
        """Add a commit; returns its id."""
        oid = hashlib.sha1(f"{len(self.commits)}{sorted(files)}".encode()).hexdigest()
        self.commits.append((oid, files))
        return oid


class Hub(ThreadingHTTPServer):
    """The server; ``repos`` by (plural of kind, id), ``blobs`` uploaded through LFS, ``requests`` as they came."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.repos: dict[tuple[str, str], Repo] = {}
        self.blobs: dict[str, bytes] = {}
        self.requests: list[str] = []

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"http://127.0.0.1:{self.server_address[1]}"


@contextmanager
def serving() -> Iterator[Hub]:
    """A hub in a thread."""
    hub = Hub()
    thread = threading.Thread(target=hub.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        hub.shutdown()
        hub.server_close()
        thread.join()


class Handler(BaseHTTPRequestHandler):
    """Requests by the first words of their path."""

    server: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        """Nothing."""

    def do_GET(self) -> None:
        self.answer()

    do_HEAD = do_POST = do_PUT = do_GET

    def answer(self) -> None:
        self.server.requests.append(f"{self.command} {self.path}")
        length = int(self.headers.get("Content-Length") or 0)
        if self.headers.get("Transfer-Encoding") == "chunked":
            self.body = self.chunks()
        else:
            self.body = self.rfile.read(length)
        words = [unquote(word) for word in urlsplit(self.path).path.strip("/").split("/")]
        if words[:2] == ["api", "validate-yaml"]:
            return self.send({"errors": [], "warnings": []})
        if words[:2] == ["api", "repos"]:
            return self.create()
        if words[0] == "blobs":
            self.server.blobs[words[1]] = self.body
            return self.send({})
        if words[0] == "api":
            return self.api(words[1], "/".join(words[2:4]), words[4:])
        kind = words.pop(0) if words[0] == "datasets" else "models"
        if words[1].endswith(".git"):
            return self.batch()
        return self.resolve(kind, "/".join(words[:2]), words[3], "/".join(words[4:]))

    def chunks(self) -> bytes:
        parts = []
        while size := int(self.rfile.readline(), 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    @property
    def may_write(self) -> bool:
        return self.headers.get("Authorization") == f"Bearer {TOKEN}"

    def create(self) -> None:
        if not self.may_write:
            return self.send({"error": "Invalid credentials"}, 401)
        asked = json.loads(self.body)
        repo_id = f"{asked.get('organization') or 'me'}/{asked['name']}"
        kind = f"{asked.get('type') or 'model'}s"
        if (kind, repo_id) in self.server.repos:
            return self.send({"error": "exists", "url": f"{self.server.url}/{repo_id}"}, 409)
        private = bool(asked.get("private")) or asked.get("visibility") == "private"
        self.server.repos[kind, repo_id] = Repo(private)
        prefix = "datasets/" if kind == "datasets" else ""
        return self.send({"url": f"{self.server.url}/{prefix}{repo_id}", "id": repo_id})

    def repo(self, kind: str, repo_id: str) -> Repo | None:
        repo = self.server.repos.get((kind, repo_id))
        if repo is None or (repo.private and not self.may_write):
            self.send({"error": "Repository not found"}, 401, {"X-Error-Code": "RepoNotFound"})
            return None
        return repo

    def api(self, kind: str, repo_id: str, words: list[str]) -> None:
        repo = self.repo(kind, repo_id)
        if repo is None:
            return None
        verb = words[0] if words else "revision"
        if verb in ("preupload", "commit"):
            return getattr(self, verb)(repo) if self.may_write else self.send({"error": "Forbidden"}, 403)
        found = repo.at(words[1] if len(words) > 1 else "main")
        if found is None:
            return self.send({"error": "Invalid rev id"}, 404, {"X-Error-Code": "RevisionNotFound"})
        commit, files = found
        if verb == "tree":
            return self.send([entry(name, data) for name, data in sorted(files.items())])
        about = {
            "_id": "1",
            "id": repo_id,
            "sha": commit,
            "private": repo.private,
            "tags": [],
            "downloads": 0,
            "likes": 0,
        }
        return self.send({**about, "siblings": [{"rfilename": name} for name in files]})

    def preupload(self, repo: Repo) -> None:
        files = repo.commits[-1][1]
        asked = json.loads(self.body)["files"]
        self.send(
            {
                "files": [
                    {
                        "path": one["path"],
                        "uploadMode": "regular" if one["path"].endswith(INLINE) else "lfs",
                        "shouldIgnore": False,
                        "oid": oid(one["path"], files[one["path"]]) if one["path"] in files else None,
                    }
                    for one in asked
                ]
            }
        )

    def batch(self) -> None:
        def action(one: dict[str, Any]) -> dict[str, Any]:
            there = one["oid"] in self.server.blobs
            upload = {"upload": {"href": f"{self.server.url}/blobs/{one['oid']}", "header": {}}}
            return {**one, **({} if there else {"actions": upload})}

        self.send({"transfer": "basic", "objects": [action(one) for one in json.loads(self.body)["objects"]]})

    def commit(self, repo: Repo) -> None:
        files = dict(repo.commits[-1][1])
        for line in self.body.splitlines():
            item = json.loads(line)
            value = item["value"]
            if item["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif item["key"] == "lfsFile":
                files[value["path"]] = self.server.blobs[value["oid"]]
            elif item["key"] == "deletedFile":
                del files[value["path"]]
        made = repo.commit(files)
        self.send({"commitUrl": f"{self.server.url}/x/y/commit/{made}", "commitOid": made})

    def resolve(self, kind: str, repo_id: str, revision: str, name: str) -> None:
        repo = self.repo(kind, repo_id)
        if repo is None:
            return None
        found = repo.at(revision)
        if found is None or name not in found[1]:
            return self.send({"error": "Entry not found"}, 404, {"X-Error-Code": "EntryNotFound"})
        data = found[1][name]
        headers = {"X-Repo-Commit": found[0], "ETag": f'"{oid(name, data)}"', "Accept-Ranges": "bytes"}
        return self.send(data, 200, headers)

    def send(self, content: Any, status: int = 200, headers: dict[str, str] | None = None) -> None:
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for key, value in {
            "Content-Length": str(len(data)),
            "Content-Type": "application/json",
            **(headers or {}),
        }.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)


def oid(name: str, data: bytes) -> str:
    """The hash by which git or LFS knows a file."""
    if name.endswith(INLINE):
        return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
    return hashlib.sha256(data).hexdigest()


def entry(name: str, data: bytes) -> dict[str, Any]:
    """A file of a tree."""
    found = {"type": "file", "path": name, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
    if name.endswith(INLINE):
        return {**found, "oid": oid(name, data)}
    lfs = {"oid": oid(name, data), "size": len(data), "pointerSize": 130}
    return {**found, "lfs": lfs}


# ------------------------------------------------------------------ the tests


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    """A hub that the client in this process talks to, with a token and an empty cache."""
    with serving() as found:
        monkeypatch.setenv("HF_ENDPOINT", found.url)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        # The client reads these from the environment once, when it is imported.
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub-cache"))
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
        yield found


@pytest.fixture
def artifacts(miniature: PipelineConfig) -> dict[str, Path]:
    out = miniature.out
    return {
        "run": out / "runs" / "alt",
        "corpus": out / "corpus",
        "labels": out / "labels" / "train",
        "alignments": out / "alignments",
    }


def listing(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.mark.parametrize("kind", ["run", "corpus", "labels", "alignments"])
def test_what_is_pushed_comes_back_with_the_same_bytes_and_verified(
    server: Hub, artifacts: dict[str, Path], tmp_path: Path, kind: str
) -> None:
    prefix = "" if kind == "run" else "datasets/"
    done = RUNNER.invoke(app, ["push", str(artifacts[kind]), "me/thing", "--quiet", "--json"])
    assert done.exit_code == 0, done.output
    said = json.loads(done.stdout)
    assert said["kind"] == kind and said["url"] == f"{server.url}/{prefix}me/thing"
    done = RUNNER.invoke(app, ["pull", f"hf://{prefix}me/thing", "--out", str(tmp_path / "back"), "--quiet"])
    assert done.exit_code == 0, done.output
    there, here = listing(tmp_path / "back"), listing(artifacts[kind])
    assert verify(tmp_path / "back") == kind
    # All that was pushed, and nothing else: no cache, no file of the download.
    assert set(there) == set(said["files"]) and not list(tmp_path.glob(".*"))
    own = {name for name in there if "/" not in name} - {"README.md", "pipeline.yaml"}
    assert own <= set(here) and all(there[name] == here[name] for name in own)
    left = {name for name in here if name not in there}
    assert all(name.startswith(("model_location", "timings-", "explanations-")) for name in left), left
    commit = server.repos[f"{said['repo_type']}s", "me/thing"].commits[-1][0]
    cached = hub.local(f"hf://{prefix}me/thing@{commit}")
    assert listing(cached) == there


def test_nothing_of_this_machine_is_pushed(artifacts: dict[str, Path], miniature: PipelineConfig) -> None:
    """A corpus remembers where its model lay, a pipeline's config where everything is: neither leaves the machine."""
    assert (artifacts["corpus"] / "model_location.json").is_file()
    for path in (*artifacts.values(), miniature.out):
        parcel = hub.prepare(path, "me/thing")
        assert local_paths(parcel) == []
        assert not any("model_location" in name or "timings" in name for name in parcel.files)
        for name, content in parcel.files.items():
            data = content.read_bytes() if isinstance(content, Path) else content
            for folder in (miniature.out, miniature.alignments.videos.parent, Path.home(), ROOT):
                assert f"{folder}/".encode() not in data, name
    config = yaml.safe_load(hub.prepare(miniature.out, "me/thing").files["pipeline.yaml"])
    assert config["model"] == "local-dir:clip" and config["alignments"]["videos"] == "manifest.csv"


def test_a_file_with_a_local_path_stops_the_push(artifacts: dict[str, Path], tmp_path: Path) -> None:
    run = tmp_path / "runs" / "copy"
    shutil.copytree(artifacts["run"], run)
    result = json.loads((run / "eval-test.json").read_text())
    (run / "eval-test.json").write_text(json.dumps({**result, "note": "see /home/somebody/thesis/notes.txt"}))
    table = pa.table({"video_id": [str(run / "a.mp4")], "labels": [["x"]]})
    pq.write_table(table, run / "predictions-mine.parquet")
    with pytest.raises(PipelineError, match="2 files name folders of this machine") as error:
        hub.push(run, "me/thing", dry_run=True)
    assert "eval-test.json: /home/somebody" in str(error.value) and "predictions-mine.parquet" in str(
        error.value
    )
    assert hub.push(run, "me/thing", dry_run=True, allow_local_paths=True).files["eval-test.json"]


def test_the_run_of_a_pipeline_goes_with_what_predicting_needs(
    miniature: PipelineConfig, tmp_path: Path
) -> None:
    """``--to`` is a repository without a hub; it is pushed again as the same, and knows its adapter."""
    done = RUNNER.invoke(app, ["push", str(miniature.out), "me/thing", "--to", str(tmp_path / "copy")])
    assert done.exit_code == 0, done.output
    names = set(listing(tmp_path / "copy"))
    assert {"config.json", "model.safetensors", "manifest.json", "pipeline.yaml", "README.md"} <= names
    assert {"corpus/entities.parquet", "corpus/manifest.json", "clip/open_clip_model.safetensors"} <= names
    source = find_source(tmp_path / "copy")
    assert source.adapter == "alt" and source.layout.run("alt") == tmp_path / "copy"
    assert source.config.model == f"local-dir:{tmp_path}/copy/clip"
    again = hub.prepare(tmp_path / "copy", "me/thing").files
    config = (tmp_path / "copy" / "pipeline.yaml").read_text()
    assert set(again) == names and yaml.safe_load(again["pipeline.yaml"]) == yaml.safe_load(config)
    with pytest.raises(PipelineError, match="is there already"):
        hub.pull("me/thing", tmp_path / "copy")


def test_a_second_push_replaces_and_a_killed_one_goes_on(
    server: Hub, artifacts: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub, "FILES_PER_COMMIT", 3)
    hub.push(artifacts["alignments"], "me/thing")
    repo = server.repos["datasets", "me/thing"]
    states = [set(files) for _, files in repo.commits]
    assert all("manifest.json" not in files for files in states[:-1]) and "manifest.json" in states[-1]
    # As after a kill before the last commit; then another artifact takes the place, and none of the old files stays.
    repo.commits.pop()
    uploads = sum("PUT" in line for line in server.requests)
    hub.push(artifacts["alignments"], "me/thing")
    assert set(repo.commits[-1][1]) == states[-1]
    assert sum("PUT" in line for line in server.requests) == uploads, "uploaded twice"
    hub.push(artifacts["corpus"], "me/thing")
    assert set(repo.commits[-1][1]) == set(hub.prepare(artifacts["corpus"], "me/thing").files)


def test_a_damaged_artifact_is_neither_pushed_nor_used(
    server: Hub, artifacts: dict[str, Path], tmp_path: Path
) -> None:
    copy = tmp_path / "corpus"
    shutil.copytree(artifacts["corpus"], copy)
    hub.push(copy, "me/thing")
    data = bytearray((copy / "entities.parquet").read_bytes())
    data[len(data) // 2] ^= 1
    (copy / "entities.parquet").write_bytes(data)
    with pytest.raises(PipelineError, match="entities.parquet was changed"):
        hub.push(copy, "me/thing")
    repo = server.repos["datasets", "me/thing"]
    repo.commit({**repo.commits[-1][1], "entities.parquet": bytes(data)})
    with pytest.raises(
        PipelineError, match="hf://datasets/me/thing is not whole.*entities.parquet was changed"
    ):
        hub.local("hf://datasets/me/thing")
    with pytest.raises(PipelineError, match="is not whole"):
        hub.pull("hf://datasets/me/thing", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    (copy / "manifest.json").unlink()
    with pytest.raises(PipelineError, match="no finished artifact"):
        hub.push(copy, "me/thing")


def test_errors_say_what_to_do(
    server: Hub, artifacts: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.push(artifacts["corpus"], "me/words", private=True)
    with pytest.raises(
        PipelineError, match="no model repository me/words.*one of kind dataset: hf://datasets/me/words"
    ):
        hub.local("hf://me/words")
    with pytest.raises(PipelineError, match="no revision v9"):
        hub.local("hf://datasets/me/words@v9")
    with pytest.raises(PipelineError, match="is no address on the hub; expected hf://"):
        hub.local("hf://words")
    with pytest.raises(PipelineError, match="belongs in one of kind dataset; give me/words"):
        hub.push(artifacts["corpus"], "hf://models/me/words")
    server.repos["models", "me/other"] = Repo(False)
    server.repos["models", "me/other"].commit({"flax_model.msgpack": b"x"})
    with pytest.raises(PipelineError, match="hf://me/other holds other things .flax_model.msgpack."):
        hub.push(artifacts["run"], "me/other")
    with pytest.raises(PipelineError, match="hf://me/other holds no manifest.json"):
        hub.local("hf://me/other")
    repo = server.repos["datasets", "me/words"]
    manifest = json.loads(repo.commits[-1][1]["manifest.json"])
    repo.commit({"manifest.json": json.dumps({**manifest, "artifact": "film"}).encode()})
    with pytest.raises(PipelineError, match="the artifact 'film', which this version does not know"):
        hub.local("hf://datasets/me/words")
    server.repos["models", "me/secret"] = Repo(private=True)
    monkeypatch.setenv("HF_TOKEN", "hf_another")
    with pytest.raises(PipelineError, match="private and your token may not read it"):
        hub.local("hf://me/secret")
    with pytest.raises(
        PipelineError, match=r"the hub refuses hf://me/new \(401\): the token has not the right"
    ):
        hub.push(artifacts["run"], "me/new")
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(PipelineError, match="no token for the hub; `hf auth login`"):
        hub.push(artifacts["run"], "me/new")


def test_without_a_network_the_cache_serves_or_the_error_says_so(
    server: Hub, artifacts: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.push(artifacts["labels"], "me/names")
    kept = hub.local("hf://datasets/me/names")
    nowhere = "http://127.0.0.1:9"
    monkeypatch.setenv("HF_ENDPOINT", nowhere)
    assert hub.local("hf://datasets/me/names") == kept
    with pytest.raises(PipelineError, match="cannot reach the hub for hf://me/unknown.*check the network"):
        hub.local("hf://me/unknown")
    with pytest.raises(PipelineError, match="cannot reach the hub for hf://datasets/me/names"):
        hub.push(artifacts["labels"], "me/names")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(PipelineError, match="HF_HUB_OFFLINE=1 forbids"):
        hub.local("hf://me/unknown")


def test_a_dry_run_needs_neither_network_nor_token(artifacts: dict[str, Path]) -> None:
    done = RUNNER.invoke(app, ["push", str(artifacts["run"]), "me/thing", "--dry-run"])
    assert done.exit_code == 0, done.output
    assert "model.safetensors" in done.stdout and "would push run" in done.stdout
    assert str(artifacts["run"].parents[1]) not in done.stdout


def card_of(path: Path, license: str | None = None) -> tuple[dict[str, Any], str]:
    text = hub.prepare(path, "me/thing", license).files["README.md"].decode()
    front, body = text.removeprefix("---\n").split("\n---\n", 1)
    return yaml.safe_load(front), body


def test_cards_say_what_is_in_it_and_how_to_load_it(
    artifacts: dict[str, Path], miniature: PipelineConfig
) -> None:
    for kind, path in artifacts.items():
        front, body = card_of(path, "mit")
        manifest = json.loads((path / "manifest.json").read_text())
        assert front["license"] == "mit" and "alt-toolkit" in front["tags"]
        assert manifest["fingerprint"] in body and manifest["model"]["weights_sha256"] in body
        assert f"alt pull hf://{'' if kind == 'run' else 'datasets/'}me/thing" in body
        assert "Random weights" not in body
        assert front == card_of(path, "mit")[0]
    front, body = card_of(artifacts["run"])
    found = json.loads((artifacts["run"] / "eval-test.json").read_text())
    metrics = front["model-index"][0]["results"][0]["metrics"]
    assert metrics[0]["value"] == pytest.approx(found["top1"], abs=1e-4)
    assert f"| {100 * found['top1']:.1f} |" in body and 'alt.load("hf://me/thing")' in body
    assert front["license"] == "other" and front["pipeline_tag"] == "video-classification"


def test_random_weights_are_said_first(artifacts: dict[str, Path], tmp_path: Path) -> None:
    from pipelines.cards import card
    from pipelines.parcel import Parcel

    for path in artifacts.values():
        parcel = pack(path)
        manifest = {**parcel.manifest, "model": {**parcel.manifest["model"], "random_weights": True}}
        text = card(Parcel(parcel.kind, parcel.source, manifest, parcel.files), "me/thing", None)
        body = text.split("\n---\n", 1)[1]
        assert body.strip().splitlines()[2].startswith("> **Random weights.**")


def test_from_the_shell_a_run_is_pushed_and_predicts_by_its_address(
    miniature: PipelineConfig, tmp_path: Path
) -> None:
    """The environment alone says where the hub is, as for everybody else who uses ``huggingface_hub``."""
    program = (
        "import sys\nfrom pipelines.cli import app\n"
        "app(['push', sys.argv[1], 'me/thing', '--quiet'], standalone_mode=False)\n"
        "app(['predict', sys.argv[2], '--labels', sys.argv[3], '--run', 'hf://me/thing', '--json', '--quiet'])"
    )
    root = miniature.alignments.videos.parent
    arguments = [miniature.out, root / "videos" / "0-3.mp4", root / "new.txt"]
    with serving() as found:
        environment = {
            **os.environ,
            "HF_ENDPOINT": found.url,
            "HF_TOKEN": TOKEN,
            "HF_HOME": str(tmp_path / "home"),
        }
        environment |= {"HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1", "PYTHONPATH": str(ROOT)}
        command = [sys.executable, "-c", program, *map(str, arguments)]
        done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (row,) = json.loads(done.stdout.splitlines()[-1])
    assert set(row["labels"]) == {"juggling balls", "riding a horse"} and not row["error"]
    assert [path.name for path in tmp_path.iterdir()] == ["home"]
