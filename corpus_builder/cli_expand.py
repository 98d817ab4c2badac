"""Commands that ask a language model about labels or phrases: ``corpus-builder expand ...``."""

import json
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import Annotated, Any

import typer

from corpus_builder.options import AsJson, LabelColumn, MaybeLabels, Quiet, make_say, plain_errors

app = typer.Typer(
    no_args_is_help=True,
    help="Ask a language model for visual cues of labels (--labels), or for descriptions of the phrases that WordNet"
    " does not know (--corpus, --mined or --phrases).",
)

LlmModel = Annotated[str, typer.Option("--model", help="The language model's name at the server.")]
Phrases = Annotated[
    Path | None, typer.Option("--phrases", help="Text file: phrases to describe, one a line.")
]
CorpusFolder = Annotated[
    Path | None, typer.Option("--corpus", help="Corpus whose entities without a gloss are to be described.")
]
Mined = Annotated[
    Path | None, typer.Option("--mined", help="File of `mine`, whose entities without a gloss are described.")
]
Most = Annotated[int, typer.Option("--most", min=1, help="Cues of each sort.")]
Cache = Annotated[
    Path | None, typer.Option("--cache", help="SQLite file of replies (default: beside --out).")
]
OutFile = Annotated[
    Path,
    typer.Option("--out", help="JSON file to write: cues for --expansions, descriptions for --descriptions."),
]


def _questions(given: Mapping[str, Any]) -> list[Any]:
    """The questions that the options of a command ask for."""
    from corpus_builder.artifact import check_file
    from corpus_builder.expansion import read_questions

    check_file(given["out"], (".jsonl",) if given["out"].suffix == ".jsonl" else (".json",))
    names = ("labels", "label_column", "phrases", "corpus", "mined", "most")
    return read_questions(**{name: given[name] for name in names})


def _tell(out: Path, told: Mapping[str, Any], as_json: bool) -> None:
    """Say what came of it; some questions without an answer are exit code 2: done, with failures."""
    line = f"{out}: {told['answered']} of {told['asked']} answered, {told['kept']} texts kept"
    dropped = ", ".join(f"{reason} {number}" for reason, number in told["dropped"].items())
    typer.echo(json.dumps(told) if as_json else line + (f" (dropped: {dropped})" if dropped else ""))
    if not told["failed"]:
        return
    reasons = sorted(set(told["failed"].values()))
    other = " The batch was made with another --model, --most or source?" if told.get("unknown_id") else ""
    typer.echo(
        f"{len(told['failed'])} failed ({'; '.join(reasons)[:300]}); they are in"
        f" {out.with_suffix('.report.json').name}. `expand ask` asks for them only.{other}",
        err=True,
    )
    raise typer.Exit(2)


@app.command("ask")
@plain_errors
def ask_cli(
    model: LlmModel,
    out: OutFile,
    labels: MaybeLabels = None,
    phrases: Phrases = None,
    corpus: CorpusFolder = None,
    mined: Mined = None,
    base_url: Annotated[
        str | None, typer.Option("--base-url", help="Server that speaks the OpenAI protocol, such as .../v1.")
    ] = None,
    key_env: Annotated[
        str,
        typer.Option("--key-env", help="Environment variable with the key; it is never written anywhere."),
    ] = "OPENAI_API_KEY",
    cache: Cache = None,
    most: Most = 6,
    concurrency: Annotated[int, typer.Option("--concurrency", min=1, help="Requests at a time.")] = 4,
    max_requests: Annotated[
        int, typer.Option("--max-requests", min=0, help="Stop after so many; 0: no limit.")
    ] = 0,
    max_tokens: Annotated[
        int, typer.Option("--max-tokens", min=0, help="Stop after so many; 0: no limit.")
    ] = 0,
    per_minute: Annotated[int, typer.Option("--requests-per-minute", min=0, help="0: no limit.")] = 0,
    timeout: Annotated[float, typer.Option("--timeout", min=0.1, help="Seconds to wait for an answer.")] = 60,
    tries: Annotated[int, typer.Option("--tries", min=1, help="Times to ask a failing server.")] = 5,
    label_column: LabelColumn = None,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Ask a server; replies are cached, so running again asks only for what is missing."""
    questions = _questions(locals())
    from corpus_builder import asking, llm

    key = llm.key_of(key_env, base_url)
    limits = llm.Limits(max_requests, max_tokens, per_minute, timeout, tries)
    with closing(llm.ReplyCache(cache or out.with_suffix(".sqlite"))) as store:
        chat = llm.Chat(base_url, key, store, limits)
        result = asking.ask_all(questions, chat, model, concurrency=concurrency, say=make_say(quiet))
    asking.write_answers(out, result)
    _tell(out, result.report, as_json)


@app.command("export")
@plain_errors
def export_cli(
    model: LlmModel,
    out: Annotated[Path, typer.Option("--out", help="JSON-lines file (.jsonl) of requests to write.")],
    labels: MaybeLabels = None,
    phrases: Phrases = None,
    corpus: CorpusFolder = None,
    mined: Mined = None,
    most: Most = 6,
    label_column: LabelColumn = None,
) -> None:
    """Write the same requests as OpenAI-batch JSON lines, for a batch service or an offline server."""
    questions = _questions(locals())
    from corpus_builder import asking

    typer.echo(f"{out}: {asking.write_requests(questions, model, out)} requests")


@app.command("import")
@plain_errors
def import_cli(
    model: LlmModel,
    replies: Annotated[
        list[Path], typer.Option("--replies", help="JSON lines that the batch gave back. Repeatable.")
    ],
    out: OutFile,
    labels: MaybeLabels = None,
    phrases: Phrases = None,
    corpus: CorpusFolder = None,
    mined: Mined = None,
    cache: Cache = None,
    most: Most = 6,
    label_column: LabelColumn = None,
    as_json: AsJson = False,
) -> None:
    """Read the replies of a batch; missing, failed and unknown ones are reported."""
    questions = _questions(locals())
    from corpus_builder import asking, llm

    with closing(llm.ReplyCache(cache or out.with_suffix(".sqlite"))) as store:
        result = asking.read_batch(questions, replies, model, store)
    asking.write_answers(out, result)
    _tell(out, result.report, as_json)
