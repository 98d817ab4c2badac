"""Region-aware image encoder: an open_clip ViT run block by block with token merging (ALT section 1.2).

Every block is ``x + attention``, then a merge of the r most similar token pairs, then ``x + mlp``; every
token that is left goes through the final norm and the projection, so that regions and text share one space.
With r = 0 the class token equals open_clip's ``encode_image``.

Notation used for tensor shapes: frames f, tokens t, heads h, channels of a head d, width w.
"""

import hashlib
import logging
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import open_clip
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from open_clip.transformer import ResidualAttentionBlock, VisionTransformer
from torch import Tensor, nn

from aligner.config import AlignerError, did_you_mean
from aligner.merging import (
    merge_schedule,
    merge_sources,
    merge_tokens,
    mergeable,
    plan_merge,
    token_counts,
)

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
SUPPORTED = (
    "supported are open_clip's own ViT image towers with a class token, such as ViT-B-16 or ViT-L-14 "
    "(no ResNet, no timm tower, no attentional or average pooling)"
)


@dataclass(frozen=True)
class EncodedFrames:
    """Tokens of some frames after the encoder, token 0 being the class token.

    ``embeddings`` are not normalised. ``sizes`` counts the original tokens in each token, ``source`` holds
    the token (1 ..) that each patch (row-major) ended in.
    """

    embeddings: Float[Tensor, "frames tokens dim"]
    sizes: Float[Tensor, "frames tokens"]
    source: Int[Tensor, "frames patches"]


@runtime_checkable
class RegionEncoder(Protocol):
    """What a run needs of an encoder; any model that turns pixels into region tokens fits."""

    grid: tuple[int, int]
    dim: int
    regions: int
    preprocess: Callable[[Any], Tensor]

    def __call__(self, pixels: Float[Tensor, "frames 3 height width"]) -> EncodedFrames:
        """Encode preprocessed frames."""
        ...


class ClipRegionEncoder:
    """Token merging inside the image tower of an open_clip model."""

    def __init__(
        self,
        model: nn.Module,
        merge: int | tuple[int, float] | Sequence[int] = 8,
        *,
        proportional_attention: bool = True,
        precision: str = "fp32",
        device: str | torch.device = "cpu",
    ) -> None:
        """Wrap the tower of ``model``.

        Raises:
            AlignerError: a tower whose blocks we cannot take apart.
        """
        self.visual = supported_tower(model).to(device=device, dtype=DTYPES[precision]).eval()
        self.dtype = DTYPES[precision]
        self.proportional_attention = proportional_attention
        self.schedule = merge_schedule(merge, len(self.visual.transformer.resblocks))
        self.grid = (int(self.visual.grid_size[0]), int(self.visual.grid_size[1]))
        self.dim = int(self.visual.output_dim)
        self.regions = [self.patches, *(n - 1 for n in token_counts(self.patches + 1, self.schedule))][-1]
        config = open_clip.transform.PreprocessCfg(**preprocess_config(model))
        self.preprocess = open_clip.transform.image_transform_v2(config, is_train=False)

    @property
    def patches(self) -> int:
        """Patches of a frame."""
        return self.grid[0] * self.grid[1]

    @torch.inference_mode()
    def __call__(self, pixels: Float[Tensor, "frames 3 height width"]) -> EncodedFrames:
        """Encode preprocessed frames, each on its own; ``float32`` results."""
        return self.encode(pixels)

    def encode(self, pixels: Float[Tensor, "frames 3 height width"]) -> EncodedFrames:
        """The same with gradients, for those who train the tower."""
        device = self.visual.proj.device
        x = self.visual._embeds(pixels.to(device=device, dtype=self.dtype))
        sizes = torch.ones(x.shape[:2], device=device)
        source = torch.arange(x.shape[1], device=device).expand(x.shape[0], -1)
        merged = False
        for block, r in zip(self.visual.transformer.resblocks, self.schedule, strict=True):
            weigh = sizes if merged and self.proportional_attention else None
            attended, metric = attention(block.attn, block.ln_1(x), weigh)
            x = x + block.ls_1(attended)
            if mergeable(x.shape[1], r):
                plan = plan_merge(metric.float(), r)
                x, sizes = merge_tokens(plan, x, sizes)
                source = merge_sources(plan, source)
                merged = True
            x = x + block.ls_2(block.mlp(block.ln_2(x)))
        x = self.visual.ln_post(x) @ self.visual.proj
        return EncodedFrames(x.float(), sizes, source[:, 1:])


def attention(
    attn: nn.MultiheadAttention,
    x: Float[Tensor, "frames tokens width"],
    sizes: Float[Tensor, "frames tokens"] | None = None,
) -> tuple[Float[Tensor, "frames tokens width"], Float[Tensor, "frames tokens channels"]]:
    """Self-attention with the weights of ``attn``, and the keys averaged over heads (what tokens merge by).

    With ``sizes`` a token counts as often as it has originals: log(size) is added to its logits.
    """
    f, t, _ = x.shape
    qkv = F.linear(x, attn.in_proj_weight, attn.in_proj_bias)
    q, k, v = qkv.view(f, t, 3, attn.num_heads, -1).permute(2, 0, 3, 1, 4)  # each [f, h, t, d]
    bias = None if sizes is None else sizes.log().to(x.dtype)[:, None, None, :].expand(f, 1, t, t)
    mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
    mixed = mixed.transpose(1, 2).reshape(f, t, -1)
    return F.linear(mixed, attn.out_proj.weight, attn.out_proj.bias), k.mean(1)


