import json
import math

import numpy as np
import pytest
import torch

from adapter.alignments import open_alignments
from adapter.config import AdapterError, make_settings
from adapter.dataset import Sample, collate
from adapter.evaluate import open_all, score, softmax
from adapter.explain import entity_places, explain, explain_to_file
from adapter.train import train


@pytest.fixture(scope="module")
def explanations(trained, learnable, label_set):
    return explain(trained, learnable, label_set, attention=True, device="cpu")


def test_the_entity_that_makes_the_class_has_the_largest_effect(toy, explanations):
    right = [e for e in explanations if e.predicted == e.label]
    first = [e.entities[0].entity_id == toy.classes.index(e.label) for e in right]
    assert len(right) > 60 and np.mean(first) > 0.8


def test_places_are_those_of_the_entity_and_cover_every_region(learnable, explanations):
    opened = open_alignments(learnable)
    for explanation, video in zip(explanations, opened.read(v.video_id for v in opened.plan), strict=True):
        places = {e.entity_id: e.regions for e in explanation.entities}
        assert places == entity_places(video)
        assert sum(map(len, places.values())) == opened.frames * (opened.tokens - 1)
        for entity in explanation.entities:
            assert entity.frames == sorted({frame for frame, _ in entity.regions})
            assert entity.name == f"entity {entity.entity_id}"


def test_effect_is_the_difference_of_two_forward_passes(trained, learnable, label_set, explanations):
    opened = open_all(trained, learnable, label_set, "cpu")
    explanation = explanations[0]
    whole = score(opened, [Sample(explanation.video_id, -1)]).logits[0]
    best = opened.labels.labels.index(explanation.predicted)
    assert whole.argmax() == best and explanation.logit == pytest.approx(whole[best], abs=1e-3)
    (video,) = opened.alignments.read([explanation.video_id])
    for entity in explanation.entities:
        mask = video.mask.copy()
        mask[tuple(np.array(entity.regions).T)] = False
        object.__setattr__(video, "mask", mask)

        tables = (
            torch.from_numpy(x) for x in (opened.alignments.entities.embeddings, opened.labels.embeddings)
        )
        with torch.no_grad():
            without = opened.model(collate([(video, -1)]), *tables).logits[0].numpy()
        assert entity.effect == pytest.approx(whole[best] - without[best], abs=1e-3)
        five = [opened.labels.labels.index(label) for label in explanation.labels]
        assert entity.effects == pytest.approx((whole - without)[five], abs=1e-3)
        assert entity.without.label == opened.labels.labels[without.argmax()]
        shares = softmax(without[None])[0]
        assert entity.without.probability == pytest.approx(shares.max(), abs=1e-4)
        assert entity.without.kept == pytest.approx(shares[best], abs=1e-4)
        object.__setattr__(video, "mask", np.ones_like(mask))


def test_the_best_labels_come_first_with_an_effect_of_every_frame(
    trained, learnable, label_set, explanations
):
    opened = open_all(trained, learnable, label_set, "cpu")
    explanation = explanations[1]
    whole = score(opened, [Sample(explanation.video_id, -1)]).logits
    order = np.argsort(-whole[0])[: len(explanation.labels)]
    assert explanation.labels == [opened.labels.labels[place] for place in order]
    assert explanation.probabilities == pytest.approx(softmax(whole)[0, order], abs=1e-4)
    assert explanation.label_frame_effects[0] == explanation.frame_effects
    assert np.shape(explanation.label_frame_effects) == (len(explanation.labels), opened.alignments.frames)
    kept = [math.log(without.kept) for without in explanation.frames_without]
    assert len(kept) == opened.alignments.frames and max(kept) <= 0


def test_attention_sums_to_one(explanations):
    assert np.sum(explanations[3].attention) == pytest.approx(1, abs=1e-5)


def test_limits_are_counted_and_json_is_written(tmp_path, trained, learnable, label_set, explanations):
    few = explain(trained, learnable, label_set, max_videos=2, max_entities=3, device="cpu")
    assert len(few) == 2 and [len(e.entities) for e in few] == [3, 3]
    assert few[0].entities_left_out == len(explanations[0].entities) - 3
    explain_to_file(tmp_path / "e.json", few)
    assert json.loads((tmp_path / "e.json").read_text()) == [e.to_json() for e in few]
    with pytest.raises(AdapterError, match="must end in .json"):
        explain_to_file(tmp_path / "e.csv", few)


def test_what_cannot_be_explained_is_said(tmp_path, trained, learnable, label_set):
    with pytest.raises(AdapterError, match="cannot explain 'nowhere.mp4': not in the plan"):
        explain(trained, learnable, label_set, ["nowhere.mp4"], device="cpu")
    train(learnable, label_set, tmp_path / "z", make_settings({"model": "mean_pool", "device": "cpu"}))
    with pytest.raises(AdapterError, match="--attention needs a run with model=alt"):
        explain(tmp_path / "z", learnable, label_set, max_videos=1, attention=True, device="cpu")
