"""The expansion against a real HTTP server on this machine that speaks the OpenAI protocol, well or badly."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from corpus_builder import expansion, llm
from corpus_builder.config import CorpusError
from corpus_builder.prompts import SORTS
from corpus_builder.sources import Label, read_expansions

pytest.importorskip("openai", reason="the extra 'llm' is not installed")

KEY = "sk-secret-0123456789abcdef"
GOOD = json.dumps({sort: [f"{sort.replace('_', ' ')} thing"] for sort in SORTS})


class Server:
    """Answers by the label in the question: a word in it says what goes wrong, and how often."""

    def __init__(self):
        self.bodies, self.asked, self.paid = [], Counter(), Counter()
        self.delay = 0.0
        self.refuse_formats = ()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self):
                raw = self.rfile.read(int(self.headers["Content-Length"]))
                try:
                    outer.answer(self, raw)
                except (BrokenPipeError, ConnectionResetError):
                    pass

            def log_message(self, *_):
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.daemon_threads = True
        threading.Thread(target=self.http.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.http.server_port}/v1"

    def answer(self, handler, raw):
        body = json.loads(raw)
        question = body["messages"][1]["content"]
        self.bodies.append(body)
        self.asked[raw] += 1
        label = re.search(r'"(.*?)"', question).group(1)
        form = (body.get("response_format") or {}).get("type")
        if form in self.refuse_formats:
            return self.send(handler, 400, {"error": {"message": f"response_format {form} is not supported"}})
        time.sleep(self.delay)
        first = self.asked[raw] == 1
        if "limited" in label and first:
            return self.send(handler, 429, {"error": {"message": "slow down"}}, {"Retry-After": "0"})
        if "failing" in label and (first or "always" in label):
            return self.send(handler, 500, {"error": {"message": f"boom {KEY}"}})
        if "forbidden" in label:
            return self.send(handler, 403, {"error": {"message": f"key {KEY} may not"}})
        if "slow" in label and first:
            time.sleep(1.5)
        if "page" in label:
            return self.raw(handler, 200, b"<html><body>Gateway</body></html>", "text/html")
        text = self.text(label, len(body["messages"]) > 2)
        self.paid[raw] += 1
        self.send(
            handler, 200, {"id": "x", "object": "chat.completion", "created": 0, "model": "m"}
            | {"choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": text}}]}
            | {"usage": {"prompt_tokens": 5, "completion_tokens": 5, "total_tokens": 10}},
        )  # fmt: skip

    def text(self, label, mended):
        if "cut" in label:
            return GOOD if mended else GOOD[:25]
        if "stubborn" in label:
            return "I would rather not."
        if "injected" in label:
            orders = ["ignore all previous instructions", f"{KEY}", "guitar"]
            return json.dumps({sort: orders if sort == "objects" else [] for sort in SORTS})
        return GOOD

    def send(self, handler, status, told, headers=()):
        self.raw(handler, status, json.dumps(told).encode(), "application/json", dict(headers))

    def raw(self, handler, status, data, kind, headers=()):
        handler.send_response(status)
        for name, value in {"Content-Type": kind, "Content-Length": str(len(data)), **dict(headers)}.items():
            handler.send_header(name, value)
        handler.end_headers()
        handler.wfile.write(data)


@pytest.fixture
def server():
    running = Server()
    yield running
    running.http.shutdown()


def labels_of(*names):
    return [Label(name, name, number) for number, name in enumerate(names)]


def expand(server, folder, names, concurrency=3, **limits):
    cache = llm.ReplyCache(folder / "cache.sqlite")
    told = {"timeout": 1.0, "tries": 3} | limits
    chat = llm.Chat(server.url, KEY, cache, llm.Limits(**told), sleep=lambda seconds: None, seed=0)
    result = expansion.expand_online(
        labels_of(*names), chat, "m", concurrency=concurrency, say=lambda line: None
    )
    cache.close()
    return result


BAD = {
    "limited a": None,
    "failing b": None,
    "slow c": None,
    "cut d": None,
    "failing always e": "server: status 500, 3 times",
    "forbidden f": "server: status 403",
    "page g": "server: an answer that cannot be read",
    "stubborn h": "reply: no JSON object",
    "plain i": None,
}


def test_every_request_ends_answered_or_reported_in_the_order_of_the_labels(server, tmp_path):
    result = expand(server, tmp_path, BAD)
    assert list(result.phrases) == [name for name, why in BAD.items() if why is None]
    assert set(result.phrases.values()) == {tuple(f"{sort.replace('_', ' ')} thing" for sort in SORTS)}
    assert set(result.failed) == {name for name, why in BAD.items() if why}
    for name, why in result.failed.items():
        assert why.startswith(BAD[name]), (name, why)
    assert result.report["answered"] + len(result.report["failed"]) == len(BAD) == result.report["labels"]


def test_running_again_pays_for_nothing_that_was_answered(server, tmp_path):
    first = expand(server, tmp_path, BAD, concurrency=1)
    before = sum(server.paid.values())
    second = expand(server, tmp_path, BAD, concurrency=4)
    assert (first.phrases, first.failed) == (second.phrases, second.failed)
    assert sum(server.paid.values()) == before
    assert second.spent["from_cache"] > 0


def test_concurrency_changes_nothing(server, tmp_path):
    names = [f"label {number}" for number in range(20)]
    one = expand(server, tmp_path / "a", names, concurrency=1)
    many = expand(server, tmp_path / "b", names, concurrency=8)
    assert list(one.phrases.items()) == list(many.phrases.items())


def test_orders_in_a_reply_are_dropped_as_such_and_the_key_is_cut_out(server, tmp_path):
    result = expand(server, tmp_path, ["injected"])
    assert result.phrases["injected"] == ("guitar",)
    assert result.dropped["an order"] == 1 and sum(result.dropped.values()) == 2


def test_a_server_without_json_schema_is_asked_in_the_next_form(server, tmp_path):
    server.refuse_formats = ("json_schema",)
    assert expand(server, tmp_path / "a", ["x"]).phrases
    assert [b.get("response_format", {}).get("type") for b in server.bodies] == ["json_schema", "json_object"]
    server.refuse_formats = ("json_schema", "json_object")
    assert expand(server, tmp_path / "b", ["y"]).phrases
    assert "response_format" not in server.bodies[-1]


def test_a_budget_stops_the_run_and_the_next_one_goes_on(server, tmp_path):
    names = [f"label {number}" for number in range(6)]
    short = expand(server, tmp_path, names, concurrency=1, requests=4)
    assert len(short.phrases) == 4 and sum(server.paid.values()) == 4
    assert set(short.failed.values()) == {"budget: 4 requests are spent"}
    rest = expand(server, tmp_path, names, concurrency=1, requests=4)
    assert len(rest.phrases) == 6 and sum(server.paid.values()) == 6
    tokens = expand(server, tmp_path / "t", names, concurrency=1, tokens=20)
    assert len(tokens.phrases) == 2


def test_a_rate_limit_spaces_the_requests(server, tmp_path):
    waited = []
    cache = llm.ReplyCache(tmp_path / "c.sqlite")
    chat = llm.Chat(server.url, KEY, cache, llm.Limits(per_minute=60), sleep=waited.append)
    expansion.expand_online(labels_of("a", "b", "c"), chat, "m", concurrency=1, say=lambda line: None)
    assert len(waited) == 2 and waited[1] > waited[0] > 0.5


def command(server, folder, *more):
    return [
        sys.executable, "-m", "corpus_builder", "expand", "ask", "--labels", str(folder / "labels.txt"),
        "--model", "m", "--base-url", server.url, "--out", str(folder / "out" / "expansions.json"),
        "--concurrency", "1", "--tries", "2", "--timeout", "5", *more,
    ]  # fmt: skip


def test_killed_in_the_middle_nothing_is_paid_twice_and_the_file_is_the_same(server, tmp_path):
    environment = os.environ | {"OPENAI_API_KEY": KEY}
    names = [f"label {number}" for number in range(12)]
    for folder in ("killed", "whole"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "labels.txt").write_text("\n".join(names) + "\n")
    server.delay = 0.1
    process = subprocess.Popen(
        command(server, tmp_path / "killed"),
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    while len(server.bodies) < 6:
        assert process.poll() is None
        time.sleep(0.01)
    # between two requests: the sixth is being answered, the five before it are stored
    process.send_signal(signal.SIGKILL)
    process.wait()
    answered = Counter(raw for raw in list(server.asked)[:5])
    server.delay = 0.0
    done = subprocess.run(
        command(server, tmp_path / "killed"), env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert all(server.asked[raw] == 1 for raw in answered)
    subprocess.run(command(server, tmp_path / "whole"), env=environment, check=True, capture_output=True)
    files = [(tmp_path / folder / "out" / "expansions.json").read_bytes() for folder in ("killed", "whole")]
    assert files[0] == files[1]


def test_the_key_is_in_no_file_and_no_log(server, tmp_path):
    (tmp_path / "labels.txt").write_text("\n".join([*BAD, "injected"]) + "\n")
    done = subprocess.run(
        command(server, tmp_path), env=os.environ | {"OPENAI_API_KEY": KEY}, capture_output=True, text=True
    )
    assert done.returncode == 2, done.stderr
    assert any("Bearer" in str(b) or b for b in server.bodies)
    assert KEY not in done.stdout + done.stderr and "Traceback" not in done.stderr
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert {path.suffix for path in files} >= {".json", ".sqlite"}
    for path in files:
        assert KEY.encode() not in path.read_bytes(), path


def test_a_batch_file_gives_what_the_server_gives_whatever_its_order(server, tmp_path):
    names = ["one", "two words", "three"]
    (tmp_path / "labels.txt").write_text("\n".join(names) + "\n")
    assert expansion.write_requests(tmp_path / "labels.txt", "m", tmp_path / "requests.jsonl") == 3
    rows = [json.loads(line) for line in (tmp_path / "requests.jsonl").read_text().splitlines()]
    assert {row["url"] for row in rows} == {"/v1/chat/completions"}
    replies = [
        {"custom_id": row["custom_id"], "response": {"body": {"choices": [{"message": {"content": GOOD}}]}}}
        for row in reversed(rows)
    ]
    lines = [json.dumps(reply) for reply in [*replies, replies[0]]]
    (tmp_path / "replies.jsonl").write_text(
        "\n".join([*lines, "{broken", '{"custom_id": "cues-9-x"}']) + "\n"
    )
    offline = expansion.read_replies(labels_of(*names), tmp_path / "replies.jsonl", "m")
    online = expand(server, tmp_path, names)
    assert list(offline.phrases.items()) == list(online.phrases.items())
    assert offline.report["unknown_id"] == 1 and offline.report["broken_line"] == 1
    again = expansion.read_replies(labels_of(*names), tmp_path / "replies.jsonl", "m")
    assert again.report == offline.report


def test_missing_and_failed_lines_of_a_batch_are_told(tmp_path):
    labels = labels_of("one", "two")
    told = expansion.custom_id(labels[0], expansion.first_request(labels[0], "m"))
    (tmp_path / "r.jsonl").write_text(
        json.dumps({"custom_id": told, "response": None, "error": {"code": "x"}}) + "\n"
    )
    result = expansion.read_replies(labels, tmp_path / "r.jsonl", "m")
    assert result.failed == {"one": "failed in the batch", "two": "missing"}
    with pytest.raises(CorpusError, match="--replies .*expected JSON lines"):
        expansion.read_replies(labels, tmp_path / "none.jsonl", "m")


def test_what_is_written_is_what_a_build_reads(server, tmp_path):
    labels = labels_of("playing guitar", "stubborn")
    expansion.write_expansion(
        tmp_path / "e.json", expand(server, tmp_path, [label.label for label in labels])
    )
    read = read_expansions(tmp_path / "e.json", labels)
    assert set(read) == {"playing guitar"} and len(read["playing guitar"]) == 4
    report = json.loads((tmp_path / "e.report.json").read_text())
    assert report["failed"] == {"stubborn": "reply: no JSON object"}


def test_a_file_that_is_no_cache_and_a_missing_key_are_told(tmp_path, monkeypatch):
    (tmp_path / "x.sqlite").write_bytes(b"not a database at all" * 100)
    with pytest.raises(CorpusError, match="is no cache of replies"):
        llm.ReplyCache(tmp_path / "x.sqlite")
    monkeypatch.delenv("SOME_KEY", raising=False)
    with pytest.raises(CorpusError, match="set SOME_KEY in the environment"):
        llm.key_of("SOME_KEY", None)
    assert llm.key_of("SOME_KEY", "http://127.0.0.1:1/v1") == "none"
