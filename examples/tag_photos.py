"""Open-vocabulary tagging: the entities of a corpus nearest to every photo of a folder, one JSON object a line.

    python examples/tag_photos.py corpus photos --k 5 --kind animal --kind object > tags.jsonl

The vocabulary is the corpus: mine one from your own words (`corpus-builder build`), in the space of the CLIP you trust.
Cosines order the tags of one photo; there is no threshold that holds for every model. A corpus of random weights
(`--pretrained none`) gives random tags. A file that is no image is a line with its error, and the exit code is 2.
"""

import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer

import corpus_builder as cb
from corpus_builder.options import plain_errors

SUFFIXES = {".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"}


def main(
    corpus: Annotated[Path, typer.Argument(help="Corpus folder.")],
    photos: Annotated[Path, typer.Argument(help="Folder of photos; its folders are searched too.")],
    k: Annotated[int, typer.Option("--k", min=1, help="Tags of a photo.")] = 5,
    kind: Annotated[
        list[str] | None, typer.Option("--kind", help="Tag with this kind only. Repeatable.")
    ] = None,
    device: Annotated[str, typer.Option("--device", help="auto, cpu, cuda or cuda:N.")] = "auto",
) -> None:
    """Tag every photo of a folder with the entities of a corpus."""
    vocabulary = cb.open(corpus, device=device)
    if vocabulary.random_weights:
        typer.echo("the corpus's model has random weights: these tags mean nothing", err=True)
    paths = sorted(path for path in photos.rglob("*") if path.suffix.lower() in SUFFIXES)
    failed = 0
    with tempfile.TemporaryDirectory() as folder:
        if kind:
            vocabulary = vocabulary.subset(folder, kinds=kind)
        for line in tag(vocabulary, paths, k):
            failed += line["error"] is not None
            typer.echo(json.dumps(line, ensure_ascii=False))
    typer.echo(f"{len(paths) - failed} of {len(paths)} photos tagged", err=True)
    if failed:
        raise typer.Exit(2)


def tag(vocabulary: cb.Corpus, paths: list[Path], k: int) -> Iterator[dict]:
    """One row per photo: its path, its tags with sense and cosine, best first, and what went wrong."""
    for photo in vocabulary.tag(paths, k):
        tags = [{"name": hit.name, "sense": hit.sense, "cosine": round(hit.cosine, 4)} for hit in photo.hits]
        yield {"path": photo.path.as_posix(), "tags": tags, "error": photo.error}


if __name__ == "__main__":
    typer.run(plain_errors(main))
