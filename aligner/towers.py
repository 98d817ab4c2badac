"""Image towers of open_clip taken apart: embedding, blocks, head (no merging, no loading).

The encoder runs any of them with one loop; what differs between families is here and nowhere else. Nothing is
patched: an adapter holds the modules of the tower and calls them in the order in which the tower itself would.

Notation used for tensor shapes: frames f, tokens t, heads h, channels of a head d.
"""

from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from jaxtyping import Float
from open_clip.timm_model import TimmModel
from open_clip.transformer import (
    CustomResidualAttentionBlock,
    ResidualAttentionBlock,
    VisionTransformer,
)
from timm.layers.attention import Attention, AttentionRope
from timm.layers.pos_embed_sincos import apply_rot_embed_cat
from timm.models.eva import Eva, EvaAttention, EvaBlock, EvaBlockPostNorm
from timm.models.vision_transformer import Block as TimmViTBlock
from timm.models.vision_transformer import ResPostBlock
from timm.models.vision_transformer import VisionTransformer as TimmViT
from torch import Tensor, nn

from aligner.config import AlignerError

SUPPORTED = (
    "supported are ViT image towers: open_clip's own (ViT-B-32, ViT-B-16, ViT-L-14, ViT-H-14, CLIPA, CoCa) and "
    "timm's VisionTransformer and Eva (SigLIP, SigLIP2, EVA02, PE-Core, MobileCLIP-B); not ResNet, ConvNeXt, Swin "
    "or FastViT"
)
PRE_NORM = (TimmViTBlock, EvaBlock)
POST_NORM = (ResPostBlock, EvaBlockPostNorm)

Heads = Float[Tensor, "frames heads tokens channels"]
Features = Float[Tensor, "frames tokens features"]


@runtime_checkable
class Block(Protocol):
    """One block: ``x + finish(mix(*project(x)))``, then ``x + mlp(x)``; ``mix`` is the encoder's."""

    def project(self, x: Features) -> tuple[Heads, Heads, Heads]:
        """Queries, keys and values of the tokens, before any rotation."""
        ...

    def rotate(self, x: Heads, rope: Float[Tensor, "*axes patches angles"]) -> Heads:
        """Queries or keys with their rotary position; prefix tokens have none."""
        ...

    def finish(self, mixed: Heads) -> Features:
        """From mixed values to what the attention adds to the tokens."""
        ...

    def mlp(self, x: Features) -> Features:
        """What the MLP adds to the tokens."""
        ...


@runtime_checkable
class Tower(Protocol):
    """An image tower: ``prefix`` leading tokens (class token, registers), then the patches, row-major.

    ``module`` holds all weights; ``dim`` is the width of the joint space.
    """

    module: nn.Module
    grid: tuple[int, int]
    dim: int
    prefix: int
    blocks: Sequence[Block]

    def embed(self, pixels: Float[Tensor, "frames 3 height width"]) -> tuple[Features, Tensor | None]:
        """Tokens before the first block, and the rotary table [blocks, heads or 1, patches, angles] if any."""
        ...

    def pool(self, x: Features, sizes: Float[Tensor, "frames tokens"] | None) -> Float[Tensor, "frames dim"]:
        """The frame in the joint space, as ``encode_image`` pools it; ``sizes`` are the tokens' weights."""
        ...

    def regions(self, x: Features) -> Float[Tensor, "frames tokens dim"]:
        """Every token alone in the joint space: what ``pool`` would give if there were only that token."""
        ...


def tower_of(model: nn.Module) -> Tower:
    """The image tower of an open_clip model.

    Raises:
        AlignerError: a tower that cannot be taken apart; the message names what is supported.
    """
    visual = model.visual
    if isinstance(visual, VisionTransformer):
        return OpenClipTower(visual)
    if isinstance(visual, TimmModel):
        return TimmTower(visual)
    raise _refused(f"is a {type(visual).__name__}")


def _refused(reason: str) -> AlignerError:
    return AlignerError(f"the image tower {reason}; {SUPPORTED}. Choose another --model")


