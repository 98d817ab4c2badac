import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import open_clip
import pytest
from PIL import Image
from safetensors.torch import save_file

from corpus_builder import api, artifact, build
from corpus_builder.config import BODY_PARTS, CorpusConfig, CorpusError
from corpus_builder.disambiguate import Choice
from corpus_builder.embed import load_text_encoder, model_location
from corpus_builder.entities import Found, gather, with_descriptions
from corpus_builder.index import build_index, index_bytes
from corpus_builder.mine import Candidate
from corpus_builder.phrases import Phrase, corpus_phrases
from corpus_builder.sources import clean_name, read_labels
from corpus_builder.tables import candidate_table, entity_table, merge_table, sense_table

WEIGHTS = "open_clip_model.safetensors"


def find(label, entity):
    return Found(label, Candidate(entity, entity, "noun"), "label", Choice(None, 0.0))


def test_nothing_to_mine_is_an_error(tmp_path):
    with pytest.raises(CorpusError, match="give --labels FILE, --captions FILE or both"):
        build.Inputs()
    with pytest.raises(CorpusError, match="--expansions needs --labels"):
        build.Inputs(captions=tmp_path, expansions=(tmp_path,))


@pytest.fixture(scope="module")
def config(shared):
    return CorpusConfig(spacy_model=str(shared / "spacy/en_ewt_sm"))


@pytest.fixture(scope="module")
def inputs(shared, tmp_path_factory):
    path = tmp_path_factory.mktemp("labels") / "labels.txt"
    path.write_text("ApplyEyeMakeup\ncutting nails\nhammering nail\nbrushing teeth\nzumba\n")
    return build.Inputs(labels=path, nltk_data=shared / "nltk_data")


@pytest.fixture(scope="module")
def corpus(inputs, config, tiny_clip, tmp_path_factory):
    out = tmp_path_factory.mktemp("corpus")
    build.build_corpus(inputs, config, tiny_clip, None, out, device="cpu")
    return artifact.open_corpus(out)


@pytest.mark.shared
def test_a_corpus_holds_what_the_labels_name(corpus):
    rows = {row["sense"] or row["name"]: row for row in corpus.table.drop(["embedding"]).to_pylist()}
    assert rows["nail.n.01"]["labels"] == ["cutting nails"] and rows["nail.n.02"]["labels"] == [
        "hammering nail"
    ]
    assert rows["tooth.n.01"]["source"] == "label" and rows["tooth.n.01"]["name"] == "tooth"
    assert rows["eye makeup"]["gloss"] is None and rows["zumba"]["labels"] == ["zumba"]
    assert rows["knee.n.01"]["source"] == "body_part" and rows["knee.n.01"]["count"] == 0
    assert {synset for _, synset in BODY_PARTS} <= set(rows)
    assert [row["entity_id"] for row in corpus.table.to_pylist()] == list(range(len(corpus.table)))


@pytest.mark.shared
def test_the_text_is_what_was_embedded(corpus, tiny_clip):
    rows = corpus.table.to_pylist()
    for row in rows:
        assert row["text"] == (f"{row['name']}: {row['gloss']}" if row["gloss"] else row["name"])
    expected = load_text_encoder(tiny_clip, device="cpu").encode([row["text"] for row in rows])
    np.testing.assert_allclose(corpus.embeddings, expected, atol=1e-6)


@pytest.mark.shared
def test_nothing_vanishes_uncounted(corpus):
    import pyarrow.parquet as pq

    rows = pq.read_table(corpus.folder / artifact.CANDIDATES).to_pylist()
    counts = corpus.manifest["counts"]
    assert counts["candidates"] == len(rows) == counts["kept"] + sum(counts["dropped"].values())
    assert counts["kept"] == sum(row["reason"] is None for row in rows)
    assert counts["labels_without_entity"] == 0
    assert sum(counts["entities_by_source"].values()) == len(corpus.table)


