import json

import numpy as np
import pyarrow.parquet as pq
import pytest

from corpus_builder import artifact
from corpus_builder.config import CorpusError
from corpus_builder.index import build_index, index_bytes

FACTS = {
    "config": {"taggers": "both"},
    "inputs": {"labels": {"file": "a.csv", "sha256": "0" * 64}},
    "model": {
        "name": "m",
        "pretrained": None,
        "weights_sha256": "1" * 64,
        "embed_dim": 4,
        "random_weights": True,
    },
    "counts": {"entities": 3},
}
VECTORS = np.eye(4, dtype=np.float32)[:3]
NOTHING_TOLD = {
    artifact.SENSES: artifact.table_of([], artifact.SENSES_SCHEMA),
    artifact.MERGED: artifact.table_of([], artifact.MERGED_SCHEMA),
    artifact.CANDIDATES: artifact.table_of([], artifact.CANDIDATES_SCHEMA),
}


def entities():
    rows = [
        {"entity_id": i, "key": sense or name, "name": name, "aliases": [], "kind": "object"}
        | {"source": "label", "sources": ["label"], "sense": sense, "gloss": None, "lexname": None}
        | {"text": name, "count": 1, "labels": ["x"], "contexts": []}
        | {"embedding": VECTORS[i].tolist()}
        for i, (name, sense) in enumerate([("bat", "bat.n.05"), ("eye makeup", None), ("hand", "hand.n.01")])
    ]
    return artifact.table_of(rows, artifact.entities_schema(4))


def write(folder, **kwargs):
    return artifact.write_corpus(
        folder, entities(), index_bytes(build_index(VECTORS).index), NOTHING_TOLD, FACTS, **kwargs
    )


def edit(folder, **changes):
    path = folder / artifact.MANIFEST
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_round_trip(tmp_path):
    manifest = write(tmp_path / "c")
    opened = artifact.open_corpus(tmp_path / "c")
    assert opened.manifest == manifest and opened.table.equals(entities())
    np.testing.assert_array_equal(opened.embeddings, VECTORS)
    assert manifest["entities"] == 3 and manifest["dim"] == 4
    assert opened.table.schema.field("embedding").metadata[b"unit"].startswith(b"unit length")
    assert all(artifact.verify_files(opened).values())
    assert "RANDOM WEIGHTS" in artifact.summary(opened)


def test_embedding_column_round_trip():
    vectors = np.random.default_rng(0).normal(size=(5, 7)).astype(np.float32)
    import pyarrow as pa

    table = pa.table({"embedding": artifact.embedding_array(vectors)})
    np.testing.assert_array_equal(artifact.embedding_matrix(table), vectors)


def test_the_fingerprint_ignores_time_and_sees_everything_else(tmp_path):
    first, second = write(tmp_path / "a"), write(tmp_path / "b")
    assert first["fingerprint"] == second["fingerprint"]
    assert artifact.fingerprint(first | {"created": "other"}) == first["fingerprint"]
    for key in ("artifact", "schema_version", "package", "config", "inputs", "model"):
        assert artifact.fingerprint(first | {key: "other"}) != first["fingerprint"]


def test_writing_twice_replaces_and_clears_stale_parts(tmp_path):
    write(tmp_path)
    (tmp_path / ".tmp-left").write_text("of a killed run")
    write(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(
        [*artifact.FILES["corpus"], artifact.MANIFEST]
    )


def test_a_folder_with_other_things_is_left_alone(tmp_path):
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(CorpusError, match="holds other things .thesis.tex.*--force"):
        write(tmp_path)
    write(tmp_path, force=True)
    assert (tmp_path / "thesis.tex").read_text() == "x"


def test_an_interrupted_write_is_no_artifact(tmp_path, monkeypatch):
    write(tmp_path)
    real, done = artifact.os.replace, []

    def fail_on_the_second(source, target):
        if done:
            raise KeyboardInterrupt
        done.append(target)
        real(source, target)

    monkeypatch.setattr(artifact.os, "replace", fail_on_the_second)
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path)
    with pytest.raises(CorpusError, match="found no manifest.json"):
        artifact.open_corpus(tmp_path)
    assert not list(tmp_path.glob(".tmp-*"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"schema_version": 99}, "schema version 2, found version 99"),
        ({"artifact": "alignments"}, "needs a corpus folder, found artifact 'alignments'"),
        ({"artifact": "labels"}, "needs a corpus folder, found artifact 'labels'"),
        ({"config": {"taggers": "nltk"}}, "changed after it was written"),
    ],
)
def test_a_wrong_manifest_is_refused(tmp_path, changes, message):
    write(tmp_path)
    edit(tmp_path, **changes)
    with pytest.raises(CorpusError, match=message):
        artifact.open_corpus(tmp_path)


def test_a_broken_manifest_is_refused(tmp_path):
    write(tmp_path)
    (tmp_path / artifact.MANIFEST).write_text("{")
    with pytest.raises(CorpusError, match="broken .*corpus-builder build"):
        artifact.open_corpus(tmp_path)
    (tmp_path / artifact.MANIFEST).write_text("{}")
    with pytest.raises(CorpusError, match="without artifact, schema_version"):
        artifact.open_corpus(tmp_path)


def test_missing_cut_and_altered_files_are_noticed(tmp_path):
    write(tmp_path)
    index = tmp_path / artifact.INDEX
    data = index.read_bytes()
    index.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    assert artifact.verify_files(artifact.open_corpus(tmp_path))[artifact.INDEX] is False
    index.write_bytes(data[:-1])
    with pytest.raises(CorpusError, match=f"needs {len(data)} bytes, found {len(data) - 1} bytes"):
        artifact.open_corpus(tmp_path)
    index.unlink()
    with pytest.raises(CorpusError, match="found nothing"):
        artifact.open_corpus(tmp_path)


def test_a_null_where_none_may_be_is_refused(tmp_path):
    rows = entities().to_pylist()
    rows[0]["name"] = None
    with pytest.raises(Exception, match="(?i)null"):
        table = artifact.table_of(rows, artifact.entities_schema(4))
        pq.write_table(table, tmp_path / "x.parquet")
