import numpy as np
import pyarrow.parquet as pq
import pytest

from adapter.config import AdapterError
from adapter.labels import clean_name, open_labels


@pytest.mark.parametrize(
    ("label", "name"),
    [
        ("ApplyEyeMakeup", "apply eye makeup"),
        ("apply_eye_makeup", "apply eye makeup"),
        ("HTMLPage", "html page"),
        ("juggling balls", "juggling balls"),
        (" Tai  chi ", "tai chi"),
        ("push-up", "push up"),
        ("TVShow3D", "tv show3d"),
        ("DVDs", "dvds"),
    ],
)
def test_cleaned_names(label, name):
    assert clean_name(label) == name


def test_matching_prefers_the_exact_spelling(tmp_path, toy):
    labels = open_labels(toy.write_labels(tmp_path / "l", ["YoYo", "yo_yo", "bench_press"]))
    assert labels.match("YoYo") == 0
    assert labels.match("yo_yo") == 1
    assert labels.match("BenchPress") == 2
    # Two labels share this cleaned name: guessing one would be silent error.
    assert labels.match("yo yo") == -1
    assert labels.match("archery") == -1
    assert labels.match(None) == -1


def test_bad_label_sets(tmp_path, toy):
    with pytest.raises(AdapterError, match="is empty; it needs at least one label"):
        open_labels(toy.write_labels(tmp_path / "empty", []))
    with pytest.raises(AdapterError, match="holds some labels twice: .'a'."):
        open_labels(toy.write_labels(tmp_path / "twice", ["a", "a"]))
    long = toy.write_labels(tmp_path / "long", ["a", "b"], embeddings=np.ones((2, toy.dim)))
    with pytest.raises(AdapterError, match="need unit length"):
        open_labels(long)
    with pytest.raises(AdapterError, match="needs the labels artifact, found no manifest"):
        open_labels(tmp_path)


def test_a_truncated_or_foreign_table_is_named(tmp_path, toy):
    path = toy.write_labels(tmp_path / "l", toy.classes)
    file = path / "labels.parquet"
    table, data = pq.read_table(file), file.read_bytes()
    file.write_bytes(data[: len(data) // 2])
    with pytest.raises(AdapterError, match="labels.parquet cannot be read .*`corpus-builder labels"):
        open_labels(path)
    pq.write_table(table.set_column(3, "embedding", table["class_id"]), file)
    with pytest.raises(AdapterError, match="column embedding is int32 .*`corpus-builder labels"):
        open_labels(path)
    pq.write_table(table.drop_columns("name"), file)
    with pytest.raises(AdapterError, match="labels.parquet lacks columns name, found class_id, label"):
        open_labels(path)


def test_another_model_is_refused_by_name_and_hash(toy, label_set):
    other = {**toy.model, "name": "ViT-B-16", "pretrained": "openai", "weights_sha256": "b" * 64}
    with pytest.raises(AdapterError) as caught:
        open_labels(label_set, other)
    words = str(caught.value)
    assert "found toy (none, weights aaaaaaaaaaaa" in words
    assert "expected ViT-B-16 (openai, weights bbbbbbbbbbbb" in words
    assert "`corpus-builder labels --labels FILE --model ViT-B-16 --pretrained openai --out DIR`" in words


def test_a_model_from_a_folder_is_asked_for_by_a_command_that_works(toy, label_set):
    other = {**toy.model, "name": "local-dir:clip", "pretrained": None, "weights_sha256": "b" * 64}
    with pytest.raises(AdapterError) as caught:
        open_labels(label_set, other)
    command = "`corpus-builder labels --labels FILE --model local-dir:PATH --out DIR`"
    assert f"run {command}, where PATH is the folder of local-dir:clip" in str(caught.value)
