import math

import pytest
import torch

from adapter.losses import balanced_weights, classification_loss, mixed_loss


def test_uniform_logits_cost_log_classes_whatever_the_smoothing():
    logits, label = torch.zeros(3, 8), torch.tensor([0, 5, 7])
    for smoothing in (0.0, 0.1):
        assert math.isclose(classification_loss(logits, label, smoothing).item(), math.log(8), rel_tol=1e-6)


def test_unknown_labels_do_not_count():
    logits = torch.randn(4, 3)
    label = torch.tensor([1, -1, 2, -1])
    kept = classification_loss(logits[[0, 2]], label[[0, 2]])
    assert torch.equal(classification_loss(logits, label), kept)
    assert classification_loss(logits, torch.full((4,), -1)).item() == 0


def test_class_weights_scale_each_video_and_parts_add_up_to_the_whole():
    torch.manual_seed(0)
    logits, label = torch.randn(6, 3), torch.tensor([0, 0, 0, 1, 1, 2])
    weights = balanced_weights(label, 3)
    torch.testing.assert_close(weights, torch.tensor([6 / 9, 6 / 6, 6 / 3]))
    assert weights[label].mean() == pytest.approx(1.0)
    each = [classification_loss(logits[i : i + 1], label[i : i + 1], 0.1) for i in range(6)]
    expected = sum(weight * loss for weight, loss in zip(weights[label], each, strict=True)) / 6
    whole = classification_loss(logits, label, 0.1, weights)
    torch.testing.assert_close(whole, expected)
    parts = [
        classification_loss(logits[part], label[part], 0.1, weights) for part in (slice(0, 4), slice(4, 6))
    ]
    torch.testing.assert_close((4 * parts[0] + 2 * parts[1]) / 6, whole)


def test_balanced_weights_of_equal_classes_are_one_and_of_an_absent_class_zero():
    assert balanced_weights(torch.tensor([0, 1, 0, 1]), 2).tolist() == [1.0, 1.0]
    assert balanced_weights(torch.tensor([0, 0]), 2).tolist() == [0.5, 0.0]


def test_targets_of_one_class_cost_what_labels_cost_and_mixed_ones_what_their_parts_do():
    torch.manual_seed(0)
    logits, label = torch.randn(4, 3), torch.tensor([2, 0, 1, 2])
    truth, other = torch.nn.functional.one_hot(label, 3).float(), label.flip(0)
    weights = torch.tensor([0.5, 1.0, 2.0])
    for how in ((), (0.1,), (0.1, weights)):
        torch.testing.assert_close(mixed_loss(logits, truth, *how), classification_loss(logits, label, *how))
    mixed = mixed_loss(logits, 0.7 * truth + 0.3 * truth.flip(0), 0.1)
    parts = classification_loss(logits, label, 0.1), classification_loss(logits, other, 0.1)
    torch.testing.assert_close(mixed, 0.7 * parts[0] + 0.3 * parts[1])
