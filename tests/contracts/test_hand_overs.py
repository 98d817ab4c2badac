"""Real writers into real readers: corpus to aligner, alignments and labels to adapter."""

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from adapter.alignments import Alignments, Video, open_alignments
from adapter.config import AdapterError
from adapter.labels import open_labels
from aligner import artifact as alignments_artifact
from aligner.config import AlignConfig, AlignerError
from aligner.corpus import load_corpus
from aligner.decode import sample_views
from aligner.encoder import load_clip
from aligner.run import prepare, run
from aligner.views import Sampling
from corpus_builder.artifact import open_corpus
from corpus_builder.build import Inputs, build_corpus, build_labels
from corpus_builder.config import CorpusConfig
from corpus_builder.embed import load_text_encoder
from pipelines.facts import notices
from pipelines.gather import collect
from pipelines.toyworld.lexicon import write_nltk_data
from pipelines.toyworld.videos import frames_of, write_video
from pipelines.toyworld.vocabulary import ACTION_BY_LABEL

LABELS = ("riding a bicycle", "playing a drum")


@pytest.fixture(scope="module")
def label_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("labels") / "labels.txt"
    file.write_text("\n".join(LABELS) + "\n")
    return file


def make_corpus(folder: Path, label_file: Path, model: str) -> Path:
    nltk_data = write_nltk_data(folder / "nltk_data")
    inputs = Inputs(labels=label_file, nltk_data=nltk_data)
    build_corpus(inputs, CorpusConfig(taggers="nltk"), model, None, folder / "corpus", device="cpu")
    return folder / "corpus"


