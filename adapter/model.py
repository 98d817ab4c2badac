"""The video adapter (Eq. 4-9): alignment, queries, context, blocks, head; and its baselines.

``build_model`` owns the numbers; every module receives its parts. The entity table is an argument of
``forward``, never a parameter, so a trained model meets other corpora and other label sets of the same
vision-language model.

Notation: b videos, t frames, s tokens of a frame (cls at 0, then regions), q queries, w width, d embedding
dimension.
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Protocol, cast

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from adapter.config import AdapterError, ModelConfig
from adapter.dataset import Batch
from adapter.layers import (
    Attention,
    AttentionPool,
    FeedForward,
    GeometryCode,
    LearnedTimeCode,
    MeanPool,
    NoTimeCode,
    TemporalConv,
    TimeCode,
    fourier,
    full_precision,
    log_size,
    masked_mean,
    mlp,
)
from adapter.readout import LabelReadout

TRACK_OCTAVES = 3


@dataclass(frozen=True)
class Shape:
    """What the data decide: length of an embedding and frames a video."""

    dim: int
    frames: int


@dataclass(frozen=True)
class Aligned:
    """Entities given to tokens; ``agreement``: share of tokens whose noisy and noise-free choice agree."""

    embeddings: Float[Tensor, "b t s d"]
    agreement: Float[Tensor, ""]


@dataclass(frozen=True)
class Queries:
    """Tokens that ask; ``mask`` is False for padding; ``entities`` are theirs, where each has one."""

    tokens: Float[Tensor, "b q w"]
    mask: Bool[Tensor, "b q"]
    agreement: Float[Tensor, ""]
    entities: Float[Tensor, "b q d"] | None = None


@dataclass(frozen=True)
class Context:
    """Tokens that are asked, by frame (Ê of Eq. 6, or its regions)."""

    tokens: Float[Tensor, "b t s w"]
    mask: Bool[Tensor, "b t s"]


@dataclass(frozen=True)
class Encoded:
    """Video representation z before the residual, and the alignment's agreement (1 without noise).

    With ``readout=labels`` there is a z for each class, to be compared with its ``rest``: what the class's text says
    beyond the entity that it names.
    """

    z: Float[Tensor, "b *each d"]
    agreement: Float[Tensor, ""]
    rest: Float[Tensor, "classes d"] | None = None


@dataclass(frozen=True)
class Output:
    """Logits over the label set, unit z (one for each class with ``readout=labels``), agreement."""

    logits: Float[Tensor, "b classes"]
    z: Float[Tensor, "b *each d"]
    agreement: Float[Tensor, ""]


class QueryBuilder(Protocol):
    """What turns a batch and the entity table into queries."""

    def __call__(self, batch: Batch, entities: Float[Tensor, "entities d"]) -> Queries:
        """Build the queries."""


class ContextBuilder(Protocol):
    """What turns a batch into keys and values."""

    def __call__(self, batch: Batch) -> Context:
        """Build the context."""


# ------------------------------------------------------------------ alignment


class Alignment(nn.Module):
    """Eq. 4-5 over the cached top-k: Gumbel-softmax over entities, straight-through one-hot.

    A = softmax((scale * cos + gamma) / tau), gamma ~ Gumbel(0, 1); the forward value is the entity at A's
    maximum, the gradient is that of the soft mixture A S. The softmax runs over the k cached entities, not
    the whole corpus. In a frozen cache nothing upstream learns but a ``learn_scale`` and ``Rematch``; the noise
    still swaps near-equal entities, an augmentation of the queries.
    """

    def __init__(self, scale: float, learn_scale: bool, tau: float, noise: str) -> None:
        super().__init__()
        self.log_scale = nn.Parameter(torch.tensor(scale).log(), requires_grad=learn_scale)
        self.tau = tau
        self.noise = noise

    def forward(
        self,
        score: Float[Tensor, "b t s k"],
        entity: Int64[Tensor, "b t s k"],
        entities: Float[Tensor, "entities d"],
        mask: Bool[Tensor, "b t s"],
    ) -> Aligned:
        """The aligned entity embedding of every token."""
        logits = self.log_scale.exp() * score
        noisy = self.noise == "always" or (self.noise == "train" and self.training)
        perturbed = logits + gumbel(logits) if noisy else logits
        choice = perturbed.argmax(-1, keepdim=True)
        value = entities[entity.gather(-1, choice).squeeze(-1)]
        if perturbed.requires_grad:
            soft = mix((perturbed / self.tau).softmax(-1), entity, entities)
            value = value + (soft - soft.detach())
        same = (choice.squeeze(-1) == logits.argmax(-1)) & mask
        return Aligned(value, same.sum() / mask.sum().clamp_min(1))


class Rematch(nn.Module):
    """Scores of the cached top-k for token embeddings that a learned residual projection moves.

    e' = e + P e, P zero at first; the new score is the cached one plus cos(e', s) - cos(e, s), so that without
    P it is the cached one to the bit, whatever half precision took from e. The straight-through gradient of
    Eq. 5 then has P to reach. Only the order within the cached k can change.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.project = nn.Linear(dim, dim, bias=False)
        nn.init.zeros_(self.project.weight)

    def forward(self, batch: Batch, entities: Float[Tensor, "entities d"]) -> Float[Tensor, "b t s k"]:
        """New scores; holds k embeddings a token in memory."""
        with full_precision(entities.device):
            moved = batch.embeddings + self.project(batch.embeddings)
            change = F.normalize(moved, dim=-1) - F.normalize(batch.embeddings, dim=-1)
            return batch.topk_score + torch.einsum("btsd,btskd->btsk", change, entities[batch.topk_entity])


