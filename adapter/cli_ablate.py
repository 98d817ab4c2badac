"""``adapter ablate``: the ablation table."""

import json
from pathlib import Path
from typing import Annotated

import typer

from adapter.config import parse_assignments
from adapter.options import friendly


@friendly
def ablate_cli(
    alignments: Annotated[Path, typer.Option(help="Alignments folder, from `aligner run`.")],
    labels: Annotated[Path, typer.Option(help="Label set to train on and to test with.")],
    out: Annotated[
        Path, typer.Option(help="Folder of the table and of all runs; what is done there is kept.")
    ],
    unseen: Annotated[
        Path | None,
        typer.Option(help="Label set of classes that are not trained on: adds zero-shot columns."),
    ] = None,
    random_words: Annotated[
        Path | None,
        typer.Option(help="Alignments of the same videos to as many random words (`corpus-builder random`)."),
    ] = None,
    rows: Annotated[
        list[str] | None,
        typer.Option(help="Row by name or pattern, such as 'tracks*'; repeatable. Default: all."),
    ] = None,
    shots: Annotated[
        list[int] | None, typer.Option(help="Column of K shots; repeatable. Default: 4.")
    ] = None,
    seeds: Annotated[int, typer.Option(help="Training seeds: 0, 1 ...", min=1, max=20)] = 3,
    split: Annotated[str, typer.Option(help="Split to test on.")] = "test",
    unseen_split: Annotated[str, typer.Option(help="Split of the videos of unseen classes.")] = "all",
    blend: Annotated[float, typer.Option(help="Share of zero-shot CLIP in the blended column.")] = 0.5,
    sensitivity: Annotated[
        bool,
        typer.Option("--sensitivity", help="Add reversed and shuffled frames, scenes and objects alone."),
    ] = False,
    assign: Annotated[
        list[str] | None, typer.Option("--set", help="Option of every run, NAME=VALUE; repeatable.")
    ] = None,
    few: Annotated[
        list[str] | None, typer.Option("--few", help="Option of few-shot runs, NAME=VALUE; repeatable.")
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress on stderr.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Compare the paper's forms, baselines and controls: one table, several seeds, paired tests.

    Controls: entities renamed, random or of another video, and a corpus of random words. Runs that are there already
    (of the same data, options and version) are not trained again, so an interrupted ablation goes on.
    """
    from adapter.ablation import Data, ablate, ablation_words, choose_rows, standard_columns

    result = ablate(
        Data(alignments, labels, random_words),
        out,
        standard_columns(split, shots or [4], unseen, unseen_split, blend, sensitivity),
        choose_rows(rows or []),
        range(seeds),
        parse_assignments(assign or []),
        parse_assignments(few or []),
        (lambda line: None) if quiet else (lambda line: typer.echo(line, err=True)),
    )
    typer.echo(json.dumps(result, sort_keys=True) if as_json else "\n".join(ablation_words(result)))