def _split(x: Float[Tensor, "frames tokens features"], channels: int) -> Heads:
    return x.unflatten(-1, (-1, channels)).transpose(1, 2)


def _join(x: Heads) -> Features:
    return x.transpose(1, 2).flatten(2)


def _mean(x: Features, sizes: Float[Tensor, "frames tokens"] | None) -> Float[Tensor, "frames features"]:
    """Mean of the tokens, each as often as it has originals; the sums are taken in the dtype of ``sizes``."""
    if sizes is None:
        return x.mean(1)
    weight = (sizes / sizes.sum(1, keepdim=True)).unsqueeze(-1)
    return (x.to(sizes.dtype) * weight).sum(1).to(x.dtype)


# open_clip's own towers.


class OpenClipBlock:
    """open_clip's ResidualAttentionBlock, whose attention is torch's MultiheadAttention."""

    def __init__(self, block: ResidualAttentionBlock | CustomResidualAttentionBlock) -> None:
        self.block: Any = block

    def project(self, x: Features) -> tuple[Heads, Heads, Heads]:
        """See ``Block``."""
        attn = self.block.attn
        qkv = F.linear(self.block.ln_1(x), attn.in_proj_weight, attn.in_proj_bias)
        q, k, v = (_split(part, attn.head_dim) for part in qkv.chunk(3, dim=-1))
        return q, k, v

    def rotate(self, x: Heads, rope: Tensor) -> Heads:
        """No such tower has rotary positions."""
        raise NotImplementedError

    def finish(self, mixed: Heads) -> Features:
        """See ``Block``."""
        return self.block.ls_1(self.block.attn.out_proj(_join(mixed)))

    def mlp(self, x: Features) -> Features:
        """See ``Block``."""
        return self.block.ls_2(self.block.mlp(self.block.ln_2(x)))


class OpenClipCustomBlock(OpenClipBlock):
    """open_clip's CustomResidualAttentionBlock: normed queries and keys, scaled heads, inner norms."""

    def project(self, x: Features) -> tuple[Heads, Heads, Heads]:
        """See ``Block``."""
        q, k, v = super().project(x)
        return self.block.attn.ln_q(q), self.block.attn.ln_k(k), v

    def finish(self, mixed: Heads) -> Features:
        """See ``Block``."""
        attn = self.block.attn
        mixed = mixed if attn.head_scale is None else mixed * attn.head_scale
        return self.block.ls_1(self.block.ln_attn(attn.out_proj(attn.ln_inner(_join(mixed)))))


class OpenClipTower:
    """open_clip's VisionTransformer: one class token; pooled by it, by the mean of the patches, or by attention."""

    prefix = 1

    def __init__(self, visual: VisionTransformer) -> None:
        _check_open_clip(visual)
        self.module: Any = visual
        self.grid = (int(visual.grid_size[0]), int(visual.grid_size[1]))
        self.dim = int(visual.output_dim)
        self.blocks: Sequence[Block] = [
            (OpenClipBlock if type(block) is ResidualAttentionBlock else OpenClipCustomBlock)(block)
            for block in visual.transformer.resblocks
        ]

    def embed(self, pixels: Float[Tensor, "frames 3 height width"]) -> tuple[Features, None]:
        """See ``Tower``."""
        return self.module._embeds(pixels), None

    def pool(self, x: Features, sizes: Float[Tensor, "frames tokens"] | None) -> Float[Tensor, "frames dim"]:
        """See ``Tower``."""
        visual = self.module
        if visual.attn_pool is not None:
            pooled = visual.ln_post(self._attend(x, sizes))
        elif visual.pool_type == "tok":
            pooled = visual.ln_post(x[:, 0])
        elif visual.final_ln_after_pool:
            pooled = visual.ln_post(_mean(x[:, 1:], None if sizes is None else sizes[:, 1:]))
        else:
            pooled = _mean(visual.ln_post(x[:, 1:]), None if sizes is None else sizes[:, 1:])
        return pooled @ visual.proj

    def regions(self, x: Features) -> Float[Tensor, "frames tokens dim"]:
        """See ``Tower``."""
        visual = self.module
        if visual.attn_pool is not None:
            x = self._attend(x.flatten(0, 1).unsqueeze(1), None).unflatten(0, x.shape[:2])
        return visual.ln_post(x) @ visual.proj

    def _attend(
        self, x: Features, sizes: Float[Tensor, "frames tokens"] | None
    ) -> Float[Tensor, "frames pooled"]:
        """CoCa's pooling by the first of its learned queries, which is the only one that ``encode_image`` uses."""
        pool = self.module.attn_pool
        keys = pool.ln_k(x)
        query = pool.ln_q(pool.query[:1]).expand(x.shape[0], 1, -1)
        bias = None
        if sizes is not None:
            bias = sizes.log().to(x.dtype).unsqueeze(1).repeat_interleave(pool.attn.num_heads, 0)
        return pool.attn(query, keys, keys, need_weights=False, attn_mask=bias)[0].squeeze(1)