class CachedScores(nn.Module):
    """The scores as aligned."""

    def forward(self, batch: Batch, entities: Float[Tensor, "entities d"]) -> Float[Tensor, "b t s k"]:
        """Cosines of the cache."""
        return batch.topk_score


def aligned_to_labels(batch: Batch, labels: Float[Tensor, "classes d"]) -> Batch:
    """The batch with its tokens aligned to label embeddings: exact cosines, as many of them as were cached."""
    with full_precision(labels.device):
        cosine = batch.embeddings @ labels.T
    best = cosine.topk(min(batch.topk_score.shape[-1], labels.shape[0]), dim=-1)
    return replace(batch, topk_entity=best.indices, topk_score=best.values)


def aligned_tokens(mask: Bool[Tensor, "b t s"], which: str) -> Bool[Tensor, "b t s"]:
    """Tokens whose entities count: ``all``, ``cls``, or ``regions`` (cls where a frame has no region)."""
    kept = mask.clone()
    if which == "cls":
        kept[:, :, 1:] = False
    if which == "regions":
        kept[:, :, 0] &= ~mask[:, :, 1:].any(-1)
    return kept


def gumbel(like: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """Samples of Gumbel(0, 1): minus the log of an exponential variable."""
    tiny = torch.finfo(like.dtype).tiny
    return -torch.empty_like(like).exponential_().clamp_min(tiny).log()


def mix(
    weights: Float[Tensor, "*batch k"],
    entity: Int64[Tensor, "*batch k"],
    entities: Float[Tensor, "entities d"],
) -> Float[Tensor, "*batch d"]:
    """A S for the cached entities, without gathering k embeddings a token."""
    k = weights.shape[-1]
    bags = F.embedding_bag(
        entity.reshape(-1, k), entities, per_sample_weights=weights.reshape(-1, k), mode="sum"
    )
    return bags.reshape(*weights.shape[:-1], -1)


# ------------------------------------------------------------------ controls: whose entities the queries see

Identities = Callable[[Batch, int], Batch]


def permuted(seed: int) -> Identities:
    """Control: every id renamed by one fixed permutation for all videos: consistent, wrong meaning."""

    def change(batch: Batch, entities: int) -> Batch:
        order = torch.randperm(entities, generator=torch.Generator().manual_seed(seed))
        return replace(batch, topk_entity=order.to(batch.topk_entity.device)[batch.topk_entity])

    return change


def scrambled(batch: Batch, entities: int) -> Batch:
    """Control: another id for every token, from a hash of its scores: repeatable, without meaning."""
    bits = batch.topk_score.contiguous().view(torch.int32).long()
    hashed = (bits * 2654435761 + batch.topk_entity * 40503) & 0x7FFFFFFF
    return replace(batch, topk_entity=(hashed >> 7) % entities)


def shuffled(batch: Batch, entities: int) -> Batch:
    """Control: the entities of the next video in the batch (a batch of one keeps its own)."""
    return replace(batch, topk_entity=batch.topk_entity.roll(1, 0), topk_score=batch.topk_score.roll(1, 0))


def unchanged(batch: Batch, entities: int) -> Batch:
    """The entities as aligned."""
    return batch


# ------------------------------------------------------------------ queries


class AlignedQueries(nn.Module):
    """One query a frame: q_t = MLP_q(pool of the frame's aligned entities) (Eq. 6)."""

    def __init__(
        self,
        alignment: nn.Module,
        pool: nn.Module,
        project: nn.Module,
        time: nn.Module,
        scores: nn.Module,
        which: str,
    ) -> None:
        super().__init__()
        self.alignment, self.pool, self.project, self.time = alignment, pool, project, time
        self.scores, self.which = scores, which

    def forward(self, batch: Batch, entities: Float[Tensor, "entities d"]) -> Queries:
        """Queries of all frames."""
        kept = aligned_tokens(batch.mask, self.which)
        aligned = self.alignment(self.scores(batch, entities), batch.topk_entity, entities, kept)
        tokens = self.project(self.pool(aligned.embeddings, kept)) + self.time()
        return Queries(tokens, batch.mask[:, :, 0], aligned.agreement)


class ClsQueries(nn.Module):
    """Control: one query a frame from its cls embedding, no entities."""

    def __init__(self, project: nn.Module, time: nn.Module) -> None:
        super().__init__()
        self.project, self.time = project, time

    def forward(self, batch: Batch, entities: Float[Tensor, "entities d"]) -> Queries:
        """Queries of all frames."""
        tokens = self.project(batch.embeddings[:, :, 0]) + self.time()
        return Queries(tokens, batch.mask[:, :, 0], tokens.new_ones(()))


class LearnedQueries(nn.Module):
    """Control: one learned query a frame, the same for every video."""

    def __init__(self, frames: int, width: int) -> None:
        super().__init__()
        self.tokens = nn.Parameter(torch.randn(frames, width))

    def forward(self, batch: Batch, entities: Float[Tensor, "entities d"]) -> Queries:
        """The same queries for every video."""
        tokens = self.tokens.expand(batch.label.shape[0], -1, -1)
        return Queries(tokens, batch.mask[:, :, 0], tokens.new_ones(()))


class TrackQueries(nn.Module):
    """One query an entity: its embedding plus the code of its path (centroid, area, presence in every frame).

    The entities are those with the highest summed score over the regions (not cls, which is everywhere) whose
    best entity they are, noise-free: tracks are bookkeeping, not a sample. Without ``project`` a token is its path
    alone. Ours, not the paper's.
    """

    def __init__(self, tracks: int, frames: int, width: int, project: nn.Module | None) -> None:
        super().__init__()
        self.tracks = tracks
        self.project = project
        self.code = nn.Sequential(
            nn.Linear(frames * track_features(), width),
            nn.GELU(),
            nn.Linear(width, width),
            nn.LayerNorm(width),
        )

    def forward(self, batch: Batch, entities: Float[Tensor, "entities d"]) -> Queries:
        """Tracks of every video; fewer distinct entities than ``tracks`` leave masked queries."""
        entity, score, mask = (
            batch.topk_entity[:, :, 1:, 0],
            batch.topk_score[:, :, 1:, 0],
            batch.mask[:, :, 1:],
        )
        chosen, found = top_entities(entity, score, mask, self.tracks, entities.shape[0])
        codes = track_codes(entity, mask, batch.geometry[:, :, 1:], chosen)
        tokens = self.code(codes.flatten(2))
        if self.project:
            tokens = self.project(entities[chosen]) + tokens
        # Attention needs a key even in a video without regions.
        found[:, 0] = True
        return Queries(tokens, found, tokens.new_ones(()), entities[chosen])


def top_entities(
    entity: Int64[Tensor, "b t r"],
    score: Float[Tensor, "b t r"],
    mask: Bool[Tensor, "b t r"],
    tracks: int,
    entities: int,
) -> tuple[Int64[Tensor, "b q"], Bool[Tensor, "b q"]]:
    """The entities with the highest summed score, and whether each occurs; q = min(tracks, entities)."""
    flat, kept = entity.flatten(1), mask.flatten(1)
    total = score.new_zeros(entity.shape[0], entities).scatter_add_(1, flat, score.flatten(1) * kept)
    count = torch.zeros_like(total).scatter_add_(1, flat, kept.to(total.dtype))
    order = total.masked_fill(count == 0, -torch.inf).topk(min(tracks, entities), dim=1)
    return order.indices, order.values > -torch.inf


def track_codes(
    entity: Int64[Tensor, "b t r"],
    mask: Bool[Tensor, "b t r"],
    geometry: Float[Tensor, "b t r 3"],
    chosen: Int64[Tensor, "b q"],
) -> Float[Tensor, "b q t features"]:
    """Per entity and frame: Fourier features of the weighted centroid, log size, presence; zero if absent."""
    member = (entity[:, None] == chosen[:, :, None, None]) & mask[:, None]
    weight = member * geometry[:, None, ..., 2]  # b q t r
    area = weight.sum(-1)
    centre = torch.einsum("bqtr,btrc->bqtc", weight, geometry[..., :2]) / area.clamp_min(1e-6).unsqueeze(-1)
    present = member.any(-1).to(area.dtype).unsqueeze(-1)
    code = torch.cat(
        [fourier(centre, TRACK_OCTAVES), log_size(area).unsqueeze(-1), torch.ones_like(present)], -1
    )
    return code * present


def track_features() -> int:
    """Numbers of a track's code a frame."""
    return 4 * TRACK_OCTAVES + 2


# ------------------------------------------------------------------ context


class PooledContext(nn.Module):
    """The paper's form: ê_t = MLP_e(pool of the frame's tokens) (Eq. 6), one key a frame."""

    def __init__(self, pool: nn.Module, project: nn.Module, time: nn.Module) -> None:
        super().__init__()
        self.pool, self.project, self.time = pool, project, time

    def forward(self, batch: Batch) -> Context:
        """One token a frame."""
        tokens = self.project(self.pool(batch.embeddings, batch.mask)) + self.time()
        return Context(tokens.unsqueeze(2), batch.mask[:, :, :1])


class ClsContext(nn.Module):
    """The frame's cls embedding alone: no region features."""

    def __init__(self, project: nn.Module, time: nn.Module) -> None:
        super().__init__()
        self.project, self.time = project, time

    def forward(self, batch: Batch) -> Context:
        """One token a frame."""
        tokens = self.project(batch.embeddings[:, :, 0]) + self.time()
        return Context(tokens.unsqueeze(2), batch.mask[:, :, :1])


class RegionContext(nn.Module):
    """Every region token is a key, with codes of its position, size and time. Ours, not the paper's."""

    def __init__(self, project: nn.Module, geometry: nn.Module, time: nn.Module) -> None:
        super().__init__()
        self.project, self.geometry, self.time = project, geometry, time

    def forward(self, batch: Batch) -> Context:
        """All tokens of all frames."""
        tokens = self.project(batch.embeddings) + self.geometry(batch.geometry) + self.time().unsqueeze(1)
        return Context(tokens, batch.mask)


# ------------------------------------------------------------------ blocks and encoders


class Block(nn.Module):
    """Eq. 8, pre-norm: Q' = Q + SA(Q); Ê_m = Ê + Conv1D_m(Ê); Q" = Q' + CA(Q', Ê_m); Q" + FFN(Q").

    Parts that the config's ``components`` do not name are None and left out; ``ffn=each`` puts a feed-forward
    part after self-attention, too.
    """

    def __init__(self, width: int, heads: int, config: ModelConfig) -> None:
        super().__init__()
        sa, ca, conv = map(config.has, ("sa", "ca", "conv"))
        self.norm_self, self.norm_cross, self.norm_keys = (
            nn.LayerNorm(width) if used else nn.Identity() for used in (sa, ca, ca)
        )
        self.self_attention = Attention(width, heads) if sa else None
        self.cross_attention = Attention(width, heads) if ca else None
        self.conv = TemporalConv(width, config.kernel, config.conv == "dense") if conv else None
        self.ffn = FeedForward(width, config.ffn_ratio)
        self.ffn_self = FeedForward(width, config.ffn_ratio) if sa and ca and config.ffn == "each" else None
        self.dropout = nn.Dropout(config.dropout)

    def forward(
        self, tokens: Float[Tensor, "b q w"], mask: Bool[Tensor, "b q"], context: Context | None
    ) -> Float[Tensor, "b q w"]:
        """The next queries; the context is always the same Ê."""
        tokens = self._attend_to_self(tokens, mask)
        if self.cross_attention and context:
            asked = self.norm_cross(tokens), self._keys(context), context.mask.flatten(1)
            tokens = tokens + self.dropout(self.cross_attention(*asked))
        return tokens + self.dropout(self.ffn(tokens))

    def cross_weights(
        self, tokens: Float[Tensor, "b q w"], mask: Bool[Tensor, "b q"], context: Context
    ) -> Float[Tensor, "b q n"]:
        """How much each query looks at each key (frames x tokens, flattened) in this block."""
        tokens = self._attend_to_self(tokens, mask)
        attention = cast(Attention, self.cross_attention)
        return attention.weights(self.norm_cross(tokens), self._keys(context), context.mask.flatten(1))

    def _attend_to_self(self, tokens: Tensor, mask: Tensor) -> Tensor:
        if self.self_attention:
            normed = self.norm_self(tokens)
            tokens = tokens + self.dropout(self.self_attention(normed, normed, mask))
        return tokens + self.dropout(self.ffn_self(tokens)) if self.ffn_self else tokens

    def _keys(self, context: Context) -> Tensor:
        tokens = self.conv(context.tokens, context.mask) if self.conv else context.tokens
        return self.norm_keys(tokens.flatten(1, 2))


class AltEncoder(nn.Module):
    """Queries over context through M blocks; z = MLP(mean of Q_M) (Eq. 9), or of what each class reads of them.

    ``context`` is None where the blocks have no cross-attention, ``readout`` where the mean is read.
    """

    def __init__(
        self,
        identities: Identities,
        queries: nn.Module,
        context: nn.Module | None,
        blocks: list[Block],
        readout: LabelReadout | None,
        head: nn.Module,
    ) -> None:
        super().__init__()
        self.identities = identities
        self.queries, self.context, self.blocks, self.head = queries, context, nn.ModuleList(blocks), head
        self.readout = readout

    def forward(
        self, batch: Batch, entities: Float[Tensor, "entities d"], labels: Float[Tensor, "classes d"]
    ) -> Encoded:
        """Encode a batch."""
        queries = self._queries(batch, entities)
        context = self.context(batch) if self.context else None
        tokens = queries.tokens
        for block in self.blocks:
            tokens = block(tokens, queries.mask, context)
        if self.readout is None:
            return Encoded(self.head(masked_mean(tokens, queries.mask)), queries.agreement)
        read = self.readout(tokens, cast(Tensor, queries.entities), queries.mask, entities, labels)
        return Encoded(self.head(read), queries.agreement, self.readout.rest(entities, labels))

    def attention(self, batch: Batch, entities: Float[Tensor, "entities d"]) -> Float[Tensor, "b t s"]:
        """Cross-attention on every context token, mean over queries and blocks; sums to 1 a video.

        A frame has one token where the context is pooled or cls. Raises ``AdapterError`` without cross-attention.
        """
        if not self.context:
            raise AdapterError("there is no cross-attention to show: the run has components=sa")
        queries, context = self._queries(batch, entities), self.context(batch)
        tokens, kept = queries.tokens, queries.mask
        total = torch.zeros_like(context.mask, dtype=tokens.dtype)
        for block in self.blocks:
            weights = cast(Block, block).cross_weights(tokens, kept, context)
            total = total + masked_mean(weights, kept).view_as(total) / len(self.blocks)
            tokens = block(tokens, kept, context)
        return total

    def _queries(self, batch: Batch, entities: Tensor) -> Queries:
        return self.queries(self.identities(batch, entities.shape[0]), entities)


class TemporalEncoder(nn.Module):
    """Baseline, adapt then align: a transformer over cls embeddings; no entities, no regions."""

    def __init__(self, project: nn.Module, time: nn.Module, layers: list[nn.Module], head: nn.Module) -> None:
        super().__init__()
        self.project, self.time, self.layers, self.head = project, time, nn.ModuleList(layers), head

    def forward(
        self, batch: Batch, entities: Float[Tensor, "entities d"], labels: Float[Tensor, "classes d"]
    ) -> Encoded:
        """Encode a batch."""
        tokens, mask = self.project(batch.embeddings[:, :, 0]) + self.time(), batch.mask[:, :, 0]
        for layer in self.layers:
            tokens = layer(tokens, mask)
        return Encoded(self.head(masked_mean(tokens, mask)), tokens.new_ones(()))


class TemporalLayer(nn.Module):
    """One pre-norm transformer layer over frames."""

    def __init__(self, width: int, heads: int, ffn_ratio: int, dropout: float) -> None:
        super().__init__()
        self.norm, self.attention = nn.LayerNorm(width), Attention(width, heads)
        self.ffn, self.dropout = FeedForward(width, ffn_ratio), nn.Dropout(dropout)

    def forward(self, tokens: Float[Tensor, "b t w"], mask: Bool[Tensor, "b t"]) -> Float[Tensor, "b t w"]:
        """The next tokens."""
        normed = self.norm(tokens)
        tokens = tokens + self.dropout(self.attention(normed, normed, mask))
        return tokens + self.dropout(self.ffn(tokens))


class MeanPoolEncoder(nn.Module):
    """Zero-shot: z is the mean of the cls embeddings; nothing to train."""

    def forward(
        self, batch: Batch, entities: Float[Tensor, "entities d"], labels: Float[Tensor, "classes d"]
    ) -> Encoded:
        """Encode a batch."""
        return Encoded(mean_cls(batch), batch.norms.new_ones(()))


def mean_cls(batch: Batch) -> Float[Tensor, "b d"]:
    """Unit mean of the frames' cls embeddings."""
    return F.normalize(masked_mean(batch.embeddings[:, :, 0], batch.mask[:, :, 0]), dim=-1)


# ------------------------------------------------------------------ labels and the whole


class LabelWhitening(nn.Module):
    """Centre and whiten label embeddings by training labels' statistics; unseen labels move alike.

    C = (1 - s) Cov + s tr(Cov)/d I; a label becomes the unit vector of C^-1/2 (c - mean). Identity until
    fitted.
    """

    mean: Tensor
    matrix: Tensor

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(dim))
        self.register_buffer("matrix", torch.eye(dim))

    @torch.no_grad()
    def fit(self, labels: Float[Tensor, "classes d"], shrinkage: float) -> None:
        """Take the statistics of the training labels; one label has none and is refused."""
        if len(labels) < 2:
            raise AdapterError("whiten_labels needs at least two training labels")
        centred = (labels - labels.mean(0)).double()
        covariance = centred.T @ centred / len(labels)
        spread = covariance.diagonal().mean() * torch.eye(len(covariance), dtype=covariance.dtype)
        values, basis = torch.linalg.eigh((1 - shrinkage) * covariance + shrinkage * spread)
        self.mean.copy_(labels.mean(0))
        self.matrix.copy_((basis * values.rsqrt()) @ basis.T * covariance.diagonal().mean().sqrt())

    def forward(self, labels: Float[Tensor, "classes d"]) -> Float[Tensor, "classes d"]:
        """Unit, transformed labels."""
        return F.normalize((labels - self.mean) @ self.matrix, dim=-1)


