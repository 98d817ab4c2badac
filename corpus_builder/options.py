"""Options that commands share, and how a command ends on an error. No work, no heavy import."""

import functools
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from corpus_builder.config import CorpusConfig, CorpusError, split_sources

_LABELS_HELP = "Class names: .txt (one a line), .csv, .json, .jsonl or .parquet."
LabelsFile = Annotated[Path, typer.Option("--labels", help=_LABELS_HELP)]
MaybeLabels = Annotated[Path | None, typer.Option("--labels", help=_LABELS_HELP)]
Captions = Annotated[
    Path | None, typer.Option("--captions", help="Captions: .txt (one a line), .csv, .jsonl or .parquet.")
]
Expansions = Annotated[
    list[Path] | None,
    typer.Option("--expansions", help="JSON: label or class id -> phrases that belong to it. Repeatable."),
]
Descriptions = Annotated[
    Path | None,
    typer.Option(
        "--descriptions", help="JSON: phrase -> what it is, for entities that WordNet does not know."
    ),
]
LabelColumn = Annotated[
    str | None,
    typer.Option("--label-column", help="Column of a CSV with the names (default: name or label)."),
]
CaptionColumn = Annotated[
    str | None, typer.Option("--caption-column", help="Column with the captions (default: caption or text).")
]
SpacyModel = Annotated[str, typer.Option("--spacy-model", help="Installed spaCy pipeline, or a path to one.")]
Taggers = Annotated[
    str,
    typer.Option(
        "--taggers", help="Who proposes noun phrases: both, spacy, nltk, or wordnet (coarse, no data)."
    ),
]
Strategy = Annotated[
    str, typer.Option("--strategy", help="How a sense is chosen: extended, lesk, first, clip or t5.")
]
SenseModel = Annotated[
    str | None,
    typer.Option("--sense-model", help="Model of --strategy clip or t5 (default: the build's own)."),
]
SensePretrained = Annotated[str | None, typer.Option("--sense-pretrained", help="Its weights, for clip.")]
BodyParts = Annotated[bool, typer.Option("--body-parts/--no-body-parts", help="Add the parts of the body.")]
Related = Annotated[
    int,
    typer.Option(
        "--related", help="Things WordNet relates (parts, materials, kinds) to add per label, at most."
    ),
]
Sources = Annotated[
    str | None,
    typer.Option(
        "--sources",
        help="What makes entities, with commas: label, caption, expansion, related, body_part (default: all).",
    ),
]
Size = Annotated[
    int | None,
    typer.Option(
        "--size", help="Entities to keep: those of labels first, then the most mentioned (default: all)."
    ),
]
MinCount = Annotated[int, typer.Option("--min-count", help="Captions an entity must be found in.")]
MaxWords = Annotated[int, typer.Option("--max-words", help="Longest entity, in words.")]
Processes = Annotated[
    int, typer.Option("--processes", min=1, help="Processes that mine captions; the result is the same.")
]
Allow = Annotated[
    Path | None,
    typer.Option("--allow", help="Text file: phrases and synsets to keep whatever speaks against."),
]
Deny = Annotated[Path | None, typer.Option("--deny", help="Text file: phrases and synsets never to keep.")]
Index = Annotated[str, typer.Option("--index", help="FAISS index: flat (exact), ivf, hnsw, or auto by size.")]
MergeAbove = Annotated[
    float | None,
    typer.Option("--merge-above", help="Cosine from which two entities are one (default: never)."),
]
NltkData = Annotated[
    Path | None,
    typer.Option("--nltk-data", help="NLTK data folder with WordNet (default: NLTK's own search path)."),
]
Model = Annotated[
    str, typer.Option("--model", help="open_clip name (ViT-B-16), hf-hub:ORG/REPO or local-dir:PATH.")
]
Pretrained = Annotated[
    str | None,
    typer.Option(
        "--pretrained", help="Tag, weights file, or none for random weights; left out with local-dir:."
    ),
]
Device = Annotated[str, typer.Option("--device", help="auto, cpu, cuda or cuda:N.")]
Precision = Annotated[
    str, typer.Option("--precision", help="Of the text tower: fp32, or on a GPU bf16 or fp16.")
]
Templates = Annotated[
    list[str] | None,
    typer.Option("--template", help="Prompt with {} for the name, in place of a set. Repeatable."),
]
TemplateSet = Annotated[
    str | None,
    typer.Option(
        "--templates",
        help="Prompts: default, bare, photo, video-of-a-person, actionclip, clip-kinetics, or a text file, one a line.",
    ),
]
EntityText = Annotated[
    str, typer.Option("--entity-text", help="How {unit} and {description} make the text that is embedded.")
]
Force = Annotated[bool, typer.Option("--force", help="Write into a folder that holds other things.")]
Quiet = Annotated[bool, typer.Option("--quiet", help="No progress on stderr.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
OutDir = Annotated[Path, typer.Option("--out", help="Folder to write.")]

# Newer versions of typer carry their own copy of click; this is the class in either.
_UsageError: type[Exception] = typer.BadParameter.__bases__[0]


class Commands(TyperGroup):
    """Wrong usage exits with 1: code 2 means "done, with failures" to the scripts that call us."""

    def make_context(self, *args: Any, **kwargs: Any) -> Any:
        """Read the options."""
        with _usage_error_is_one():
            return super().make_context(*args, **kwargs)

    def invoke(self, ctx: Any) -> Any:
        """Run the command."""
        with _usage_error_is_one():
            return super().invoke(ctx)


@contextmanager
def _usage_error_is_one() -> Iterator[None]:
    try:
        yield
    except _UsageError as error:
        setattr(error, "exit_code", 1)  # noqa: B010 - typed as a class variable
        raise


def plain_errors(command: Callable[..., None]) -> Callable[..., None]:
    """Show a :class:`CorpusError`, or what the file system refuses, as one line on stderr and end with 1."""

    @functools.wraps(command)
    def wrapped(*args: Any, **kwargs: Any) -> None:
        try:
            command(*args, **kwargs)
        except CorpusError as error:
            typer.echo(f"error: {error}", err=True)
            raise typer.Exit(1) from None
        except BrokenPipeError:  # the reader of our output left, which click ends quietly
            raise
        except OSError as error:
            place = f"'{error.filename}': " if error.filename else ""
            typer.echo(
                f"error: {place}{error.strerror or error}; check the path, its rights and the space", err=True
            )
            raise typer.Exit(1) from None

    return wrapped


def tell(out: Path, manifest: Mapping[str, Any], as_json: bool) -> None:
    """What was written: a line, or the manifest."""
    unit = "labels" if manifest["artifact"] == "labels" else "entities"
    line = f"{out}: {manifest[unit]} {unit}, fingerprint {manifest['fingerprint'][:12]}"
    typer.echo(json.dumps(manifest) if as_json else line)


def make_say(quiet: bool) -> Callable[[str], None]:
    """Where progress goes: to stderr, or nowhere."""
    return (lambda line: None) if quiet else functools.partial(typer.echo, err=True)


def mining(given: Mapping[str, Any]) -> tuple[CorpusConfig, Any]:
    """The settings and the ``Inputs`` among the options of a command, told apart by their names."""
    names = {field.name for field in fields(CorpusConfig)}
    given = {**given, "sources": split_sources(given.get("sources"))}
    config = CorpusConfig(**{name: value for name, value in given.items() if name in names})
    from corpus_builder.build import Inputs

    names = {field.name for field in fields(Inputs)}
    files = {name: value for name, value in given.items() if name in names}
    return config, Inputs(**files | {"expansions": tuple(files["expansions"] or ())})
