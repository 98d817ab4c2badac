"""The training loss, and what the views of a video say together."""

import math

import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor


def classification_loss(
    logits: Float[Tensor, "videos classes"], label: Int64[Tensor, " videos"], smoothing: float = 0.0
) -> Float[Tensor, ""]:
    """Cross-entropy over the label set (Eq. 10), mean over videos whose label is not -1 (zero without)."""
    kept = label >= 0
    if not kept.any():
        return logits.sum() * 0.0
    return F.cross_entropy(logits[kept].float(), label[kept], label_smoothing=smoothing)


def average_views(logits: Float[Tensor, "views videos classes"]) -> Float[Tensor, "videos classes"]:
    """What the views of each video say together: the log of the mean of their probabilities (X-CLIP's convention).

    A single view is left as it is.
    """
    if len(logits) == 1:
        return logits[0]
    return F.log_softmax(logits.float(), -1).logsumexp(0) - math.log(len(logits))