class VideoAdapter(nn.Module):
    """Encoder, residual and cosine head: logits = exp(logit_scale) cos(z, c_i) (Eq. 10 with CLIP's scale)."""

    def __init__(
        self,
        encoder: nn.Module,
        whitening: LabelWhitening,
        logit_scale: float,
        learn_scale: bool,
        residual: bool,
        label_entities: bool = False,
    ) -> None:
        super().__init__()
        self.encoder, self.whitening = encoder, whitening
        self.residual, self.label_entities = residual, label_entities
        self.log_scale = nn.Parameter(torch.tensor(logit_scale).log(), requires_grad=learn_scale)

    def forward(
        self, batch: Batch, entities: Float[Tensor, "entities d"], labels: Float[Tensor, "classes d"]
    ) -> Output:
        """Score the videos of a batch against a label set of unit embeddings."""
        encoded = self.encoder(*self.inputs(batch, entities, labels), labels)
        if encoded.rest is not None:
            z = F.normalize(encoded.z, dim=-1)
            return Output(self.log_scale.exp() * (z * encoded.rest).sum(-1), z, encoded.agreement)
        z = F.normalize(mean_cls(batch) + encoded.z if self.residual else encoded.z, dim=-1)
        return Output(self.against(z, labels), z, encoded.agreement)

    def against(
        self, z: Float[Tensor, "b d"], labels: Float[Tensor, "classes d"]
    ) -> Float[Tensor, "b classes"]:
        """Logits of unit z for the classes (Eq. 10)."""
        return self.log_scale.exp() * z @ self.whitening(labels).T

    def inputs(
        self, batch: Batch, entities: Float[Tensor, "entities d"], labels: Float[Tensor, "classes d"]
    ) -> tuple[Batch, Float[Tensor, "used d"]]:
        """What the encoder reads: the alignments and their corpus, or with ``entities=labels`` the labels as one."""
        return (aligned_to_labels(batch, labels), labels) if self.label_entities else (batch, entities)