@pytest.mark.shared
def test_senses_weighed_are_told_with_the_chosen_one(corpus):
    import pyarrow.parquet as pq

    rows = pq.read_table(corpus.folder / artifact.SENSES).to_pylist()
    entities = {row["entity_id"]: row for row in corpus.table.to_pylist()}
    nails = [row for row in rows if entities[row["entity_id"]]["key"] == "nail.n.01"]
    assert {"nail.n.01", "nail.n.02"} <= {row["sense"] for row in nails}
    best = max(nails, key=lambda row: row["score"])
    assert best["chosen"] and best["sense"] == "nail.n.01"
    for row in entities.values():
        chosen = [s["sense"] for s in rows if s["entity_id"] == row["entity_id"] and s["chosen"]]
        assert chosen == ([row["sense"]] if row["sense"] and row["source"] != "body_part" else []), row[
            "name"
        ]


@pytest.mark.shared
def test_kinds_keys_and_contexts(corpus):
    rows = {row["key"]: row for row in corpus.table.to_pylist()}
    assert len(rows) == len(corpus.table)
    assert (rows["nail.n.01"]["kind"], rows["nail.n.02"]["kind"]) == ("body part", "object")
    assert rows["zumba"]["kind"] == "phrase" and rows["zumba"]["contexts"] == ["zumba"]
    assert rows["nail.n.01"]["contexts"] == ["cutting nails"]


@pytest.mark.shared
def test_denied_entities_are_dropped_with_their_reason_and_their_list_is_an_input(
    inputs, config, tiny_clip, tmp_path
):
    (tmp_path / "deny.txt").write_text("nail.n.02\nzumba\n")
    out = tmp_path / "corpus"
    build.build_corpus(
        replace(inputs, deny=tmp_path / "deny.txt"), config, tiny_clip, None, out, device="cpu"
    )
    denied = artifact.open_corpus(out)
    assert not {"nail.n.02", "zumba"} & set(denied.table["key"].to_pylist())
    assert denied.manifest["counts"]["dropped"]["deny list"] == 2
    assert denied.manifest["inputs"]["deny"]["file"] == "deny.txt"


@pytest.mark.shared
def test_near_duplicates_are_united_and_told(corpus, inputs, config, tiny_clip, tmp_path):
    """At a cosine of just above zero all but the entities that point away from the first go into it."""
    import pyarrow.parquet as pq

    united = replace(config, merge_above=0.5)
    build.build_corpus(inputs, united, tiny_clip, None, tmp_path / "c", device="cpu")
    few = artifact.open_corpus(tmp_path / "c")
    merged = pq.read_table(few.folder / artifact.MERGED).to_pylist()
    assert len(few.table) + len(merged) == len(corpus.table) and merged
    assert all(row["cosine"] >= 0.5 and row["reason"] == "near-duplicate" for row in merged)
    gram = few.embeddings @ few.embeddings.T - np.eye(len(few.table))
    assert gram.max() < 0.5
    assert sum(few.table["count"].to_pylist()) == sum(corpus.table["count"].to_pylist())


@pytest.mark.shared
def test_building_twice_gives_the_same_fingerprint_and_bytes(corpus, inputs, config, tiny_clip, tmp_path):
    again = build.build_corpus(inputs, config, tiny_clip, None, tmp_path, device="cpu").manifest
    assert again["fingerprint"] == corpus.fingerprint and again["files"] == corpus.manifest["files"]
    assert str(corpus.folder.parent) not in json.dumps(again)


@pytest.mark.shared
def test_search_finds_an_entity_by_its_own_text(corpus, tiny_clip, other_clip):
    row = corpus.table.to_pylist()[3]
    found = api.open(corpus.folder, model=tiny_clip, device="cpu").search(row["text"], 3)
    assert found[0].entity_id == row["entity_id"] and found[0].cosine == pytest.approx(1, abs=1e-5)
    with pytest.raises(
        CorpusError, match="needs the corpus's model, local-dir:tinyrandom.*found local-dir:otherrandom"
    ):
        api.open(corpus.folder, model=other_clip).search("nail")


