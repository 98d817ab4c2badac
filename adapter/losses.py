"""The training loss, and what the views of a video say together."""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor


def classification_loss(
    logits: Float[Tensor, "videos classes"],
    label: Int64[Tensor, " videos"],
    smoothing: float = 0.0,
    weights: Float[Tensor, " classes"] | None = None,
) -> Float[Tensor, ""]:
    """Cross-entropy over the label set (Eq. 10), mean over videos whose label is not -1 (zero without).

    With ``weights`` each video's loss is multiplied by that of its class. The mean still divides by the number of
    videos, not by the sum of weights as torch's own does: parts of a batch then add up to the whole.
    """
    kept = label >= 0
    if not kept.any():
        return logits.sum() * 0.0
    if weights is None:
        return F.cross_entropy(logits[kept].float(), label[kept], label_smoothing=smoothing)
    each = F.cross_entropy(logits[kept].float(), label[kept], label_smoothing=smoothing, reduction="none")
    return (each * weights[label[kept]]).mean()


def mixed_loss(
    logits: Float[Tensor, "videos classes"],
    target: Float[Tensor, "videos classes"],
    smoothing: float = 0.0,
    weights: Float[Tensor, " classes"] | None = None,
) -> Float[Tensor, ""]:
    """As ``classification_loss``, for mixed videos: a target is a share of every class, which its weight follows."""
    each = F.cross_entropy(logits.float(), target, label_smoothing=smoothing, reduction="none")
    return (each if weights is None else each * (target @ weights)).mean()


def balanced_weights(label: Int64[Tensor, " videos"], classes: int) -> Float[Tensor, " classes"]:
    """N / (C n_c) for class c with n_c of the N videos: 1 on average over videos; a class without videos weighs 0."""
    count = torch.bincount(label, minlength=classes).float()
    return torch.where(count > 0, len(label) / (classes * count.clamp_min(1)), 0.0)


def average_views(logits: Float[Tensor, "views videos classes"]) -> Float[Tensor, "videos classes"]:
    """What the views of each video say together: the log of the mean of their probabilities (X-CLIP's convention).

    A single view is left as it is.
    """
    if len(logits) == 1:
        return logits[0]
    return F.log_softmax(logits.float(), -1).logsumexp(0) - math.log(len(logits))
