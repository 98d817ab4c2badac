"""What the aligner accepts as a corpus, and how it refuses the rest."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from aligner.config import AlignerError
from aligner.corpus import check_model, load_corpus

MODEL = {
    "name": "ViT-B-16",
    "pretrained": "openai",
    "weights_sha256": "a" * 64,
    "embed_dim": 8,
    "random_weights": False,
}


@pytest.fixture
def corpus(make_corpus: Callable, tmp_path: Path) -> Path:
    return make_corpus(tmp_path / "corpus", MODEL, 10)


def edit_manifest(corpus: Path, **changes: object) -> None:
    file = corpus / "manifest.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def test_loads_names_and_unit_vectors(corpus: Path) -> None:
    found = load_corpus(corpus)
    assert found.names == [f"entity {i}" for i in range(10)]
    np.testing.assert_allclose(np.linalg.norm(found.embeddings, axis=1), 1, atol=1e-6)
    assert found.embeddings.dtype == np.float32
    check_model(found, MODEL)


def test_names_both_models_and_the_command(corpus: Path) -> None:
    wanted = MODEL | {"name": "ViT-B-32", "pretrained": "laion400m_e32", "weights_sha256": "b" * 64}
    with pytest.raises(AlignerError) as refusal:
        check_model(load_corpus(corpus), wanted)
    text = str(refusal.value)
    assert "needs ViT-B-32 (laion400m_e32, 8 dimensions, bbbbbbbbbbbb)" in text
    assert "found ViT-B-16 (openai, 8 dimensions, aaaaaaaaaaaa)" in text
    assert (
        "`corpus-builder build --labels FILE --model ViT-B-32 --pretrained laion400m_e32 --out DIR`" in text
    )


def test_another_dimension_is_refused(corpus: Path) -> None:
    with pytest.raises(AlignerError, match="made with another model"):
        check_model(load_corpus(corpus), MODEL | {"embed_dim": 16})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"artifact": "labels"}, "needs artifact 'corpus' of version 2, found 'labels' of version 1"),
        ({"schema_version": 3}, "found 'corpus' of version 3; produced by `corpus-builder build"),
    ],
)
def test_other_artifacts_are_refused(corpus: Path, changes: dict, message: str) -> None:
    edit_manifest(corpus, **changes)
    with pytest.raises(AlignerError, match=message):
        load_corpus(corpus)


def test_a_damaged_or_bare_manifest(corpus: Path) -> None:
    content = json.loads((corpus / "manifest.json").read_text())
    del content["model"]
    (corpus / "manifest.json").write_text(json.dumps(content))
    with pytest.raises(AlignerError, match="manifest.json has no model; produced by"):
        load_corpus(corpus)
    edit_manifest(corpus, model={"name": "ViT-B-16", "pretrained": 3, "embed_dim": 8})
    with pytest.raises(
        AlignerError, match="has no model.weights_sha256 and a damaged model.pretrained; prod"
    ):
        load_corpus(corpus)
    (corpus / "manifest.json").write_text("[]")
    with pytest.raises(AlignerError, match=r"manifest.json is damaged \(no JSON object\); produced by"):
        load_corpus(corpus)
    (corpus / "manifest.json").write_text("{half")
    with pytest.raises(AlignerError, match="manifest.json is damaged"):
        load_corpus(corpus)


def test_missing_files(corpus: Path, tmp_path: Path) -> None:
    with pytest.raises(AlignerError, match="needs manifest.json, found none: not a corpus"):
        load_corpus(tmp_path / "gone")
    (corpus / "entities.parquet").unlink()
    with pytest.raises(AlignerError, match="needs entities.parquet, found none"):
        load_corpus(corpus)


def replace_table(corpus: Path, change: Callable[[pa.Table], pa.Table]) -> None:
    file = corpus / "entities.parquet"
    pq.write_table(change(pq.read_table(file)), file)


def test_missing_columns_and_wrong_ids(corpus: Path) -> None:
    replace_table(corpus, lambda table: table.take(pa.array([1, 0])))
    with pytest.raises(AlignerError, match="entity_id must count 0, 1"):
        load_corpus(corpus)
    replace_table(corpus, lambda table: table.drop_columns(["name", "entity_id"]))
    with pytest.raises(AlignerError, match="missing entity_id, name"):
        load_corpus(corpus)


def test_empty_or_not_unit(corpus: Path) -> None:
    long = pa.FixedSizeListArray.from_arrays(pa.array(np.ones(80, np.float32)), 8)
    replace_table(
        corpus, lambda table: table.set_column(table.schema.get_field_index("embedding"), "embedding", long)
    )
    with pytest.raises(AlignerError, match="entity 0 has length 2.8.*, expected 1"):
        load_corpus(corpus)
    replace_table(corpus, lambda table: table.slice(0, 0))
    with pytest.raises(AlignerError, match="has no entities"):
        load_corpus(corpus)


def test_garbage_is_one_clear_error(corpus: Path) -> None:
    (corpus / "entities.parquet").write_bytes(b"PAR1 but not really")
    with pytest.raises(AlignerError, match="entities.parquet cannot be read"):
        load_corpus(corpus)


def test_vectors_with_holes_or_of_text_are_refused(corpus: Path) -> None:
    whole = pq.read_table(corpus / "entities.parquet")
    place = whole.schema.get_field_index("embedding")
    hole = pa.array([None, *whole["embedding"].to_pylist()[1:]], whole["embedding"].type)
    texts = pa.array([["x"] * 8] * 10, pa.list_(pa.string(), 8))
    for column, message in ((hole, "with 1 empty rows"), (texts, "got fixed_size_list<.*string")):
        replace_table(corpus, lambda _, column=column: whole.set_column(place, "embedding", column))
        with pytest.raises(AlignerError, match=message):
            load_corpus(corpus)
