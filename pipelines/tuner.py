"""Encoder and adapter learning together: one step of the optimiser, scoring, and the state to go on from."""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from adapter.artifact import write_atomic
from adapter.checkpoint import state_of
from adapter.config import TrainConfig
from adapter.losses import average_views
from adapter.model import VideoAdapter, count_parameters
from adapter.state import moments, part_of, set_moments, under
from adapter.train import build_optimizer
from aligner.encoder import TEXT_PROMPTS, Tokens
from aligner.match import Matcher
from pipelines.errors import PipelineError
from pipelines.tuned_encoder import TunedEncoder, live_batch
from pipelines.tuned_labels import TunedLabels
from pipelines.tuning_config import TuneConfig

HALVES = {"bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Clips:
    """Some clips as the encoder takes them; ``target`` is the share of each class.

    ``frames`` are pixels, or the tokens of all frames before the first block that learns.
    """

    frames: Float[Tensor, "clips frames 3 height width"] | Tokens
    times: Float[Tensor, "clips frames"]
    target: Float[Tensor, "clips classes"]


@dataclass
class Progress:
    """How far a training is: the epoch at hand, its finished steps and their sums, and what came before."""

    epoch: int = 1
    step: int = 0
    sums: dict[str, float] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)
    best: dict[str, Any] = field(default_factory=dict)

    def add(self, **values: float) -> None:
        """Add to the sums of the epoch."""
        for name, value in values.items():
            self.sums[name] = self.sums.get(name, 0.0) + value


class Tuner:
    """What learns, and what it learns against.

    The rates of the two parts are multiples of one schedule. Prompts are new, so they learn at the adapter's rate, as
    in the paper's recipe everything does but the tower.
    """

    def __init__(
        self,
        encoder: TunedEncoder,
        adapter: VideoAdapter,
        entities: Float[Tensor, "entities dim"],
        labels: Float[Tensor, "classes dim"],
        top_k: int,
        train: TrainConfig,
        config: TuneConfig,
        text: TunedLabels | None = None,
    ) -> None:
        """``labels`` are the class vectors, unless ``text`` has prompts from which they come."""
        self.device = entities.device
        self.encoder, self.adapter, self.labels, self.text = encoder, adapter, labels, text
        self.matcher = Matcher(entities, top_k)
        self.clip_norm = train.grad_clip
        self.precision = resolve_precision(config.precision, self.device)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.precision == "fp16")
        self.optimizer = build_optimizer(adapter, train)
        rate = config.lr_adapter if config.prompts else config.lr_encoder
        for group in build_optimizer(encoder.tower.module, train).param_groups:
            self.optimizer.add_param_group(group | {"lr": rate})
        if text:
            group = {"params": [text.prompts], "lr": config.lr_adapter, "weight_decay": train.weight_decay}
            self.optimizer.add_param_group(group)
        self.peaks = [group["lr"] for group in self.optimizer.param_groups]

    @property
    def parameters(self) -> dict[str, int]:
        """How many numbers learn, by part."""
        found = {
            "encoder": sum(weight.numel() for weight in self.encoder.learned().values()),
            "adapter": count_parameters(self.adapter),
        }
        return found | ({"text prompts": self.text.prompts.numel()} if self.text else {})

    def logits(self, clips: Clips) -> Float[Tensor, "clips classes"]:
        """Scores of clips, from pixels or tokens; with gradients where they are on."""
        unknown = torch.full((len(clips.times),), -1, device=self.device)
        labels = self.text.vectors if self.text else self.labels
        with self.autocast():
            batch = live_batch(self.encoder, self.matcher, clips.frames, clips.times, unknown)
            return self.adapter(batch, self.matcher.entities, labels).logits.float()

    @torch.no_grad()
    def tokens(self, pixels: Float[Tensor, "clips frames 3 height width"]) -> Tokens:
        """What the frozen lower blocks make of all frames: ``Clips.frames`` that give the logits of the pixels."""
        with self.autocast(), out_of_memory_told():
            return self.encoder.lower(pixels.flatten(0, 1), self.encoder.frozen_blocks)

    def learn(self, clips: Clips, smoothing: float, videos: int) -> dict[str, float]:
        """Add the gradients of some of a step's ``videos``; returns sums over these clips.

        Raises:
            PipelineError: a loss that is no number, or a GPU without the memory.
        """
        self.adapter.train()
        with out_of_memory_told():
            logits = self.logits(clips)
            loss = F.cross_entropy(logits, clips.target, reduction="sum", label_smoothing=smoothing)
            if not torch.isfinite(loss):
                raise PipelineError(
                    f"the loss became {loss.item()}; try a lower --lr-encoder or --lr-adapter, or --precision bf16 "
                    "in place of fp16"
                )
            self.scaler.scale(loss / videos).backward()
        right = (logits.argmax(1) == clips.target.argmax(1)).sum()
        return {"loss": loss.item(), "right": int(right), "clips": len(logits)}

    def step(self, factor: float) -> None:
        """Move all weights by the gradients gathered, at ``factor`` of the peak rates."""
        for group, peak in zip(self.optimizer.param_groups, self.peaks, strict=True):
            group["lr"] = peak * factor
        if self.text:
            self.text.backward()
        weights = [weight for group in self.optimizer.param_groups for weight in group["params"]]
        if all(weight.grad is None for weight in weights):
            return  # not one video of this step could be decoded
        self.scaler.unscale_(self.optimizer)
        if self.clip_norm:
            nn.utils.clip_grad_norm_(weights, self.clip_norm)
        with out_of_memory_told():
            self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)

    @torch.no_grad()
    def score(self, views: Sequence[Clips]) -> Float[Tensor, "clips classes"]:
        """What all views of some videos say together, without noise."""
        self.adapter.eval()
        with out_of_memory_told():
            return average_views(torch.stack([self.logits(clips) for clips in views]))

    def weights(self) -> dict[str, Tensor]:
        """Copies of all that learns, on the CPU."""
        tower = {
            name: weight.detach().cpu().contiguous().clone()
            for name, weight in self.encoder.learned().items()
        }
        text = {TEXT_PROMPTS: self.text.prompts.detach().cpu().clone()} if self.text else {}
        return under("text", text) | under("encoder", tower) | under("adapter", state_of(self.adapter))

    def load_weights(self, held: Mapping[str, Tensor]) -> None:
        """Take weights back."""
        with torch.no_grad():
            for name, weight in self.encoder.learned().items():
                weight.copy_(held[f"encoder.{name}"])
            if self.text:
                self.text.prompts.copy_(held[f"text.{TEXT_PROMPTS}"])
                self.text.forget()
        self.adapter.load_state_dict(part_of("adapter", held))

    def autocast(self) -> torch.autocast:
        """Half precision for what follows, where the tuning has it."""
        half = HALVES.get(self.precision)
        return torch.autocast(self.device.type, dtype=half, enabled=half is not None)


