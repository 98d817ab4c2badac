"""Questions -> answers of a language model, online or by a batch file, and the report of what became of each.

Both routes make the same requests and read the same replies, so they give the same file. Every question ends as
answered or as failed with its reason; nothing is left out in silence. What is asked is told by
:mod:`corpus_builder.expansion`.
"""

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from corpus_builder.artifact import write_file
from corpus_builder.config import CorpusError
from corpus_builder.llm import (
    Body,
    Chat,
    Failed,
    NoSuchFormat,
    OutOfBudget,
    ReplyCache,
    clean_text,
    request_key,
)
from corpus_builder.prompts import Prompt
from corpus_builder.replies import InvalidReply, Read

FORMS = ("json_schema", "json_object", None)
"""Forms of answer to ask for, the strictest first; a server that refuses one is asked for the next."""


@dataclass(frozen=True)
class Question:
    """What is asked about a label or phrase, and how its reply is read."""

    about: str
    text: str
    prompt: Prompt
    read: Callable[[str], Read]


@dataclass
class Answers:
    """Answers by what was asked about, questions that failed with the reason, and what was dropped."""

    given: dict[str, Any] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    dropped: Counter[str] = field(default_factory=Counter)
    spent: dict[str, int] = field(default_factory=dict)
    prompts: str = ""

    def add(self, about: str, found: Read | str) -> None:
        """Take in an answer, or the reason why there is none."""
        if isinstance(found, str):
            self.failed[about] = found
        else:
            self.given[about] = found.kept
            self.dropped.update(found.dropped)

    @property
    def report(self) -> dict[str, Any]:
        """Counts and reasons, for the report file and for people."""
        return {
            "prompts": self.prompts,
            "asked": len(self.given) + len(self.failed),
            "answered": len(self.given),
            "failed": dict(sorted(self.failed.items())),
            "kept": sum(map(len, self.given.values())),
            "dropped": dict(sorted(self.dropped.items())),
            **self.spent,
        }


def request(question: Question, model: str, form: str | None = FORMS[0]) -> dict[str, Any]:
    """The body of a question's request, with the answer asked for in a form of ``FORMS``."""
    prompt = question.prompt
    body: dict[str, Any] = {
        "model": model,
        "temperature": 0,
        "messages": [
            {"role": "system", "content": prompt.system},
            {"role": "user", "content": question.text},
        ],
    }
    if form == "json_schema":
        schema = {"name": prompt.version, "schema": prompt.schema, "strict": True}
        return body | {"response_format": {"type": form, "json_schema": schema}}
    return body | {"response_format": {"type": form}} if form else body


def ask_all(
    questions: Sequence[Question], chat: Chat, model: str, *, concurrency: int = 4, say: Callable = print
) -> Answers:
    """Ask every question; the result is in their order, whatever the concurrency."""
    result = _answers(questions)
    with ThreadPoolExecutor(max(1, concurrency)) as pool:
        found = pool.map(lambda question: _ask(question, chat, model), questions)
        for number, (question, answer) in enumerate(zip(questions, found, strict=True), 1):
            result.add(question.about, answer)
            if number % 50 == 0 or number == len(questions):
                say(f"{number} of {len(questions)}, {len(result.failed)} failed, {chat.requests} requests")
    result.spent = {"requests": chat.requests, "tokens": chat.tokens, "from_cache": chat.cached}
    return result


def _answers(questions: Sequence[Question]) -> Answers:
    return Answers(prompts=questions[0].prompt.version if questions else "")


def _ask(question: Question, chat: Chat, model: str) -> Read | str:
    """Down the ladder of forms, then one request to mend the answer."""
    bodies = [request(question, model, form) for form in FORMS]
    # what was answered in some form is not asked for in a stricter one again
    ladder = [body for body in bodies if chat.known(body)] or bodies
    try:
        for body in ladder:
            if body.get("response_format", {}).get("type") in chat.refused and not chat.known(body):
                continue
            try:
                text = chat.ask(body)
            except NoSuchFormat:
                continue
            try:
                return question.read(text)
            except InvalidReply as problem:
                return question.read(chat.ask(_repair(question, body, text, str(problem))))
        return "no form of answer is known to the server"
    except OutOfBudget as error:
        return f"budget: {error}"
    except Failed as error:
        return f"server: {error}"
    except InvalidReply as error:
        return f"reply: {error}"


