"""Averages of weights: over the steps of a training (EMA), and with the model it started from (WiSE-FT).

WiSE-FT (Wortsman et al., CVPR 2022) and Open-VCLIP (Weng et al., ICML 2023) average a tuned CLIP with the CLIP it was
tuned from. Here CLIP is frozen and an adapter is what is trained, so the average is over the adapter's weights, between
their first state and their last. With ``residual=cls`` the first state adds exactly zero to the mean cls embedding: it
*is* zero-shot CLIP.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

Weights = Mapping[str, Tensor]


class MovingAverage:
    """Exponential moving average of a model's weights, updated after every step.

    The decay grows as (1 + t) / (10 + t) up to its value, so that the random first weights are soon forgotten.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.weights = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        """Take in the weights after step number ``step`` (the first is 1)."""
        decay = min(self.decay, (1 + step) / (10 + step))
        for name, tensor in model.state_dict().items():
            self.weights[name].lerp_(tensor, 1 - decay)


def between(first: Weights, last: Weights, alpha: float) -> dict[str, Tensor]:
    """``(1 - alpha) first + alpha last``, tensor by tensor; exact at both ends."""
    return {name: torch.lerp(first[name], tensor, alpha) for name, tensor in last.items()}


@contextmanager
def wearing(model: nn.Module, weights: Weights) -> Iterator[None]:
    """The model with other weights inside, its own bit for bit afterwards."""
    own = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
    try:
        model.load_state_dict(weights)
        yield
    finally:
        model.load_state_dict(own)
