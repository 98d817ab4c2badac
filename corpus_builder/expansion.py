"""Labels -> visual cues by a language model, online or by a batch file: ``expansions.json`` and its report.

Both routes make the same requests and read the same replies, so they give the same file. Every label ends as
answered or as failed with its reason; nothing is left out in silence.
"""

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from corpus_builder.artifact import write_file
from corpus_builder.config import CorpusError
from corpus_builder.llm import Chat, Failed, NoSuchFormat, OutOfBudget, request_key
from corpus_builder.prompts import ASK, PROMPT_VERSION, REPAIR, SCHEMA, SYSTEM
from corpus_builder.replies import InvalidReply, Phrases, read_reply
from corpus_builder.sources import Label, read_labels

MOST = 6
FORMATS: tuple[dict[str, Any] | None, ...] = (
    {"type": "json_schema", "json_schema": {"name": PROMPT_VERSION, "schema": SCHEMA, "strict": True}},
    {"type": "json_object"},
    None,
)
"""Forms of answer to ask for, the strictest first; a server that refuses one is asked for the next."""


@dataclass
class Expansion:
    """Phrases by label, labels that failed with the reason, and what was dropped."""

    phrases: dict[str, tuple[str, ...]] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    dropped: Counter[str] = field(default_factory=Counter)
    spent: dict[str, int] = field(default_factory=dict)

    def add(self, label: str, found: Phrases | str) -> None:
        """Take in the phrases of a label, or the reason why it has none."""
        if isinstance(found, str):
            self.failed[label] = found
        else:
            self.phrases[label] = found.kept
            self.dropped.update(found.dropped)

    @property
    def report(self) -> dict[str, Any]:
        """Counts and reasons, for ``expansions.report.json`` and for people."""
        return {
            "prompts": PROMPT_VERSION,
            "labels": len(self.phrases) + len(self.failed),
            "answered": len(self.phrases),
            "failed": dict(sorted(self.failed.items())),
            "phrases": sum(map(len, self.phrases.values())),
            "dropped": dict(sorted(self.dropped.items())),
            **self.spent,
        }


def first_request(label: Label, model: str, most: int = MOST, form: int = 0) -> dict[str, Any]:
    """The body of the request for a label's cues, in the form of answer ``FORMATS[form]``."""
    body: dict[str, Any] = {
        "model": model,
        "temperature": 0,
        "messages": [
            {"role": "system", "content": SYSTEM},
            {"role": "user", "content": ASK.format(label=label.name, most=most)},
        ],
    }
    return body if FORMATS[form] is None else body | {"response_format": FORMATS[form]}


def expand_online(
    labels: Sequence[Label],
    chat: Chat,
    model: str,
    *,
    most: int = MOST,
    concurrency: int = 4,
    say: Callable = print,
) -> Expansion:
    """Ask for every label; the result is in the order of the labels, whatever the concurrency."""
    result = Expansion()
    with ThreadPoolExecutor(max(1, concurrency)) as pool:
        answers = pool.map(lambda label: _ask(label, chat, model, most), labels)
        for number, (label, found) in enumerate(zip(labels, answers, strict=True), 1):
            result.add(label.label, found)
            if number % 50 == 0 or number == len(labels):
                say(
                    f"{number} of {len(labels)} labels, {len(result.failed)} failed, {chat.requests} requests"
                )
    result.spent = {"requests": chat.requests, "tokens": chat.tokens, "from_cache": chat.cached}
    return result


def _ask(label: Label, chat: Chat, model: str, most: int) -> Phrases | str:
    """Down the ladder of forms, then one request to mend the answer."""
    try:
        for form in range(len(FORMATS)):
            body = first_request(label, model, most, form)
            try:
                text = chat.ask(body)
            except NoSuchFormat:
                continue
            try:
                return read_reply(text, most)
            except InvalidReply as problem:
                return read_reply(chat.ask(_repair(body, text, str(problem))), most)
        return "no form of answer is known to the server"
    except OutOfBudget as error:
        return f"budget: {error}"
    except Failed as error:
        return f"server: {error}"
    except InvalidReply as error:
        return f"reply: {error}"


def _repair(body: Mapping[str, Any], text: str, problem: str) -> dict[str, Any]:
    told = [
        *body["messages"],
        {"role": "assistant", "content": text[:2000]},
        {"role": "user", "content": REPAIR.format(problem=problem)},
    ]
    return {**body, "messages": told}


def write_requests(labels: Path, model: str, out: Path, *, most: int = MOST) -> int:
    """Write the requests as OpenAI-batch JSON lines; returns how many. Their ids name label and content."""
    lines = [
        {"custom_id": custom_id(label, body), "method": "POST", "url": "/v1/chat/completions", "body": body}
        for label in read_labels(labels).labels
        for body in [first_request(label, model, most)]
    ]
    write_file(out, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines).encode())
    return len(lines)


def custom_id(label: Label, body: Mapping[str, Any]) -> str:
    """``cues-7-0a1b2c...``: the class and a hash of the request."""
    return f"cues-{label.class_id}-{request_key(body)[:16]}"


def read_replies(labels: Sequence[Label], replies: Path, model: str, *, most: int = MOST) -> Expansion:
    """Match the lines of a batch's output to labels by id; missing, failed and unknown ones are reported.

    Reading it twice, or with lines in another order or repeated, gives the same.
    """
    result = Expansion()
    wanted = {custom_id(label, first_request(label, model, most)): label for label in labels}
    texts: dict[str, str | None] = {}
    unknown = Counter[str]()
    for told, text in _batch_lines(replies):
        if told not in wanted:
            unknown["unknown id" if told else "broken line"] += 1
        elif texts.get(told) is None:
            texts[told] = text
    for told, label in wanted.items():
        text = texts.get(told)
        if text is None:
            result.add(label.label, "failed in the batch" if told in texts else "missing")
            continue
        try:
            result.add(label.label, read_reply(text, most))
        except InvalidReply as error:
            result.add(label.label, f"reply: {error}")
    result.spent = {
        "lines_unused": unknown.total(),
        **{name.replace(" ", "_"): n for name, n in unknown.items()},
    }
    return result


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
    return text if isinstance(text, str) else None


def write_expansion(out: Path, result: Expansion) -> None:
    """Write ``out`` (label -> phrases, as ``--expansions`` reads it) and its report beside it, whole or not at all."""
    report = out.with_suffix(".report.json")
    write_file(report, (json.dumps(result.report, indent=2, ensure_ascii=False) + "\n").encode())
    told = {label: list(phrases) for label, phrases in result.phrases.items() if phrases}
    write_file(out, (json.dumps(told, indent=2, ensure_ascii=False) + "\n").encode())
