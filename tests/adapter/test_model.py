import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from adapter.config import VARIANTS, AdapterError, ModelConfig, make_settings
from adapter.dataset import Batch
from adapter.model import (
    Alignment,
    LabelWhitening,
    Rematch,
    Shape,
    aligned_to_labels,
    aligned_tokens,
    build_model,
    count_parameters,
    gumbel,
    mean_cls,
    parameters_by_part,
    scrambled,
    top_entities,
    track_codes,
)

DIM, FRAMES, TOKENS, TOPK, ENTITIES, CLASSES = 16, 5, 4, 3, 11, 6
FORMS = [
    {"queries": queries, "context": context}
    for queries in ("aligned", "tracks", "learned", "cls")
    for context in ("pooled", "regions", "cls")
] + [
    {"pool": "attention", "context": "pooled"},
    {"residual": "cls"},
    {"model": "adapt_then_align"},
    {"rematch": True, "conv": "dense", "ffn": "each", "time_codes": "learned"},
    {"entities": "labels", "align": "regions", "components": "ca"},
    {"align": "cls", "components": "sa"},
    {"queries": "tracks", "readout": "labels", "context": "regions"},
    {"queries": "tracks", "readout": "labels", "track_identity": False, "components": "sa", "context": "cls"},
]


def make_batch(videos=3, seed=0):
    rng = torch.Generator().manual_seed(seed)
    shape = videos, FRAMES, TOKENS
    embeddings = F.normalize(torch.randn(*shape, DIM, generator=rng), dim=-1)
    cosines, ids = (embeddings @ make_entities().T).topk(TOPK, dim=-1)
    return Batch(
        embeddings,
        torch.ones(shape),
        ids,
        cosines,
        torch.rand(*shape, 3, generator=rng),
        torch.arange(FRAMES).expand(videos, -1).float(),
        torch.ones(shape, dtype=torch.bool),
        torch.zeros(videos, dtype=torch.int64),
    )


def make_entities():
    return F.normalize(torch.randn(ENTITIES, DIM, generator=torch.Generator().manual_seed(9)), dim=-1)


def make_labels():
    return F.normalize(torch.randn(CLASSES, DIM, generator=torch.Generator().manual_seed(8)), dim=-1)


def make_model(seed=0, **form):
    """A model whose zero-initialised parts are set free, so that invariances are not met by being zero."""
    torch.manual_seed(seed)
    model = build_model(ModelConfig(blocks=2, **form), Shape(DIM, FRAMES))
    for parameter in model.parameters():
        if parameter.ndim and parameter.abs().max() == 0:
            torch.nn.init.normal_(parameter, std=0.2)
    return model.eval()


def encode(model, batch):
    with torch.no_grad():
        return model(batch, make_entities(), make_labels())


def encode_double(model, batch):
    """In float64: float32 kernels of some processors differ by more than rounding between batch sizes."""
    doubles = batch.map(lambda tensor: tensor.double() if tensor.is_floating_point() else tensor)
    with torch.no_grad():
        return model.double()(doubles, make_entities().double(), make_labels().double())


def straight_through(noise="never", scale=5.0, tau=0.7):
    return Alignment(scale, learn_scale=True, tau=tau, noise=noise)


# ---------------------------------------------------------------- Eq. 4-5


@pytest.mark.parametrize("noise", ["never", "always"])
def test_straight_through_has_hard_values_and_soft_gradients(noise):
    batch, entities = make_batch(), make_entities().requires_grad_()
    score = batch.topk_score.clone().requires_grad_()
    layer = straight_through(noise)
    probe = torch.randn(*batch.mask.shape, DIM)
    torch.manual_seed(5)
    out = layer(score, batch.topk_entity, entities, batch.mask).embeddings
    (out * probe).sum().backward()
    got = score.grad.clone(), layer.log_scale.grad.clone()

    torch.manual_seed(5)
    soft_score = batch.topk_score.clone().requires_grad_()
    log_scale = layer.log_scale.detach().clone().requires_grad_()
    logits = log_scale.exp() * soft_score
    logits = logits + gumbel(logits) if noise == "always" else logits
    weights = (logits / 0.7).softmax(-1)
    soft = torch.einsum("...k,...kd->...d", weights, make_entities()[batch.topk_entity])
    (soft * probe).sum().backward()
    torch.testing.assert_close(got[0], soft_score.grad)
    torch.testing.assert_close(got[1], log_scale.grad)

    best = batch.topk_entity.gather(-1, logits.argmax(-1, keepdim=True)).squeeze(-1)
    torch.testing.assert_close(out.detach(), make_entities()[best])