def resolve_precision(name: str, device: torch.device) -> str:
    """``auto`` is bf16 on a GPU and fp32 elsewhere; fp16 needs a GPU (PipelineError)."""
    if name == "fp16" and device.type != "cuda":
        raise PipelineError("--precision fp16 needs a GPU; use bf16 or fp32")
    return ("bf16" if device.type == "cuda" else "fp32") if name == "auto" else name


@contextmanager
def out_of_memory_told() -> Iterator[None]:
    """A GPU's lack of memory as a PipelineError that names what helps."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise PipelineError(
            "the GPU ran out of memory. What helps, in this order: --checkpointing, a smaller --micro-batch (a step "
            "still has --batch-size videos), --precision bf16, --last-blocks N; fewer --frames or a larger --merge "
            "take new alignments"
        ) from error


def seed_of(*parts: object) -> int:
    """A seed for torch from what it is to depend on."""
    return int.from_bytes(hashlib.sha256(json.dumps(parts).encode()).digest()[:7], "big")


def save_state(file: Path, tuner: Tuner, progress: Progress, key: str) -> None:
    """Everything that a training needs to go on, in one file, atomically; ``key`` says what training it is."""
    tensors = tuner.weights() | under("optimizer", moments(tuner.optimizer))
    tensors = {name: value.contiguous() for name, value in tensors.items()}
    told = {"key": key, "progress": asdict(progress), "scaler": tuner.scaler.state_dict()}
    metadata = {name: json.dumps(value) for name, value in told.items()}
    write_atomic(file, lambda path: save_file(tensors, path, metadata))


def load_state(file: Path, tuner: Tuner, key: str) -> Progress:
    """Take back what ``save_state`` wrote.

    Raises:
        PipelineError: a damaged file, or that of another training.
    """
    try:
        with safe_open(file, "pt") as opened:
            told = {name: json.loads(value) for name, value in (opened.metadata() or {}).items()}
        held = load_file(file)
    except (SafetensorError, OSError, ValueError) as error:
        raise PipelineError(f"{file} cannot be read ({error}); --force begins anew") from error
    if told.get("key") != key:
        raise PipelineError(
            f"{file} is of a training with other options or inputs; repeat its options, or --force to begin anew"
        )
    tuner.load_weights(held)
    set_moments(tuner.optimizer, part_of("optimizer", held))
    if told["scaler"]:
        tuner.scaler.load_state_dict(told["scaler"])
    return Progress(**told["progress"])
