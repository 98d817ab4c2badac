"""Token merging: plan which tokens join which, then apply the plan (pure functions, no model).

Bipartite soft matching as described in "Token Merging: Your ViT But Faster" (Bolya et al., ICLR 2023) and
used by the region-aware encoder of "Align before Adapt" (CVPR 2024). Written from the description alone.

Words for axes: ``frames`` batch, ``tokens`` before a merge, ``groups`` after it, ``merged`` pairs joined by
one plan, ``patches`` original patch tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from aligner.config import AlignerError


@dataclass(frozen=True)
class MergePlan:
    """Which tokens of a block merge.

    Tokens at even positions are split into ``sources``, which disappear, and ``kept``; tokens at odd
    positions all stay, and ``partners`` are the odd tokens that take the sources in. The new order is
    ``kept`` then every odd token, scrambled on purpose so that the next block sees new pairs.
    """

    sources: Int[Tensor, "frames merged"]
    partners: Int[Tensor, "frames merged"]
    kept: Int[Tensor, "frames kept"]
    tokens: int

    @property
    def groups(self) -> int:
        """Tokens that are left after the merge."""
        return self.tokens - self.sources.shape[1]

    def positions(self) -> Int[Tensor, "frames tokens"]:
        """New position of every old token; a source has the position of its partner."""
        frames, kept = self.kept.shape
        new = torch.arange(self.tokens, device=self.kept.device).div(2, rounding_mode="floor") + kept
        new = new.expand(frames, -1)
        order = torch.arange(kept, device=self.kept.device).expand(frames, -1)
        new = new.scatter(1, self.kept, order)
        return new.scatter(1, self.sources, kept + self.partners.div(2, rounding_mode="floor"))

    def survivors(self) -> Int[Tensor, "frames groups"]:
        """Old position of the token that each new one goes on as: a kept token, or the partner of the sources."""
        odd = torch.arange(1, self.tokens, 2, device=self.kept.device)
        return torch.cat([self.kept, odd.expand(self.kept.shape[0], -1)], dim=1)


def mergeable(tokens: int, r: int, protected: int = 1) -> int:
    """Pairs that one merge can really join: r, but at most half of the tokens that are not protected."""
    return max(0, min(r, (tokens - protected) // 2))


@torch.no_grad()
def plan_merge(metric: Float[Tensor, "frames tokens channels"], r: int, protected: int = 1) -> MergePlan:
    """Pair the r most similar (even, odd) tokens by the cosine of ``metric``; no gradient flows through it.

    Args:
        metric: one similarity vector per token, in practice the attention keys averaged over heads.
        r: pairs to merge; more than half of the tokens is silently as many as possible (``mergeable``).
        protected: leading tokens that never merge into another one (the class token).

    Raises:
        AlignerError: nothing to merge; a plan always reorders, so ask ``mergeable`` first.
    """
    tokens = metric.shape[1]
    r = mergeable(tokens, r, protected)
    if r == 0:
        raise AlignerError(f"nothing to merge among {tokens} tokens, {protected} of them protected")
    unit = metric / metric.norm(dim=-1, keepdim=True).clamp_min(torch.finfo(metric.dtype).tiny)
    scores = unit[:, 0::2] @ unit[:, 1::2].transpose(1, 2)
    # Protected tokens 0, 2, ... are rows of the score table, 1, 3, ... its columns.
    scores[:, : (protected + 1) // 2, :] = -torch.inf
    scores[:, :, : protected // 2] = -torch.inf
    best, partner = scores.max(dim=-1)
    order = best.argsort(dim=-1, descending=True, stable=True)
    sources, kept = order[:, :r], order[:, r:]
    # Ascending order keeps the class token first; without one the order of scores stays.
    kept = kept.sort(dim=-1).values if protected else kept
    return MergePlan(2 * sources, 2 * partner.gather(1, sources) + 1, 2 * kept, tokens)


def merge_tokens(
    plan: MergePlan, tokens: Float[Tensor, "frames tokens dim"], sizes: Float[Tensor, "frames tokens"]
) -> tuple[Float[Tensor, "frames groups dim"], Float[Tensor, "frames groups"]]:
    """Size-weighted mean of the tokens of each group, and the size of each group in original tokens.

    The sums are taken in the dtype of ``sizes``: bf16 cannot count past 256.
    """
    weight = sizes.unsqueeze(-1)
    weighted = torch.cat([tokens.to(sizes.dtype) * weight, weight], dim=-1)
    odd = weighted[:, 1::2]
    # A product with a 0/1 matrix instead of scatter_add: the same bits on every run, on a GPU as well.
    joins = plan.partners.unsqueeze(1) == torch.arange(1, plan.tokens, 2, device=tokens.device).view(1, -1, 1)
    odd = odd + joins.to(weighted.dtype) @ _take(weighted, plan.sources)
    total = torch.cat([_take(weighted, plan.kept), odd], dim=1)
    size = total[..., -1]
    return (total[..., :-1] / size.unsqueeze(-1)).to(tokens.dtype), size


def merge_sources(plan: MergePlan, source: Int[Tensor, "frames patches"]) -> Int[Tensor, "frames patches"]:
    """Follow one merge in the source map, which holds the current token of every original token."""
    return plan.positions().gather(1, source)


def _take(
    values: Float[Tensor, "frames tokens dim"], index: Int[Tensor, "frames chosen"]
) -> Float[Tensor, "frames chosen dim"]:
    return values.gather(1, index.unsqueeze(-1).expand(-1, -1, values.shape[-1]))


def automatic_merge(patches: int, layers: int) -> int:
    """Pairs to merge in every block for a tower of any size, in the proportions of the paper's two.

    8 pairs for every 196 patches, as in its ViT-B/16, but no more than leaves a quarter of the patches, as in its
    ViT-L/14: 8 for B/16 and L/14 at 224 px, 2 for B/32, 18 for L/14 at 336 px, 6 for H/14.
    """
    return min(round(patches * 8 / 196), patches * 3 // (4 * layers))


def merge_schedule(r: int | tuple[int, float] | Sequence[int], layers: int) -> list[int]:
    """Pairs to merge in each block.

    An int is the same in every block; ``(r, f)`` with f in [-1, 1] goes in a straight line from ``r(1-f)`` to
    ``r(1+f)``; a list is taken as it is and padded with zeros on the right.

    Raises:
        AlignerError: a negative number, f outside [-1, 1], or a list longer than the encoder.
    """
    if isinstance(r, int):
        schedule = [r] * layers
    elif isinstance(r, tuple):
        schedule = _ramp(r[0], float(r[1]), layers)
    else:
        schedule = [*r] + [0] * (layers - len(r))
    if len(schedule) != layers:
        raise AlignerError(f"the merge schedule has {len(schedule)} entries for {layers} blocks")
    if any(pairs < 0 for pairs in schedule):
        raise AlignerError(f"the merge schedule must not be negative, got {r}")
    return schedule


def _ramp(r: int, slope: float, layers: int) -> list[int]:
    if not -1 <= slope <= 1:
        raise AlignerError(f"the slope of a merge schedule must lie in [-1, 1], got {slope}")
    low = int(r * (1 - slope))
    step = (2 * r - 2 * low) / max(layers - 1, 1)
    return [int(low + step * layer) for layer in range(layers)]


def token_counts(tokens: int, schedule: Sequence[int], protected: int = 1) -> list[int]:
    """Tokens after each block; ViT-B/16 at 224 px with r=8: 189, 181, ..., 101."""
    counts = []
    for r in schedule:
        tokens -= mergeable(tokens, r, protected)
        counts.append(tokens)
    return counts
