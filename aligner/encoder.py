"""Region-aware image encoder: an open_clip image tower run block by block with token merging (ALT section 1.2).

Every block is ``x + attention``, then a merge of the r most similar token pairs, then ``x + mlp``; every token that is
left goes through the tower's head, so that regions and text share one space. With r = 0 the embedding of the frame
equals open_clip's ``encode_image``. ``towers.py`` knows the towers; the loop is here, once.

Notation used for tensor shapes: frames f, tokens t, heads h, channels of a head d, width w.
"""

import hashlib
import json
import logging
import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import open_clip
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from open_clip.constants import IMAGENET_MEAN, IMAGENET_STD, OPENAI_DATASET_MEAN, OPENAI_DATASET_STD
from safetensors.torch import load_file
from torch import Tensor, nn

from aligner.config import AlignerError, did_you_mean
from aligner.merging import (
    MergePlan,
    automatic_merge,
    merge_schedule,
    merge_sources,
    merge_tokens,
    mergeable,
    plan_merge,
    token_counts,
)
from aligner.towers import Heads, Tower, tower_of

_UNREACHABLE = re.compile(r"download|connection|offline|resolve|timed out|the Hub", re.IGNORECASE)
# Heads of what is attended to: the tokens, and prompts where there are any.
Keys = Float[Tensor, "frames heads keys channels"]
# Attribute of an image tower, and file beside a model's weights, that hold prompts (`alt finetune --prompts`).
PROMPTS = "prompts"
# The text tower's, which only corpus-builder uses: to the aligner they are a part of the model's identity.
TEXT_PROMPTS = "text_prompts"
# Entry of a model folder's open_clip_config.json, which open_clip does not read.
RANDOM_WEIGHTS = "random_weights"
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class EncodedFrames:
    """Tokens of some frames after the encoder; token 0 is the whole frame, the others are its regions.

    Token 0 is what ``encode_image`` gives for the merged tokens: the class token, or the pooled embedding of towers
    that have none. ``embeddings`` are not normalised. ``sizes`` counts the patches in each region, and is 1 for
    token 0; ``source`` holds the region (1 ..) that each patch (row-major) ended in.
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


@dataclass(frozen=True)
class Tokens:
    """Tokens between two blocks.

    ``source`` is the token that each patch is in now, and ``place`` the patch whose rotary position a token has;
    both count without the prefix tokens. ``rope`` is the tower's table of rotary positions.
    """

    x: Float[Tensor, "frames tokens width"]
    sizes: Float[Tensor, "frames tokens"]
    source: Int[Tensor, "frames patches"]
    place: Int[Tensor, "frames places"]
    rope: Float[Tensor, "blocks heads patches angles"] | None
    merged: bool = False


class ClipRegionEncoder:
    """Token merging inside the image tower of an open_clip model."""

    def __init__(
        self,
        model: nn.Module,
        merge: int | str | tuple[int, float] | Sequence[int] = 8,
        *,
        proportional_attention: bool = True,
        dense: str = "none",
        precision: str = "fp32",
        compiled: bool = False,
        device: str | torch.device = "cpu",
    ) -> None:
        """Wrap the tower of ``model``; AlignConfig has the choices, and checks them.

        Args:
            model: an open_clip model.
            merge: pairs merged in each block, ``auto``, or any other schedule of ``merge_schedule``.
            proportional_attention: whether a merged token counts by its size in attention and in pooling.
            dense: what replaces the attention of the regions in the last block, see ``mix``.
            precision: a key of DTYPES. The weights themselves are cast, not each product by autocast: they are read
                once in half the bytes, and what needs more bits (merging, norms, softmax) has them anyway.
            compiled: whether torch.compile makes the kernels, which takes a minute at the first pass of a shape.
            device: where to compute.

        Raises:
            AlignerError: a tower whose blocks we cannot take apart.
        """
        self.tower: Tower = tower_of(model)
        self.tower.module.to(device=device, dtype=DTYPES[precision]).eval()
        # Channels last is how pictures arrive, so that they are not copied into another order.
        self.tower.module.to(memory_format=torch.channels_last)
        self.dtype = DTYPES[precision]
        # Learned tokens of every block, where the model was tuned with any (Float[Tensor, "blocks prompts width"]).
        self.prompts: Tensor | None = getattr(self.tower.module, PROMPTS, None)
        self.proportional_attention = proportional_attention
        self.dense = dense
        self.grid = self.tower.grid
        self.dim = self.tower.dim
        layers = len(self.tower.blocks)
        self.merge = automatic_merge(self.patches, layers) if isinstance(merge, str) else merge
        self.schedule = merge_schedule(self.merge, layers)
        prefix = self.tower.prefix
        counts = token_counts(self.patches + prefix, self.schedule, prefix)
        self.regions = counts[-1] - prefix
        config = open_clip.transform.PreprocessCfg(**preprocess_config(model))
        self.preprocess = open_clip.transform.image_transform_v2(config, is_train=False)
        self._encode = torch.compile(self.encode, dynamic=False) if compiled else self.encode

    @property
    def patches(self) -> int:
        """Patches of a frame."""
        return self.grid[0] * self.grid[1]

    @torch.inference_mode()
    def __call__(self, pixels: Float[Tensor, "frames 3 height width"]) -> EncodedFrames:
        """Encode preprocessed frames, each on its own; ``float32`` results."""
        return self._encode(pixels)

    def encode(self, pixels: Float[Tensor, "frames 3 height width"]) -> EncodedFrames:
        """The same with gradients, for those who train the tower."""
        return self.upper(self.lower(pixels, 0), 0)

    def lower(self, pixels: Float[Tensor, "frames 3 height width"], blocks: int) -> Tokens:
        """Tokens after the embedding and the first ``blocks`` blocks; ``upper(lower(x, n), n)`` is ``encode(x)``."""
        tokens = self._embed(pixels)
        for layer in range(blocks):
            tokens = self._block(tokens, layer)
        return tokens

    def upper(self, tokens: Tokens, blocks: int) -> EncodedFrames:
        """What the other blocks and the head make of tokens that have passed ``blocks`` blocks (not all of them)."""
        last = len(self.tower.blocks) - 1
        for layer in range(blocks, last):
            tokens = self._block(tokens, layer)
        frame = self._block(tokens, last)
        # The frame stays what the model makes of it: only the regions take the other way through the last block.
        regions = frame if self.dense == "none" else self._block(tokens, last, self.dense)
        prefix = self.tower.prefix
        weigh = frame.sizes if frame.merged and self.proportional_attention else None
        pooled = self.tower.pool(frame.x, weigh).unsqueeze(1)
        embeddings = torch.cat([pooled, self.tower.regions(regions.x[:, prefix:])], dim=1)
        sizes = torch.cat([torch.ones_like(frame.sizes[:, :1]), frame.sizes[:, prefix:]], dim=1)
        return EncodedFrames(embeddings.float(), sizes, frame.source + 1)

    def _embed(self, pixels: Float[Tensor, "frames 3 height width"]) -> Tokens:
        device = next(self.tower.module.parameters()).device
        x, rope = self.tower.embed(pixels.to(device=device, dtype=self.dtype))
        patches = torch.arange(self.patches, device=device).expand(x.shape[0], -1)
        return Tokens(x, torch.ones(x.shape[:2], device=device), patches, patches, rope)

    def _block(self, tokens: Tokens, layer: int, dense: str = "none") -> Tokens:
        block = self.tower.blocks[layer]
        q, k, v = block.project(tokens.x)
        # Keys before rotation: tokens merge by what they show, as in towers without rotary positions.
        metric = k.mean(1)
        if tokens.rope is not None:
            rope = rope_of(tokens.rope[layer], tokens.place if tokens.merged else None)
            q, k = block.rotate(q, rope), block.rotate(k, rope)
        sizes = tokens.sizes if tokens.merged and self.proportional_attention else None
        if self.prompts is not None and dense == "none":
            k, v, sizes = self._with_prompts(layer, k, v, sizes)
        tokens = replace(tokens, x=tokens.x + block.finish(mix(q, k, v, sizes, dense)))
        tokens = self._merge(tokens, metric, self.schedule[layer])
        return replace(tokens, x=tokens.x + block.mlp(tokens.x))

    def _with_prompts(
        self, layer: int, k: Heads, v: Heads, sizes: Float[Tensor, "frames tokens"] | None
    ) -> tuple[Keys, Keys, Float[Tensor, "frames keys"] | None]:
        """Keys and values of the tokens, and behind them those of the block's prompts.

        What a block makes of its prompts is thrown away (the next block has its own), so they ask nothing: they are
        keys and values only, and never merge.
        """
        assert self.prompts is not None
        prompts = self.prompts[layer].to(k.dtype).expand(len(k), -1, -1)
        _, more_k, more_v = self.tower.blocks[layer].project(prompts)
        sizes = None if sizes is None else F.pad(sizes, (0, prompts.shape[1]), value=1.0)
        return torch.cat([k, more_k.to(k.dtype)], 2), torch.cat([v, more_v.to(v.dtype)], 2), sizes

    def _merge(self, tokens: Tokens, metric: Float[Tensor, "frames tokens channels"], r: int) -> Tokens:
        """Merge r pairs of patches; of the prefix tokens, all but the last are held out and that one is protected."""
        protected = min(self.tower.prefix, 1)
        held = self.tower.prefix - protected
        if not mergeable(tokens.x.shape[1] - held, r, protected):
            return tokens
        plan = plan_merge(metric[:, held:].float(), r, protected)
        x, sizes = merge_tokens(plan, tokens.x[:, held:], tokens.sizes[:, held:])
        if held:
            x = torch.cat([tokens.x[:, :held], x], dim=1)
            sizes = torch.cat([tokens.sizes[:, :held], sizes], dim=1)
        source = merge_sources(plan, tokens.source + protected) - protected
        place = _places(plan, tokens.place, protected)
        return replace(tokens, x=x, sizes=sizes, source=source, place=place, merged=True)


def _places(
    plan: MergePlan, place: Int[Tensor, "frames places"], protected: int
) -> Int[Tensor, "frames merged_places"]:
    """A merged token keeps the rotary position of the token that took the others in.

    That is a position inside its region and one the tower was trained on; a mean of positions need be neither.
    """
    return place.gather(1, plan.survivors()[:, protected:] - protected)


def rope_of(
    table: Float[Tensor, "heads patches angles"], place: Int[Tensor, "frames places"] | None
) -> Float[Tensor, "*axes places angles"]:
    """Rows of a block's rotary table for tokens at ``place``, heads before tokens; the whole table without one."""
    return table if place is None else table[:, place].transpose(0, 1)


