"""The drawn world: ground truth that matches the picture, motions that reverse, files that say what they are."""

import csv
import json
from pathlib import Path

import nltk
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nltk.corpus.reader.wordnet import WordNetCorpusReader

from pipelines.toyworld import sprites, videos
from pipelines.toyworld.lexicon import gloss_of, synsets, tagged_sentences, write_nltk_data
from pipelines.toyworld.pretrain import PIXELS, example, patch_cover
from pipelines.toyworld.render import OVERSAMPLE, render, sample_clip
from pipelines.toyworld.vocabulary import (
    ACTION_BY_LABEL,
    ACTIONS,
    BODY_PARTS,
    ENTITIES,
    ENTITY_ID,
    OBJECTS,
    SCENES,
    reversed_label,
)


def test_every_entity_can_be_drawn_and_described() -> None:
    assert set(sprites.DRAW) == set(OBJECTS)
    assert all(gloss_of(entity) for entity in ENTITIES)
    assert len(set(ENTITIES)) == len(OBJECTS) + len(SCENES) + len(BODY_PARTS)


def test_labels_are_unique_and_pairs_are_mutual() -> None:
    assert len(ACTION_BY_LABEL) == len(ACTIONS)
    for action in ACTIONS:
        other = reversed_label(action.label)
        assert other is None or reversed_label(other) == action.label
        assert other is None or ACTION_BY_LABEL[other].held_out == action.held_out
    assert sum(action.held_out for action in ACTIONS) == 14


@pytest.mark.parametrize(
    "label", ["picking up a box", "throwing a ball", "climbing up a ladder", "pushing a cart"]
)
def test_the_partner_is_the_same_film_backwards(label: str) -> None:
    forward, backward = ACTION_BY_LABEL[label], ACTION_BY_LABEL[str(reversed_label(label))]
    one = sample_clip(forward, np.random.default_rng(7))
    # The same clip with the partner's direction; bystanders stand still so that only the action reverses.
    still = tuple(type(thing)(thing.name, thing.seed, thing.place) for thing in one.bystanders)
    fields = {**vars(one), "bystanders": still}
    for time in (0.0, 0.3, 0.8):
        there = render(type(one)(**{**fields, "action": forward}), time, 64)
        back = render(type(one)(**{**fields, "action": backward}), 1 - time, 64)
        np.testing.assert_array_equal(there.rgb, back.rgb)
        np.testing.assert_array_equal(there.entity, back.entity)


@given(st.integers(0, 10_000), st.floats(0, 1))
@settings(max_examples=15, deadline=None)
def test_ground_truth_names_only_what_the_clip_holds(seed: int, time: float) -> None:
    random = np.random.default_rng(seed)
    clip = sample_clip(ACTIONS[seed % len(ACTIONS)], random)
    frame = render(clip, time, 64)
    assert frame.rgb.shape == (64, 64, 3) and frame.entity.shape == (64 * OVERSAMPLE,) * 2
    allowed = {clip.scene, clip.action.object, *BODY_PARTS, *(thing.name for thing in clip.bystanders)}
    assert {ENTITIES[int(i)] for i in np.unique(frame.entity)} <= allowed
    assert (frame.entity == ENTITY_ID[clip.scene]).any()


def test_the_picture_differs_exactly_where_the_truth_says_object() -> None:
    """Take the object away and only pixels near its own mask change."""
    clip = sample_clip(ACTION_BY_LABEL["flying a kite"], np.random.default_rng(1))
    bare = type(clip)(**{**vars(clip), "bystanders": ()})
    extra = clip.bystanders[0]
    shown = render(type(clip)(**{**vars(clip), "bystanders": (extra,)}), 0.5, 96)
    hidden = render(bare, 0.5, 96)
    mask = (shown.entity == ENTITY_ID[extra.name]) & (hidden.entity != ENTITY_ID[extra.name])
    changed = (shown.rgb != hidden.rgb).any(-1)
    covered = mask.reshape(96, OVERSAMPLE, 96, OVERSAMPLE).any((1, 3))
    assert changed[covered].mean() > 0.9
    grown = np.pad(covered, 2)
    near = np.any(
        [np.roll(grown, (dy, dx), (0, 1)) for dy in (-2, -1, 0, 1, 2) for dx in (-2, -1, 0, 1, 2)], 0
    )
    assert not changed[~near[2:-2, 2:-2]].any()


