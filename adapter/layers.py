"""The parts of the transformer: attention, temporal convolution, pooling, codes of place and time.

Notation: b videos, t frames, s tokens of a frame, q queries, n keys, w width, h heads.
"""

import math
from contextlib import AbstractContextManager, nullcontext

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

# Numbers that codes of place and time are projected from: sines and cosines at these octaves, and a size.
GEOMETRY_OCTAVES, TIME_OCTAVES = 4, 6
GEOMETRY_FEATURES, TIME_FEATURES = 4 * GEOMETRY_OCTAVES + 1, 2 * TIME_OCTAVES


def full_precision(device: torch.device) -> AbstractContextManager:
    """Cosines that decide an alignment are not rounded to bfloat16."""
    known = torch.amp.is_autocast_available(device.type)
    return torch.autocast(device.type, enabled=False) if known else nullcontext()


def mlp(dim_in: int, dim_out: int, ratio: int = 1) -> nn.Sequential:
    """LayerNorm, then two linear layers, ``ratio * dim_out`` between them.

    The norm lifts a unit vector's entries to about 1.
    """
    hidden = ratio * dim_out
    return nn.Sequential(
        nn.LayerNorm(dim_in), nn.Linear(dim_in, hidden), nn.GELU(), nn.Linear(hidden, dim_out)
    )


def masked_mean(
    tokens: Float[Tensor, "*batch n w"], mask: Bool[Tensor, "*batch n"]
) -> Float[Tensor, "*batch w"]:
    """Mean over the tokens that the mask keeps; zero where it keeps none."""
    weight = mask.unsqueeze(-1).to(tokens.dtype)
    return (tokens * weight).sum(-2) / weight.sum(-2).clamp_min(1)


class MeanPool(nn.Module):
    """Masked mean over tokens."""

    def forward(
        self, tokens: Float[Tensor, "*batch n w"], mask: Bool[Tensor, "*batch n"]
    ) -> Float[Tensor, "*batch w"]:
        """See ``masked_mean``."""
        return masked_mean(tokens, mask)


class AttentionPool(nn.Module):
    """One learned score a token, softmax over the tokens that the mask keeps; starts as the mean."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.score = nn.Linear(width, 1)
        nn.init.zeros_(self.score.weight)

    def forward(
        self, tokens: Float[Tensor, "*batch n w"], mask: Bool[Tensor, "*batch n"]
    ) -> Float[Tensor, "*batch w"]:
        """Weighted mean; zero where the mask keeps no token."""
        score = self.score(self.norm(tokens)).squeeze(-1)
        weights = score.masked_fill(~mask, torch.finfo(score.dtype).min).softmax(-1) * mask
        return (weights.unsqueeze(-1) * tokens).sum(-2)


class Attention(nn.Module):
    """Multi-head scaled dot-product attention with a mask over keys."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(width, width)
        self.key_value = nn.Linear(width, 2 * width)
        self.out = nn.Linear(width, width)

    def forward(
        self, queries: Float[Tensor, "b q w"], keys: Float[Tensor, "b n w"], mask: Bool[Tensor, "b n"]
    ) -> Float[Tensor, "b q w"]:
        """Attend from queries to the keys that the mask keeps (at least one a video)."""
        q, k, v = self._heads(queries, keys)
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=mask[:, None, None, :])
        return self.out(mixed.transpose(1, 2).flatten(2))

    def weights(
        self, queries: Float[Tensor, "b q w"], keys: Float[Tensor, "b n w"], mask: Bool[Tensor, "b n"]
    ) -> Float[Tensor, "b q n"]:
        """The attention weights themselves, mean over heads; each row sums to 1."""
        q, k, _ = self._heads(queries, keys)
        logits = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])
        return logits.masked_fill(~mask[:, None, None, :], -torch.inf).softmax(-1).mean(1)

    def _heads(self, queries: Tensor, keys: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        k, v = self.key_value(keys).chunk(2, dim=-1)
        q, k, v = (x.unflatten(-1, (self.heads, -1)).transpose(1, 2) for x in (self.query(queries), k, v))
        return q, k, v


class FeedForward(nn.Sequential):
    """Pre-norm feed-forward branch."""

    def __init__(self, width: int, ratio: int) -> None:
        hidden = width * ratio
        super().__init__(nn.LayerNorm(width), nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))


