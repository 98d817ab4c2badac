"""Finds and entities -> the tables of the Corpus contract."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from jaxtyping import Float

from corpus_builder import artifact
from corpus_builder.artifact import table_of
from corpus_builder.config import ENTITY_TEXT
from corpus_builder.entities import Entity, Found, Gathered, survivors
from corpus_builder.wordnet import Sense


def entity_table(
    entities: Sequence[Entity],
    vectors: Float[np.ndarray, "entities dim"],
    kind: Callable[[Sense], str],
    form: str = ENTITY_TEXT,
) -> pa.Table:
    """``entities.parquet``: row number = entity id; ``kind`` tells what a sense is, ``form`` how a text is made."""
    rows = [
        {
            "entity_id": row,
            "key": entity.key,
            "name": entity.name,
            "aliases": sorted(entity.aliases),
            "kind": kind(entity.sense) if entity.sense else "phrase",
            "source": entity.source,
            "sources": entity.sources,
            "sense": entity.sense.name if entity.sense else None,
            "gloss": entity.gloss,
            "lexname": entity.sense.lexname if entity.sense else None,
            "text": entity.text(form),
            "count": entity.count,
            "labels": sorted(entity.labels),
            "contexts": entity.contexts,
        }
        for row, entity in enumerate(entities)
    ]
    return with_embeddings(rows, vectors, artifact.entities_schema(vectors.shape[1]))


def sense_table(entities: Sequence[Entity]) -> pa.Table:
    """``senses.parquet``: every sense weighed for every entity, with its points."""
    rows = [
        {
            "entity_id": row,
            "sense": sense.name,
            "gloss": sense.gloss,
            "score": entity.choice.scores[number] if entity.choice.scores else None,
            "chosen": sense.name == entity.key,
        }
        for row, entity in enumerate(entities)
        for number, sense in enumerate(entity.choice.senses)
    ]
    return table_of(rows, artifact.SENSES_SCHEMA)


def merge_table(gathered: Gathered) -> pa.Table:
    """``merged.parquet``: what went into which entity, and why."""
    ids = {entity.key: row for row, entity in enumerate(gathered.entities)}
    held_by = survivors(gathered)
    rows = [
        {
            "entity_id": ids[held_by[merge.merged.key]],
            "key": merge.merged.key,
            "name": merge.merged.name,
            "reason": merge.reason,
            "cosine": merge.cosine,
            "count": merge.merged.count,
        }
        for merge in gathered.merges
    ]
    return table_of(rows, artifact.MERGED_SCHEMA)


def with_embeddings(
    rows: Sequence[dict[str, Any]], vectors: Float[np.ndarray, "rows dim"], schema: pa.Schema
) -> pa.Table:
    """Rows as dicts and their embeddings, the last column, as a table of that schema."""
    plain = table_of(rows, pa.schema(list(schema)[:-1]))
    return pa.Table.from_arrays([*plain.columns, artifact.embedding_array(vectors)], schema=schema)


def candidate_table(found: Iterable[Found]) -> pa.Table:
    """``candidates.parquet``: every find, kept or dropped."""
    rows = [
        {
            "label": item.label,
            "phrase": item.candidate.phrase,
            "entity": item.name,
            "sense": item.choice.sense.name if item.choice.sense else None,
            "source": item.source,
            "role": item.candidate.role,
            "taggers": "+".join(sorted(item.candidate.taggers)),
            "reason": item.candidate.reason,
            "margin": item.choice.margin if item.choice.sense else None,
            "count": item.count,
            "contexts": item.contexts,
        }
        for item in found
    ]
    return table_of(rows, artifact.CANDIDATES_SCHEMA)