def mix(
    q: Heads,
    k: Keys,
    v: Keys,
    sizes: Float[Tensor, "frames keys"] | None = None,
    dense: str = "none",
) -> Heads:
    """Mix the values of the tokens by attention, or by what stands in for it in the last block.

    Args:
        q: queries.
        k: keys.
        v: values.
        sizes: with them a token counts as often as it has originals: log(size) is added to its logits (ToMe's
            proportional attention, arXiv 2210.09461).
        dense: ``none`` is the model's attention. ``value``: every token keeps its own value (MaskCLIP, arXiv
            2112.01071). ``self``: the sum of query-query and key-key attention (SCLIP, arXiv 2312.01597; CLIP
            Surgery, arXiv 2304.05653, does the same with values). Residual and MLP of the block stay, as in MaskCLIP
            and SCLIP.
    """
    if dense == "value":
        return v
    bias = None
    if sizes is not None:
        bias = sizes.log().to(q.dtype)[:, None, None, :].expand(-1, 1, q.shape[2], -1)
    if dense == "self":
        by_queries = F.scaled_dot_product_attention(q, q, v, attn_mask=bias)
        return by_queries + F.scaled_dot_product_attention(k, k, v, attn_mask=bias)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=bias)


def preprocess_config(model: nn.Module) -> dict[str, Any]:
    """Size, mean, std, interpolation ... with which open_clip prepares pictures for this model."""
    known = open_clip.transform.PreprocessCfg.__dataclass_fields__
    return {key: value for key, value in _visual(model).preprocess_cfg.items() if key in known}


