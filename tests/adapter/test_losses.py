import math

import torch

from adapter.losses import classification_loss


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