def build_model(config: ModelConfig, shape: Shape) -> VideoAdapter:
    """The model that a config names, with fresh weights from torch's global generator."""
    encoders: dict[str, Callable[[ModelConfig, Shape], Any]] = {
        "alt": _alt,
        "adapt_then_align": _temporal,
        "mean_pool": lambda config, shape: MeanPoolEncoder(),
    }
    encoder = encoders[config.model](config, shape)
    residual = config.residual == "cls" and config.model != "mean_pool"
    if residual:
        # The learned part starts at zero: before training, z is zero-shot CLIP's.
        for parameter in encoder.head[-1].parameters():
            nn.init.zeros_(parameter)
    return VideoAdapter(
        encoder,
        LabelWhitening(shape.dim),
        config.logit_scale,
        config.learn_logit_scale,
        residual,
        config.entities == "labels",
    )


def fit_labels(model: VideoAdapter, config: ModelConfig, labels: Float[Tensor, "classes d"]) -> VideoAdapter:
    """Take the statistics of the training labels that the form asks for, before the first step; returns the model."""
    if config.whiten_labels:
        model.whitening.fit(labels, config.shrinkage)
    if not config.has_own_z:
        cast(LabelReadout, cast(AltEncoder, model.encoder).readout).fit(labels)
    return model


