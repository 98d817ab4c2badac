"""Retrieval of captions by entity: those that speak of a thing, or of anything that is a kind of it.

    python examples/captions_by_entity.py corpus captions.txt dog              # dogs, beagles; no hot dogs
    python examples/captions_by_entity.py corpus captions.txt vehicle.n.01 --rank

Captions are mined as a build mines them, so words are matched by their sense: `dog` finds "a beagle sleeps" and not
"eating a hot dog". The entity is a name or key of the corpus, else a synset or noun of WordNet. `--rank` orders
what was found by the cosine of the caption and the nearest entity asked for, which takes the corpus's model; with
random weights that order means nothing. Columns: line among the captions, what was found there, the caption.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import tee
from pathlib import Path
from typing import Annotated

import numpy as np
import typer

import corpus_builder as cb
from corpus_builder.config import CorpusConfig, CorpusError
from corpus_builder.mine import mine
from corpus_builder.options import plain_errors
from corpus_builder.senses import load_chooser
from corpus_builder.sources import Mention, iter_captions
from corpus_builder.taggers import load_taggers
from corpus_builder.wordnet import Lexicon, open_lexicon


@dataclass(frozen=True)
class Found:
    """A caption, its place among the captions, and the entities in it that were asked for."""

    line: int
    entities: tuple[str, ...]
    caption: str


def main(
    corpus: Annotated[Path, typer.Argument(help="Corpus folder.")],
    captions: Annotated[Path, typer.Argument(help="Captions: .txt, .csv, .jsonl or .parquet.")],
    entity: Annotated[str, typer.Argument(help="Name or key of the corpus, else a WordNet synset or noun.")],
    rank: Annotated[bool, typer.Option("--rank", help="Order by the cosine of caption and entity.")] = False,
    taggers: Annotated[str, typer.Option("--taggers", help="both, spacy, nltk or wordnet.")] = "both",
    nltk_data: Annotated[Path | None, typer.Option("--nltk-data", help="NLTK data folder.")] = None,
    device: Annotated[str, typer.Option("--device", help="auto, cpu, cuda or cuda:N.")] = "auto",
) -> None:
    """Print the captions that speak of an entity or of a kind of it."""
    opened = cb.open(corpus, device=device)
    lexicon = open_lexicon(nltk_data)
    wanted = key_of(entity, opened, lexicon)
    found = list(captions_of(wanted, captions, lexicon, CorpusConfig(taggers=taggers), nltk_data))
    if rank:
        found = ranked(found, opened, wanted, lexicon)
    for item in found:
        typer.echo(f"{item.line}\t{', '.join(item.entities)}\t{item.caption}")
    typer.echo(f"{len(found)} captions speak of {wanted} or a kind of it", err=True)


def key_of(entity: str, corpus: cb.Corpus, lexicon: Lexicon) -> str:
    """The key of an entity: the corpus knows it by key or name, else WordNet by synset or noun (its first sense)."""
    rows = corpus.entities
    for column in ("key", "name"):
        keys = rows.loc[rows[column] == entity, "key"]
        if len(keys):
            return str(keys.iloc[0])
    if lexicon.sense(entity):
        return entity
    senses = lexicon.senses(entity)
    if not senses:
        raise CorpusError(f"neither the corpus nor WordNet knows '{entity}'")
    return senses[0].name


def is_kind_of(key: str, wanted: str, lexicon: Lexicon) -> bool:
    """Whether an entity is the one wanted or, by WordNet, a kind of it."""
    return key == wanted or (lexicon.sense(key) is not None and wanted in lexicon.within(key))


def captions_of(
    wanted: str, path: Path, lexicon: Lexicon, config: CorpusConfig, nltk_data: Path | None
) -> Iterator[Found]:
    """The captions of a file that speak of ``wanted`` or a kind of it, in order, streamed."""
    choose = load_chooser(lexicon, config)
    captions, again = tee(iter_captions(path))
    mentions = (Mention(text.lower(), "", None, "caption") for text in captions)
    mined = mine(mentions, load_taggers(config, lexicon, nltk_data), lexicon)
    for line, (caption, (mention, candidates)) in enumerate(zip(again, mined, strict=True), 1):
        senses = (choose(candidate, mention.text).sense for candidate in candidates if candidate.kept)
        names = [sense.name for sense in senses if sense] + [c.entity for c in candidates if c.kept]
        kept = tuple(dict.fromkeys(name for name in names if is_kind_of(name, wanted, lexicon)))
        if kept:
            yield Found(line, kept, caption)


def ranked(found: list[Found], corpus: cb.Corpus, wanted: str, lexicon: Lexicon) -> list[Found]:
    """The same captions, nearest first to the nearest entity of the corpus that was asked for."""
    ids = [row for row, key in enumerate(corpus.entities["key"]) if is_kind_of(key, wanted, lexicon)]
    if not ids:
        raise CorpusError(f"--rank: the corpus has no entity that is a kind of {wanted}")
    if corpus.random_weights:
        typer.echo("the corpus's model has random weights: this order means nothing", err=True)
    texts = corpus.encoder.encode([item.caption for item in found])
    cosines = (texts @ corpus.embeddings[ids].T).max(axis=1)
    return [found[place] for place in np.argsort(-cosines, kind="stable")]


if __name__ == "__main__":
    typer.run(plain_errors(main))
