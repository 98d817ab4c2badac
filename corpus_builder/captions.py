"""Captions -> finds: mined in chunks, by any number of processes, and taken up again after a stop.

A chunk is a fixed number of captions, so that what it yields depends neither on the number of processes nor on when it
was mined. The tally of every chunk lies in a work folder until the result is written; a run that was killed reads
those and mines the rest. Memory grows with the number of distinct phrases, not with that of captions.
"""

import hashlib
import json
import multiprocessing
import os
import signal
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from corpus_builder.artifact import write_file
from corpus_builder.config import EXAMPLES, CorpusConfig, CorpusError
from corpus_builder.disambiguate import Choice
from corpus_builder.entities import Found
from corpus_builder.mine import Candidate, Limits, mine
from corpus_builder.senses import NO_SENSE
from corpus_builder.sources import Mention
from corpus_builder.taggers import Tagger, load_taggers
from corpus_builder.wordnet import Lexicon, open_lexicon

CHUNK = 4096
"""Captions mined at a time, by one process."""
CONTEXTS = 8
"""Captions that vote on the sense of a phrase: the first that differ."""
TELL_EVERY = 10.0
"""Seconds between two lines of progress."""

STATE = "state.json"
_STRINGS = pa.list_(pa.string())
CHUNK_SCHEMA = pa.schema(
    [
        ("phrase", pa.string()),
        ("entity", pa.string()),
        ("role", pa.string()),
        ("reason", pa.string()),
        ("within", pa.string()),
        ("taggers", _STRINGS),
        ("count", pa.int64()),
        ("texts", _STRINGS),
    ]
)
"""One row per phrase of a chunk, in order of its first mention; ``texts`` are the captions that vote."""

Say = Callable[[str], None]
Choose = Callable[[Candidate, str], Choice]
Key = tuple[str, str, str | None]


@dataclass
class Phrase:
    """What captions tell of a phrase: the candidate as first found, how often, and the first captions."""

    candidate: Candidate
    count: int = 0
    texts: dict[str, None] = field(default_factory=dict)

    def add(self, candidate: Candidate, count: int, texts: Iterable[str]) -> None:
        """Count further mentions; who proposed them is united."""
        self.count += count
        if not candidate.taggers <= self.candidate.taggers:
            self.candidate = replace(self.candidate, taggers=self.candidate.taggers | candidate.taggers)
        for text in texts if len(self.texts) < CONTEXTS else ():
            if len(self.texts) < CONTEXTS:
                self.texts[text] = None


@dataclass
class Tally:
    """Phrases of captions, by entity, role and reason, in order of their first mention."""

    captions: int = 0
    phrases: dict[Key, Phrase] = field(default_factory=dict)

    def add(self, candidate: Candidate, count: int, texts: Iterable[str]) -> None:
        """Count mentions of one candidate."""
        key = candidate.entity, candidate.role, candidate.reason
        self.phrases.setdefault(key, Phrase(candidate)).add(candidate, count, texts)

    def take(self, table: pa.Table, captions: int) -> None:
        """Add the tally of a further chunk."""
        self.captions += captions
        for row in table.to_pylist():
            count, texts = row.pop("count"), row.pop("texts")
            self.add(Candidate(**row | {"taggers": frozenset(row["taggers"])}), count, texts)