class TemporalConv(nn.Module):
    """The convolution of Eq. 8 over time, zero at first, so that training starts at the identity.

    Depthwise (a kernel a channel) or dense (every channel sees all). A frame with several tokens has no single
    value to convolve: its masked mean is convolved and added to each of its tokens (ours). With one token a frame
    this is Eq. 8 as printed.
    """

    def __init__(self, width: int, kernel: int, dense: bool = False) -> None:
        super().__init__()
        groups = 1 if dense else width
        self.conv = nn.Conv1d(width, width, kernel, padding=kernel // 2, groups=groups)
        nn.init.zeros_(self.conv.weight)
        nn.init.zeros_(self.conv.bias)  # type: ignore[arg-type]

    def forward(
        self, tokens: Float[Tensor, "b t s w"], mask: Bool[Tensor, "b t s"]
    ) -> Float[Tensor, "b t s w"]:
        """Tokens plus the convolution of their frames' means."""
        frames = masked_mean(tokens, mask).transpose(1, 2)
        return tokens + self.conv(frames).transpose(1, 2).unsqueeze(2)


def fourier(values: Float[Tensor, "*batch n"], octaves: int) -> Float[Tensor, "*batch features"]:
    """Sines and cosines of pi * 2^i * value for values in 0..1: features = 2 * octaves * n."""
    scale = math.pi * 2.0 ** torch.arange(octaves, device=values.device, dtype=values.dtype)
    angles = (values.unsqueeze(-1) * scale).flatten(-2)
    return torch.cat([angles.sin(), angles.cos()], dim=-1)


def log_size(area: Float[Tensor, "*batch"]) -> Float[Tensor, "*batch"]:
    """Area share 0.001..1 to 0..1 on a log scale."""
    return 1 + area.clamp_min(1e-3).log10() / 3


class GeometryCode(nn.Module):
    """Centroid as Fourier features and log area, projected to the width."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.project = nn.Linear(GEOMETRY_FEATURES, width)

    def forward(self, geometry: Float[Tensor, "*batch 3"]) -> Float[Tensor, "*batch w"]:
        """Code of (centroid x, centroid y, area share)."""
        size = log_size(geometry[..., 2]).unsqueeze(-1)
        return self.project(torch.cat([fourier(geometry[..., :2], GEOMETRY_OCTAVES), size], dim=-1))


class TimeCode(nn.Module):
    """A frame's place among the sampled frames, as normed Fourier features about as large as the tokens."""

    def __init__(self, frames: int, width: int) -> None:
        super().__init__()
        place = torch.linspace(0, 1, frames).unsqueeze(-1)
        self.register_buffer("features", fourier(place, TIME_OCTAVES), persistent=False)
        self.project = nn.Sequential(nn.Linear(TIME_FEATURES, width), nn.LayerNorm(width))

    def forward(self) -> Float[Tensor, "t w"]:
        """One code a frame."""
        return self.project(self.features)


class LearnedTimeCode(nn.Module):
    """One learned vector a frame, small at first (X-CLIP's temporal position)."""

    def __init__(self, frames: int, width: int) -> None:
        super().__init__()
        self.codes = nn.Parameter(0.02 * torch.randn(frames, width))

    def forward(self) -> Float[Tensor, "t w"]:
        """One code a frame."""
        return self.codes


class NoTimeCode(nn.Module):
    """Frames without a place in time."""

    features: Tensor

    def __init__(self, frames: int, width: int) -> None:
        super().__init__()
        self.register_buffer("features", torch.zeros(frames, width), persistent=False)

    def forward(self) -> Float[Tensor, "t w"]:
        """Zeros."""
        return self.features
