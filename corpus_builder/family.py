"""A family of corpora to compare: labels alone, with WordNet, with a language model, and random nouns of equal size.

One mining, and one embedding of each text, serve all members. A member is a Corpus like any other; its manifest tells
what it was made from, so that a run that was killed goes on with what is missing.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from jaxtyping import Float

from corpus_builder import __version__, artifact
from corpus_builder.artifact import Artifact
from corpus_builder.build import (
    BEYOND,
    LEFT_OUT,
    Inputs,
    MineReport,
    Say,
    gather_all,
    input_facts,
    mine_corpus,
    of_sources,
    publish,
)
from corpus_builder.config import MATCHES, CorpusConfig, CorpusError, check_choice
from corpus_builder.control import draw
from corpus_builder.coverage import Mentions, cover
from corpus_builder.index import read_index, search
from corpus_builder.sources import LabelFile, read_labels
from corpus_builder.taggers import load_taggers
from corpus_builder.unmined import publish_random, reference_of
from corpus_builder.wordnet import Lexicon, open_lexicon

RANDOM = "random"
COMPARISON = "comparison.json"
RUNGS = (("label", "labels"), ("caption", "captions"), ("related", "wordnet"), ("expansion", "llm"))
"""Sources, and what they are called in the names of members, in the order in which they are added."""


class SharedEncoder:
    """A text encoder that embeds the texts of several corpora in one go, whichever of them is asked for first."""

    def __init__(self, encoder: Any, texts: Sequence[str]) -> None:
        self.info = encoder.info
        self._encoder = encoder
        self._row = {text: number for number, text in enumerate(dict.fromkeys(texts))}

    @cached_property
    def _vectors(self) -> Float[np.ndarray, "texts dim"]:
        return self._encoder.encode(list(self._row))

    def encode(self, texts: Sequence[str]) -> Float[np.ndarray, "texts dim"]:
        """Unit float32 vectors of texts that were announced, one row per text."""
        return self._vectors[[self._row[text] for text in texts]]

    def truncated(self, texts: Sequence[str]) -> int:
        """How many of the texts are longer than the model reads."""
        return self._encoder.truncated(texts)


@dataclass(frozen=True)
class Family:
    """What all members are made from."""

    inputs: Inputs
    config: CorpusConfig
    out: Path
    lexicon: Lexicon
    encoder: Any
    location: Mapping[str, str] | None
    members: Mapping[str, tuple[str, ...]]
    """Sources of each true member, by its name; the last is the main one."""
    say: Say

    @cached_property
    def basis(self) -> dict[str, Any]:
        """All that decides the bytes of the true members."""
        taggers = load_taggers(self.config, self.lexicon, self.inputs.nltk_data)
        return {
            "package": __version__,
            "config": asdict(self.config),
            "inputs": input_facts(self.inputs, self.lexicon),
            "columns": [self.inputs.label_column, self.inputs.caption_column],
            "taggers": [tagger.version for tagger in taggers if hasattr(tagger, "version")],
            "model": self.encoder.info,
            "members": self.members,
        }


def compare_corpora(
    inputs: Inputs,
    config: CorpusConfig,
    model: str,
    pretrained: str | None,
    out: Path,
    *,
    seed: int = 0,
    match: str = "none",
    device: str = "auto",
    force: bool = False,
    say: Say = lambda line: None,
) -> dict[str, Any]:
    """Write the members under ``out`` and return the comparison, which is written there too.

    Members that are there and made from the same inputs are kept.

    Args:
        inputs: labels, and what to add to them.
        config: as for a build; ``sources`` has to be empty.
        model: as for a build.
        pretrained: as for a build.
        out: the folder, with a corpus for each member.
        seed: of the random nouns.
        match: what they have in common with the main member, as for :func:`corpus_builder.control.draw`.
        device: for the model.
        force: write even if the folder holds other things.
        say: told of each step.

    Raises:
        CorpusError: no labels; as a build and as ``draw``.
    """
    from corpus_builder.embed import check_model, choose_device, load_text_encoder, model_location

    check_choice("--match", match, MATCHES)
    labels, members = _labels(inputs), members_of(inputs, config)
    _check_room(out, {*members, RANDOM, COMPARISON}, force)
    check_model(model, pretrained)
    choose_device(device)
    lexicon = open_lexicon(inputs.nltk_data)
    encoder = load_text_encoder(model, pretrained, device)
    family = Family(inputs, config, out, lexicon, encoder, model_location(model, pretrained), members, say)
    corpora = _true_members(family, device)
    corpora[RANDOM] = _random_member(family, corpora, seed, match)
    told = compare(corpora, [label.label for label in labels.labels])
    artifact.write_file(out / COMPARISON, (json.dumps(told, indent=2) + "\n").encode())
    return told


def members_of(inputs: Inputs, config: CorpusConfig) -> dict[str, tuple[str, ...]]:
    """Names of the true members and their sources: labels, then one more of what is given at a time.

    Body parts belong to all, unless the settings leave them out. Raises :class:`CorpusError` without labels.
    """
    listed = _labels(inputs).expansions
    given = {
        "label": True,
        "caption": inputs.captions is not None,
        "related": config.related > 0,
        "expansion": bool(inputs.expansions or listed),
    }
    members: dict[str, tuple[str, ...]] = {}
    names: list[str] = []
    sources = ("body_part",) if config.body_parts else ()
    for source, name in RUNGS:
        if given[source]:
            names, sources = [*names, name], (*sources, source)
            members["+".join(names)] = sources
    return members


def compare(corpora: Mapping[str, Artifact], labels: Sequence[str]) -> dict[str, Any]:
    """Figures of each corpus, and for each pair the keys they share; JSON values, the same for the same corpora."""
    mentions = _mentions(next(iter(corpora.values())))
    keys = {name: set(corpus.table["key"].to_pylist()) for name, corpus in corpora.items()}
    shared = [
        {
            "first": one,
            "second": two,
            "shared_keys": len(keys[one] & keys[two]),
            "jaccard": round(len(keys[one] & keys[two]) / len(keys[one] | keys[two]), 4),
        }
        for one, two in combinations(corpora, 2)
    ]
    members = {
        name: cover(corpus, labels, mentions).figures
        | {
            "by_source": corpus.manifest["counts"]["entities_by_source"],
            "neighbour_cosine": redundancy(corpus),
            "fingerprint": corpus.fingerprint,
        }
        for name, corpus in corpora.items()
    }
    return {"members": members, "overlap": shared, "model": next(iter(corpora.values())).manifest["model"]}


def redundancy(corpus: Artifact) -> float | None:
    """Mean cosine of an entity and its nearest other entity, to six digits; None for a single entity."""
    if len(corpus.table) < 2:
        return None
    hits = search(read_index(corpus.folder / artifact.INDEX), corpus.embeddings, 2)
    own = hits.ids == np.arange(len(corpus.table))[:, None]
    # an entity whose twin comes first is not its own second hit either
    others = np.where(own, -np.inf, hits.scores).max(axis=1)
    return round(float(others.astype(np.float64).mean()), 6)


def _true_members(family: Family, device: str) -> dict[str, Artifact]:
    done = {
        name: _done(family.out / name, _digest({**family.basis, "member": name})) for name in family.members
    }
    missing = [name for name, corpus in done.items() if corpus is None]
    for name in (name for name in done if name not in missing):
        family.say(f"{name}: kept, made from the same inputs")
    if missing:
        mined = mine_corpus(family.inputs, family.config, family.say, device=device, encoder=family.encoder)
        reports = {name: of_sources(mined, sources) for name, sources in family.members.items()}
        texts = [text for name, report in reports.items() for text in _texts(name, report, family.config)]
        shared = SharedEncoder(family.encoder, texts)
        for name in missing:
            done[name] = _make(family, name, reports[name], shared)
    return {name: corpus for name, corpus in done.items() if corpus is not None}


def _texts(name: str, report: MineReport, config: CorpusConfig) -> list[str]:
    try:
        return [entity.text(config.entity_text) for entity in gather_all(report, config).entities]
    except CorpusError as error:
        raise CorpusError(f"{name}: {error}") from None


def _make(family: Family, name: str, report: MineReport, encoder: SharedEncoder) -> Artifact:
    config = replace(family.config, sources=family.members[name])
    made_from = _digest({**family.basis, "member": name})
    publish(
        report,
        config,
        encoder,
        family.out / name,
        told=asdict(config) | {"spacy_model": report.spacy_model, "family": _told(name, made_from)},
        kind=family.lexicon.kind,
        location=family.location,
        force=True,
    )
    family.say(f"{name}: written")
    return artifact.open_corpus(family.out / name)


def _random_member(family: Family, corpora: Mapping[str, Artifact], seed: int, match: str) -> Artifact:
    like = list(corpora.values())[::-1]
    size = len(like[0].table)
    operation = {"name": RANDOM, "seed": seed, "match": match, "size": size}
    prints = [corpus.fingerprint for corpus in like]
    made_from = _digest({**family.basis, "member": operation, "not_in": prints})
    found = _done(family.out / RANDOM, made_from)
    if found is not None:
        family.say(f"{RANDOM}: kept, made from the same inputs")
        return found
    publish_random(
        draw(family.lexicon, size, seed, reference_of(like), match),
        like,
        family.config,
        family.encoder,
        family.out / RANDOM,
        told={"operation": operation, "family": _told(RANDOM, made_from)},
        lexicon=family.lexicon,
        location=family.location,
        force=True,
        say=lambda line: None,
    )
    family.say(f"{RANDOM}: written")
    return artifact.open_corpus(family.out / RANDOM)


def _told(name: str, made_from: str) -> dict[str, str]:
    return {"member": name, "made_from": made_from}


def _done(folder: Path, made_from: str) -> Artifact | None:
    """The member in a folder if it is whole and made from the same, else None."""
    try:
        corpus = artifact.open_corpus(folder)
    except CorpusError:
        return None
    same = corpus.manifest["config"].get("family", {}).get("made_from") == made_from
    return corpus if same and all(artifact.verify_files(corpus).values()) else None


def _digest(facts: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def _mentions(corpus: Artifact) -> Mentions:
    """What labels mention, from what any member tells of the mining: also what the member itself leaves out."""
    columns = ["label", "entity", "sense", "source", "reason"]
    found: dict[str, set[str]] = {}
    for row in pq.read_table(corpus.folder / artifact.CANDIDATES, columns=columns).to_pylist():
        if row["source"] == "label" and row["reason"] in (None, LEFT_OUT, BEYOND):
            found.setdefault(row["label"], set()).add(row["sense"] or row["entity"])
    return {label: frozenset(keys) for label, keys in found.items()}


def _labels(inputs: Inputs) -> LabelFile:
    if inputs.labels is None:
        raise CorpusError("a family of corpora begins with labels: give --labels FILE")
    return read_labels(inputs.labels, inputs.label_column)


def _check_room(out: Path, own: set[str], force: bool) -> None:
    artifact.check_above(out)
    if out.exists() and not out.is_dir():
        raise CorpusError(f"--out '{out}' is a file, expected a folder")
    for stale in out.glob(".tmp-*"):
        stale.unlink()
    others = sorted(path.name for path in out.iterdir() if path.name not in own) if out.is_dir() else []
    if others and not force:
        raise CorpusError(
            f"--out '{out}' holds other things ({others[0]}), and no member of this family is called so: choose another"
            " folder, or pass --force"
        )
