"""The image tower when it learns: which of its weights do, live alignment, and the tuned model as a folder.

Token merging, blocks and head are the aligner's; matching is, too. What is here only decides what gets a gradient.
"""

import shutil
from pathlib import Path
from typing import Any

import open_clip
import torch
from jaxtyping import Float, Int64
from open_clip.transformer import QuickGELU
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from adapter.artifact import write_atomic, write_json
from adapter.dataset import Batch
from aligner.encoder import (
    PROMPTS,
    RANDOM_WEIGHTS,
    TEXT_PROMPTS,
    ClipRegionEncoder,
    EncodedFrames,
    Tokens,
    load_clip,
    preprocess_config,
    weights_sha256,
)
from aligner.match import Matcher
from aligner.regions import region_geometry
from pipelines.errors import PipelineError
from pipelines.tuning_config import TuneConfig

PROMPT_DEVIATION = 0.02


class TunedEncoder(ClipRegionEncoder):
    """The aligner's encoder with what training asks for: prompts, frozen parts, recomputed activations."""

    def __init__(
        self, model: nn.Module, merge: int, dense: str, config: TuneConfig, device: torch.device
    ) -> None:
        """Wrap the tower of ``model`` and let the part of it learn that the config names.

        New prompts are drawn from torch's generator. Raises PipelineError for more blocks than there are.
        """
        super().__init__(
            model,
            merge,
            proportional_attention=config.proportional_attention,
            dense=dense,
            device=device,
        )
        self.checkpointing = config.checkpointing
        # Blocks below the first that learns; what they make of a picture never changes.
        self.frozen_blocks = len(self.tower.blocks) - (config.last_blocks or len(self.tower.blocks))
        self.preprocess_config = preprocess_config(model)
        if config.prompts:
            self.prompts = self._new_prompts(config.prompts)
        self.tower.module.requires_grad_(False)
        for parameter in self._learning(config):
            parameter.requires_grad_(True)

    def learned(self) -> dict[str, nn.Parameter]:
        """The weights of the tower that learn, by their names in it."""
        named = self.tower.module.named_parameters()
        return {name: parameter for name, parameter in named if parameter.requires_grad}

    def _new_prompts(self, count: int) -> nn.Parameter:
        reference = next(self.tower.module.parameters())
        with torch.no_grad():
            blank = torch.zeros(1, 3, *self.input_size, device=reference.device)
            width = self.tower.embed(blank)[0].shape[-1]
        drawn = torch.randn(len(self.tower.blocks), count, width) * PROMPT_DEVIATION
        prompts = nn.Parameter(drawn.to(reference.device))
        setattr(self.tower.module, PROMPTS, prompts)
        return prompts

    @property
    def input_size(self) -> tuple[int, int]:
        """Height and width of the pictures it takes."""
        size = self.preprocess_config["size"]
        return (size, size) if isinstance(size, int) else tuple(size)

    def _learning(self, config: TuneConfig) -> list[nn.Parameter]:
        blocks: list[Any] = list(self.tower.blocks)
        if config.prompts:
            assert isinstance(self.prompts, nn.Parameter)
            return [self.prompts]
        if config.last_blocks is None:
            return list(self.tower.module.parameters())
        if config.last_blocks > len(blocks):
            raise PipelineError(f"--last-blocks is {config.last_blocks}; the model has {len(blocks)} blocks")
        return [weight for block in blocks[-config.last_blocks :] for weight in block.block.parameters()]

    def _block(self, tokens: Tokens, layer: int, dense: str = "none") -> Tokens:
        # Blocks below the first that learns record nothing anyway, and need no second forward pass.
        if not self.checkpointing or not torch.is_grad_enabled():
            return super()._block(tokens, layer, dense)
        return checkpoint(super()._block, tokens, layer, dense, use_reentrant=False)

    def _merge(self, tokens: Tokens, metric: Float[Tensor, "frames tokens channels"], r: int) -> Tokens:
        # Sums over merged tokens and counts of patches need more bits than autocast leaves them.
        with full_precision(tokens.x.device):
            return super()._merge(tokens, metric, r)


def full_precision(device: torch.device) -> torch.autocast:
    """A block in which autocast is off."""
    return torch.autocast(device.type, enabled=False)


