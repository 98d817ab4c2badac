"""Search beside the other stages: the aligner's frames, and pictures of the drawn world by its trained CLIP."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import corpus_builder as cb
from aligner.decode import sample_frames
from corpus_builder.pictures import read_frame
from pipelines.toyworld.lexicon import write_nltk_data
from pipelines.toyworld.render import render, sample_clip
from pipelines.toyworld.vocabulary import ACTIONS, OBJECTS, with_article

TINYCLIP = f"local-dir:{Path(__file__).resolve().parents[2] / 'pipelines/toyworld/tinyclip'}"


@pytest.mark.shared
@pytest.mark.parametrize(
    "name", ["arm_wrestling.mp4", "apply_eye_makeup.avi", "city_bikes.mp4", "rotated_90.mov"]
)
def test_both_stages_see_the_same_frame(shared: Path, name: str) -> None:
    path = shared / "videos" / name
    frames = sample_frames(path, 3)
    start = first_time(path)
    for frame in frames:
        assert np.array_equal(np.asarray(read_frame(path, frame.time_s - start)), frame.rgb)


def first_time(path: Path) -> float:
    import av

    with av.open(str(path)) as container:
        frame = next(container.decode(video=0))
        return float((frame.pts or 0) * frame.time_base)


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> cb.Corpus:
    """The objects of the drawn world as its trained CLIP knows them."""
    folder = tmp_path_factory.mktemp("drawn")
    labels = [with_article(name) for name in OBJECTS]
    options = {"taggers": "wordnet", "body_parts": False, "nltk_data": write_nltk_data(folder / "nltk")}
    return cb.create(folder / "corpus", labels=labels, model=TINYCLIP, device="cpu", **options)


def test_a_trained_model_finds_the_object_of_a_drawn_action(drawn: cb.Corpus, tmp_path: Path) -> None:
    """Five of 32 objects by chance would hold the right one in 16 % of the pictures; a few bystanders are drawn too."""
    random = np.random.default_rng(0)
    paths = [tmp_path / f"{number}.png" for number in range(len(ACTIONS))]
    for path, action in zip(paths, ACTIONS, strict=True):
        Image.fromarray(render(sample_clip(action, random), 0.5, 64).rgb).save(path)
    told = [[hit.name for hit in photo.hits] for photo in drawn.tag(paths, 5)]
    found = [action.object in names for action, names in zip(ACTIONS, told, strict=True)]
    assert len(drawn) == len(OBJECTS) and np.mean(found) >= 0.9


def test_a_trained_model_finds_objects_by_text(drawn: cb.Corpus) -> None:
    for name in ("horse", "guitar", "umbrella"):
        assert drawn.search(f"a photo of {with_article(name)}", 1)[0].name == name