def test_gumbel_choices_have_the_softmax_frequencies():
    torch.manual_seed(0)
    score = torch.tensor([0.3, 0.25, 0.1]).expand(1, 1, 40_000, -1)
    ids = torch.arange(3).expand(1, 1, 40_000, -1)
    one_hot, mask = torch.eye(3), torch.ones(1, 1, 40_000, dtype=torch.bool)
    layer = Alignment(8.0, False, 1.0, "always")
    out = layer(score, ids, one_hot, mask)
    expected = (8 * score[0, 0, 0]).softmax(0)
    spread = (expected * (1 - expected) / 40_000).sqrt()
    assert ((out.embeddings.mean((0, 1, 2)) - expected).abs() < 4 * spread).all()
    assert abs(out.agreement.item() - expected[0].item()) < 4 * spread[0].item()


def test_noise_follows_its_option():
    batch, entities = make_batch(), make_entities()

    def agreement(noise, training):
        layer = Alignment(1.0, False, 1.0, noise).train(training)
        return layer(batch.topk_score, batch.topk_entity, entities, batch.mask).agreement.item()

    assert agreement("never", True) == agreement("train", False) == 1
    assert agreement("train", True) < 1 and agreement("always", False) < 1


def test_without_noise_every_token_gets_its_best_entity():
    batch, entities = make_batch(), make_entities()
    out = Alignment(100.0, False, 1.0, "train").eval()(
        batch.topk_score, batch.topk_entity, entities, batch.mask
    )
    assert torch.equal(out.embeddings, entities[batch.topk_entity[..., 0]])


@pytest.mark.parametrize("noise", ["never", "train"])
def test_rematching_starts_at_the_cached_alignment_to_the_bit(noise):
    batch, entities = make_batch(), make_entities()
    # As a cache has them: scores of vectors that half precision has rounded since.
    batch = replace(batch, embeddings=batch.embeddings.half().float())
    layer = Rematch(DIM)
    assert torch.equal(layer(batch, entities), batch.topk_score)
    torch.manual_seed(0)
    config = ModelConfig(blocks=1, rematch=True, noise=noise)
    model = build_model(config, Shape(DIM, FRAMES)).eval()
    plain = build_model(replace(config, rematch=False), Shape(DIM, FRAMES)).eval()
    left = plain.load_state_dict(model.state_dict(), strict=False)
    assert left.unexpected_keys == ["encoder.queries.scores.project.weight"] and not left.missing_keys
    assert torch.equal(encode(model, batch).logits, encode(plain, batch).logits)


def test_rematched_scores_are_cosines_of_the_moved_embeddings():
    batch, entities, layer = make_batch(), make_entities(), Rematch(DIM)
    torch.nn.init.normal_(layer.project.weight, std=0.3)
    moved = batch.embeddings + batch.embeddings @ layer.project.weight.T
    for place in ((0, 0, 0), (2, 4, 3)):
        cosines = F.cosine_similarity(moved[place][None], entities[batch.topk_entity[place]], dim=-1)
        torch.testing.assert_close(layer(batch, entities)[place], cosines)


def test_rematching_learns_which_cached_entity_is_meant():
    """The entity that tells the class is second in the cache, by a fixed rotation of the right embedding."""
    torch.manual_seed(0)
    entities, labels = make_entities(), make_labels()[:2]
    twist = torch.linalg.qr(torch.randn(DIM, DIM)).Q

    def draw(videos):
        label = torch.randint(2, (videos,))
        noisy = entities[label][:, None, None] + 0.1 * torch.randn(videos, FRAMES, TOKENS, DIM)
        # In the cache every token shows entity 2 first, then 0 and 1.
        score = torch.tensor([0.30, 0.28, 0.28]).expand(videos, FRAMES, TOKENS, -1)
        ids = torch.tensor([2, 0, 1]).expand(videos, FRAMES, TOKENS, -1)
        return replace(
            make_batch(videos), embeddings=F.normalize(noisy, dim=-1) @ twist, topk_entity=ids,
            topk_score=score, label=label,
        )  # fmt: skip

    def accuracy(rematch):
        torch.manual_seed(1)
        config = ModelConfig(blocks=1, rematch=rematch, components="sa", dropout=0.0, scale=20.0)
        model = build_model(config, Shape(DIM, FRAMES))
        optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
        for _ in range(60):
            batch = draw(64)
            loss = F.cross_entropy(model(batch, entities, labels).logits, batch.label)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        batch = draw(200)
        with torch.no_grad():
            return (model.eval()(batch, entities, labels).logits.argmax(1) == batch.label).float().mean()

    # Without cross-attention only the entities reach z.
    assert accuracy(True) > 0.95 and accuracy(False) < 0.65