def _check_open_clip(visual: VisionTransformer) -> None:
    blocks = visual.transformer.resblocks
    if any(type(block) not in (ResidualAttentionBlock, CustomResidualAttentionBlock) for block in blocks):
        raise _refused(f"has blocks of the kind {type(blocks[0]).__name__}")
    if any(getattr(block.attn, "logit_scale", None) is not None for block in blocks):
        raise _refused("has scaled cosine attention, which open_clip itself cannot run")
    if visual.attn_pool is not None and visual.pool_type != "tok":
        raise _refused("pools by parallel or cascaded attention, which is unfinished in open_clip")
    if visual.pool_type not in ("tok", "avg"):
        raise _refused(f"pools by {visual.pool_type!r}")


# timm's towers.


class TimmBlock:
    """A block of timm's VisionTransformer or Eva, with the norm before a branch or after it."""

    def __init__(self, block: nn.Module) -> None:
        self.block: Any = block
        self.attn: Any = block.attn

    def project(self, x: Features) -> tuple[Heads, Heads, Heads]:
        """See ``Block``."""
        attn = self.attn
        q, k, v = (_split(part, attn.head_dim) for part in _timm_qkv(attn, self._before(1, x)))
        return attn.q_norm(q), attn.k_norm(k), v

    def rotate(self, x: Heads, rope: Float[Tensor, "*axes patches angles"]) -> Heads:
        """See ``Block``."""
        prefix = self.attn.num_prefix_tokens
        turned = apply_rot_embed_cat(x[:, :, prefix:], rope, half=getattr(self.attn, "rotate_half", False))
        return torch.cat([x[:, :, :prefix], turned], dim=2).type_as(x)

    def finish(self, mixed: Heads) -> Features:
        """See ``Block``."""
        return self._after(1, self.attn.proj(self.attn.norm(_join(mixed))))

    def mlp(self, x: Features) -> Features:
        """See ``Block``."""
        return self._after(2, self.block.mlp(self._before(2, x)))

    def _before(self, branch: int, x: Features) -> Features:
        return x if isinstance(self.block, POST_NORM) else getattr(self.block, f"norm{branch}")(x)

    def _after(self, branch: int, x: Features) -> Features:
        if isinstance(self.block, POST_NORM):
            return getattr(self.block, f"norm{branch}")(x)
        if isinstance(self.block, EvaBlock):
            gamma = getattr(self.block, f"gamma_{branch}")
            return x if gamma is None else gamma * x
        return getattr(self.block, f"ls{branch}")(x)


def _timm_qkv(attn: Any, x: Features) -> Sequence[Features]:
    if attn.qkv is None:
        return attn.q_proj(x), attn.k_proj(x), attn.v_proj(x)
    # EvaAttention keeps the biases apart from the fused weights.
    if getattr(attn, "q_bias", None) is not None:
        bias = torch.cat([attn.q_bias, attn.k_bias, attn.v_bias])
        return F.linear(x, attn.qkv.weight, bias).chunk(3, dim=-1)
    return attn.qkv(x).chunk(3, dim=-1)


