"""readout=labels: every class reads the tracks whose entities its text names."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from adapter.augment import mixup
from adapter.config import VARIANTS, AdapterError, ModelConfig, make_settings
from adapter.dataset import Batch
from adapter.evaluate import evaluate, open_all, represent
from adapter.losses import classification_loss
from adapter.model import Shape, build_model, fit_labels
from adapter.readout import LabelReadout
from adapter.train import train

DIM, FRAMES, REGIONS = 24, 4, 3


def unit(seed, *shape):
    return F.normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed)), dim=-1)


def paths(entity, centre, scores=None):
    """Videos of regions (videos, regions) that keep their entity while their centres (..., frames, regions, 2) move."""
    videos = len(entity)
    ids = torch.cat([torch.zeros(videos, FRAMES, 1), entity[:, None].expand(-1, FRAMES, -1)], 2)
    score = torch.ones_like(ids) if scores is None else scores
    geometry = torch.full((videos, FRAMES, REGIONS + 1, 3), 0.1)
    geometry[:, :, 1:, :2] = centre
    return Batch(
        unit(0, videos, FRAMES, REGIONS + 1, DIM),
        torch.ones(ids.shape),
        ids.long().unsqueeze(-1),
        score.unsqueeze(-1),
        geometry,
        torch.arange(FRAMES).expand(videos, -1).float(),
        torch.ones(ids.shape, dtype=torch.bool),
        torch.zeros(videos, dtype=torch.int64),
    )


def readout(match_scale=30.0, null_score=0.5, width=6):
    torch.manual_seed(0)
    return LabelReadout(DIM, width, match_scale, null_score)


def all_of(entities):
    return torch.ones(entities.shape[:2], dtype=torch.bool)


def test_weights_by_hand():
    corpus, labels = unit(1, 9, DIM), unit(2, 5, DIM)
    asked, tokens = corpus[torch.tensor([[0, 3], [7, 2]])], unit(4, 2, 2, 6)
    layer = readout(match_scale=4.0, null_score=0.25)
    layer.fit(labels)
    weights = layer.weights(asked, all_of(asked), corpus, labels)
    c = labels[3] - labels.mean(0)
    cosines = [F.cosine_similarity(c, corpus[i] - corpus.mean(0), dim=0) for i in (7, 2)]
    expected = torch.softmax(4 * torch.stack([*cosines, torch.tensor(0.25)]), 0)
    torch.testing.assert_close(weights[1, 3], expected)
    read = layer(tokens, asked, all_of(asked), corpus, labels)
    by_hand = (expected[:2, None] * tokens[1]).sum(0) + expected[2] * layer.null
    torch.testing.assert_close(read[1, 3], by_hand)


def test_padding_is_never_read():
    corpus, labels = unit(1, 9, DIM), unit(2, 5, DIM)
    mask = torch.tensor([[True, False]])
    weights = readout().weights(corpus[torch.tensor([[0, 3]])], mask, corpus, labels)
    assert (weights[:, :, 1] == 0).all()
    torch.testing.assert_close(weights.sum(-1), torch.ones(1, 5))


def test_a_class_reads_what_its_text_names_and_the_null_where_that_is_absent():
    corpus = torch.eye(DIM)[:9]
    # Classes name entities 0 to 4, each with a direction of its own beside, as a verb is.
    labels = F.normalize(corpus[:5] + 0.5 * torch.eye(DIM)[10:15], dim=-1)
    asked = corpus[torch.tensor([[3, 1], [7, 8]])]
    layer = readout()
    layer.fit(labels)
    weights = layer.weights(asked, all_of(asked), corpus, labels)
    assert weights[0, 3, 0] > 0.99 and weights[0, 1, 1] > 0.99
    assert (weights[0, [0, 2, 4], -1] > 0.99).all() and (weights[1, :, -1] > 0.99).all()


def test_the_rest_of_a_text_is_what_it_says_beyond_its_entity():
    corpus, verbs = torch.eye(DIM)[:9], torch.eye(DIM)[10:12]
    labels = F.normalize(corpus[:6] + 0.5 * verbs.repeat(3, 1), dim=-1)
    layer = readout()
    layer.fit(labels)
    rest = layer.rest(corpus, labels)
    torch.testing.assert_close(rest.norm(dim=-1), torch.ones(6))
    for c in range(6):
        own = F.normalize(corpus[c] - corpus.mean(0), dim=-1)
        assert abs(rest[c] @ own) < 1e-3
    # The same verb with another noun leaves nearly the same; the same noun with another verb, something opposed.
    alike = rest @ rest.T
    assert alike[0, 2] > 0.9 and alike[0, 4] > 0.9 and alike[0, 1] < 0


def make_model(**form):
    torch.manual_seed(1)
    config = ModelConfig(**{**VARIANTS["label-tracks"], "blocks": 1, "width": 16, "heads": 2, **form})
    model = build_model(config, Shape(DIM, FRAMES))
    return fit_labels(model, config, unit(2, 5, DIM)).eval()


@torch.no_grad()
def logits(model, batch, corpus, labels):
    return model(batch, corpus, labels).logits


@pytest.mark.parametrize("form", [{}, {"track_identity": True}, {"components": "sa+ca+conv"}])
def test_a_class_has_the_same_score_beside_any_others(form):
    model, corpus, labels = make_model(**form), unit(1, 9, DIM), unit(2, 5, DIM)
    batch = paths(torch.tensor([[1, 2, 3], [4, 5, 6]]), torch.rand(2, FRAMES, REGIONS, 2))
    whole = logits(model, batch, corpus, labels)
    torch.testing.assert_close(logits(model, batch, corpus, labels[[3, 1]]), whole[:, [3, 1]])


def test_ids_mean_nothing_but_their_texts():
    """Entities listed in another order, the ids with them, change no score; the texts alone do."""
    model, corpus, labels = make_model(), unit(1, 9, DIM), unit(2, 5, DIM)
    batch = paths(torch.tensor([[1, 2, 3], [4, 5, 6]]), torch.rand(2, FRAMES, REGIONS, 2))
    order = torch.randperm(9, generator=torch.Generator().manual_seed(3))
    moved = replace(batch, topk_entity=order.argsort()[batch.topk_entity])
    torch.testing.assert_close(
        logits(model, moved, corpus[order], labels),
        logits(model, batch, corpus, labels),
        rtol=1e-4,
        atol=1e-4,
    )
    assert not torch.allclose(
        logits(model, batch, corpus[order], labels), logits(model, batch, corpus, labels)
    )


def crossings(seed, videos, things):
    """One thing crosses a video, to the right or to the left, others stay; the class names it and its way."""
    rng = torch.Generator().manual_seed(seed)
    picked = torch.stack([torch.randperm(len(things), generator=rng)[:REGIONS] for _ in range(videos)])
    entity = torch.tensor(things)[picked]
    way = torch.rand(videos, generator=rng) < 0.5
    along = torch.linspace(0.1, 0.9, FRAMES).expand(videos, -1)
    centre = torch.rand(videos, 1, REGIONS, 2, generator=rng).repeat(1, FRAMES, 1, 1)
    centre[:, :, 0, 0] = torch.where(way[:, None], along, along.flip(1))
    return paths(entity, centre), picked[:, 0] * 2 + way.long()


def test_ways_of_moving_are_learned_apart_from_what_moves():
    """Trained on some things, it tells the ways of others, among which nothing but the text says which one is meant."""
    corpus, ways = torch.eye(DIM)[:12], torch.eye(DIM)[12:14]
    labels = F.normalize(corpus.repeat_interleave(2, 0) + 0.5 * ways.repeat(12, 1), dim=-1)
    seen, unseen = list(range(8)), list(range(8, 12))
    config = make_settings(
        {"variant": "label-tracks", "blocks": 1, "width": 32, "heads": 2, "dropout": 0}
    ).model
    torch.manual_seed(0)
    model = fit_labels(build_model(config, Shape(DIM, FRAMES)), config, labels[:16])
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for step in range(150):
        batch, truth = crossings(step, 64, seen)
        loss = classification_loss(model(batch, corpus, labels[:16]).logits, truth, 0.1)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    batch, truth = crossings(1000, 200, unseen)
    found = logits(model.eval(), batch, corpus, labels[16:]).argmax(1)
    # Each class has a rival with the same thing, and four that name what lies still in the same video.
    assert (found == truth).float().mean() > 0.9


def test_mixup_of_a_z_for_each_class_is_the_formula():
    z, classes = unit(5, 4, 3, DIM), unit(6, 3, DIM)
    label, share = torch.tensor([0, 1, 2, 0]), torch.tensor([0.7, 0.6, 0.8, 0.9])
    mixed, target = mixup(15 * (z * classes).sum(-1), z, label, share)
    expected = F.normalize(share[:, None, None] * z + (1 - share[:, None, None]) * z[[1, 0, 3, 2]], dim=-1)
    torch.testing.assert_close(mixed, 15 * (expected * classes).sum(-1))
    torch.testing.assert_close(target.sum(1), torch.ones(4))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"readout": "labels"}, "readout=labels needs queries=tracks, not aligned"),
        ({"track_identity": False}, "track_identity=false needs queries=tracks"),
        ({"queries": "tracks", "readout": "label"}, "did you mean 'labels'"),
        (
            {"queries": "tracks", "readout": "labels", "residual": "cls"},
            "residual=cls changes what whole labels",
        ),
        (
            {"queries": "tracks", "readout": "labels", "whiten_labels": True},
            "whiten_labels changes what whole",
        ),
    ],
)
def test_forms_that_make_no_sense_are_refused(options, message):
    with pytest.raises(AdapterError, match=message):
        ModelConfig(**options)


def test_one_label_has_nothing_to_differ_from():
    with pytest.raises(AdapterError, match="at least two training labels"):
        readout().fit(unit(2, 1, DIM))


@pytest.fixture(scope="module")
def run(learnable, label_set, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "labels"
    settings = make_settings({"variant": "label-tracks", "blocks": 1, "epochs": 1, "width": 32, "mixup": 0.8})
    train(learnable, label_set, out, settings)
    return out


def test_a_run_trains_scores_and_has_no_z_to_probe(run, learnable, label_set):
    result = evaluate(run, learnable, label_set, split="test", device="cpu")
    assert result["n"] == 18 and result["top1"] > 0
    assert result["cost"]["macs"] > 0
    opened = open_all(run, learnable, label_set, "cpu")
    buffer = opened.model.encoder.readout.label_mean
    torch.testing.assert_close(buffer, torch.from_numpy(opened.labels.embeddings).mean(0))
    with pytest.raises(AdapterError, match="a z for each class.*--head text"):
        evaluate(run, learnable, label_set, split="test", head="knn", device="cpu")
    with pytest.raises(AdapterError, match="a z for each class"):
        represent(opened, list(opened.alignments.index)[:2])