def _repair(question: Question, body: Body, text: str, problem: str) -> dict[str, Any]:
    told = [
        *body["messages"],
        {"role": "assistant", "content": text[:2000]},
        {"role": "user", "content": question.prompt.repair.format(problem=problem)},
    ]
    return {**body, "messages": told}


def write_requests(questions: Iterable[Question], model: str, out: Path) -> int:
    """Write the requests as OpenAI-batch JSON lines, each once; returns how many."""
    bodies = {request_id(question, model): request(question, model) for question in questions}
    lines = [
        {"custom_id": name, "method": "POST", "url": "/v1/chat/completions", "body": body}
        for name, body in bodies.items()
    ]
    write_file(out, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines).encode())
    return len(lines)


def request_id(question: Question, model: str) -> str:
    """``cues-1-0a1b2c...``: the version of the prompt and a hash of the request."""
    return f"{question.prompt.version}-{request_key(request(question, model))[:32]}"


def read_batch(
    questions: Sequence[Question], replies: Sequence[Path], model: str, cache: ReplyCache | None = None
) -> Answers:
    """Match the lines of a batch's output to questions by id; missing, failed and unknown ones are reported.

    Reading it twice, or with lines in another order or repeated, gives the same. With a ``cache``, replies that can
    be read are stored there, so that ``ask`` pays only for the rest, and found there if a batch of before left them.
    """
    result = _answers(questions)
    names = [request_id(question, model) for question in questions]
    texts: dict[str, set[str]] = {name: set() for name in names}
    unused, failed = Counter[str](), set()
    for name, text in (line for path in replies for line in _batch_lines(path)):
        if name not in texts:
            unused["unknown_id" if name else "broken_line"] += 1
        elif text is None:
            failed.add(name)
        else:
            texts[name].add(text)
    for name, question in zip(names, questions, strict=True):
        known = cache.get(request(question, model)) if cache else None
        found = _best(question, sorted(texts[name]) + ([known] if known is not None else []))
        if isinstance(found, tuple):
            if cache:
                cache.put(request(question, model), found[0])
            result.add(question.about, found[1])
        else:
            result.add(question.about, found or ("failed in the batch" if name in failed else "missing"))
    result.spent = {"lines_unused": unused.total(), **unused}
    return result


def _best(question: Question, texts: Sequence[str]) -> tuple[str, Read] | str:
    """The first of the texts that can be read, with what it says; else why the last cannot, or nothing."""
    problem = ""
    for text in texts:
        try:
            return text, question.read(text)
        except InvalidReply as error:
            problem = f"reply: {error}"
    return problem


def _batch_lines(path: Path) -> Iterator[tuple[str | None, str | None]]:
    try:
        stream = path.open(encoding="utf-8-sig", errors="replace")
    except OSError as error:
        raise CorpusError(
            f"--replies {path}: {error.strerror or error}; expected JSON lines of a batch"
        ) from None
    with stream:
        for line in filter(str.strip, stream):
            try:
                row = json.loads(line)
                told = row["custom_id"]
            except (ValueError, TypeError, KeyError, RecursionError):
                yield None, None
                continue
            yield (told if isinstance(told, str) else None), _batch_text(row)


def _batch_text(row: Mapping[str, Any]) -> str | None:
    try:
        text = row["response"]["body"]["choices"][0]["message"]["content"]
    except (KeyError, IndexError, TypeError):
        return None
    return clean_text(text) if isinstance(text, str) else None


def write_answers(out: Path, result: Answers) -> None:
    """Write ``out`` (what was asked about -> answer) and its report beside it, each whole or not at all."""
    write_file(out.with_suffix(".report.json"), _json(result.report))
    write_file(out, _json({about: answer for about, answer in result.given.items() if answer}))


def _json(told: Any) -> bytes:
    return (json.dumps(told, indent=2, ensure_ascii=False) + "\n").encode(errors="replace")