def colours(name: str, preprocess: dict[str, Any]) -> tuple[Sequence[float], Sequence[float]]:
    """Mean and deviation by the name that ``--colours`` gives them; ``model`` are those of ``preprocess``."""
    known = {
        "model": (preprocess["mean"], preprocess["std"]),
        "clip": (OPENAI_DATASET_MEAN, OPENAI_DATASET_STD),
        "imagenet": (IMAGENET_MEAN, IMAGENET_STD),
    }
    return known[name]


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
    folder = Path(model.partition(":")[2]) if schema == "local-dir" else None
    if folder:
        _attach_prompts(clip, folder / f"{PROMPTS}.safetensors")
    info = {
        "name": f"local-dir:{folder.name}" if folder else model,
        "pretrained": _weights_name(pretrained),
        "weights_sha256": weights_sha256(clip),
        "embed_dim": tower_of(clip).dim,
        "random_weights": pretrained == "none" or (folder is not None and _tuned_from_random(folder)),
    }
    return clip.eval(), info


def check_names(model: str, pretrained: str | None) -> None:
    """Refuse a model, a tag or a folder that does not exist, before anything is loaded (AlignerError)."""
    schema = model.partition(":")[0] if model.startswith(("hf-hub:", "local-dir:")) else None
    _checked_weights(model, pretrained, schema)


