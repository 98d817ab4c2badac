"""Readout by labels: every class reads the tracks whose entities its text names. Ours, not the paper's.

Why it is there, and what it rests on, is in ``docs/research/entities.md``.

Notation as in ``model.py``: b videos, q queries, w width, d embedding dimension.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from adapter.config import AdapterError
from adapter.layers import full_precision

NEAREST = 16  # entities of the corpus that may share in what a label names


class LabelReadout(nn.Module):
    """Every class reads the queries whose entities its text names; ours, not the paper's.

    r_cq = softmax over queries and a null of beta cos(c - mean label, s_q - mean entity), the null's cosine being a
    learned number; class c reads the sum of r_cq q. What it reads is compared with the rest of its text, without
    the entity it names. Texts alone decide who reads whom: beta (``match_scale``) and the null are all that is
    learned, so classes and entities never trained on are matched alike. Texts are centred since those of a kind
    are nearly parallel: labels by the training labels' mean (fitted, a buffer, so that a class's score does not hang
    on the other candidates), entities by the mean of the corpus.
    """

    label_mean: Tensor

    def __init__(self, dim: int, width: int, match_scale: float, null_score: float) -> None:
        super().__init__()
        self.match_scale = match_scale
        self.log_scale = nn.Parameter(torch.tensor(match_scale).log())
        self.null_score = nn.Parameter(torch.tensor(null_score))
        self.null = nn.Parameter(torch.randn(width) * 0.02)
        self.register_buffer("label_mean", torch.zeros(dim))

    @torch.no_grad()
    def fit(self, labels: Float[Tensor, "classes d"]) -> None:
        """Take the mean of the training labels; a single one has nothing to differ from and is refused."""
        if len(labels) < 2:
            raise AdapterError("readout=labels needs at least two training labels")
        self.label_mean.copy_(labels.mean(0))

    def forward(
        self,
        tokens: Float[Tensor, "b q w"],
        entities: Float[Tensor, "b q d"],
        mask: Bool[Tensor, "b q"],
        corpus: Float[Tensor, "entities d"],
        labels: Float[Tensor, "classes d"],
    ) -> Float[Tensor, "b classes w"]:
        """What each class reads."""
        weights = self.weights(entities, mask, corpus, labels)
        return torch.einsum("bcq,bqw->bcw", weights[:, :, :-1], tokens) + weights[:, :, -1:] * self.null

    def weights(
        self,
        entities: Float[Tensor, "b q d"],
        mask: Bool[Tensor, "b q"],
        corpus: Float[Tensor, "entities d"],
        labels: Float[Tensor, "classes d"],
    ) -> Float[Tensor, "b classes read"]:
        """How much each class reads of each query, and last of the null; sums to 1, 0 for padding."""
        with full_precision(labels.device):
            centred = F.normalize(entities - corpus.mean(0), dim=-1)
            cosine = torch.einsum("cd,bqd->bcq", self._centred(labels), centred)
            null = self.null_score.expand(*cosine.shape[:2], 1)
            score = self.log_scale.exp() * torch.cat([cosine, null], -1)
            # Masked after the scale, whose gradient would else be infinity times zero.
            padding = F.pad(~mask, (0, 1)).unsqueeze(1)
            return score.masked_fill(padding, -torch.inf).softmax(-1)

    def rest(
        self, corpus: Float[Tensor, "entities d"], labels: Float[Tensor, "classes d"]
    ) -> Float[Tensor, "classes d"]:
        """The part of each centred label that is orthogonal to the entity of the corpus that it names, of unit length.

        That entity is the mean of the nearest few, weighted by a softmax at the scale that matching starts from.
        """
        with full_precision(labels.device):
            classes = self._centred(labels)
            with torch.no_grad():
                entities = F.normalize(corpus - corpus.mean(0), dim=-1)
                near = (classes @ entities.T).topk(min(NEAREST, len(corpus)), dim=-1)
                share = (self.match_scale * near.values).softmax(-1)
                named = F.normalize((share.unsqueeze(-1) * entities[near.indices]).sum(1), dim=-1)
            return F.normalize(classes - (classes * named).sum(-1, keepdim=True) * named, dim=-1)

    def _centred(self, labels: Float[Tensor, "classes d"]) -> Float[Tensor, "classes d"]:
        return F.normalize(labels - self.label_mean, dim=-1)