def tiny_corpus(folder, name, pretrained=None):
    """Two entities embedded by a model, written as a build writes them; no WordNet needed."""
    encoder = load_text_encoder(name, pretrained, "cpu")
    found = [find("riding", "horse"), find("biking", "bicycle")]
    vectors = encoder.encode(["bicycle", "horse"])
    facts = {"config": {}, "inputs": {}, "model": encoder.info, "counts": {}}
    gathered = gather(found)
    artifact.write_corpus(
        folder,
        entity_table(gathered.entities, vectors, lambda sense: "object"),
        index_bytes(build_index(vectors).index),
        {
            artifact.SENSES: sense_table(gathered.entities),
            artifact.MERGED: merge_table(gathered),
            artifact.CANDIDATES: candidate_table(found),
        },
        facts,
        location=model_location(name, pretrained),
    )
    return artifact.open_corpus(folder)


@pytest.fixture
def movable(tiny_clip, tmp_path):
    folder = tmp_path / "models" / "tinyrandom"
    shutil.copytree(tiny_clip.removeprefix("local-dir:"), folder)
    return folder


def test_search_remembers_where_the_model_lay_and_checks_its_weights(movable, other_clip, tmp_path):
    corpus = tiny_corpus(tmp_path / "c", f"local-dir:{movable}")
    assert json.loads((corpus.folder / "model_location.json").read_text()) == {
        "model": f"local-dir:{movable.resolve()}"
    }
    assert api.open(corpus.folder, device="cpu").search("horse", 1)[0].name == "horse"
    shutil.copy(Path(other_clip.removeprefix("local-dir:")) / WEIGHTS, movable / WEIGHTS)
    with pytest.raises(
        CorpusError, match="tinyrandom: say where it lies with --model.*now has other weights"
    ):
        api.open(corpus.folder).search("horse")
    shutil.rmtree(movable)
    with pytest.raises(
        CorpusError, match="tinyrandom: say where it lies with --model.*holds no open_clip_co"
    ):
        api.open(corpus.folder).search("horse")
    (corpus.folder / artifact.MODEL_LOCATION).write_text("{")
    with pytest.raises(CorpusError, match="tinyrandom: say where it lies with --model local-dir:PATH$"):
        api.open(corpus.folder).search("horse")


def test_the_place_of_the_model_is_no_part_of_the_corpus(movable, tmp_path):
    here = tiny_corpus(tmp_path / "a", f"local-dir:{movable}")
    there = movable.parent / "elsewhere" / movable.name
    shutil.copytree(movable, there)
    moved = tiny_corpus(tmp_path / "b", f"local-dir:{there}")
    assert here.fingerprint == moved.fingerprint and str(tmp_path) not in json.dumps(here.manifest)
    assert artifact.read_model_location(here.folder) != artifact.read_model_location(moved.folder)
    artifact.check_room(here.folder, "corpus")


def test_a_weights_file_is_remembered_too(tiny_builtin, tmp_path):
    weights = tmp_path / "weights.safetensors"
    save_file(open_clip.create_model(tiny_builtin).state_dict(), weights)
    corpus = tiny_corpus(tmp_path / "c", tiny_builtin, str(weights))
    assert corpus.manifest["model"]["pretrained"] == "weights.safetensors"
    assert api.open(corpus.folder, device="cpu").search("horse", 1)[0].name == "horse"
    weights.unlink()
    with pytest.raises(
        CorpusError, match="weights.safetensors'.*with --model tiny-builtin --pretrained FILE"
    ):
        api.open(corpus.folder).search("horse")


def test_a_new_corpus_forgets_where_the_old_model_lay(movable, tiny_builtin, tmp_path):
    tiny_corpus(tmp_path / "c", f"local-dir:{movable}")
    tiny_corpus(tmp_path / "c", tiny_builtin, "none")
    assert artifact.read_model_location(tmp_path / "c") is None


def test_an_index_of_other_vectors_is_refused(tiny_clip, tmp_path):
    corpus = tiny_corpus(tmp_path / "c", tiny_clip)
    path = corpus.folder / artifact.INDEX
    wide = np.eye(64, dtype=np.float32)[:1]
    other = index_bytes(build_index(wide).index)
    assert len(other) == path.stat().st_size
    path.write_bytes(other)
    with pytest.raises(CorpusError, match="holds 1 vectors of 64, expected 2 of 32"):
        api.open(corpus.folder).search("horse")


