"""Commands about the quality of corpora, and corpora that are not mined; mounted by :mod:`corpus_builder.cli`."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from corpus_builder.config import DEFAULT_SPACY_MODEL, CorpusConfig
from corpus_builder.options import (
    Allow,
    AsJson,
    BodyParts,
    CaptionColumn,
    Captions,
    Deny,
    Device,
    Expansions,
    Force,
    Index,
    LabelColumn,
    LabelsFile,
    MaxWords,
    MergeAbove,
    MinCount,
    Model,
    NltkData,
    OutDir,
    Pretrained,
    Quiet,
    Related,
    SenseModel,
    SensePretrained,
    Size,
    SpacyModel,
    Strategy,
    Taggers,
    make_say,
    mining,
    plain_errors,
    tell,
)

app = typer.Typer()
Seed = Annotated[int, typer.Option("--seed", help="Which random nouns.")]
Match = Annotated[
    str,
    typer.Option(
        "--match", help="What random nouns have in common with true entities: none, lexname or concreteness."
    ),
]


@app.command("ablate")
@plain_errors
def ablate_cli(
    labels: LabelsFile,
    model: Model,
    out: OutDir,
    pretrained: Pretrained = None,
    captions: Captions = None,
    expansions: Expansions = None,
    label_column: LabelColumn = None,
    caption_column: CaptionColumn = None,
    spacy_model: SpacyModel = DEFAULT_SPACY_MODEL,
    taggers: Taggers = "both",
    strategy: Strategy = "extended",
    sense_model: SenseModel = None,
    sense_pretrained: SensePretrained = None,
    body_parts: BodyParts = True,
    related: Related = 5,
    min_count: MinCount = 1,
    max_words: MaxWords = 4,
    nltk_data: NltkData = None,
    allow: Allow = None,
    deny: Deny = None,
    size: Size = None,
    merge_above: MergeAbove = None,
    index: Index = "auto",
    seed: Seed = 0,
    match: Match = "none",
    device: Device = "auto",
    force: Force = False,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Write corpora to compare: labels alone, with WordNet, with an LLM's expansions, and random nouns."""
    config, inputs = mining(locals())
    from corpus_builder import family

    told = family.compare_corpora(
        inputs,
        config,
        model,
        pretrained,
        out,
        seed=seed,
        match=match,
        device=device,
        force=force,
        say=make_say(quiet),
    )
    typer.echo(json.dumps(told) if as_json else "\n".join(_comparison(told)))


@app.command("coverage")
@plain_errors
def coverage_cli(
    corpus: Annotated[Path, typer.Argument(help="Corpus folder.", metavar="CORPUS")],
    labels: LabelsFile,
    label_column: LabelColumn = None,
    spacy_model: SpacyModel = DEFAULT_SPACY_MODEL,
    taggers: Taggers = "both",
    strategy: Strategy = "extended",
    sense_model: SenseModel = None,
    sense_pretrained: SensePretrained = None,
    max_words: MaxWords = 4,
    nltk_data: NltkData = None,
    embeddings: Annotated[
        Path | None,
        typer.Option("--embeddings", help="Labels folder of the same model: tells the nearest entities."),
    ] = None,
    embed: Annotated[
        bool, typer.Option("--embed", help="Embed the labels with the corpus's model for that.")
    ] = False,
    device: Device = "auto",
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Show how well a corpus covers a label set, also one that it was not made from."""
    config = CorpusConfig(
        taggers=taggers,
        spacy_model=spacy_model,
        strategy=strategy,
        sense_model=sense_model,
        sense_pretrained=sense_pretrained,
        max_words=max_words,
        body_parts=False,
    )
    from corpus_builder import coverage

    told = coverage.coverage(
        corpus,
        labels,
        config,
        label_column=label_column,
        nltk_data=nltk_data,
        embeddings=embeddings,
        embed=embed,
        device=device,
        say=make_say(quiet),
    )
    if as_json:
        typer.echo(json.dumps(told.report))
        return
    for name, value in told.figures.items():
        typer.echo(f"{name.replace('_', ' '):<20} {value}")
    for label in told.uncovered:
        near = (
            f" (nearest: {told.nearest[label].name}, {told.nearest[label].cosine:.3f})"
            if told.nearest
            else ""
        )
        typer.echo(f"without an entity    {label}{near}")


@app.command("random")
@plain_errors
def random_cli(
    model: Model,
    out: OutDir,
    pretrained: Pretrained = None,
    size: Annotated[
        int | None,
        typer.Option("--size", help="How many nouns (default: as many as the first --not-in has)."),
    ] = None,
    not_in: Annotated[
        list[Path] | None,
        typer.Option(
            "--not-in", help="Corpus whose entities are not drawn; the first is matched. Repeatable."
        ),
    ] = None,
    seed: Seed = 0,
    match: Match = "none",
    nltk_data: NltkData = None,
    index: Index = "auto",
    device: Device = "auto",
    force: Force = False,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Write a corpus of random nouns of WordNet, to compare a true one with."""
    config = CorpusConfig(size=size, index=index)
    from corpus_builder import unmined

    manifest = unmined.draw_random(
        not_in or (),
        config,
        model,
        pretrained,
        out,
        seed=seed,
        match=match,
        nltk_data=nltk_data,
        device=device,
        force=force,
        say=make_say(quiet),
    )
    tell(out, manifest, as_json)


@app.command("import")
@plain_errors
def import_cli(
    words: Annotated[
        Path, typer.Argument(help="List: .txt, .csv, .json, .jsonl or .parquet.", metavar="WORDS")
    ],
    model: Model,
    out: OutDir,
    pretrained: Pretrained = None,
    column: Annotated[
        str | None, typer.Option("--column", help="Column with the words (default: word, name, label ...).")
    ] = None,
    senses: Annotated[bool, typer.Option("--senses/--no-senses", help="Look words up in WordNet.")] = True,
    strategy: Strategy = "extended",
    sense_model: SenseModel = None,
    sense_pretrained: SensePretrained = None,
    max_words: MaxWords = 8,
    nltk_data: NltkData = None,
    size: Size = None,
    merge_above: MergeAbove = None,
    index: Index = "auto",
    device: Device = "auto",
    force: Force = False,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Write a corpus of a plain list of words: phrases, synsets, ImageNet ids, with or without descriptions."""
    config = CorpusConfig(
        strategy=strategy,
        sense_model=sense_model,
        sense_pretrained=sense_pretrained,
        max_words=max_words,
        size=size,
        merge_above=merge_above,
        index=index,
    )
    from corpus_builder import unmined

    manifest = unmined.import_words(
        words,
        config,
        model,
        pretrained,
        out,
        column=column,
        senses=senses,
        nltk_data=nltk_data,
        device=device,
        force=force,
        say=make_say(quiet),
    )
    tell(out, manifest, as_json)


def _comparison(told: dict[str, Any]) -> list[str]:
    width = max(map(len, told["members"]))
    columns = ("entities", "coverage", "entities_per_label", "listed_per_label", "neighbour_cosine")
    lines = ["  ".join((" " * width, *(name.replace("_", " ") for name in columns)))]
    for name, figures in told["members"].items():
        cells = (f"{figures[column]:>{len(column)}}" for column in columns)
        lines.append("  ".join((name.ljust(width), *cells)))
    lines += [
        f"{pair['first']} and {pair['second']} share {pair['shared_keys']} keys (Jaccard {pair['jaccard']})"
        for pair in told["overlap"]
    ]
    return lines
