"""How well a corpus covers a label set, also one that it was not made from."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from jaxtyping import Float

from corpus_builder import artifact
from corpus_builder.artifact import Artifact
from corpus_builder.build import Inputs, Say, mine_corpus
from corpus_builder.config import DEFAULT_TEMPLATES, CorpusConfig, CorpusError, did_you_mean
from corpus_builder.search import encoder_of, index_of, nearest
from corpus_builder.sources import Label, read_labels
from corpus_builder.templates import load_templates

Mentions = Mapping[str, frozenset[str]]
"""Keys of the entities that each label mentions."""


@dataclass(frozen=True)
class Nearest:
    """The entity nearest to a label in the model's space."""

    name: str
    cosine: float


@dataclass(frozen=True)
class Coverage:
    """A corpus against a label set; per label by name, in the file's order."""

    entities: int
    held: Mapping[str, tuple[str, ...]]
    """Names of the entities that each label mentions and the corpus holds."""
    missing: Mapping[str, tuple[str, ...]]
    """Keys that it mentions and the corpus lacks."""
    listed: Mapping[str, int]
    """Entities of the corpus that name the label among those they were found in."""
    nearest: Mapping[str, Nearest] | None = None

    @property
    def uncovered(self) -> tuple[str, ...]:
        """Labels without any entity that they mention."""
        return tuple(label for label, names in self.held.items() if not names)

    @property
    def figures(self) -> dict[str, Any]:
        """Totals; cosines to six digits, shares and means to four."""
        labels, held = len(self.held), sum(map(len, self.held.values()))
        mentions = held + sum(map(len, self.missing.values()))
        told: dict[str, Any] = {
            "entities": self.entities,
            "labels": labels,
            "labels_covered": labels - len(self.uncovered),
            "coverage": round(1 - len(self.uncovered) / labels, 4),
            "mentions": mentions,
            "mentions_held": held,
            "mentions_held_share": round(held / mentions, 4) if mentions else 0.0,
            "entities_per_label": round(held / labels, 4),
            "listed_per_label": round(sum(self.listed.values()) / labels, 4),
        }
        if self.nearest is not None:
            told["nearest_cosine"] = round(float(np.mean([n.cosine for n in self.nearest.values()])), 6)
        return told

    @property
    def report(self) -> dict[str, Any]:
        """Figures and every label, for ``--json``."""
        rows = [
            {
                "label": label,
                "entities": list(names),
                "missing": list(self.missing[label]),
                "listed": self.listed[label],
            }
            | ({"nearest": asdict(self.nearest[label])} if self.nearest is not None else {})
            for label, names in self.held.items()
        ]
        return self.figures | {"uncovered": list(self.uncovered), "per_label": rows}


def coverage(
    folder: Path,
    labels: Path,
    config: CorpusConfig,
    *,
    label_column: str | None = None,
    nltk_data: Path | None = None,
    embeddings: Path | None = None,
    embed: bool = False,
    device: str = "auto",
    say: Say = lambda line: None,
) -> Coverage:
    """Mine the labels of a file and look up what they mention in a corpus.

    Args:
        folder: the corpus.
        labels: the file.
        config: how labels are mined.
        label_column: of the file.
        nltk_data: where WordNet lies.
        embeddings: a Labels folder of the corpus's model, to tell the nearest entity of each label.
        embed: whether to embed the labels with the corpus's own model for that.
        device: for the model.
        say: told of each step.

    Raises:
        CorpusError: an input that cannot be read, or embeddings of another model or without a label of the file.
    """
    corpus = artifact.open_corpus(folder)
    given = read_labels(labels, label_column).labels
    vectors = _vectors(corpus, given, embeddings, embed, device)
    inputs = Inputs(labels=labels, label_column=label_column, nltk_data=nltk_data)
    report = mine_corpus(inputs, config, say, device=device)
    artifact.check_one_wordnet(corpus, report.inputs[artifact.WORDNET]["sha256"], "the labels are mined with")
    mentioned: dict[str, set[str]] = {}
    for item in report.kept:
        if item.source == "label" and item.label is not None:
            mentioned.setdefault(item.label, set()).add(item.key)
    names = [label.label for label in given]
    return cover(corpus, names, {label: frozenset(keys) for label, keys in mentioned.items()}, vectors)


def cover(
    corpus: Artifact,
    labels: Sequence[str],
    mentions: Mentions,
    vectors: Float[np.ndarray, "labels dim"] | None = None,
) -> Coverage:
    """Look up what each label mentions; a key that was merged into an entity counts as that entity.

    Args:
        corpus: an opened corpus.
        labels: as given in their file.
        mentions: by label; a label may be absent.
        vectors: unit vectors of the labels in the corpus's space.
    """
    table = corpus.table
    entity = dict(zip(table["key"].to_pylist(), range(len(table)), strict=True))
    merged = pq.read_table(corpus.folder / artifact.MERGED, columns=["key", "entity_id"]).to_pylist()
    entity = {row["key"]: row["entity_id"] for row in merged} | entity
    names = table["name"].to_pylist()
    held, missing = {}, {}
    for label in labels:
        keys = sorted(mentions.get(label, ()))
        held[label] = tuple(names[i] for i in sorted({entity[key] for key in keys if key in entity}))
        missing[label] = tuple(key for key in keys if key not in entity)
    listed = dict.fromkeys(labels, 0)
    for row in table["labels"].to_pylist():
        for label in listed.keys() & set(row):
            listed[label] += 1
    near = None if vectors is None else dict(zip(labels, _nearest(corpus, vectors), strict=True))
    return Coverage(len(table), held, missing, listed, near)


def _nearest(corpus: Artifact, vectors: Float[np.ndarray, "labels dim"]) -> list[Nearest]:
    return [Nearest(hit.name, hit.cosine) for [hit] in nearest(corpus, index_of(corpus), vectors, 1)]


def _vectors(
    corpus: Artifact, labels: Sequence[Label], embeddings: Path | None, embed: bool, device: str
) -> np.ndarray | None:
    if embeddings is None and not embed:
        return None
    if embeddings is None:
        from corpus_builder.embed import embed_labels

        return embed_labels(
            [label.name for label in labels],
            load_templates(DEFAULT_TEMPLATES),
            encoder_of(corpus, None, None, device),
        )
    opened = artifact.open_labels(embeddings)
    if opened.manifest["model"]["weights_sha256"] != corpus.manifest["model"]["weights_sha256"]:
        raise CorpusError(
            f"--embeddings '{embeddings}' was made with {opened.manifest['model']['name']}, the corpus with"
            f" {corpus.manifest['model']['name']} or other weights; run `{artifact.MAKERS['labels']}` with the corpus's"
        )
    row = {label: number for number, label in enumerate(opened.table["label"].to_pylist())}
    for label in labels:
        if label.label not in row:
            raise CorpusError(
                f"--embeddings '{embeddings}' has no label '{label.label}'{did_you_mean(label.label, row)}; it was"
                f" made from {opened.manifest['inputs']['labels']['file']}"
            )
    return opened.embeddings[[row[label.label] for label in labels]]