def count_parameters(model: nn.Module) -> int:
    """Trainable numbers of a model."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def parameters_by_part(model: VideoAdapter) -> dict[str, int]:
    """Trainable numbers by part of the model, the same parts of all blocks together; they sum to all of them."""
    counts: Counter[str] = Counter()
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            counts[_part(name)] += parameter.numel()
    return dict(counts)


def _part(name: str) -> str:
    words = name.removeprefix("encoder.").split(".")
    inside = words[2] if words[0] in ("blocks", "layers") else words[0]
    names = {"conv": "convolution", "ffn": "feed_forward", "ffn_self": "feed_forward", "log_scale": "scales"}
    names |= dict.fromkeys(("norm", "norm_self", "norm_cross", "norm_keys"), "norms")
    return names.get(inside, inside)


def block_sizes(config: ModelConfig, dim: int) -> tuple[int, int]:
    """Width of the blocks and number of heads."""
    width = config.width or dim
    heads = config.heads or max(2, width // 64)
    if width % heads:
        raise AdapterError(f"width is {width} and heads is {heads}; heads must divide the width")
    return width, heads


def _alt(config: ModelConfig, shape: Shape) -> AltEncoder:
    width, heads = block_sizes(config, shape.dim)
    blocks = [Block(width, heads, config) for _ in range(config.blocks)]
    return AltEncoder(
        _identities(config),
        _queries(config, shape, width),
        _context(config, shape, width) if config.has("ca") else None,
        blocks,
        LabelReadout(shape.dim, width, config.match_scale, config.null_score)
        if config.readout == "labels"
        else None,
        mlp(width, shape.dim, config.mlp_ratio),
    )


def _identities(config: ModelConfig) -> Identities:
    changes = {"permuted": permuted(config.control_seed), "scrambled": scrambled, "shuffled": shuffled}
    return changes.get(config.identities, unchanged)


def _queries(config: ModelConfig, shape: Shape, width: int) -> nn.Module:
    builders: dict[str, Callable[[], nn.Module]] = {
        "aligned": lambda: AlignedQueries(
            Alignment(config.scale, config.learn_scale, config.tau, config.noise),
            _pool(config, shape.dim),
            mlp(shape.dim, width, config.mlp_ratio),
            _time(config, shape, width),
            Rematch(shape.dim) if config.rematch else CachedScores(),
            config.align,
        ),
        "cls": lambda: ClsQueries(mlp(shape.dim, width, config.mlp_ratio), _time(config, shape, width)),
        "learned": lambda: LearnedQueries(shape.frames, width),
        "tracks": lambda: TrackQueries(
            config.tracks,
            shape.frames,
            width,
            mlp(shape.dim, width, config.mlp_ratio) if config.track_identity else None,
        ),
    }
    return builders[config.queries]()


def _context(config: ModelConfig, shape: Shape, width: int) -> nn.Module:
    project, time = mlp(shape.dim, width, config.mlp_ratio), _time(config, shape, width)
    builders: dict[str, Callable[[], nn.Module]] = {
        "pooled": lambda: PooledContext(_pool(config, shape.dim), project, time),
        "regions": lambda: RegionContext(project, GeometryCode(width), time),
        "cls": lambda: ClsContext(project, time),
    }
    return builders[config.context]()


def _pool(config: ModelConfig, dim: int) -> nn.Module:
    return AttentionPool(dim) if config.pool == "attention" else MeanPool()


def _time(config: ModelConfig, shape: Shape, width: int) -> nn.Module:
    codes = {"fourier": TimeCode, "learned": LearnedTimeCode, "none": NoTimeCode}
    return codes[config.time_codes](shape.frames, width)


def temporal_layers(config: ModelConfig, shape: Shape) -> int:
    """As many layers as bring the baseline nearest to the size of the ALT model of the same config."""
    with torch.device("meta"):
        models = _alt(config, shape), _temporal_encoder(config, shape, 0), _temporal_encoder(config, shape, 1)
    target, none, one = map(count_parameters, models)
    return max(1, round((target - none) / (one - none)))


def _temporal(config: ModelConfig, shape: Shape) -> TemporalEncoder:
    return _temporal_encoder(config, shape, temporal_layers(config, shape))


def _temporal_encoder(config: ModelConfig, shape: Shape, layers: int) -> TemporalEncoder:
    width, heads = block_sizes(config, shape.dim)
    stack: list[nn.Module] = [
        TemporalLayer(width, heads, config.ffn_ratio, config.dropout) for _ in range(layers)
    ]
    # The same code of time as ALT's default, always: a small learned one would read order worse.
    time = TimeCode(shape.frames, width)
    return TemporalEncoder(mlp(shape.dim, width), time, stack, mlp(width, shape.dim))
