import numpy as np
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


def test_another_model_is_refused_by_name_and_hash(toy, label_set):
    other = {**toy.model, "name": "ViT-B-16", "pretrained": "openai", "weights_sha256": "b" * 64}
    with pytest.raises(AdapterError) as caught:
        open_labels(label_set, other)
    words = str(caught.value)
    assert "found toy (none, weights aaaaaaaaaaaa" in words
    assert "expected ViT-B-16 (openai, weights bbbbbbbbbbbb" in words
    assert "corpus-builder labels --labels FILE --model ViT-B-16 --pretrained openai" in words