def test_aligned_tokens_by_hand():
    mask = torch.tensor([[[1, 1, 0], [1, 0, 0]]], dtype=torch.bool)
    assert torch.equal(aligned_tokens(mask, "all"), mask)
    assert aligned_tokens(mask, "cls").tolist() == [[[True, False, False]] * 2]
    # The second frame has no region: its cls stays.
    assert aligned_tokens(mask, "regions").tolist() == [[[False, True, False], [True, False, False]]]


@pytest.mark.parametrize(("align", "deaf"), [("cls", slice(1, None)), ("regions", slice(0, 1))])
def test_only_the_tokens_named_by_align_ask(align, deaf):
    model, batch = make_model(align=align, context="pooled"), make_batch()
    other = batch.topk_entity.clone()
    other[:, :, deaf] = (other[:, :, deaf] + 1) % ENTITIES
    assert torch.equal(encode(model, replace(batch, topk_entity=other)).z, encode(model, batch).z)
    other = (batch.topk_entity + 1) % ENTITIES
    assert not torch.equal(encode(model, replace(batch, topk_entity=other)).z, encode(model, batch).z)


def test_label_entities_are_the_alignment_to_a_corpus_of_the_labels():
    """As if the aligner had run with the class names as its corpus: the same top-k, the same prediction."""
    batch, labels = make_batch(), make_labels()
    cosines = batch.embeddings @ labels.T
    score, ids = cosines.sort(dim=-1, descending=True, stable=True)
    aligner = replace(batch, topk_entity=ids[..., :TOPK], topk_score=score[..., :TOPK])
    ours = aligned_to_labels(batch, labels)
    assert torch.equal(ours.topk_entity, aligner.topk_entity)
    torch.testing.assert_close(ours.topk_score, aligner.topk_score)
    by_labels, by_corpus = (make_model(entities=entities) for entities in ("labels", "corpus"))
    by_corpus.load_state_dict(by_labels.state_dict())
    with torch.no_grad():
        expected = by_corpus(aligner, labels, labels).logits
    torch.testing.assert_close(encode(by_labels, batch).logits, expected)
    assert aligned_to_labels(batch, labels[:2]).topk_entity.shape[-1] == 2


def test_alignment_is_not_rounded_by_mixed_precision():
    batch, labels, entities = make_batch(), make_labels(), make_entities()
    layer = Rematch(DIM)
    torch.nn.init.normal_(layer.project.weight, std=0.3)
    exact = aligned_to_labels(batch, labels), layer(batch, entities)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = aligned_to_labels(batch, labels), layer(batch, entities)
    assert torch.equal(mixed[0].topk_score, exact[0].topk_score) and torch.equal(mixed[1], exact[1])


# ---------------------------------------------------------------- forms of a block


def test_components_leave_out_what_they_do_not_name():
    forms = ("sa", "ca", "sa+ca", "ca+conv", "sa+ca+conv")
    models = {form: make_model(components=form, context="pooled") for form in forms}
    batch = make_batch()
    other = replace(batch, embeddings=F.normalize(torch.randn_like(batch.embeddings), dim=-1))
    for form, model in models.items():
        blind = torch.equal(encode(model, batch).z, encode(model, other).z)
        assert blind == (form == "sa"), "without cross-attention only entities reach z"
        names = {name.split(".")[3] for name in model.state_dict() if ".blocks." in name}
        assert ("self_attention" in names) == ("sa" in form.split("+"))
        assert ("cross_attention" in names) == ("ca" in form.split("+"))
        assert ("conv" in names) == ("conv" in form)
    with pytest.raises(AdapterError, match="components=sa"):
        models["sa"].encoder.attention(batch, make_entities())


def test_without_self_attention_queries_do_not_see_each_other():
    model, batch = make_model(components="ca", context="cls", time_codes="none"), make_batch()
    encoder, entities = model.encoder, make_entities()
    tokens = encoder.queries(batch, entities).tokens
    context = encoder.context(batch)
    mask = batch.mask[:, :, 0]
    changed = tokens.clone()
    changed[:, 1] += 1.0
    for components, alone in (("ca", True), ("sa+ca", False)):
        block = make_model(components=components, context="cls").encoder.blocks[0]
        before, after = (block(x, mask, context)[:, 0] for x in (tokens, changed))
        assert torch.equal(before, after) == alone


