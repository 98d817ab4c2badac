"""Merging against golden values, a slow reference written from the description, and invariants."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from aligner.config import AlignerError
from aligner.merging import (
    MergePlan,
    merge_schedule,
    merge_sources,
    merge_tokens,
    mergeable,
    plan_merge,
    token_counts,
)


def formula(tokens: int, channels: int, shift: float = 0.0) -> torch.Tensor:
    j, k = np.meshgrid(np.arange(tokens), np.arange(channels), indexing="ij")
    return torch.from_numpy(np.sin(0.3 + 1.7 * j + 0.9 * k * (1 + 0.1 * j) + shift))[None]


def groups_of(source: torch.Tensor) -> list[list[int]]:
    return [torch.nonzero(source[0] == g).flatten().tolist() for g in range(int(source.max()) + 1)]


def pairs_of(plan: MergePlan, frame: int = 0) -> set[tuple[int, int]]:
    return set(zip(plan.sources[frame].tolist(), plan.partners[frame].tolist(), strict=True))


def test_golden_values_of_two_merges() -> None:
    x, sizes = formula(9, 3, 0.5), torch.ones(1, 9, dtype=torch.float64)
    source = torch.arange(9)[None]
    first = plan_merge(formula(9, 4), 3)
    x, sizes = merge_tokens(first, x, sizes)
    source = merge_sources(first, source)
    assert pairs_of(first) == {(4, 1), (8, 1), (6, 3)}
    assert groups_of(source) == [[0], [2], [1, 4, 8], [3, 6], [5], [7]]
    assert sizes.tolist() == [[1, 1, 3, 2, 1, 1]]
    golden = [
        [0.717356, 0.991665, 0.515501],
        [-0.871576, -0.843188, 0.076739],
        [0.844017, -0.037724, -0.849711],
        [-0.686933, 0.291037, 0.946765],
        [0.124454, -0.940881, -0.536573],
        [0.133232, 0.995694, -0.052013],
    ]
    np.testing.assert_allclose(x[0].numpy(), golden, atol=6e-7)

    second = plan_merge(formula(6, 4, 1.1), 2)
    x, sizes = merge_tokens(second, x, sizes)
    source = merge_sources(second, source)
    assert pairs_of(second) == {(2, 5), (4, 1)}
    assert groups_of(source) == [[0], [2, 5], [3, 6], [1, 4, 7, 8]]
    assert sizes.tolist() == [[1, 2, 2, 4]]
    golden = [
        [0.717356, 0.991665, 0.515501],
        [-0.373561, -0.892034, -0.229917],
        [-0.686933, 0.291037, 0.946765],
        [0.66632, 0.220631, -0.650287],
    ]
    np.testing.assert_allclose(x[0].numpy(), golden, atol=6e-7)


def slow_merge(
    metric: np.ndarray, x: np.ndarray, sizes: np.ndarray, groups: list[set[int]], r: int, protected: int
) -> dict[frozenset[int], tuple[float, np.ndarray]]:
    """The description of method.md 2 in plain loops; result: members -> (size, mean)."""
    t = len(metric)
    r = min(r, (t - protected) // 2)
    unit = [row / np.sqrt((row**2).sum()) for row in metric]
    best = {}
    for a in range(0, t, 2):
        candidates = [(float(unit[a] @ unit[b]), b) for b in range(1, t, 2) if b >= protected]
        if a >= protected and candidates:
            best[a] = max(candidates)
    sources = sorted(best, key=lambda a: -best[a][0])[:r] if r > 0 else []
    total = {i: (x[i] * sizes[i], sizes[i], set(groups[i])) for i in range(t) if i not in sources}
    for a in sources:
        b = best[a][1]
        total[b] = (
            total[b][0] + x[a] * sizes[a],
            total[b][1] + sizes[a],
            total[b][2] | groups[a],
        )
    return {frozenset(members): (size, summed / size) for summed, size, members in total.values()}


@pytest.mark.parametrize("protected", [0, 1, 2, 3])
def test_equals_the_slow_reference_over_two_merges(protected: int) -> None:
    rng = np.random.default_rng(protected)
    for _ in range(30):
        t, c, r = rng.integers(4, 60), rng.integers(2, 9), rng.integers(1, 20)
        x, sizes = torch.from_numpy(rng.standard_normal((1, t, 5))), torch.ones(1, t, dtype=torch.float64)
        source = torch.arange(t)[None]
        for _ in range(2):
            metric = torch.from_numpy(rng.standard_normal((1, x.shape[1], c)))
            members = [set(group) for group in groups_of(source)]
            wanted = slow_merge(metric[0].numpy(), x[0].numpy(), sizes[0].numpy(), members, int(r), protected)
            if not mergeable(x.shape[1], int(r), protected):
                continue
            plan = plan_merge(metric, int(r), protected)
            x, sizes = merge_tokens(plan, x, sizes)
            source = merge_sources(plan, source)
            got = {frozenset(group): place for place, group in enumerate(groups_of(source))}
            assert got.keys() == wanted.keys()
            for group, place in got.items():
                assert sizes[0, place] == wanted[group][0] == len(group)
                np.testing.assert_allclose(x[0, place].numpy(), wanted[group][1], atol=1e-12)


@given(
    tokens=st.integers(5, 40),
    r=st.integers(1, 50),
    protected=st.integers(0, 3),
    frames=st.integers(1, 3),
    seed=st.integers(0, 2**31),
)
@settings(max_examples=60, deadline=None)
def test_invariants(tokens: int, r: int, protected: int, frames: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    metric = torch.randn(frames, tokens, 6, generator=generator, dtype=torch.float64)
    sizes = torch.randint(1, 9, (frames, tokens), generator=generator).double()
    plan = plan_merge(metric, r, protected)
    merged, new_sizes = merge_tokens(plan, metric, sizes)
    assert plan.groups == tokens - mergeable(tokens, r, protected) == merged.shape[1]
    assert torch.equal(new_sizes.sum(1), sizes.sum(1))
    mass = (merged * new_sizes.unsqueeze(-1)).sum(1)
    torch.testing.assert_close(mass, (metric * sizes.unsqueeze(-1)).sum(1))
    # Protected tokens never merge into another: each is in a group of which it is the host.
    assert not (plan.sources < protected).any()
    assert not (plan.partners < protected).any()
    positions = plan.positions()
    assert sorted(set(positions[0].tolist())) == list(range(plan.groups))


def test_the_class_token_stays_first_and_alone() -> None:
    metric = torch.randn(4, 33, 8, generator=torch.Generator().manual_seed(0))
    x, sizes = metric, torch.ones(4, 33)
    for _ in range(6):
        plan = plan_merge(x, 5)
        x, sizes = merge_tokens(plan, x, sizes)
        assert torch.equal(x[:, 0], metric[:, 0])
        assert torch.equal(sizes[:, 0], torch.ones(4))


@pytest.mark.parametrize("protected", [0, 1])
def test_survivors_are_one_old_token_of_each_new_one(protected: int) -> None:
    plan = plan_merge(torch.randn(2, 11, 4, generator=torch.Generator().manual_seed(0)), 4, protected)
    survivors = plan.survivors()
    assert torch.equal(plan.positions().gather(1, survivors), torch.arange(plan.groups).expand(2, -1))
    assert not (survivors.unsqueeze(1) == plan.sources.unsqueeze(2)).any()


@pytest.mark.parametrize(("tokens", "r", "protected"), [(9, 0, 1), (2, 4, 1), (1, 4, 0), (4, 1, 3)])
def test_nothing_to_merge_is_said(tokens: int, r: int, protected: int) -> None:
    assert mergeable(tokens, r, protected) == 0
    with pytest.raises(AlignerError, match=f"nothing to merge among {tokens} tokens"):
        plan_merge(torch.randn(1, tokens, 3), r, protected)


def test_frames_are_merged_independently() -> None:
    metric = torch.randn(5, 21, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    together = plan_merge(metric, 6)
    for frame in range(5):
        assert pairs_of(together, frame) == pairs_of(plan_merge(metric[frame : frame + 1], 6))


def test_matching_sends_no_gradient() -> None:
    metric = torch.randn(1, 9, 4, requires_grad=True)
    x = torch.randn(1, 9, 4, requires_grad=True)
    merged, _ = merge_tokens(plan_merge(metric, 3), x, torch.ones(1, 9))
    merged.square().sum().backward()
    assert metric.grad is None
    assert x.grad is not None and x.grad.abs().sum() > 0


def test_sizes_past_256_survive_half_precision_tokens() -> None:
    metric = torch.randn(1, 5, 4)
    sizes = torch.tensor([[1.0, 255.0, 256.0, 2.0, 255.0]])
    _, merged = merge_tokens(plan_merge(metric, 2), metric.bfloat16(), sizes)
    assert merged.sum() == sizes.sum()


def test_schedules() -> None:
    assert merge_schedule(8, 3) == [8, 8, 8]
    assert merge_schedule((8, -1), 12) == [16, 14, 13, 11, 10, 8, 7, 5, 4, 2, 1, 0]
    assert merge_schedule((8, 0.5), 12) == [4, 4, 5, 6, 6, 7, 8, 9, 9, 10, 11, 12]
    assert merge_schedule([5, 3], 4) == [5, 3, 0, 0]
    assert merge_schedule((8, -1), 1) == [16]


@pytest.mark.parametrize(
    ("schedule", "message"),
    [
        (-1, "negative"),
        ([1, 2, 3], "3 entries for 2 blocks"),
        ((8, 1.5), r"\[-1, 1\]"),
        ([1, -1], "negative"),
    ],
)
def test_bad_schedules_are_refused(schedule: object, message: str) -> None:
    with pytest.raises(AlignerError, match=message):
        merge_schedule(schedule, 2)


@pytest.mark.parametrize(
    ("tokens", "layers", "r", "left"),
    [
        (197, 12, 8, 101),
        (197, 11, 8, 109),
        (257, 24, 8, 65),
        (257, 23, 8, 73),
        (577, 24, 8, 385),
        (50, 12, 8, 2),
    ],
)
def test_token_counts_of_published_models(tokens: int, layers: int, r: int, left: int) -> None:
    assert token_counts(tokens, merge_schedule(r, layers))[-1] == left
