import json
import subprocess
import sys

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

import corpus_builder as cb
from corpus_builder import artifact
from corpus_builder.cli import app
from corpus_builder.config import CorpusError
from corpus_builder.embed import load_text_encoder
from corpus_builder.search import Query

COLOURS = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255), "grey": (128, 128, 128)}


def run(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Plain pictures, by the name of their colour, wider than they are high."""
    folder = tmp_path_factory.mktemp("photos")
    for name, colour in COLOURS.items():
        Image.new("RGB", (80, 60), colour).save(folder / f"{name}.png")
    return folder


@pytest.fixture(scope="module")
def colours(tiny_clip, photos, plain_corpus, tmp_path_factory):
    """A corpus whose vectors are those of the pictures, by open_clip alone: what image search has to find."""
    model, _, preprocess = open_clip.create_model_and_transforms(tiny_clip, precision="fp32")
    pixels = torch.stack([preprocess(Image.open(photos / f"{name}.png")) for name in COLOURS])
    with torch.inference_mode():
        vectors = torch.nn.functional.normalize(model.eval().encode_image(pixels), dim=-1).numpy()
    info = load_text_encoder(tiny_clip, device="cpu").info
    location = {"model": tiny_clip}
    return plain_corpus(tmp_path_factory.mktemp("c") / "corpus", list(COLOURS), vectors, info, location)


def test_a_picture_finds_the_entity_that_has_its_vector(colours, photos):
    corpus = cb.open(colours, device="cpu")
    for name in COLOURS:
        hits = corpus.search_image(photos / f"{name}.png", 2)
        assert hits[0].name == name and hits[0].cosine == pytest.approx(1, abs=1e-5) and len(hits) == 2


def test_a_frame_finds_what_the_same_picture_finds(colours, photos, tmp_path):
    import av

    with av.open(str(tmp_path / "v.mkv"), "w") as container:
        stream = container.add_stream("ffv1", rate=1)
        stream.width, stream.height, stream.pix_fmt = 80, 60, "bgr0"
        for number, name in enumerate(COLOURS):
            frame = av.VideoFrame.from_image(Image.open(photos / f"{name}.png"))
            frame.pts = number
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    corpus = cb.open(colours, device="cpu")
    for number, name in enumerate(COLOURS):
        assert corpus.search_frame(tmp_path / "v.mkv", number + 0.5, 1)[0].name == name
        done = run("search", colours, "--video", tmp_path / "v.mkv", "--at", number + 0.5, "--k", 1, "--json")
        assert json.loads(done.stdout)[0]["name"] == name, done.output
    assert corpus.search_frame(tmp_path / "v.mkv", 0.5, 4) == corpus.search_image(photos / "red.png", 4)


def test_the_command_takes_exactly_one_query(colours, photos):
    done = run("search", colours, "--image", photos / "blue.png", "--k", 1)
    assert done.exit_code == 0 and done.stdout.split()[1] == "blue"
    for arguments, message in (
        ([], "got none of them"),
        (["horse", "--image", photos / "red.png"], "got TEXT and --image"),
        (["--image", "a", "--video", "b", "--at", "1"], "got --image and --video"),
        (["--video", "b"], "--at SECONDS is missing"),
        (["horse", "--at", "1"], "--video FILE is missing"),
        ([" "], "TEXT is empty"),
        (["--image", photos / "none.png"], "no such file"),
        (["--video", photos / "red.png", "--at", "99"], "shows its last frame until"),
    ):
        done = run("search", colours, *arguments)
        assert done.exit_code == 1 and message in done.stderr and len(done.stderr.splitlines()) == 1, (
            done.stderr
        )


def test_another_model_is_refused_for_pictures_too(colours, photos, other_clip):
    with pytest.raises(CorpusError, match="needs the corpus's model"):
        cb.open(colours, model=other_clip, device="cpu").search_image(photos / "red.png")


def test_random_weights_are_told(tiny_builtin, embedded_corpus, tmp_path):
    folder = embedded_corpus(tmp_path / "c", ["horse", "guitar"], tiny_builtin, "none")
    done = run("search", folder, "horse", "--k", 1)
    assert done.exit_code == 0 and "horse" in done.stdout and "random weights" in done.stderr
    assert "random weights" in repr(cb.open(folder))


def test_tags_are_what_each_photo_finds_and_bad_files_are_rows(colours, photos, tmp_path):
    (tmp_path / "bad.jpg").write_text("no picture")
    corpus = cb.open(colours, device="cpu")
    paths = [
        photos / "red.png",
        tmp_path / "bad.jpg",
        photos / "blue.png",
        photos / "red.png",
        tmp_path / "no.png",
    ]
    told = list(corpus.tag(paths, 3))
    assert [row.path for row in told] == paths
    for row in told[:1] + told[2:4]:
        expected = corpus.search_image(row.path, 3)
        assert row.error is None and [hit.name for hit in row.hits] == [hit.name for hit in expected]
    assert [row.hits for row in (told[1], told[4])] == [(), ()]
    assert "not an image" in told[1].error and "no such file" in told[4].error
    assert list(corpus.tag([])) == [] and list(corpus.tag([tmp_path / "no.png"]))[0].error


def test_tags_do_not_depend_on_the_batch(colours, photos, monkeypatch):
    from corpus_builder import api

    paths = [photos / f"{name}.png" for name in COLOURS] * 3
    whole = list(cb.open(colours, device="cpu").tag(paths, 2))
    monkeypatch.setattr(api, "PHOTOS", 5)
    parts = list(cb.open(colours, device="cpu").tag(paths, 2))
    assert [[hit.name for hit in row.hits] for row in whole] == [
        [hit.name for hit in row.hits] for row in parts
    ]
    for one, two in zip(whole, parts, strict=True):
        assert [hit.cosine for hit in one.hits] == pytest.approx([hit.cosine for hit in two.hits], abs=1e-5)


def test_entities_are_a_table_and_embeddings_a_matrix(colours):
    corpus = cb.open(colours)
    assert list(corpus.entities["name"]) == list(COLOURS) and len(corpus) == 4
    assert (
        "embedding" not in corpus.entities
        and corpus.entities.index.tolist() == corpus.entities["entity_id"].tolist()
    )
    assert np.array_equal(corpus.embeddings, artifact.open_corpus(colours).embeddings)


def test_own_vectors_of_another_width_are_refused(colours):
    with pytest.raises(CorpusError, match="vectors are 3 wide, expected 32"):
        cb.open(colours).nearest(np.eye(3, dtype=np.float32))
    with pytest.raises(CorpusError, match="--k is 0"):
        cb.open(colours).nearest(cb.open(colours).embeddings, 0)


def test_subset_merge_and_export_are_those_of_the_commands(colours, tmp_path):
    corpus = cb.open(colours, device="cpu")
    (tmp_path / "l.txt").write_text("red\nblue\n")
    some = corpus.subset(tmp_path / "s", entities=tmp_path / "l.txt", kinds=["phrase"])
    assert list(some.entities["name"]) == ["red", "blue"]
    assert some.search("red", 1)[0].name in ("red", "blue")
    both = some.merge(corpus, out=tmp_path / "m")
    assert sorted(both.entities["name"]) == sorted(COLOURS) and both.entities["count"].sum() == 6
    both.export(tmp_path / "e.jsonl")
    assert len((tmp_path / "e.jsonl").read_text().splitlines()) == 4
    with pytest.raises(CorpusError, match="no option 'kind' .did you mean 'kinds'"):
        corpus.subset(tmp_path / "x", kind=["phrase"])


@pytest.mark.shared
def test_create_is_the_build_command(shared, tiny_clip, tmp_path):
    options = {"taggers": "wordnet", "body_parts": False, "nltk_data": str(shared / "nltk_data")}
    labels = ["playing guitar", "feeding horse", "größte übung"]
    corpus = cb.create(tmp_path / "a", labels=labels, model=tiny_clip, device="cpu", **options)
    assert {"guitar.n.01", "horse.n.01"} <= set(corpus.entities["key"])
    assert corpus.search("horse", 1)
    (tmp_path / "labels.json").write_text(json.dumps(labels, ensure_ascii=False), encoding="utf-8")
    done = run(
        "build", "--labels", tmp_path / "labels.json", "--model", tiny_clip, "--taggers", "wordnet", "--device", "cpu",
        "--no-body-parts", "--nltk-data", shared / "nltk_data", "--out", tmp_path / "b", "--quiet",
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    assert artifact.open_corpus(tmp_path / "b").fingerprint == corpus.manifest["fingerprint"]
    with pytest.raises(CorpusError, match="no option 'tagger' .did you mean 'taggers'"):
        cb.create(tmp_path / "c", labels=labels, model=tiny_clip, tagger="wordnet")
    with pytest.raises(CorpusError, match="nothing to mine"):
        cb.create(tmp_path / "c", model=tiny_clip)


def test_the_package_is_light_and_its_verbs_come_when_asked_for():
    program = (
        "import sys\nimport corpus_builder as cb\n"
        "heavy = {'torch', 'pandas', 'numpy', 'pyarrow', 'PIL', 'av', 'faiss'}\n"
        "assert not heavy & set(sys.modules)\n"
        "assert callable(cb.open) and callable(cb.create)\n"
        "from corpus_builder import build\nassert build.build_corpus\n"
        "assert 'av' not in sys.modules and 'open_clip' not in sys.modules\n"
        "try:\n    cb.opne\nexcept AttributeError as error:\n    assert 'opne' in str(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_query_is_read_before_a_model_is_loaded(colours, tmp_path):
    """A missing picture is told at once, even where the model is not there."""
    corpus = cb.open(colours, model="local-dir:/nowhere")
    with pytest.raises(CorpusError, match="no such file"):
        corpus.find(Query(image=tmp_path / "no.png"))
