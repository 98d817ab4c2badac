"""Commands that ask a language model for visual cues of labels: ``corpus-builder expand ...``."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from corpus_builder.options import LabelColumn, LabelsFile, Quiet, make_say, plain_errors

app = typer.Typer(
    no_args_is_help=True, help="Ask a language model for the objects, parts, scenes and roles of labels."
)

LlmModel = Annotated[str, typer.Option("--model", help="The language model's name at the server.")]
Most = Annotated[int, typer.Option("--most", min=1, help="Phrases of each sort.")]
OutFile = Annotated[
    Path, typer.Option("--out", help="JSON file to write, for --expansions of mine and build.")
]


def _tell(out: Path, result: Any) -> None:
    """Say what came of it; some labels without an answer are exit code 2: done, with failures."""
    told = result.report
    typer.echo(f"{out}: {told['answered']} of {told['labels']} labels answered, {told['phrases']} phrases")
    if told["failed"]:
        reasons = sorted(set(told["failed"].values()))
        typer.echo(
            f"{len(told['failed'])} labels failed ({'; '.join(reasons)[:300]}); they are in"
            f" {out.with_suffix('.report.json').name}. Run again to ask for them only",
            err=True,
        )
        raise typer.Exit(2)


@app.command("ask")
@plain_errors
def ask_cli(
    labels: LabelsFile,
    model: LlmModel,
    out: OutFile,
    base_url: Annotated[
        str | None, typer.Option("--base-url", help="Server that speaks the OpenAI protocol, such as .../v1.")
    ] = None,
    key_env: Annotated[
        str,
        typer.Option("--key-env", help="Environment variable with the key; it is never written anywhere."),
    ] = "OPENAI_API_KEY",
    cache: Annotated[
        Path | None, typer.Option("--cache", help="SQLite file of replies [default: beside --out].")
    ] = None,
    most: Most = 6,
    concurrency: Annotated[int, typer.Option("--concurrency", min=1, help="Requests at a time.")] = 4,
    max_requests: Annotated[int, typer.Option("--max-requests", help="Stop after so many; 0: no limit.")] = 0,
    max_tokens: Annotated[int, typer.Option("--max-tokens", help="Stop after so many; 0: no limit.")] = 0,
    per_minute: Annotated[int, typer.Option("--requests-per-minute", help="0: no limit.")] = 0,
    timeout: Annotated[float, typer.Option("--timeout", help="Seconds to wait for an answer.")] = 60.0,
    tries: Annotated[int, typer.Option("--tries", min=1, help="Times to ask a failing server.")] = 5,
    label_column: LabelColumn = None,
    quiet: Quiet = False,
) -> None:
    """Ask a server; replies are cached, so running again asks only for what is missing."""
    from corpus_builder import expansion, llm
    from corpus_builder.sources import read_labels

    file = read_labels(labels, label_column)
    limits = llm.Limits(max_requests, max_tokens, per_minute, timeout, tries)
    store = llm.ReplyCache(cache or out.with_suffix(".sqlite"))
    chat = llm.Chat(base_url, llm.key_of(key_env, base_url), store, limits)
    result = expansion.expand_online(
        file.labels, chat, model, most=most, concurrency=concurrency, say=make_say(quiet)
    )
    store.close()
    expansion.write_expansion(out, result)
    _tell(out, result)


@app.command("export")
@plain_errors
def export_cli(labels: LabelsFile, model: LlmModel, out: OutFile, most: Most = 6) -> None:
    """Write the same requests as OpenAI-batch JSON lines, for a batch service or an offline server."""
    from corpus_builder import expansion

    typer.echo(f"{out}: {expansion.write_requests(labels, model, out, most=most)} requests")


@app.command("import")
@plain_errors
def import_cli(
    labels: LabelsFile,
    model: LlmModel,
    replies: Annotated[Path, typer.Option("--replies", help="JSON lines that the batch gave back.")],
    out: OutFile,
    most: Most = 6,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
) -> None:
    """Read the replies of a batch; missing, failed and unknown ones are reported."""
    from corpus_builder import expansion
    from corpus_builder.sources import read_labels

    result = expansion.read_replies(read_labels(labels).labels, replies, model, most=most)
    expansion.write_expansion(out, result)
    if as_json:
        typer.echo(json.dumps(result.report))
    _tell(out, result)
