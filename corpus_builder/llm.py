"""Chat completions of any server that speaks the OpenAI protocol: cached, limited, retried, never paid twice.

Every reply is stored in SQLite under the hash of the request's body before it is used, so the cache file is what
makes an expansion repeatable. The key comes from the environment and is cut out of whatever is stored or shown.
"""

import hashlib
import json
import os
import random
import sqlite3
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from corpus_builder.config import CorpusError

TRIES = 5
LONGEST_WAIT = 60.0
FORMAT_WORDS = ("response_format", "json_schema", "json_object")

Body = Mapping[str, Any]


class OutOfBudget(Exception):
    """The requests or tokens that were allowed are spent; what was answered is in the cache."""


class Failed(Exception):
    """The server gave no usable answer; the message says why."""


class NoSuchFormat(Failed):
    """The server does not know the answer format that was asked for."""


@dataclass(frozen=True)
class Limits:
    """What a run may spend, and how fast. Zero means no limit."""

    requests: int = 0
    tokens: int = 0
    per_minute: int = 0
    timeout: float = 60.0
    tries: int = TRIES


def request_key(body: Body) -> str:
    """SHA-256 of a request's body in canonical JSON."""
    told = json.dumps(body, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(told.encode()).hexdigest()


class ReplyCache:
    """Replies by request hash in one SQLite file, safe for threads and for being killed."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._lock = threading.Lock()
        try:
            self._base = sqlite3.connect(path, check_same_thread=False, isolation_level=None)
            self._base.execute("PRAGMA journal_mode=WAL")
            self._base.execute("PRAGMA synchronous=FULL")
            self._base.execute(
                "CREATE TABLE IF NOT EXISTS replies (key TEXT PRIMARY KEY, body TEXT NOT NULL, reply TEXT NOT NULL,"
                " tokens INTEGER NOT NULL, seconds REAL NOT NULL) STRICT"
            )
        except sqlite3.DatabaseError as error:
            raise CorpusError(
                f"--cache {path} is no cache of replies ({error}); choose another file"
            ) from None

    def get(self, key: str) -> str | None:
        """The reply to a request, or None."""
        with self._lock:
            row = self._base.execute("SELECT reply FROM replies WHERE key = ?", (key,)).fetchone()
        return row[0] if row else None

    def put(self, key: str, body: str, reply: str, tokens: int, seconds: float) -> None:
        """Store a reply for good; the first one stays."""
        with self._lock:
            self._base.execute(
                "INSERT OR IGNORE INTO replies VALUES (?, ?, ?, ?, ?)", (key, body, reply, tokens, seconds)
            )

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._base.close()


class Chat:
    """Asks a server, through a cache, within limits.

    Args:
        base_url: of the server, with ``/v1`` where it wants one; None for the client's default.
        key: secret of the server; a local one takes any.
        cache: where replies are kept.
        limits: what may be spent.
        sleep: how to wait; tests give their own.
        seed: of the jitter between tries.
    """

    def __init__(
        self,
        base_url: str | None,
        key: str,
        cache: ReplyCache,
        limits: Limits = Limits(),
        *,
        sleep: Callable[[float], None] = time.sleep,
        seed: int | None = None,
    ) -> None:
        openai = _import_openai()
        self._client = openai.OpenAI(base_url=base_url, api_key=key, max_retries=0, timeout=limits.timeout)
        self._openai = openai
        self._key = key
        self._cache = cache
        self._limits = limits
        self._sleep = sleep
        self._random = random.Random(seed)
        self._lock = threading.Lock()
        self._next = 0.0
        self.requests = 0
        self.tokens = 0
        self.cached = 0

    def ask(self, body: Body) -> str:
        """The text of the answer to a request; from the cache if it was ever answered.

        Raises:
            OutOfBudget: nothing more may be spent.
            NoSuchFormat: the server refuses ``response_format``.
            Failed: the server refuses the request, or failed ``limits.tries`` times.
        """
        key = request_key(body)
        known = self._cache.get(key)
        if known is not None:
            with self._lock:
                self.cached += 1
            return known
        problem = "no answer"
        for attempt in range(self._limits.tries):
            self._spend()
            started = time.monotonic()
            try:
                answer = self._client.chat.completions.create(**body)
                text, tokens = _text_of(answer)
            except self._openai.OpenAIError as error:
                problem, wait = self._judge(error, attempt)
            except (
                ValueError,
                TypeError,
                AttributeError,
            ) as error:  # a body that is no JSON, or not of that shape
                problem, wait = f"an answer that cannot be read ({type(error).__name__})", self._wait(attempt)
            else:
                text = self.without_key(text)
                told = json.dumps(body, sort_keys=True, ensure_ascii=False)
                self._cache.put(key, told, text, tokens, round(time.monotonic() - started, 3))
                with self._lock:
                    self.tokens += tokens
                return text
            if attempt + 1 < self._limits.tries:
                self._sleep(wait)
        raise Failed(f"{problem}, {self._limits.tries} times")

    def without_key(self, text: str) -> str:
        """The text with the key cut out, should a server echo it."""
        return text.replace(self._key, "***") if len(self._key) >= 4 else text

    def _spend(self) -> None:
        """Count a request against the budget and wait for its turn; requests that failed count too."""
        with self._lock:
            if self._limits.requests and self.requests >= self._limits.requests:
                raise OutOfBudget(f"{self.requests} requests are spent")
            if self._limits.tokens and self.tokens >= self._limits.tokens:
                raise OutOfBudget(f"{self.tokens} tokens are spent")
            self.requests += 1
            now = time.monotonic()
            turn = max(now, self._next)
            self._next = turn + (60.0 / self._limits.per_minute if self._limits.per_minute else 0.0)
        if turn > now:
            self._sleep(turn - now)

    def _judge(self, error: Any, attempt: int) -> tuple[str, float]:
        """What went wrong in few words and how long to wait; raises :class:`Failed` where waiting helps nothing."""
        told = self.without_key(" ".join(str(error).split()))[:200]
        status = getattr(error, "status_code", None)
        if status is None:
            return type(error).__name__, self._wait(attempt)
        if status == 429 or status >= 500 or status == 408:
            after = error.response.headers.get("retry-after", "")
            return f"status {status}", float(after) if after.isdigit() else self._wait(attempt)
        if status in (400, 422) and any(word in told for word in FORMAT_WORDS):
            raise NoSuchFormat(told)
        raise Failed(f"status {status}: {told}")

    def _wait(self, attempt: int) -> float:
        with self._lock:
            return min(LONGEST_WAIT, 2.0**attempt) * (0.5 + self._random.random())


def key_of(name: str, base_url: str | None) -> str:
    """The secret in the environment variable ``name``; a server of one's own may need none."""
    key = os.environ.get(name, "")
    if not key and base_url is None:
        raise CorpusError(
            f"no key: set {name} in the environment, or give a server of your own with --base-url"
        )
    return key or "none"


def _text_of(answer: Any) -> tuple[str, int]:
    text = answer.choices[0].message.content
    if not isinstance(text, str):
        raise ValueError("no text")
    return text, int(getattr(answer.usage, "total_tokens", 0) or 0)


def _import_openai() -> Any:
    try:
        import openai
    except ImportError:
        raise CorpusError(
            "an LLM expansion needs the openai client: pip install 'alt-toolkit[llm]'"
        ) from None
    return openai