def test_the_readme_s_example_runs(tiny_clip, tmp_path):
    tiny_corpus(tmp_path / "corpus", tiny_clip)
    (tmp_path / "photos").mkdir()
    Image.new("RGB", (40, 30)).save(tmp_path / "photos" / "one.jpg")
    (tmp_path / "photos" / "broken.jpg").write_text("no picture")
    readme = Path(build.__file__).with_name("README.md").read_text()
    snippets = re.findall(r"^```python\n(.*?)^```", readme, re.MULTILINE | re.DOTALL)
    assert len(snippets) == 1
    found = os.environ | {"PYTHONPATH": str(Path(__file__).resolve().parents[2])}
    done = subprocess.run(
        [sys.executable, "-c", snippets[0]], cwd=tmp_path, env=found, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0].startswith("<Corpus 'corpus': 2 entities") and lines[1].startswith("bicycle None 1.0")
    assert "not an image" in lines[5] and len((tmp_path / "from-labels.csv").read_text().splitlines()) == 3


@pytest.mark.shared
def test_captions_count_vote_and_drop_the_rare(shared, config, tmp_path):
    path = tmp_path / "captions.txt"
    path.write_text("a man hits the ball with a bat\nthe batter swings a bat at a ball\na dog sleeps\n")
    inputs = build.Inputs(captions=path, nltk_data=shared / "nltk_data")
    rare = CorpusConfig(spacy_model=config.spacy_model, min_count=2, body_parts=False)
    report = build.mine_corpus(inputs, rare)
    rows = {row["entity"]: row for row in build.mined_rows(report)}
    assert rows["bat"]["count"] == 2 and rows["bat"]["sense"] == "bat.n.05" and rows["bat"]["label"] is None
    assert "dog" not in rows and report.counts["dropped"]["too rare"] >= 1


@pytest.mark.shared
def test_expansions_are_mined_beside_their_label(shared, config, tmp_path):
    (tmp_path / "l.json").write_text(json.dumps({"archery": ["bow and arrow", "target"]}))
    inputs = build.Inputs(labels=tmp_path / "l.json", nltk_data=shared / "nltk_data")
    rows = build.mined_rows(build.mine_corpus(inputs, config))
    expanded = {row["entity"]: row["sense"] for row in rows if row["source"] == "expansion"}
    assert expanded["bow"] == "bow.n.04" and {"arrow", "target"} <= set(expanded)
    assert {row["label"] for row in rows if row["source"] == "expansion"} == {"archery"}


@pytest.mark.shared
def test_the_form_of_an_entitys_text_is_a_setting(inputs, config, tiny_clip, tmp_path):
    given = replace(config, entity_text="{description} ({unit})", body_parts=False)
    build.build_corpus(inputs, given, tiny_clip, None, tmp_path / "a", device="cpu")
    rows = artifact.open_corpus(tmp_path / "a").table.to_pylist()
    for row in rows:
        assert row["text"] == (f"{row['gloss']} ({row['name']})" if row["gloss"] else row["name"])
    assert any(row["gloss"] for row in rows)


def test_labels_artifact(tmp_path, tiny_clip):
    (tmp_path / "l.txt").write_text("ApplyEyeMakeup\narchery\n")
    templates = ["a video of {}.", "{}"]
    build.build_labels(
        tmp_path / "l.txt", tiny_clip, None, tmp_path / "out", templates=templates, device="cpu"
    )
    labels = artifact.open_labels(tmp_path / "out")
    rows = labels.table.drop(["embedding"]).to_pylist()
    assert rows == [
        {"class_id": 0, "label": "ApplyEyeMakeup", "name": "apply eye makeup"},
        {"class_id": 1, "label": "archery", "name": "archery"},
    ]
    assert labels.manifest["config"]["templates"] == templates
    mean = load_text_encoder(tiny_clip, device="cpu").encode(["a video of archery.", "archery"]).mean(axis=0)
    np.testing.assert_allclose(labels.embeddings[1], mean / np.linalg.norm(mean), atol=1e-6)
    with pytest.raises(CorpusError, match="needs a corpus folder, found artifact 'labels'"):
        artifact.open_corpus(tmp_path / "out")


