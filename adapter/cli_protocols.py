"""``adapter protocol``: published evaluation protocols by name. Options only; the work is in protocols.py."""

import json
from pathlib import Path
from typing import Annotated

import typer

from adapter.options import friendly

app = typer.Typer(no_args_is_help=True, help="Evaluate by a published protocol, on its official lists.")

Name = Annotated[str, typer.Argument(help="Protocol, from `adapter protocol list`.", show_default=False)]
Lists = Annotated[
    Path,
    typer.Option(
        help="Folder of official lists: a copy of ViFi-CLIP, OST, Text4Vis or Open-VCLIP, or your own."
    ),
]
Alignments = Annotated[
    Path | None, typer.Option(help="Alignments of the listed videos, where runs are given.")
]
LabelSet = Annotated[
    Path | None, typer.Option(help="Label set that holds all candidates, where runs are given.")
]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
SOURCE = "run folders (scored here), or files of scores: .parquet or .csv with video_id and a column a label"


@app.command("list")
@friendly
def list_cli(as_json: Json = False) -> None:
    """All protocols, each with its version and what it is."""
    from adapter.recipes import RECIPES

    if as_json:
        typer.echo(json.dumps({r.name: {"version": r.version, "about": r.about} for r in RECIPES.values()}))
    else:
        width = max(map(len, RECIPES))
        for recipe in RECIPES.values():
            typer.echo(f"{recipe.name:{width}}  {recipe.version}  {recipe.about}")


@app.command("show")
@friendly
def show_cli(
    name: Name,
    lists: Annotated[
        Path | None, typer.Option(help="Folder of official lists: check and count them.", show_default=False)
    ] = None,
    as_json: Json = False,
) -> None:
    """Which lists, candidates, runs and statistic a protocol has; with --lists, whether they are all there."""
    from adapter.tabulate import recipe_json, recipe_words

    typer.echo(json.dumps(recipe_json(name, lists)) if as_json else recipe_words(name, lists))


@app.command("manifest")
@friendly
def manifest_cli(
    name: Name,
    lists: Lists,
    out: Annotated[Path, typer.Option(help="File to write: .csv with path, label and split.")],
    videos: Annotated[
        Path | None,
        typer.Option(
            help="Folder of the videos, in any layout; without, paths are as listed.", show_default=False
        ),
    ] = None,
    run: Annotated[int, typer.Option(help="Number of the run, where the protocol has several.")] = 1,
) -> None:
    """Write a protocol's videos for `aligner run --videos FILE`, with classes by name and splits.

    Training videos get the split `train`, others `test`; a linear probe's, which are both by turns, none.
    """
    from adapter.manifests import write_manifest

    found = write_manifest(name, lists, out, videos, run)
    splits = ", ".join(f"{n} {split}" for split, n in found["splits"].items() if split)
    typer.echo(f"{out}: {found['written']} videos{f' ({splits})' if splits else ''}")
    if lost := found["missing"]:
        more = f" and {len(lost) - 5} more" if len(lost) > 5 else ""
        typer.echo(f"  not there: {len(lost)}, {', '.join(lost[:5])}{more}", err=True)


@app.command("run")
@friendly
def run_cli(
    name: Name,
    sources: Annotated[
        list[Path], typer.Argument(help=f"Runs: {SOURCE}. Several are seeds, or as `show` says.")
    ],
    lists: Lists,
    alignments: Alignments = None,
    labels: LabelSet = None,
    out: Annotated[Path | None, typer.Option(help="File to write the result to: .json.")] = None,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Evaluate runs or scores by a protocol and print the table that papers print.

    The result says what was done: lists with their hashes, videos missing by name, views, seeds, n and an interval
    over videos. A run keeps it as `protocol-NAME.json`, beside the scores, which are a source in their turn.
    """
    from adapter.ranks import leads
    from adapter.scoring import run_and_keep
    from adapter.tabulate import result_words

    result = run_and_keep(name, sources, lists, alignments, labels, out, device)
    if leads():
        typer.echo(json.dumps(result, sort_keys=True) if as_json else result_words(result))


@app.command("compare")
@friendly
def compare_cli(
    name: Name,
    first: Annotated[list[Path], typer.Option(help=f"{SOURCE}; repeatable.")],
    second: Annotated[list[Path], typer.Option(help="As --first, as many, in the same order of seeds.")],
    lists: Lists,
    alignments: Alignments = None,
    labels: LabelSet = None,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Two models by a protocol, paired by video and by seed: difference, interval and tests."""
    from adapter.ranks import leads
    from adapter.scoring import compare_sources
    from adapter.tabulate import comparison_words

    result = compare_sources(name, first, second, lists, alignments, labels, device)
    if leads():
        typer.echo(json.dumps(result, sort_keys=True) if as_json else comparison_words(result))