def test_examples_are_a_pure_function_of_their_number() -> None:
    one, same, other = example(3, 5), example(3, 5), example(3, 6)
    np.testing.assert_array_equal(one.pixels, same.pixels)
    assert one.caption == same.caption
    assert (one.pixels != other.pixels).any()


def test_patch_cover_counts_pixels() -> None:
    entity = np.full((2 * PIXELS, 2 * PIXELS), 3, np.uint8)
    entity[:16, :8] = 5  # half of the first patch (16 x 16 drawn pixels)
    cover = patch_cover(entity)
    assert cover[0, 5] == 0.5 and cover[0, 3] == 0.5
    np.testing.assert_allclose(cover.sum(1), 1)
    assert (cover[1:, 3] == 1).all()


def test_the_lexicon_reads_back_through_nltk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_nltk_data(tmp_path)
    monkeypatch.setattr(nltk.data, "path", [str(tmp_path)])  # NLTK reads nothing outside its path
    reader = WordNetCorpusReader(nltk.data.find("corpora/wordnet"), None)
    found = {(s.definition(), s.lexname(), tuple(s.lemma_names())) for s in reader.all_synsets("n")}
    assert found == {(s.gloss, s.lexname, s.lemmas) for s in synsets()}
    for synset in synsets():
        if synset.hypernym:
            own = next(s for s in reader.synsets(synset.lemmas[0]) if s.definition() == synset.gloss)
            assert [up.lemma_names()[0] for up in own.hypernyms()] == [synset.hypernym]
    assert [s.lexname() for s in reader.synsets("bat")] == ["noun.animal", "noun.artifact"]
    assert reader.morphy("feet", "n") == "foot" and reader.morphy("boxes", "n") == "box"


def test_the_tagger_knows_its_world(tmp_path: Path) -> None:
    from nltk.tag import PerceptronTagger

    write_nltk_data(tmp_path)
    tagger = PerceptronTagger(load=False)
    stem = tmp_path / "taggers" / "averaged_perceptron_tagger_eng" / "averaged_perceptron_tagger_eng"
    tagger.model.weights = json.loads(stem.with_name(f"{stem.name}.weights.json").read_text())
    tagger.tagdict = json.loads(stem.with_name(f"{stem.name}.tagdict.json").read_text())
    tagger.classes = tagger.model.classes = set(
        json.loads(stem.with_name(f"{stem.name}.classes.json").read_text())
    )
    words = [pair for sentence in tagged_sentences() for pair in sentence]
    tagged = [pair for sentence in tagged_sentences() for pair in tagger.tag([word for word, _ in sentence])]
    assert np.mean([a == b for a, b in zip(words, tagged, strict=True)]) > 0.99


def test_videos_and_their_lists(tmp_path: Path) -> None:
    per_class = {"train": 1, "zeroshot": 1}
    count = videos.write_videos(tmp_path, 0, per_class, processes=2)
    rows = list(csv.DictReader((tmp_path / "manifest.csv").open()))
    assert count == len(rows) == len(ACTIONS)
    seen = set((tmp_path / "labels.txt").read_text().splitlines())
    unseen = set((tmp_path / "unseen.txt").read_text().splitlines())
    assert not seen & unseen and len(seen | unseen) == len(ACTIONS)
    for row in rows:
        assert (row["label"] in unseen) == (row["split"] == "zeroshot")
        assert (tmp_path / row["path"]).stat().st_size > 1000


def test_another_seed_never_passes_for_this_one(tmp_path: Path) -> None:
    def first_video(seed: int, **options: bool) -> bytes:
        videos.write_videos(tmp_path, seed, {"zeroshot": 1}, processes=2, **options)
        return (tmp_path / list(csv.DictReader((tmp_path / "manifest.csv").open()))[0]["path"]).read_bytes()

    zero = first_video(0)
    assert first_video(1) != zero
    assert first_video(0) == zero


def test_a_video_file_shows_what_was_drawn(tmp_path: Path) -> None:
    import av

    frames = videos.frames_of(ACTION_BY_LABEL["riding a horse"], (1, 2), frames=5, pixels=96)
    videos.write_video(tmp_path / "v.mp4", frames)
    with av.open(str(tmp_path / "v.mp4")) as container:
        decoded = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    assert len(decoded) == 5
    error = np.mean([np.abs(a.astype(int) - b).mean() for a, b in zip(frames, decoded, strict=True)])
    assert error < 4  # of 255: compression, not another picture