@pytest.mark.shared
@pytest.mark.parametrize(
    ("labels", "descriptors"),
    [("hmdb_51_labels.csv", "ost_hmdb_spatio_4.json"), ("ucf_101_labels.csv", "ost_ucf_temporal_4.json")],
)
def test_every_phrase_of_a_real_descriptor_file_is_kept_or_dropped_with_its_reason(
    shared, labels, descriptors
):
    path = shared / "data/descriptors" / descriptors
    inputs = build.Inputs(
        labels=shared / "data/labels" / labels, expansions=(path,), nltk_data=shared / "nltk_data"
    )
    report = build.mine_corpus(inputs, CorpusConfig(taggers="nltk", body_parts=False))
    classes = {str(label.class_id): label.label for label in read_labels(inputs.labels).labels}
    given = {
        (classes[key], clean_name(text))
        for key, texts in json.loads(path.read_text()).items()
        for text in texts
    }
    expansions = [item for item in report.found if item.source == "expansion"]
    assert {(item.label, item.contexts[0]) for item in expansions} == given
    dropped = [item for item in report.found if not item.candidate.kept]
    assert sum(report.counts["dropped"].values()) == len(dropped)
    assert report.counts["kept"] + len(dropped) == report.counts["candidates"]


@pytest.mark.shared
def test_a_phrase_that_wordnet_does_not_know_is_embedded_with_its_description(
    inputs, config, tiny_clip, tmp_path
):
    told = {
        "Eye  Makeup": {"sentence": "paint worn on the lids", "looks": "dark lines", "explanations": ["x"]},
        "zumba": "a dance for fitness",
        "tooth": "no use, for it has a sense",
        "nothing of the kind": "unused",
    }
    (tmp_path / "d.json").write_text(json.dumps(told))
    given = replace(inputs, descriptions=tmp_path / "d.json")
    build.build_corpus(given, config, tiny_clip, None, tmp_path / "a", device="cpu")
    corpus = artifact.open_corpus(tmp_path / "a")
    rows = {row["name"]: row for row in corpus.table.to_pylist()}
    assert rows["eye makeup"]["text"] == "eye makeup: paint worn on the lids; dark lines"
    assert rows["eye makeup"]["gloss"] == "paint worn on the lids; dark lines"
    assert rows["eye makeup"]["sense"] is None and rows["eye makeup"]["kind"] == "phrase"
    assert rows["zumba"]["text"] == "zumba: a dance for fitness"
    assert rows["tooth"]["gloss"].startswith("hard bonelike structures")
    encoder = load_text_encoder(tiny_clip, device="cpu")
    np.testing.assert_array_equal(rows["zumba"]["embedding"], encoder.encode([rows["zumba"]["text"]])[0])
    counts = corpus.manifest["counts"]
    assert counts["entities_described"] == 2 and counts["descriptions_unused"] == 2
    assert corpus.manifest["inputs"]["descriptions"]["file"] == "d.json"
    with pytest.raises(CorpusError, match="holds no phrase without a gloss"):
        corpus_phrases(tmp_path / "a")


@pytest.mark.shared
def test_the_phrases_of_a_corpus_come_with_their_labels(corpus):
    found = corpus_phrases(corpus.folder)
    assert Phrase("eye makeup", ("ApplyEyeMakeup",)) in found and Phrase("zumba", ("zumba",)) in found
    glosses = dict(zip(*(corpus.table[name].to_pylist() for name in ("name", "gloss")), strict=True))
    assert [phrase.name for phrase in found] == sorted(name for name in glosses if glosses[name] is None)


def test_a_description_is_found_by_the_name_or_an_alias_and_never_displaces_a_sense():
    gathered = gather([find("a", "eye make-up"), find("b", "eye makeup"), find("c", "eye makeup")])
    assert [entity.name for entity in gathered.entities] == ["eye makeup"]
    told = with_descriptions(gathered, {"eye make-up": "paint"})
    assert told.entities[0].text() == "eye makeup: paint"
    told = with_descriptions(gathered, {"eye make-up": "paint", "eye makeup": "powder"})
    assert told.entities[0].text() == "eye makeup: powder"
    assert with_descriptions(gathered, {}) == gathered