class TimmTower:
    """open_clip's TimmModel around timm's VisionTransformer (SigLIP ...) or Eva (EVA02, PE-Core ...).

    Pooled by the class token, by the mean of the patches, or by attention (``map``). A region of an
    attention-pooled tower goes through the pooling alone: with one token to look at, the pooling's softmax is 1, so
    that the region takes the value path of the pooling and then its projection, MLP and norm. These are the
    weights by which a token reaches the joint space at all; the norm and projection alone would leave it outside.
    """

    def __init__(self, visual: TimmModel) -> None:
        _check_timm(visual)
        trunk: Any = visual.trunk
        self.module: Any = visual
        self.grid = (int(trunk.patch_embed.grid_size[0]), int(trunk.patch_embed.grid_size[1]))
        self.prefix = int(trunk.num_prefix_tokens)
        self.blocks: Sequence[Block] = [TimmBlock(block) for block in trunk.blocks]
        linear = [m for m in (*trunk.head.modules(), *visual.head.modules()) if isinstance(m, nn.Linear)]
        self.dim = int(linear[-1].out_features if linear else trunk.num_features)

    def embed(self, pixels: Float[Tensor, "frames 3 height width"]) -> tuple[Features, Tensor | None]:
        """See ``Tower``."""
        trunk = self.module.trunk
        x = trunk.patch_embed(pixels)
        if isinstance(trunk, TimmViT):
            return trunk.norm_pre(trunk.patch_drop(trunk._pos_embed(x))), None
        x, rope = trunk._pos_embed(x)
        if rope is not None:
            # A table of its own for each block and head ("mixed"), or one for all.
            rope = rope if trunk.rope_mixed else rope.expand(len(self.blocks), 1, -1, -1)
        return trunk.norm_pre(x), rope

    def pool(self, x: Features, sizes: Float[Tensor, "frames tokens"] | None) -> Float[Tensor, "frames dim"]:
        """See ``Tower``."""
        trunk = self.module.trunk
        if trunk.attn_pool is None and trunk.global_pool == "token":
            return self._leave(trunk.norm(x[:, 0]))
        first = self._first_pooled()
        x = trunk.norm(x[:, first:])
        sizes = None if sizes is None else sizes[:, first:]
        if trunk.attn_pool is None:
            return self._leave(_mean(x, sizes))
        bias = None if sizes is None else sizes.log().to(x.dtype)[:, None, None, :]
        return self._leave(trunk.attn_pool(x, attn_mask=bias))

    def regions(self, x: Features) -> Float[Tensor, "frames tokens dim"]:
        """See ``Tower``."""
        trunk = self.module.trunk
        x = trunk.norm(x)
        if trunk.attn_pool is not None:
            x = trunk.attn_pool(x.flatten(0, 1).unsqueeze(1)).unflatten(0, x.shape[:2])
        return self._leave(x)

    def _leave(self, x: Float[Tensor, "*axes features"]) -> Float[Tensor, "*axes dim"]:
        trunk = self.module.trunk
        return self.module.head(trunk.head(trunk.fc_norm(x)))

    def _first_pooled(self) -> int:
        """Eva's attention pooling sees the prefix tokens too; timm's VisionTransformer has a switch for it."""
        trunk = self.module.trunk
        if isinstance(trunk, TimmViT):
            return 0 if trunk.pool_include_prefix else self.prefix
        return self.prefix if trunk.attn_pool is None else 0


def _check_timm(visual: TimmModel) -> None:
    trunk: Any = visual.trunk
    if type(trunk) not in (TimmViT, Eva):
        raise _refused(f"is timm's {type(trunk).__name__}")
    if trunk.global_pool not in ("token", "avg", "map"):
        raise _refused(f"pools by {trunk.global_pool!r}")
    for block in trunk.blocks:
        if type(block) not in PRE_NORM + POST_NORM:
            raise _refused(f"has blocks of the kind {type(block).__name__}")
        if type(block.attn) not in (Attention, AttentionRope, EvaAttention):
            raise _refused(f"has attention of the kind {type(block.attn).__name__}")
        if getattr(block.attn, "gate", None) is not None or getattr(block.attn, "num_kv_groups", 1) > 1:
            raise _refused("has gated or grouped-query attention")
