import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from adapter.config import AdapterError
from adapter.measures import calibration, interval, mcnemar, paired_bootstrap, resampled, sign_flip, spread


def test_spread_is_of_the_population():
    assert spread([0.5, 0.7]) == {"mean": pytest.approx(0.6), "std": pytest.approx(0.1), "n": 2}


def test_calibration_by_hand():
    probabilities = np.array([[0.95, 0.05], [0.95, 0.05], [0.45, 0.55], [0.4, 0.6]])
    found = calibration(probabilities, np.array([0, 1, 1, 1]), bins=10)
    # Two at 0.95 of which half are right, one each at 0.55 and 0.6 (a bin holds its upper edge), both right.
    assert [(b["n"], b["accuracy"]) for b in found["bins"]] == [(2, 1.0), (2, 0.5)]
    assert found["bins"][0]["low"] == 0.5 and found["bins"][0]["high"] == pytest.approx(0.6)
    assert found["ece"] == pytest.approx((2 * (1 - 0.575) + 2 * 0.45) / 4)


@given(hnp.arrays(np.float64, (30, 4), elements=st.floats(0.01, 1)), st.integers(1, 20))
def test_calibration_is_the_weighted_gap_whatever_the_bins(raw, bins):
    probabilities, truth = raw / raw.sum(1, keepdims=True), np.arange(30) % 4
    top, hit = probabilities.max(1), probabilities.argmax(1) == truth
    expected = 0.0
    for b in range(bins):
        inside = (top > b / bins) & (top <= (b + 1) / bins)
        expected += abs(top[inside].sum() - hit[inside].sum()) / 30
    found = calibration(probabilities, truth, bins)
    assert found["ece"] == pytest.approx(expected, abs=1e-9)
    assert sum(b["n"] for b in found["bins"]) == 30


def test_resampled_videos_are_shared_by_the_parts():
    ids = [str(i) for i in range(400)]
    hits = np.arange(400) % 4 == 0
    draws = resampled([(ids, hits), (ids, hits), (ids[:200], hits[:200])], draws=2000)
    np.testing.assert_array_equal(draws[:, 0], draws[:, 1])
    assert draws[:, 0].std() == pytest.approx((0.25 * 0.75 / 400) ** 0.5, rel=0.1)
    assert draws[:, 2].std() == pytest.approx((0.25 * 0.75 / 200) ** 0.5, rel=0.1)
    # The first part holds the third, so that they correlate by sqrt(200 / 400).
    assert np.corrcoef(draws[:, 0], draws[:, 2])[0, 1] == pytest.approx(0.5**0.5, abs=0.06)
    np.testing.assert_array_equal(draws, resampled([(ids, hits), (ids, hits), (ids[:200], hits[:200])], 2000))


def test_intervals_survive_draws_that_leave_a_part_empty():
    draws = resampled([(["a", "b"], np.array([True, False])), (["c"], np.array([True]))], draws=200)
    assert np.isnan(draws).any() and interval(draws[:, 1]) == [1.0, 1.0]


def test_mcnemar_by_hand():
    first = np.array([1] * 8 + [0] * 1 + [1] * 5, bool)
    second = np.array([0] * 8 + [1] * 1 + [1] * 5, bool)
    # Binomial(9, 1/2): P(k <= 1) = 10 / 512, two-sided.
    assert mcnemar(first, second) == {"only_first": 8, "only_second": 1, "p": pytest.approx(20 / 512)}
    assert mcnemar(first, first)["p"] == 1.0
    # Far beyond what a float of a binomial coefficient holds.
    many = mcnemar(np.arange(4000) < 2100, np.arange(4000) >= 2100)
    assert many["p"] == pytest.approx(math.erfc(199 / math.sqrt(4000) / math.sqrt(2)), rel=0.02)


@given(st.lists(st.integers(-5, 5).map(float), min_size=1, max_size=7))
def test_sign_flips_by_enumeration(differences):
    total = abs(sum(differences))
    flips = [abs(sum(s * d for s, d in zip(signs, differences, strict=True)))
             for signs in itertools.product((1, -1), repeat=len(differences))]  # fmt: skip
    assert sign_flip(differences) == sum(flip >= total for flip in flips) / len(flips)


def test_five_seeds_that_agree_have_p_one_in_sixteen():
    assert sign_flip([0.05, 0.06, 0.04, 0.07, 0.05]) == 2 / 32
    with pytest.raises(AdapterError, match="21 paired runs; the exact test takes at most 20"):
        sign_flip([0.1] * 21)


def test_paired_bootstrap_sees_what_pairs_share():
    rng = np.random.default_rng(0)
    hard = rng.random(500) < 0.5
    second = np.stack([hard] * 4)
    first = second | (rng.random((4, 500)) < 0.1)
    found = paired_bootstrap(first, second)
    assert found["difference"] == pytest.approx(first.mean() - second.mean())
    # Unpaired, the interval would be about 0.1 wide; the gap itself varies far less.
    low, high = found["interval"]
    assert 0 < low < found["difference"] < high and high - low < 0.05