def supported_tower(model: nn.Module) -> VisionTransformer:
    """The image tower of ``model``; AlignerError says what is wrong with it and which are supported."""
    visual = model.visual
    if not isinstance(visual, VisionTransformer):
        raise AlignerError(f"the image tower is a {type(visual).__name__}; {SUPPORTED}")
    if visual.attn_pool is not None:
        raise AlignerError(f"the image tower pools by attention; {SUPPORTED}")
    if visual.pool_type != "tok":
        raise AlignerError(
            f"the image tower pools by {visual.pool_type!r} and has no class token; {SUPPORTED}"
        )
    if any(type(block) is not ResidualAttentionBlock for block in visual.transformer.resblocks):
        raise AlignerError(f"the image tower has custom attention blocks; {SUPPORTED}")
    return visual


def preprocess_config(model: nn.Module) -> dict[str, Any]:
    """Size, mean, std, interpolation ... with which open_clip prepares pictures for this model."""
    known = open_clip.transform.PreprocessCfg.__dataclass_fields__
    return {key: value for key, value in _visual(model).preprocess_cfg.items() if key in known}


def _visual(model: nn.Module) -> Any:
    """The image tower, whose attributes torch's types do not know."""
    return model.visual


def load_clip(model: str, pretrained: str | None = None) -> tuple[nn.Module, dict[str, Any]]:
    """An open_clip model in fp32 on the CPU, and its ModelInfo for manifests.

    Raises:
        AlignerError: an unknown model or tag, missing weights, or a download that failed.
    """
    schema = model.partition(":")[0] if model.startswith(("hf-hub:", "local-dir:")) else None
    weights = _checked_weights(model, pretrained, schema)
    clip = _create(model, weights) if weights is not None or schema else _create_random(model)
    info = {
        "name": f"local-dir:{Path(model.partition(':')[2]).name}" if schema == "local-dir" else model,
        "pretrained": _weights_name(pretrained),
        "weights_sha256": weights_sha256(clip),
        "embed_dim": int(_visual(clip).output_dim),
        "random_weights": pretrained == "none",
    }
    return clip.eval(), info


def weights_sha256(model: nn.Module) -> str:
    """Identity of the weights: name, shape and fp32 bytes of every tensor of the state dict, by name."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        tensor = tensor.detach().cpu().contiguous()
        tensor = tensor.float() if tensor.is_floating_point() else tensor
        digest.update(name.encode())
        digest.update(str(tuple(tensor.shape)).encode())
        digest.update(tensor.numpy().tobytes())
    return digest.hexdigest()


def _checked_weights(model: str, pretrained: str | None, schema: str | None) -> str | None:
    """The ``pretrained`` argument for open_clip, after everything that can be checked without a network."""
    if schema is not None:
        if pretrained is not None:
            raise AlignerError(f"--pretrained must be omitted with --model {schema}:..., got {pretrained!r}")
        if schema == "local-dir":
            _check_folder(Path(model.partition(":")[2]))
        return None
    if model not in open_clip.list_models():
        hint = did_you_mean(model, open_clip.list_models())
        raise AlignerError(f"unknown model {model!r}{hint}; `open_clip.list_models()` lists them")
    if pretrained == "none":
        return None
    tags = open_clip.list_pretrained_tags_by_model(model)
    if pretrained is None:
        raise AlignerError(
            f"--pretrained is needed for {model}: one of {', '.join(tags) or 'no published tag'}, a file, "
            "or none for random weights"
        )
    if not open_clip.pretrained.is_pretrained_cfg(model, pretrained) and not os.path.isfile(pretrained):
        hint = did_you_mean(pretrained, tags)
        raise AlignerError(
            f"--pretrained {pretrained!r} is neither a file nor a tag of {model}{hint}; "
            f"tags are {', '.join(tags) or '(none)'}"
        )
    return pretrained


def _check_folder(folder: Path) -> None:
    for name in ("open_clip_config.json", "open_clip_model.safetensors"):
        if not (folder / name).is_file():
            raise AlignerError(
                f"--model local-dir:{folder} needs open_clip_config.json and open_clip_model.safetensors; "
                f"{name} is missing"
            )


def _create(model: str, pretrained: str | None) -> nn.Module:
    try:
        return open_clip.create_model(model, pretrained=pretrained, precision="fp32", require_pretrained=True)
    except Exception as error:  # open_clip, the hub client and torch all raise their own kinds here
        reason = str(error).strip().splitlines()
        raise AlignerError(
            f"could not load the weights of {model} (pretrained {pretrained}): "
            f"{reason[0].rstrip('.') if reason else type(error).__name__}. Without a network, "
            "download the checkpoint elsewhere and give it: --pretrained FILE, or --model local-dir:FOLDER"
        ) from error


def _create_random(model: str) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        before = logging.root.manager.disable
        # open_clip warns that nothing was loaded; that was asked for, and the run says so in its own words.
        logging.disable(logging.WARNING)
        try:
            return open_clip.create_model(model, pretrained=None, precision="fp32")
        finally:
            logging.disable(before)


def _weights_name(pretrained: str | None) -> str | None:
    """Tag or base name of the weights: manifests name no folders of the machine that made them."""
    return Path(pretrained).name if pretrained and os.path.isfile(pretrained) else pretrained