@pytest.mark.parametrize(
    ("dim", "blocks", "paper"), [(512, 4, 38.4), (768, 6, 437.1 - 303.97 - 19_160 * 768 / 1e6)]
)
def test_the_paper_variant_has_about_the_papers_parameters(dim, blocks, paper):
    """38.4 M are tuned with a frozen B/16; L/14's is the total less ViT and the corpus that B/16's total implies."""
    config = make_settings({"variant": "paper", "blocks": blocks}).model
    with torch.device("meta"):
        model = build_model(config, Shape(dim, 8))
    assert count_parameters(model) / 1e6 == pytest.approx(paper, rel=0.02)
    parts = parameters_by_part(model)
    assert sum(parts.values()) == count_parameters(model)
    square = dim * dim
    assert parts["self_attention"] == parts["cross_attention"] == blocks * 4 * (square + dim)
    assert parts["convolution"] == blocks * (3 * square + dim)
    assert parts["feed_forward"] == blocks * 2 * (8 * square + 7 * dim)


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_variant_runs_and_counts_all_its_parameters(variant):
    torch.manual_seed(0)
    model = build_model(make_settings({"variant": variant, "blocks": 1}).model, Shape(DIM, FRAMES))
    out = model(make_batch(), make_entities(), make_labels())
    F.cross_entropy(out.logits, torch.tensor([0, 1, 2])).backward()
    learned = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert not [name for name, p in learned.items() if p.grad is None]
    assert sum(parameters_by_part(model).values()) == sum(p.numel() for p in learned.values())


# ---------------------------------------------------------------- invariants of the whole


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_permuting_videos_permutes_predictions(form):
    model, batch, order = make_model(**form), make_batch(4), torch.tensor([2, 0, 3, 1])
    whole = encode_double(model, batch).logits
    torch.testing.assert_close(encode_double(model, batch.map(lambda t: t[order])).logits, whole[order])
    torch.testing.assert_close(encode_double(model, batch.map(lambda t: t[:1])).logits, whole[:1])


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_masked_regions_do_not_matter(form):
    model, batch = make_model(**form), make_batch()
    mask = batch.mask.clone()
    mask[:, :, -1] = False
    padded = replace(batch, mask=mask)
    junk = replace(
        padded,
        embeddings=torch.where(mask[..., None], batch.embeddings, 7.0),
        topk_entity=torch.where(mask[..., None], batch.topk_entity, 0),
        topk_score=torch.where(mask[..., None], batch.topk_score, 9.0),
        geometry=torch.where(mask[..., None], batch.geometry, 0.3),
    )
    cut = {
        name: getattr(batch, name)[:, :, :-1]
        for name in vars(batch)
        if name not in ("times", "label", "share")
    }
    expected = encode(model, replace(batch, **cut)).z
    torch.testing.assert_close(encode(model, junk).z, expected)
    torch.testing.assert_close(encode(model, padded).z, expected)


@pytest.mark.parametrize("form", [*FORMS, {"model": "mean_pool"}], ids=str)
def test_a_frame_that_is_left_out_does_not_matter(form):
    model, batch = make_model(**form), make_batch()
    batch.mask[:, 2] = False
    junk = replace(
        batch,
        embeddings=torch.where(batch.mask[..., None], batch.embeddings, 7.0),
        topk_entity=torch.where(batch.mask[..., None], batch.topk_entity, 0),
        topk_score=torch.where(batch.mask[..., None], batch.topk_score, 9.0),
        geometry=torch.where(batch.mask[..., None], batch.geometry, 0.3),
    )
    left_out = encode(model, batch).z
    assert left_out.isfinite().all()
    torch.testing.assert_close(encode(model, junk).z, left_out)


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_the_order_of_regions_within_a_frame_does_not_matter(form):
    model, batch = make_model(**form), make_batch()
    order = [0, 3, 1, 2]
    moved = {
        name: getattr(batch, name)[:, :, order]
        for name in vars(batch)
        if name not in ("times", "label", "share")
    }
    torch.testing.assert_close(encode(model, replace(batch, **moved)).z, encode(model, batch).z)


