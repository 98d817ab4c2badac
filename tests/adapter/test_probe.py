import numpy as np
import pytest

from adapter.probe import PENALTIES, fit_linear, fit_probe


def clouds(seed, n, classes=3, dim=6, width=0.6):
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(99).normal(size=(classes, dim))
    truth = np.arange(n) % classes
    return centres[truth] + width * rng.normal(size=(n, dim)), truth


def test_the_fit_is_where_the_gradient_vanishes():
    z, truth = clouds(0, 60)
    probe = fit_linear(z, truth, 3, 0.01)
    logits = probe.logits(z)
    chances = np.exp(logits - logits.max(1, keepdims=True))
    chances /= chances.sum(1, keepdims=True)
    gap = (chances - np.eye(3)[truth]) / len(z)
    np.testing.assert_allclose(gap.T @ (z / probe.scale) + 0.01 * probe.weight, 0, atol=1e-5)
    np.testing.assert_allclose(gap.sum(0), 0, atol=1e-5)


def test_two_points_have_a_known_weight():
    """At z = +-1 with weights +-w: 2 w penalty = 1 / (1 + e^2w) on each side."""
    probe = fit_linear(np.array([[1.0], [-1.0]]), np.array([0, 1]), 2, 0.05)
    w = probe.weight[0, 0]
    assert probe.weight[1, 0] == pytest.approx(-w) and 0.05 * w == pytest.approx(
        1 / (1 + np.exp(2 * w)), rel=1e-4
    )


def test_the_penalty_is_chosen_on_held_out_training_videos_and_the_fit_repeats():
    z, truth = clouds(1, 90)
    videos = [f"v{i}" for i in range(90)]
    probe, again = fit_probe(z, truth, videos, 3), fit_probe(z, truth, videos, 3)
    np.testing.assert_array_equal(probe.weight, again.weight)
    test, labels = clouds(2, 300)
    assert probe.penalty in PENALTIES and (probe.logits(test).argmax(1) == labels).mean() > 0.9
    # The order of the videos changes nothing but rounding.
    order = np.random.default_rng(0).permutation(90)
    other = fit_probe(z[order], truth[order], [videos[i] for i in order], 3)
    np.testing.assert_allclose(other.weight, probe.weight, atol=1e-4)


def test_noise_asks_for_a_large_penalty():
    z, _ = clouds(3, 60)
    truth = np.random.default_rng(4).integers(3, size=60)
    free = fit_linear(z, truth, 3, PENALTIES[-1])
    bound = fit_linear(z, truth, 3, PENALTIES[0])
    assert np.square(bound.weight).sum() < 0.5 * np.square(free.weight).sum()


def test_a_class_with_one_video_is_fitted_and_not_held_out():
    z, truth = clouds(5, 3)
    probe = fit_probe(z, truth, ["a", "b", "c"], 4)
    assert (probe.logits(z).argmax(1) == truth).all()