@dataclass(frozen=True)
class Work:
    """Tallies of the chunks that are done, in a folder of their own; without a folder nothing is kept."""

    folder: Path | None = None

    @classmethod
    def open(cls, folder: Path, facts: Mapping[str, Any]) -> "Work":
        """The folder, emptied of what was mined from other captions or with other settings (``facts``).

        Raises :class:`CorpusError` if the folder holds things that are not ours.
        """
        told = (json.dumps(facts, sort_keys=True, indent=2) + "\n").encode()
        state = folder / STATE
        if folder.exists() and not state.is_file() and any(folder.iterdir()):
            raise CorpusError(
                f"'{folder}' is needed for what is mined on the way, but holds other things; move it away"
            )
        if state.is_file() and state.read_bytes() != told:
            clear_work(folder)
        write_file(state, told)
        return cls(folder)

    def read(self, number: int) -> pa.Table | None:
        """The tally of a chunk, or None where it is not there or not as it was written."""
        for path in self.folder.glob(f"chunk-{number:06d}-*.parquet") if self.folder else ():
            data = path.read_bytes()
            if path.name == _chunk_name(number, data):
                return pq.read_table(pa.BufferReader(data))
        return None

    def write(self, number: int, table: pa.Table) -> None:
        """Keep the tally of a chunk, whole or not at all."""
        if self.folder is not None:
            sink = pa.BufferOutputStream()
            pq.write_table(table, sink, compression="zstd")
            data = sink.getvalue().to_pybytes()
            write_file(self.folder / _chunk_name(number, data), data)


def _chunk_name(number: int, data: bytes) -> str:
    """Names tell what they hold, so that damage shows."""
    return f"chunk-{number:06d}-{hashlib.sha256(data).hexdigest()[:16]}.parquet"


def work_folder(out: Path) -> Path:
    """Where the tallies of a run that writes ``out`` lie until it is written."""
    return out.with_name(f"{out.name}.mining")


def clear_work(folder: Path) -> None:
    """Remove our files from a work folder, the one that says whose it is last, and the folder if it is empty then."""
    if not (folder / STATE).is_file():
        return
    for path in [*folder.glob("chunk-*.parquet"), *folder.glob(".tmp-*"), folder / STATE]:
        path.unlink(missing_ok=True)
    if not any(folder.iterdir()):
        folder.rmdir()


@dataclass(frozen=True)
class Miner:
    """What it takes to mine captions in another process: settings, not loaded models."""

    config: CorpusConfig
    nltk_data: Path | None
    limits: Limits

    def load(self) -> "LoadedMiner":
        """The same with its taggers and WordNet."""
        lexicon = open_lexicon(self.nltk_data)
        return LoadedMiner(load_taggers(self.config, lexicon, self.nltk_data), lexicon, self.limits)


@dataclass(frozen=True)
class LoadedMiner:
    """Mines a chunk of captions."""

    taggers: Sequence[Tagger]
    lexicon: Lexicon
    limits: Limits

    def __call__(self, texts: Sequence[str]) -> pa.Table:
        """The tally of some captions, as ``CHUNK_SCHEMA``."""
        tally = Tally()
        mentions = (Mention(text.lower(), "", None, "caption") for text in texts)
        for mention, candidates in mine(mentions, self.taggers, self.lexicon, self.limits):
            for candidate in candidates:
                tally.add(candidate, 1, [mention.text])
        return pa.Table.from_pylist([_row(phrase) for phrase in tally.phrases.values()], schema=CHUNK_SCHEMA)


def _row(phrase: Phrase) -> dict[str, Any]:
    candidate = phrase.candidate
    texts = list(phrase.texts)
    return {
        **vars(candidate),
        "taggers": sorted(candidate.taggers),
        "count": phrase.count,
        "texts": texts if candidate.kept else texts[:EXAMPLES],
    }


def tally_captions(
    captions: Iterable[str],
    miner: Miner,
    loaded: LoadedMiner,
    work: Work,
    processes: int = 1,
    say: Say = print,
) -> Tally:
    """Mine captions; the same tally whatever ``processes``, and whatever ``work`` holds of it already.

    Args:
        captions: read once, in order, a few chunks ahead of what is mined.
        miner: for other processes.
        loaded: for this one, which does the work itself where ``processes`` is 1.
        work: keeps the tallies of chunks.
        processes: how many mine.
        say: told of the progress every ``TELL_EVERY`` seconds.

    Raises:
        CorpusError: one of the processes was killed; what was mined before is kept in ``work``.
    """
    tally = Tally()
    start = told = time.monotonic()
    for texts, table in _tables(_chunks(captions), miner, loaded, work, processes):
        tally.take(table, len(texts))
        if time.monotonic() - told > TELL_EVERY:
            told = time.monotonic()
            rate = tally.captions / (told - start)
            say(f"{tally.captions} captions, {rate:.0f} a second, {len(tally.phrases)} phrases")
    return tally