@pytest.fixture(scope="module")
def corpus(label_file: Path, tiny_clip: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_corpus(tmp_path_factory.mktemp("corpus"), label_file, tiny_clip)


@pytest.fixture(scope="module")
def alignments(corpus: Path, tiny_clip: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("videos")
    for number, label in enumerate(LABELS):
        frames = frames_of(ACTION_BY_LABEL[label], (0, number), frames=6, pixels=48)
        write_video(root / label / "0.mp4", frames)
    (root / LABELS[0] / "broken.mp4").write_text("this is no video")
    out = root.parent / "alignments"
    report = run(
        AlignConfig(
            videos=root,
            corpus=corpus,
            model=tiny_clip,
            frames=4,
            merge=3,
            top_k=3,
            out=out,
            videos_per_shard=2,
            device="cpu",
        )
    )
    assert (report.ok, report.failed) == (2, 1)
    return out


def test_both_loaders_give_one_model_one_identity(tiny_clip: str) -> None:
    """The aligner compares the hash that corpus_builder wrote: two implementations, one value."""
    assert load_clip(tiny_clip)[1] == load_text_encoder(tiny_clip, None, "cpu").info


def test_random_weights_are_the_same_in_both_stages() -> None:
    seen = load_clip("ViT-S-32", "none")[1] if "ViT-S-32" in _models() else load_clip("ViT-B-32", "none")[1]
    assert seen == load_text_encoder(seen["name"], "none", "cpu").info
    assert seen["random_weights"] is True


def _models() -> list[str]:
    import open_clip

    return open_clip.list_models()


def test_aligner_reads_what_corpus_builder_wrote(corpus: Path) -> None:
    written, read = open_corpus(corpus), load_corpus(corpus)
    assert list(read.names) == written.table.column("name").to_pylist()
    assert np.allclose(np.linalg.norm(read.embeddings, axis=1), 1, atol=1e-5)
    assert read.fingerprint == written.manifest["fingerprint"]


def test_aligner_refuses_a_corpus_of_another_model(
    corpus: Path, other_clip: str, alignments: Path, tmp_path: Path
) -> None:
    with pytest.raises(AlignerError, match="corpus-builder build"):
        run(AlignConfig(videos=alignments.parent, corpus=corpus, model=other_clip, out=tmp_path / "out"))


def test_adapter_reads_a_plan_that_grew_and_refuses_one_not_yet_filled(
    corpus: Path, tiny_clip: str, tmp_path: Path
) -> None:
    root, out = tmp_path / "videos", tmp_path / "out"
    config = AlignConfig(
        videos=root, corpus=corpus, model=tiny_clip, frames=2, merge=3, top_k=3, out=out, device="cpu"
    )
    seen = []
    for number, name in enumerate(("m", "a", "z")):
        write_video(root / f"{name}.mp4", frames_of(ACTION_BY_LABEL[LABELS[0]], (0, number), 6, 48))
        if number:
            prepare(config)
            with pytest.raises(AdapterError, match=f"1 of {number + 1} shards are not done"):
                open_alignments(out)
        run(config)
        seen.append(open_alignments(out))
    assert [sorted(opened.index) for opened in seen] == [
        ["m.mp4"],
        ["a.mp4", "m.mp4"],
        ["a.mp4", "m.mp4", "z.mp4"],
    ]
    assert len({opened.fingerprint for opened in seen}) == 3
    marker = out / alignments_artifact.marker_name(0)
    marker.write_text((out / alignments_artifact.marker_name(1)).read_text())
    with pytest.raises(AdapterError, match="other settings or videos than its manifest"):
        open_alignments(out)


def test_adapter_reads_what_the_aligner_wrote(alignments: Path) -> None:
    """Row by row: the tensors of a video are the rows of its shard."""
    opened = open_alignments(alignments)
    names = sorted(f"{label}/0.mp4" for label in LABELS)
    assert sorted(opened.index) == names and list(opened.failed) == [f"{LABELS[0]}/broken.mp4"]
    shards = sorted(alignments.glob("shard-*.parquet"))
    rows = [row for shard in shards for row in pq.read_table(shard).to_pylist()]
    for video in opened.read(names):
        mine = [row for row in rows if row["video_id"] == video.video_id]
        embeddings = np.stack([np.frombuffer(row["embedding"], np.float16) for row in mine])
        shape = video.topk_entity.shape
        assert len(mine) == shape[0] * shape[1]
        np.testing.assert_array_equal(
            video.topk_entity.reshape(-1, shape[2]), [row["topk_entity"] for row in mine]
        )
        np.testing.assert_allclose(
            np.asarray(video.embeddings, np.float32).reshape(len(mine), -1),
            embeddings.astype(np.float32),
            atol=1e-3,
        )


def test_views_are_the_same_rows_for_aligner_adapter_and_report(
    alignments: Path, corpus: Path, tiny_clip: str, tmp_path: Path
) -> None:
    root, out = alignments.parent / "videos-in-views", tmp_path / "out"
    write_video(root / "a.mp4", frames_of(ACTION_BY_LABEL[LABELS[0]], (0, 1), frames=9, pixels=48))
    how = {"sampling": "tsn", "draws": 2, "crops": 3, "frames": 4, "merge": 3, "top_k": 3, "device": "cpu"}
    assert run(AlignConfig(videos=root, corpus=corpus, model=tiny_clip, out=out, **how)).ok == 1
    opened = open_alignments(out)
    rows = pq.read_table(out / alignments_artifact.shard_name(0))
    assert opened.views == 6 == len(set(rows["view"].to_pylist()))
    times = []
    for view in range(6):
        (video,) = opened.read(["a.mp4"], view)
        mine = rows.filter(pc.equal(rows["view"], view))
        vectors = alignments_artifact.vectors(mine)
        np.testing.assert_array_equal(video.embeddings.reshape(vectors.shape), vectors)
        times.append(video.times.tolist())
    # Three crops of a draw show the same moments; what the report draws are those of the first.
    assert times[0] == times[1] == times[2] != times[3] == times[4] == times[5]
    manifest = alignments_artifact.read_manifest(out)
    drawn = sample_views(root / "a.mp4", Sampling.of(manifest["config"]), "a.mp4")
    assert [[frame.time_s for frame in view] for view in drawn] == [times[0], times[3]]
    predictions = {"video_id": ["a.mp4"], "label": ["x"], "predicted": ["x"], "correct": [True]}
    predictions |= {"topk_label": [["x"]], "topk_prob": [[1.0]]}
    pq.write_table(pa.table(predictions), tmp_path / "predictions.parquet")
    (card,) = collect(out, tmp_path / "predictions.parquet", root)
    assert list(card.times_s) == times[0] and len(card.frames) == 4 and not card.note
    (first,) = opened.read(["a.mp4"])
    np.testing.assert_array_equal(card.topk_entity, first.topk_entity)
    assert "first of 6 views" in notices(manifest)[0]


def test_adapter_reads_every_store_that_the_aligner_writes(
    alignments: Path, corpus: Path, tiny_clip: str, tmp_path: Path
) -> None:
    (broken,) = alignments.parent.glob(f"videos[0-9]/{LABELS[0]}/broken.mp4")
    options = {"frames": 4, "merge": 3, "top_k": 3, "videos_per_shard": 2, "device": "cpu"}
    whole = {video.video_id: video for video in _read_all(open_alignments(alignments))}
    for store in ("int8", "topk"):
        out = tmp_path / store
        run(AlignConfig(broken.parents[1], corpus, tiny_clip, out=out, store=store, **options))
        opened = open_alignments(out)
        for video in _read_all(opened):
            exact = whole[video.video_id].embeddings.astype(np.float32)[:, : opened.held]
            step = np.abs(exact).max(-1, keepdims=True) / 127 if store == "int8" else 0
            assert (np.abs(video.embeddings - exact) <= step / 2 + 2.0**-11 * np.abs(exact)).all()
            np.testing.assert_array_equal(video.topk_score, whole[video.video_id].topk_score)
        assert alignments_artifact.store_of(opened.manifest) == opened.store == store
        # What is stored for every row can be mapped from the aligner's files.
        assert {group.offset is None for group in opened._groups.values()} == {store == "topk"}


def _read_all(opened: Alignments) -> list[Video]:
    return list(opened.read(sorted(opened.index)))


def test_stored_scores_are_the_cosines_of_stored_vectors(alignments: Path, corpus: Path) -> None:
    entities = load_corpus(corpus).embeddings
    for shard in sorted(alignments.glob("shard-*.parquet")):
        for row in pq.read_table(shard).to_pylist():
            vector = np.frombuffer(row["embedding"], np.float16).astype(np.float32)
            best = entities[row["topk_entity"]] @ vector
            np.testing.assert_allclose(best, row["topk_score"], atol=2e-3)


def test_adapter_refuses_labels_of_another_model(
    alignments: Path, label_file: Path, other_clip: str, tmp_path: Path
) -> None:
    build_labels(label_file, other_clip, None, tmp_path / "labels", device="cpu")
    with pytest.raises(AdapterError, match="corpus-builder labels"):
        open_labels(tmp_path / "labels", open_alignments(alignments).model)


def test_adapter_accepts_labels_of_the_same_model(
    alignments: Path, label_file: Path, tiny_clip: str, tmp_path: Path
) -> None:
    build_labels(label_file, tiny_clip, None, tmp_path / "labels", device="cpu")
    labels = open_labels(tmp_path / "labels", open_alignments(alignments).model)
    assert labels.labels == LABELS
    assert [labels.match(label) for label in LABELS] == [0, 1]


def test_adapter_refuses_an_unfinished_folder(alignments: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(alignments, copy)
    (copy / alignments_artifact.marker_name(1)).unlink()
    with pytest.raises(AdapterError, match="aligner run"):
        open_alignments(copy)


def test_manifests_name_no_folder_of_this_machine(corpus: Path, alignments: Path, tmp_path: Path) -> None:
    for folder in (corpus, alignments):
        text = (folder / "manifest.json").read_text()
        assert str(folder.parent) not in text
        assert json.loads(text)["model"]["name"] == "local-dir:tinyrandom"