def live_batch(
    encoder: TunedEncoder,
    matcher: Matcher,
    seen: Float[Tensor, "clips frames 3 height width"] | Tokens,
    times: Float[Tensor, "clips frames"],
    label: Int64[Tensor, " clips"],
) -> Batch:
    """What the adapter reads of cached alignments, made now, with gradients to the encoder.

    The k nearest entities are chosen without gradients; their cosines have them, so that Eq. 5's straight-through
    estimate, which the adapter takes over the k scores, reaches the encoder. ``seen`` are pixels, or the tokens of all
    frames of all clips, in their order, before the first block that learns.
    """
    clips, frames = times.shape
    if isinstance(seen, Tokens):
        found = encoder.upper(seen, encoder.frozen_blocks)
    else:
        found = encoder.encode(seen.flatten(0, 1))
    with full_precision(times.device):
        norms = found.embeddings.norm(dim=-1)
        unit = found.embeddings / norms.unsqueeze(-1)
        chosen = matcher(unit.detach().flatten(0, 1)).entities
        # The k vectors of each region are gathered again for the backward pass rather than kept.
        score = checkpoint(cosines, unit.flatten(0, 1), chosen, matcher.entities, use_reentrant=False)

    tokens = clips, frames, unit.shape[1]
    return Batch(
        unit.unflatten(0, tokens[:2]),
        norms.unflatten(0, tokens[:2]),
        chosen.unflatten(0, tokens),
        score.unflatten(0, tokens),
        frame_geometry(found, encoder.grid).unflatten(0, tokens[:2]),
        times,
        torch.ones(tokens, dtype=torch.bool, device=unit.device),
        label,
    )


def cosines(
    unit: Float[Tensor, "regions dim"],
    chosen: Int64[Tensor, "regions k"],
    entities: Float[Tensor, "entities dim"],
) -> Float[Tensor, "regions k"]:
    """Inner products of each region with the entities chosen for it."""
    return torch.einsum("rd,rkd->rk", unit, entities[chosen])


def frame_geometry(found: EncodedFrames, grid: tuple[int, int]) -> Float[Tensor, "frames tokens 3"]:
    """Centroid and share of the area of every token, as the adapter reads them from cached alignments."""
    shape = region_geometry(found.source, found.embeddings.shape[1] - 1, grid)
    area = shape.patches / (grid[0] * grid[1])
    area[:, 0] = 1.0
    return torch.cat([shape.centroid_xy, area.unsqueeze(-1)], dim=-1).float()


def write_clip(clip: nn.Module, model: str, folder: Path, random_weights: bool = False) -> dict[str, Any]:
    """Write a tuned CLIP as a ``local-dir:`` model of open_clip; returns its ModelInfo, as the aligner reads it back.

    What open_clip does not know, aligner and corpus_builder read: prompts in a file beside, and in the config whether
    the weights come of random ones.

    Raises:
        PipelineError: what was written does not load as what it was.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if model.startswith("local-dir:"):
        _copy_tokenizer(Path(model.removeprefix("local-dir:")), folder)
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in clip.state_dict().items()}
    places = {PROMPTS: f"visual.{PROMPTS}", TEXT_PROMPTS: TEXT_PROMPTS}
    prompts = {name: state.pop(place) for name, place in places.items() if place in state}
    settings = open_clip.get_model_config(model)
    if any(isinstance(module, QuickGELU) for module in clip.modules()):
        settings["quick_gelu"] = True
    (folder / f"{PROMPTS}.safetensors").unlink(missing_ok=True)
    if prompts:
        write_atomic(folder / f"{PROMPTS}.safetensors", lambda path: save_file(prompts, path))
    told = {"model_cfg": settings, "preprocess_cfg": preprocess_config(clip)}
    told |= {RANDOM_WEIGHTS: True} if random_weights else {}
    write_json(folder / "open_clip_config.json", told)
    write_atomic(folder / "open_clip_model.safetensors", lambda path: save_file(state, path))
    _, info = load_clip(f"local-dir:{folder}")
    if info["weights_sha256"] != weights_sha256(clip):
        raise PipelineError(
            f"the model in {folder} does not read back as it was written; is the disk full or failing?"
        )
    return info


def _copy_tokenizer(source: Path, folder: Path) -> None:
    """The small files beside a model's weights: a tokenizer of its own, if it has one."""
    for file in sorted(source.iterdir()):
        if file.suffix in (".json", ".txt", ".model") and file.name != "open_clip_config.json":
            shutil.copyfile(file, folder / file.name)