@pytest.mark.parametrize(
    "form",
    [
        {},
        {"queries": "tracks", "context": "cls"},
        {"context": "pooled", "time_codes": "none", "conv": "dense"},
        {"model": "adapt_then_align"},
    ],
    ids=str,
)
def test_the_order_of_frames_matters(form):
    model, batch = make_model(**form), make_batch()
    assert (encode(model, batch).z - encode(model, batch.reversed()).z).abs().max() > 1e-3


def test_without_convolution_and_time_codes_the_pooled_form_is_blind_to_order():
    torch.manual_seed(0)
    config = ModelConfig(blocks=2, context="pooled", time_codes="none")
    model, batch = build_model(config, Shape(DIM, FRAMES)).eval(), make_batch()
    torch.testing.assert_close(encode(model, batch).z, encode(model, batch.reversed()).z)


def test_the_convolution_alone_can_learn_order():
    torch.manual_seed(0)
    config = ModelConfig(blocks=1, context="pooled", time_codes="none", dropout=0.0)
    model, entities = build_model(config, Shape(DIM, FRAMES)), make_entities()
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)

    def draw(videos):
        """Frames show thing 0 and then thing 1 (class 0), or the other way round, among noise."""
        label = torch.randint(2, (videos,))
        late = torch.arange(FRAMES).expand(videos, -1) >= torch.randint(2, FRAMES - 1, (videos, 1))
        shown = entities[(late ^ label[:, None].bool()).long()]
        noisy = F.normalize(shown[:, :, None] + 0.1 * torch.randn(videos, FRAMES, TOKENS, DIM), dim=-1)
        score, ids = (noisy @ entities.T).topk(TOPK, dim=-1)
        rest = make_batch(videos)
        return replace(rest, embeddings=noisy, topk_entity=ids, topk_score=score, label=label)

    for _ in range(300):
        batch = draw(64)
        loss = F.cross_entropy(model(batch, entities, make_labels()[:2]).logits, batch.label)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.eval()
    batch = draw(200)
    forward, backward = (encode(model, b).logits[:, :2].argmax(1) for b in (batch, batch.reversed()))
    assert (forward == batch.label).float().mean() > 0.95
    assert (backward == batch.label).float().mean() < 0.05


def test_a_video_without_regions_still_has_a_finite_result():
    batch = make_batch()
    mask = batch.mask.clone()
    mask[0, :, 1:] = False
    for form in FORMS:
        assert encode(make_model(**form), replace(batch, mask=mask)).logits.isfinite().all()


# ---------------------------------------------------------------- head, baselines, labels


def test_mean_pool_is_the_cosine_of_the_mean_cls_and_has_nothing_to_train():
    model, batch = build_model(ModelConfig(model="mean_pool"), Shape(DIM, FRAMES)).eval(), make_batch()
    expected = 100 * F.cosine_similarity(
        batch.embeddings[:, :, 0].mean(1)[:, None], make_labels()[None], dim=-1
    )
    torch.testing.assert_close(encode(model, batch).logits, expected)
    assert count_parameters(model) == 0


@pytest.mark.parametrize("model", ["alt", "adapt_then_align"])
def test_with_the_cls_residual_training_starts_at_zero_shot(model):
    torch.manual_seed(0)
    model, batch = (
        build_model(ModelConfig(model=model, residual="cls"), Shape(DIM, FRAMES)).eval(),
        make_batch(),
    )
    torch.testing.assert_close(encode(model, batch).z, mean_cls(batch))


@pytest.mark.parametrize("dim", [64, 512])
@pytest.mark.parametrize("context", ["pooled", "regions"])
def test_the_baseline_is_about_as_large(dim, context):
    with torch.device("meta"):
        sizes = [
            count_parameters(build_model(ModelConfig(model=model, context=context), Shape(dim, 8)))
            for model in ("alt", "adapt_then_align")
        ]
    assert 0.85 < sizes[1] / sizes[0] < 1.15


def test_whitening_decorrelates_training_labels_and_pulls_parallel_ones_apart():
    torch.manual_seed(0)
    common = F.normalize(torch.randn(1, DIM), dim=-1)
    labels = F.normalize(common + 0.1 * torch.randn(200, DIM), dim=-1)
    layer = LabelWhitening(DIM)
    torch.testing.assert_close(layer(labels), labels, atol=1e-6, rtol=0)
    layer.fit(labels, shrinkage=1e-6)
    moved = (labels - layer.mean) @ layer.matrix
    covariance = moved.T @ moved / len(moved)
    torch.testing.assert_close(covariance / covariance.diagonal().mean(), torch.eye(DIM), atol=1e-3, rtol=0)
    cosine = lambda x: ((x @ x.T).sum() - len(x)) / (len(x) * (len(x) - 1))  # noqa: E731
    assert cosine(labels) > 0.8 and abs(cosine(layer(labels))) < 0.05
    with pytest.raises(AdapterError, match="at least two training labels"):
        layer.fit(labels[:1], 0.3)


