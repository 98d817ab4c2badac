"""Chat completions of any server that speaks the OpenAI protocol: cached, limited, retried, never paid twice.

Every reply is stored in SQLite under the hash of the request's body before it is used, so the cache file is what
makes an expansion repeatable. The key comes from the environment and is cut out of whatever is stored or shown.
"""

import hashlib
import json
import math
import os
import random
import sqlite3
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any

from corpus_builder.config import CorpusError

TRIES = 5
LONGEST_WAIT = 60.0
LONGEST_RETRY_AFTER = 600.0
"""Seconds that a server may ask to wait; one that asks for more is given up for this run."""
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
    return hashlib.sha256(told.encode(errors="surrogatepass")).hexdigest()


class ReplyCache:
    """Replies by request hash in one SQLite file, safe for threads and for being killed."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._lock = threading.Lock()
        self._path = path
        try:
            self._base = sqlite3.connect(path, check_same_thread=False, isolation_level=None, timeout=60.0)
        except sqlite3.Error as error:
            raise self._no_cache(error) from None
        self._run("PRAGMA journal_mode=WAL")
        self._run("PRAGMA synchronous=FULL")
        self._run(
            "CREATE TABLE IF NOT EXISTS replies (key TEXT PRIMARY KEY, body TEXT NOT NULL, reply TEXT NOT NULL,"
            " tokens INTEGER NOT NULL, seconds REAL NOT NULL) STRICT"
        )

    def get(self, body: Body) -> str | None:
        """The reply to a request, or None."""
        rows = self._run("SELECT reply FROM replies WHERE key = ?", request_key(body))
        return rows[0][0] if rows else None

    def put(self, body: Body, reply: str, tokens: int = 0, seconds: float = 0.0) -> None:
        """Store a reply for good; the first one stays."""
        told = json.dumps(body, sort_keys=True, ensure_ascii=True)
        row = request_key(body), told, reply, tokens, seconds
        self._run("INSERT OR IGNORE INTO replies VALUES (?, ?, ?, ?, ?)", *row)

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._base.close()

    def _run(self, command: str, *values: Any) -> list[Any]:
        try:
            with self._lock:
                return self._base.execute(command, values).fetchall()
        except sqlite3.Error as error:
            raise self._no_cache(error) from None

    def _no_cache(self, error: sqlite3.Error) -> CorpusError:
        return CorpusError(
            f"--cache {self._path} is no cache of replies that can be used ({error}); choose another file, or end"
            " whatever else writes it"
        )


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
        self._turns: dict[str, threading.Lock] = {}
        self.refused: set[str] = set()
        """Forms of answer that the server is known not to know."""
        self.requests = 0
        self.tokens = 0
        self.cached = 0

    def known(self, body: Body) -> bool:
        """Whether the request was ever answered."""
        return self._cache.get(body) is not None

    def ask(self, body: Body) -> str:
        """The text of the answer to a request; from the cache if it was ever answered.

        Raises:
            OutOfBudget: nothing more may be spent.
            NoSuchFormat: the server refuses ``response_format``.
            Failed: the server refuses the request, or failed ``limits.tries`` times.
        """
        with self._lock:
            turn = self._turns.setdefault(request_key(body), threading.Lock())
        with turn:  # two threads with one question: the second finds the first one's answer
            known = self._cache.get(body)
            if known is None:
                return self._pay(body)
        with self._lock:
            self.cached += 1
        return known

    def _pay(self, body: Body) -> str:
        problem = "no answer"
        for attempt in range(self._limits.tries):
            self._spend()
            started = time.monotonic()
            try:
                text, tokens = _text_of(self._client.chat.completions.create(**body))
            except self._openai.OpenAIError as error:
                problem, wait = self._judge(error, attempt, body)
            except (
                ValueError,
                TypeError,
                AttributeError,
                LookupError,
            ) as error:  # no JSON, or of another shape
                problem, wait = f"an answer that cannot be read ({type(error).__name__})", self._wait(attempt)
            else:
                text = self.without_key(text)
                self._cache.put(body, text, tokens, round(time.monotonic() - started, 3))
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

    def _judge(self, error: Any, attempt: int, body: Body) -> tuple[str, float]:
        """What went wrong in few words and how long to wait; raises :class:`Failed` where waiting helps nothing."""
        told = self.without_key(" ".join(str(error).split()))[:200]
        status = getattr(error, "status_code", None)
        if status is None:
            return type(error).__name__, self._wait(attempt)
        if status in (408, 409, 429) or status >= 500:
            after = _retry_after(error.response.headers.get("retry-after", ""))
            if after is None:
                return f"status {status}", self._wait(attempt)
            if after > LONGEST_RETRY_AFTER:
                raise Failed(f"status {status}, and to be asked again in {after:.0f} s")
            with self._lock:  # whoever asks next waits too
                self._next = max(self._next, time.monotonic() + after)
            return f"status {status}", after
        if status in (400, 422) and any(word in told for word in FORMAT_WORDS) and "response_format" in body:
            self.refused.add(body["response_format"]["type"])
            raise NoSuchFormat(told)
        raise Failed(f"status {status}: {told}")

    def _wait(self, attempt: int) -> float:
        with self._lock:
            return min(LONGEST_WAIT, 2.0**attempt) * (0.5 + self._random.random())


def key_of(name: str, base_url: str | None) -> str:
    """The secret in the environment variable ``name``; a server of one's own may need none.

    Raises :class:`CorpusError` if the default server is meant and there is none, or on a URL that is none.
    """
    if base_url is not None and not base_url.startswith(("http://", "https://")):
        raise CorpusError(f"--base-url is '{base_url}', expected a URL such as http://localhost:8000/v1")
    key = os.environ.get(name, "").strip()
    if not key and base_url is None:
        raise CorpusError(
            f"no key: set {name} in the environment, or give a server of your own with --base-url"
        )
    return key or "none"


def clean_text(text: str) -> str:
    """The text without halves of surrogate pairs, which no file can hold."""
    return text.encode(errors="replace").decode()


def _text_of(answer: Any) -> tuple[str, int]:
    text = answer.choices[0].message.content
    if not isinstance(text, str):
        raise ValueError("no text")
    return clean_text(text), max(0, int(getattr(answer.usage, "total_tokens", 0) or 0))


def _retry_after(told: str) -> float | None:
    """Seconds to wait by a ``Retry-After`` header (seconds, or a date), or None where it tells nothing."""
    try:
        seconds = float(told)
    except ValueError:
        try:
            seconds = (parsedate_to_datetime(told) - datetime.now(UTC)).total_seconds()
        except (ValueError, TypeError):
            return None
    return max(0.0, seconds) if math.isfinite(seconds) else None


def _import_openai() -> Any:
    try:
        import openai
    except ImportError:
        raise CorpusError(
            "an LLM expansion needs the openai client: pip install 'alt-toolkit[llm]'"
        ) from None
    return openai