def weights_sha256(model: nn.Module) -> str:
    """Identity of the weights: name, shape and fp32 bytes of every tensor of the state dict, by name."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        tensor = tensor.detach().cpu().contiguous()
        tensor = tensor.float() if tensor.is_floating_point() else tensor
        digest.update(name.encode())
        digest.update(str(tuple(tensor.shape)).encode())
        digest.update(tensor.numpy().data)
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


def _attach_prompts(clip: nn.Module, file: Path) -> None:
    """Learned prompts become part of the model, and so of its identity."""
    held = load_file(file) if file.is_file() else {}
    for name, owner in ((PROMPTS, _visual(clip)), (TEXT_PROMPTS, clip)):
        if name in held:
            setattr(owner, name, nn.Parameter(held[name], requires_grad=False))


def _tuned_from_random(folder: Path) -> bool:
    """Whether the weights come of random ones, as `alt finetune` notes; no other folder says so."""
    return bool(json.loads((folder / "open_clip_config.json").read_text("utf-8")).get(RANDOM_WEIGHTS))


def published_preprocessing(model: str) -> dict[str, Any]:
    """Colour statistics and resizing of a built-in model, as far as all its published weights agree on them.

    open_clip knows them for a tag only: without this, pictures for a file with SigLIP's weights would be prepared
    as CLIP's are.
    """
    tags = open_clip.list_pretrained_tags_by_model(model)
    configs = [open_clip.pretrained.get_pretrained_cfg(model, tag) for tag in tags]
    agreed = {}
    for name in ("mean", "std", "interpolation", "resize_mode"):
        values = {config.get(name) for config in configs}
        if len(values) == 1 and None not in values:
            agreed[name] = values.pop()
    return agreed


def _create(model: str, pretrained: str | None) -> nn.Module:
    file = pretrained is not None and os.path.isfile(pretrained)
    try:
        with _quiet_loggers():
            return open_clip.create_model(
                model,
                pretrained=pretrained,
                precision="fp32",
                require_pretrained=True,
                force_preprocess_cfg=published_preprocessing(model) if file else None,
            )
    except Exception as error:  # open_clip, the hub client and torch all raise their own kinds here
        raise AlignerError(_why(model, pretrained, error)) from error


def _why(model: str, pretrained: str | None, error: Exception) -> str:
    weights = f" with --pretrained {pretrained}" if pretrained else ""
    first = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(". ")
    if _UNREACHABLE.search(str(error)):
        return (
            f"--model {model}{weights} could not be loaded: its weights are not on this machine, and they could not be "
            "downloaded. With a network they are fetched once, into the cache of HF_HOME; without one, give a weights "
            f"file (--pretrained FILE.safetensors) or a folder (--model local-dir:PATH). What went wrong: {first}"
        )
    return (
        f"--model {model}{weights} could not be loaded: {first}. Without a network, give a weights file"
        " (--pretrained FILE.safetensors) or a folder (--model local-dir:PATH)"
    )


@contextmanager
def _quiet_loggers() -> Iterator[None]:
    """Mute loggers for a while: open_clip warns of what was asked for, and what fails is told by our error."""
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        yield
    finally:
        logging.disable(before)


def _create_random(model: str) -> nn.Module:
    with torch.random.fork_rng(devices=[]), _quiet_loggers():
        torch.manual_seed(0)
        return open_clip.create_model(
            model,
            pretrained=None,
            precision="fp32",
            pretrained_text=False,
            force_preprocess_cfg=published_preprocessing(model),
        )


def _weights_name(pretrained: str | None) -> str | None:
    """Tag or base name of the weights: manifests name no folders of the machine that made them."""
    return Path(pretrained).name if pretrained and os.path.isfile(pretrained) else pretrained