def test_heads_must_divide_the_width():
    with pytest.raises(AdapterError, match="width is 30 and heads is 4"):
        build_model(ModelConfig(width=30, heads=4), Shape(DIM, FRAMES))


# ---------------------------------------------------------------- tracks and controls


def test_tracks_by_hand():
    entity = torch.tensor([[[4, 2, 4], [2, 7, 0]]])
    score = torch.tensor([[[0.3, 0.2, 0.3], [0.25, 0.5, 0.9]]])
    mask = torch.tensor([[[1, 1, 1], [1, 1, 0]]], dtype=torch.bool)
    chosen, found = top_entities(entity, score, mask, 4, 10)
    assert chosen[0, :3].tolist() == [4, 7, 2] and found.tolist() == [[True, True, True, False]]
    geometry = torch.tensor([[[[0.2, 0.4, 0.1], [0.9, 0.9, 0.3], [0.6, 0.4, 0.3]], [[0.1, 0.2, 0.2]] * 3]])
    codes = track_codes(entity, mask, geometry, chosen)
    centre = torch.tensor([0.2 * 0.25 + 0.6 * 0.75, 0.4])
    torch.testing.assert_close(codes[0, 0, 0, [0, 3]], (math.pi * centre).sin())
    torch.testing.assert_close(codes[0, 0, 0, -2:], torch.tensor([1 + math.log10(0.4) / 3, 1.0]))
    assert codes[0, 0, 1].abs().sum() == 0 and codes[0, 3].abs().sum() == 0
    assert codes[0, 2, :, -1].tolist() == [1, 1]


@pytest.mark.parametrize("queries", ["aligned", "tracks"])
@pytest.mark.parametrize("identities", ["permuted", "scrambled", "shuffled"])
def test_controls_change_the_queries_alone(queries, identities):
    true, control = (make_model(queries=queries, identities=i) for i in ("aligned", identities))
    control.load_state_dict(true.state_dict())
    batch = make_batch()
    assert (encode(true, batch).z - encode(control, batch).z).abs().max() > 1e-4
    contexts = true.encoder.context(batch).tokens, control.encoder.context(batch).tokens
    assert torch.equal(*contexts)


def test_permuted_identities_equal_a_permuted_entity_table():
    true, control = (make_model(identities=i) for i in ("aligned", "permuted"))
    control.load_state_dict(true.state_dict())
    order = torch.randperm(ENTITIES, generator=torch.Generator().manual_seed(0))
    batch = make_batch()
    with torch.no_grad():
        expected = true(batch, make_entities()[order], make_labels()).z
    torch.testing.assert_close(encode(control, batch).z, expected)


def test_scrambled_ids_are_repeatable_spread_out_and_unrelated_to_the_true_ones():
    batch = make_batch(200)
    one, two = scrambled(batch, ENTITIES), scrambled(batch, ENTITIES)
    assert torch.equal(one.topk_entity, two.topk_entity)
    share = torch.bincount(one.topk_entity.flatten(), minlength=ENTITIES) / one.topk_entity.numel()
    assert len(share) == ENTITIES and (share - 1 / ENTITIES).abs().max() < 0.02
    assert ((one.topk_entity == batch.topk_entity).float().mean() - 1 / ENTITIES).abs() < 0.02


def test_attention_sums_to_one_a_video_and_skips_masked_tokens():
    batch = make_batch()
    batch.mask[0, :, 3] = False
    for form in ({}, {"queries": "tracks"}):
        weights = make_model(**form).encoder.attention(batch, make_entities())
        torch.testing.assert_close(weights.sum((1, 2)), torch.ones(3))
        assert weights[0, :, 3].abs().max() == 0


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 4), st.integers(0, 100))
def test_z_has_unit_length_and_logits_are_scaled_cosines(videos, seed):
    out = encode(make_model(), make_batch(videos, seed))
    torch.testing.assert_close(out.z.norm(dim=-1), torch.ones(videos))
    torch.testing.assert_close(out.logits, 100 * out.z @ make_labels().T)
