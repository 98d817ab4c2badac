"""Corpora that are not mined: from a list of words, and of random nouns for comparison."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from corpus_builder import artifact
from corpus_builder.artifact import Artifact
from corpus_builder.build import MineReport, Say, publish, wordnet_facts
from corpus_builder.config import CorpusConfig, CorpusError
from corpus_builder.control import Draw, Reference, draw
from corpus_builder.senses import load_chooser
from corpus_builder.wordfile import read_words, told
from corpus_builder.wordnet import Lexicon, Sense, open_lexicon


def import_words(
    path: Path,
    config: CorpusConfig,
    model: str,
    pretrained: str | None,
    out: Path,
    *,
    column: str | None = None,
    senses: bool = True,
    nltk_data: Path | None = None,
    device: str = "auto",
    force: bool = False,
    say: Say = lambda line: None,
    encoder: Any = None,
) -> dict[str, Any]:
    """Write a corpus of the words of a list, see :mod:`corpus_builder.wordfile`; returns its manifest.

    Args:
        path: the list.
        config: ``strategy`` and its model, ``max_words``, ``size``, ``merge_above`` and ``index`` are used.
        model: as for a build.
        pretrained: as for a build.
        out: the folder.
        column: of the list, unless it has a usual name.
        senses: False keeps words as they are; WordNet is then not needed.
        nltk_data: where WordNet lies.
        device: for the model.
        force: write even if the folder holds other things.
        say: told of each step.
        encoder: the model (an ``embed.OpenClip``) where the caller has it in memory already.

    Raises:
        CorpusError: a list that cannot be read or gives no entity; and as a build.
    """
    encoder, location = _encoder(model, pretrained, out, device, force, encoder)
    lexicon = open_lexicon(nltk_data) if senses else None
    choose = load_chooser(lexicon, config, device, encoder) if lexicon else None
    found = read_words(path, column, lexicon, choose, config.max_words)
    for line in told(found):
        say(line)
    if not any(item.candidate.kept for item in found):
        raise CorpusError(f"WORDS {path.name} gives no entity: {'; '.join(told(found))}")
    facts = {"words": artifact.file_input(path)} | (wordnet_facts(lexicon) if lexicon else {})
    report = MineReport(tuple(found), len(found), (), facts, None)
    operation = {"name": "import", "column": column, "senses": senses}
    return publish(
        report,
        config,
        encoder,
        out,
        told=asdict(config) | {"operation": operation},
        kind=lexicon.kind if lexicon else _no_kind,
        location=location,
        force=force,
        say=say,
    )


def draw_random(
    not_in: Sequence[Path],
    config: CorpusConfig,
    model: str,
    pretrained: str | None,
    out: Path,
    *,
    seed: int = 0,
    match: str = "none",
    nltk_data: Path | None = None,
    device: str = "auto",
    force: bool = False,
    say: Say = lambda line: None,
) -> dict[str, Any]:
    """Write a corpus of random nouns, see :func:`corpus_builder.control.draw`; returns its manifest.

    There are ``config.size`` of them, else as many as the first corpus of ``not_in`` has, which is also the one to
    match; none is an entity of any of ``not_in``. The other arguments are as for :func:`import_words`.

    Raises:
        CorpusError: neither a size nor a corpus; and as ``draw`` and a build.
    """
    corpora = [artifact.open_corpus(folder) for folder in not_in]
    if config.size is None and not corpora:
        raise CorpusError(
            "say how many random nouns: give --size N, or --not-in CORPUS to draw as many as it has"
        )
    encoder, location = _encoder(model, pretrained, out, device, force)
    size = config.size or len(corpora[0].table)
    drawn = draw(open_lexicon(nltk_data), size, seed, reference_of(corpora), match)
    return publish_random(
        drawn,
        corpora,
        config,
        encoder,
        out,
        told={"operation": {"name": "random", "seed": seed, "match": match, "size": size}},
        lexicon=open_lexicon(nltk_data),
        location=location,
        force=force,
        say=say,
    )


def publish_random(
    drawn: Draw,
    corpora: Sequence[Artifact],
    config: CorpusConfig,
    encoder: Any,
    out: Path,
    *,
    told: Mapping[str, Any],
    lexicon: Lexicon,
    location: Mapping[str, str] | None,
    force: bool,
    say: Say,
) -> dict[str, Any]:
    """Embed and write the nouns drawn as they are, without merging any; ``told`` is the manifest's ``config``."""
    facts = wordnet_facts(lexicon) | {
        f"not_in{number}": {"file": corpus.folder.name, "sha256": corpus.fingerprint}
        for number, corpus in enumerate(corpora)
    }
    report = MineReport(drawn.found, len(drawn.found), (), facts, None)
    told = {**told, "index": config.index, "unmatched": drawn.unmatched}
    plain = CorpusConfig(index=config.index)
    return publish(
        report, plain, encoder, out, told=told, kind=lexicon.kind, location=location, force=force, say=say
    )


def reference_of(corpora: Sequence[Artifact]) -> Reference:
    """What random nouns must not be: entities and names of any of the corpora; the first is the one to match."""
    keys = {key for corpus in corpora for key in corpus.table["key"].to_pylist()}
    names = {name for corpus in corpora for name in corpus.table["name"].to_pylist()}
    names |= {name for corpus in corpora for row in corpus.table["aliases"].to_pylist() for name in row}
    lexnames = Counter(filter(None, corpora[0].table["lexname"].to_pylist())) if corpora else Counter()
    return Reference(frozenset(keys), frozenset(names), lexnames)


def _encoder(
    model: str, pretrained: str | None, out: Path, device: str, force: bool, encoder: Any = None
) -> tuple[Any, Any]:
    from corpus_builder.embed import check_model, choose_device, load_text_encoder, model_location

    artifact.check_room(out, "corpus", force=force)
    check_model(model, pretrained)
    choose_device(device)
    return encoder or load_text_encoder(model, pretrained, device), model_location(model, pretrained)


def _no_kind(sense: Sense) -> str:
    raise AssertionError(f"a corpus without senses has one: {sense.name}")
