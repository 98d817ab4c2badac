from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from adapter.alignments import Video
from adapter.config import AdapterError, ModelConfig
from adapter.dataset import collate
from adapter.deletion import attributions, compare, deletion_test, parts_of
from adapter.evaluate import open_all, softmax
from adapter.explain import Prober, explain_video
from adapter.layers import masked_mean
from adapter.model import Encoded, LabelWhitening, Shape, VideoAdapter, build_model

FRAME, REGION, ENTITY, CLASS = 2, 3, 17, 4


class MeanOfRegions(nn.Module):
    """z is the mean of the regions, so that with all of them zero but one, that one decides."""

    def forward(self, batch, entities, labels):
        regions, mask = batch.embeddings[:, :, 1:].flatten(1, 2), batch.mask[:, :, 1:].flatten(1)
        return Encoded(masked_mean(regions, mask), regions.new_ones(()))


@pytest.fixture(scope="module")
def opened(trained, learnable, label_set):
    return open_all(trained, learnable, label_set, "cpu")


@pytest.fixture(scope="module")
def constructed(opened):
    """The deciding model and a video whose region 3 of frame 2 is class 4's label and the only entity 17."""
    model = VideoAdapter(MeanOfRegions(), LabelWhitening(opened.alignments.dim), 100.0, False, False).eval()
    (video,) = opened.alignments.read([opened.alignments.plan[0].video_id])
    arrays = {name: np.array(value) for name, value in vars(video).items() if name != "video_id"}
    arrays["embeddings"][:] = 0
    arrays["embeddings"][FRAME, REGION] = opened.labels.embeddings[CLASS]
    frames, tokens = video.mask.shape
    arrays["topk_entity"][:] = (np.arange(frames * tokens) % 5).reshape(frames, tokens, 1)
    arrays["topk_entity"][FRAME, REGION] = ENTITY
    return replace(opened, model=model), Video("constructed", **arrays)


def test_the_part_that_decides_is_found(constructed):
    opened, video = constructed
    found = explain_video(opened, video, None, regions=True)
    assert found.predicted == opened.labels.labels[CLASS]
    assert found.entities[0].entity_id == ENTITY and found.entities[0].regions == [[FRAME, REGION]]
    # Without it z is zero and every logit is; without any other part nothing changes.
    assert found.entities[0].effect == pytest.approx(found.logit)
    assert max(abs(entity.effect) for entity in found.entities[1:]) < 1e-4
    for effects, place in ((found.frame_effects, FRAME), (found.region_effects[FRAME], REGION)):
        assert effects[place] == pytest.approx(found.logit)
        assert max(abs(e) for i, e in enumerate(effects) if i != place and e is not None) < 1e-4
    assert [row[0] for row in found.region_effects] == [None] * len(video.mask)


def test_deleting_it_leaves_chance_and_deleting_others_leaves_the_prediction(constructed):
    opened, video = constructed
    test = compare(opened, [video], sizes=(1, 2))
    chance = 1 / len(opened.labels.labels)
    assert {(row.parts, row.k) for row in test.rows} == {
        (parts, k) for parts in ("entities", "regions", "frames") for k in (1, 2)
    }
    for row in test.rows:
        assert row.attribution == "leave-one-out" and row.n == 1
        assert row.top == pytest.approx(chance, abs=1e-5)
        # A random draw meets it now and then, and then leaves chance, too.
        hits = (row.whole - row.random) / (row.whole - chance) * test.draws
        assert hits == pytest.approx(round(hits), abs=1e-3) and round(hits) <= test.draws
        assert row.gain == pytest.approx(row.random - row.top) and row.interval == [row.gain] * 2
    assert np.mean([row.random for row in test.rows]) > 0.6
    assert {row.parts for row in test.rows if row.same_size is not None} == {"entities"}


def test_an_attribution_of_the_wrong_parts_is_seen_through(constructed, monkeypatch):
    """The same test on the negated attribution: what it ranks first does not matter."""
    opened, video = constructed
    import adapter.deletion as deletion

    def wrong(*arguments):
        return {name: -values for name, values in attributions(*arguments).items()}

    monkeypatch.setattr(deletion, "attributions", wrong)
    for row in compare(opened, [video], sizes=(1,)).rows:
        assert row.top == pytest.approx(row.whole) and row.gain <= 0


def test_attributions_of_a_trained_model_beat_random_deletions(trained, learnable, label_set):
    test = deletion_test(trained, learnable, label_set, split="test", max_videos=12, device="cpu", sizes=(1,))
    rows = {(row.parts, row.attribution): row for row in test.rows}
    assert test.videos == 12
    # All regions are keys here, so that attention is known for every kind of part.
    assert len(rows) == 6
    entities = rows["entities", "leave-one-out"]
    assert entities.gain > 0.1 and entities.interval[0] > 0 and entities.top < entities.same_size
    for row in test.rows:
        assert (
            row.gain == pytest.approx(row.random - row.top) and row.interval[0] <= row.gain <= row.interval[1]
        )


def test_attention_of_a_part_is_that_on_its_tokens(opened):
    (video,) = opened.alignments.read([opened.alignments.plan[3].video_id])
    whole, prober = collate([(video, -1)]), Prober.of(opened)
    looked = prober.attention(whole)
    for kind, parts in parts_of(video).items():
        given = attributions(prober, whole, parts, 0, 0.0)["attention"]
        assert given == pytest.approx([sum(looked[f, r] for f, r in places) for places in parts], abs=1e-6)
        if kind == "frames":
            assert given.sum() == pytest.approx(1, abs=1e-5)


def test_attention_without_region_keys_ranks_frames_alone(opened):
    shape = Shape(opened.alignments.dim, opened.alignments.frames)
    (video,) = opened.alignments.read([opened.alignments.plan[0].video_id])
    whole = collate([(video, -1)])
    for form, kinds in (
        ({"context": "pooled"}, {"frames"}),
        ({"components": "sa"}, set()),
        ({"model": "adapt_then_align"}, set()),
    ):
        torch.manual_seed(0)
        prober = Prober.of(replace(opened, model=build_model(ModelConfig(blocks=1, **form), shape).eval()))
        parts = parts_of(video)
        found = {kind for kind in parts if "attention" in attributions(prober, whole, parts[kind], 0, 0.0)}
        assert found == kinds


def test_leave_one_out_is_the_fall_of_the_logit(opened):
    (video,) = opened.alignments.read([opened.alignments.plan[0].video_id])
    prober, whole = Prober.of(opened), collate([(video, -1)])
    parts = parts_of(video)["frames"]
    logits = prober.logits(whole, [[], *parts])
    given = attributions(prober, whole, parts, 1, float(logits[0, 1]))["leave-one-out"]
    assert given == pytest.approx(logits[0, 1] - logits[1:, 1], abs=1e-4)
    assert softmax(logits).sum(1) == pytest.approx(np.ones(len(logits)))


def test_a_video_with_one_part_of_each_kind_has_nothing_to_choose(constructed):
    opened, video = constructed
    mask = np.zeros_like(video.mask[:1])
    mask[0, :2] = True
    one = {
        name: np.array(value)[:1] for name, value in vars(video).items() if name not in ("video_id", "mask")
    }
    with pytest.raises(AdapterError, match="no video has more than 1 entities, regions or frames"):
        compare(opened, [Video("one", mask=mask, **one)])
