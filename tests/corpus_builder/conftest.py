"""Fixtures of this stage's tests."""

import json

import numpy as np
import pyarrow.parquet as pq
import pytest

from corpus_builder import artifact
from corpus_builder.embed import load_text_encoder, model_location
from corpus_builder.index import build_index, index_bytes
from corpus_builder.tables import with_embeddings

OPENAI = {
    "name": "ViT-B-16",
    "pretrained": "openai",
    "weights_sha256": "0" * 64,
    "embed_dim": 512,
    "random_weights": False,
}


@pytest.fixture(scope="session")
def tiny_builtin(tmp_path_factory):
    """Name of a tiny architecture known to open_clip by name alone, with a context of 16 tokens."""
    import open_clip

    config = {
        "embed_dim": 16,
        "vision_cfg": {"image_size": 16, "layers": 1, "width": 16, "head_width": 8, "patch_size": 8},
        "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
    }
    folder = tmp_path_factory.mktemp("architectures")
    (folder / "tiny-builtin.json").write_text(json.dumps(config))
    open_clip.add_model_config(folder)
    return "tiny-builtin"


def write_plain_corpus(folder, names, vectors, model=OPENAI, location=None, **columns):
    """A corpus whose entities have these names and vectors; ``columns`` maps a column to a value per name."""
    rows = [
        {"entity_id": i, "key": name, "name": name, "aliases": [], "kind": "phrase", "source": "label"}
        | {"sources": ["label"], "sense": None, "gloss": None, "lexname": None, "text": name, "count": 1}
        | {"labels": [], "contexts": []}
        | {column: values[i] for column, values in columns.items()}
        for i, name in enumerate(names)
    ]
    told = {
        artifact.SENSES: artifact.table_of([], artifact.SENSES_SCHEMA),
        artifact.MERGED: artifact.table_of([], artifact.MERGED_SCHEMA),
        artifact.CANDIDATES: artifact.table_of([], artifact.CANDIDATES_SCHEMA),
    }
    facts = {"config": {}, "inputs": {}, "counts": {}, "model": model}
    table = with_embeddings(rows, vectors, artifact.entities_schema(vectors.shape[1]))
    index = index_bytes(build_index(vectors).index)
    artifact.write_corpus(folder, table, index, told, facts, location=location)
    return folder


@pytest.fixture(scope="session")
def plain_corpus():
    """:func:`write_plain_corpus`, for tests that bring their own vectors."""
    return write_plain_corpus


@pytest.fixture(scope="session")
def embedded_corpus():
    """Write a corpus of names embedded by a model: ``(folder, names, model, pretrained=None, **columns)``."""

    def write(folder, names, model, pretrained=None, **columns):
        encoder = load_text_encoder(model, pretrained, "cpu")
        location = model_location(model, pretrained)
        vectors = encoder.encode(names)
        return write_plain_corpus(folder, names, vectors, encoder.info, location, **columns)

    return write


@pytest.fixture(scope="session")
def real_vectors(shared):
    """548 distinct words and their unit vectors by the real CLIP ViT-B/16 (OpenAI's weights)."""
    table = pq.read_table(shared / "data/clip_text/vit_b16_openai_entities.parquet")
    vectors = table["embedding"].combine_chunks().flatten().to_numpy().reshape(len(table), 512)
    vectors = vectors.astype(np.float32)
    return table["text"].to_pylist(), vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