def _chunks(captions: Iterable[str]) -> Iterator[list[str]]:
    stream = iter(captions)
    while chunk := list(islice(stream, CHUNK)):
        yield chunk


def _tables(
    chunks: Iterable[list[str]], miner: Miner, loaded: LoadedMiner, work: Work, processes: int
) -> Iterator[tuple[list[str], pa.Table]]:
    """Every chunk with its tally, in order; at most two chunks per process are under way."""
    with _submitter(miner, loaded, processes) as submit:
        pending: deque[tuple[list[str], Callable[[], pa.Table]]] = deque()
        for number, texts in enumerate(chunks):
            kept = work.read(number)
            pending.append(
                (
                    texts,
                    partial(_kept, kept)
                    if kept is not None
                    else partial(_mined, submit(texts), work, number),
                )
            )
            if len(pending) >= 2 * processes:
                yield _waited(pending.popleft())
        yield from map(_waited, pending)


def _waited(chunk: tuple[list[str], Callable[[], pa.Table]]) -> tuple[list[str], pa.Table]:
    texts, wait = chunk
    return texts, wait()


def _kept(table: pa.Table) -> pa.Table:
    return table


def _mined(wait: Callable[[], pa.Table], work: Work, number: int) -> pa.Table:
    table = wait()
    work.write(number, table)
    return table


@contextmanager
def _submitter(
    miner: Miner, loaded: LoadedMiner, processes: int
) -> Iterator[Callable[[list[str]], Callable[[], pa.Table]]]:
    """What takes a chunk and gives a function that waits for its tally."""
    if processes == 1:
        yield lambda texts: partial(loaded, texts)
        return
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, spawn, _start_worker, (miner,)) as pool:
        try:
            yield lambda texts: pool.submit(_mine_in_worker, texts).result
        except BrokenProcessPool:
            raise CorpusError(
                "a process that mined captions was killed, by a lack of memory for example; run the same command again"
                " to go on from there, with fewer --processes if memory was short"
            ) from None
        finally:
            pool.shutdown(cancel_futures=True)


_WORKER: list[LoadedMiner] = []


def _start_worker(miner: Miner) -> None:
    """Load the taggers; leave with the parent, and leave Ctrl-C to it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_leave_with_parent, daemon=True).start()
    _WORKER.append(miner.load())


def _leave_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _mine_in_worker(texts: list[str]) -> pa.Table:
    return _WORKER[0](texts)


def caption_finds(tally: Tally, choose: Choose, min_count: int) -> list[Found]:
    """One find per phrase over all captions, in alphabetical order; its first captions vote on its sense."""
    keys = sorted(tally.phrases, key=lambda key: (key[0], key[1], key[2] or ""))
    return [_find(tally.phrases[key], choose, min_count) for key in keys]


def _find(phrase: Phrase, choose: Choose, min_count: int) -> Found:
    candidate, choice = phrase.candidate, NO_SENSE
    if candidate.kept and phrase.count < min_count:
        candidate = replace(candidate, reason="too rare", within=None)
    elif candidate.kept:
        choice = _elect([choose(candidate, text) for text in phrase.texts])
    return Found(None, candidate, "caption", choice, phrase.count, tuple(phrase.texts)[:EXAMPLES])


def _elect(votes: Sequence[Choice]) -> Choice:
    """The surest vote for the sense that most texts voted for; of a tie, for the more frequent sense."""
    ranks = {vote.sense.name: vote.sense.rank for vote in votes if vote.sense}
    tally = Counter(vote.sense.name for vote in votes if vote.sense)
    if not tally:
        return NO_SENSE
    winner = max(tally, key=lambda name: (tally[name], -ranks[name]))
    return max((v for v in votes if v.sense and v.sense.name == winner), key=lambda vote: vote.margin)
