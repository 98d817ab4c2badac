"""What a user may choose in ``alt finetune`` beside the adapter's own options (standard library only)."""

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from pipelines.errors import PipelineError

PRECISIONS = ("auto", "fp32", "bf16", "fp16")
AUGMENTS = ("xclip", "none")
STORES = ("none", "fp16", "fp32")
# What the adapter's options are in the paper's end-to-end recipe (X-CLIP's), unless they are given.
ADAPTER_OPTIONS = (
    "epochs",
    "warmup",
    "batch_size",
    "min_lr",
    "weight_decay",
    "label_smoothing",
    "seed",
    "shots",
)


@dataclass(frozen=True)
class TuneConfig:
    """The end-to-end recipe: what learns, how fast, from which pictures, and in how much memory.

    The paper's numbers (lr 8e-6 and 8e-5, 30 epochs with 5 of warm-up, weight decay 1e-3), and X-CLIP's for what it
    leaves open. The first block decides the result; the second only where, and in how much memory, it is computed.
    """

    # Only the last N blocks of the image tower learn (all of it by default); the lower ones run without gradients.
    last_blocks: int | None = None
    # N learned tokens in every block of the image tower, whose own weights stay frozen; 0 for none.
    prompts: int = 0
    # N learned tokens in every block of the text tower, for class names; its own weights stay as they are. 0 for none.
    text_prompts: int = 0
    # With `last_blocks`: decode and run the frozen lower blocks once, and keep the tokens before the first block that
    # learns, in so many bits. Pictures are then those of the alignments (`augment` none), or so many draws of each
    # training video, augmented but not mixed, which take turns by epochs.
    cache_tokens: str = "none"
    cache_draws: int = 1
    # Peak learning rates of image tower and of adapter and prompts.
    lr_encoder: float = 8e-6
    lr_adapter: float = 8e-5
    epochs: int = 30
    warmup: float = 5.0
    min_lr: float = 0.01
    weight_decay: float = 1e-3
    # Videos in a step of the optimiser, and in one forward pass; the gradients of a step's passes are summed.
    batch_size: int = 256
    micro_batch: int = 8
    label_smoothing: float = 0.1
    # Videos of a class, 0 for all.
    shots: int = 0
    # `xclip`: a random frame of each segment, multi-scale crops, colours, mixing; `none`: what the aligner sees.
    augment: str = "xclip"
    # Mirror half of the clips; off where left and right are classes (SSv2).
    flip: bool = True
    colour: float = 0.8
    grey: float = 0.2
    mixup: float = 0.8
    cutmix: float = 1.0
    switch: float = 0.5
    # Merged tokens count by their size; ToMe's authors advise off for training.
    proportional_attention: bool = False
    # `auto` is bf16 on a GPU and fp32 on a CPU.
    precision: str = "auto"
    seed: int = 0

    # Keep one activation of each block and compute the others again in the backward pass.
    checkpointing: bool = False
    # Steps between two saved states, beside one at the end of each epoch.
    save_steps: int = 100
    decode_workers: int = 2
    video_seconds: float = 120.0
    # Where the cached tokens lie (beside the state of the tuning, and gone with it, if none is named), and how many
    # GB they may take.
    cache_folder: Path | None = None
    cache_gb: float = 100.0
    device: str = "auto"

    def __post_init__(self) -> None:
        self._check_values()
        if self.prompts and self.last_blocks:
            raise PipelineError(
                "--prompts leaves every block frozen and --last-blocks does not; give one of them"
            )
        if self.cached:
            self._check_cache()

    def _check_values(self) -> None:
        for name, choices in (
            ("precision", PRECISIONS),
            ("augment", AUGMENTS),
            ("cache_tokens", STORES),
        ):
            if (value := getattr(self, name)) not in choices:
                raise PipelineError(f"{_flag(name)} is {value!r}; it must be one of {', '.join(choices)}")
        for name in (
            "last_blocks",
            "batch_size",
            "micro_batch",
            "save_steps",
            "decode_workers",
            "cache_draws",
        ):
            if (value := getattr(self, name)) is not None and value < 1:
                raise PipelineError(f"{_flag(name)} is {value}; it must be at least 1")
        for name in ("colour", "grey", "switch", "label_smoothing", "min_lr"):
            if not 0 <= (value := getattr(self, name)) <= 1:
                raise PipelineError(f"{_flag(name)} is {value}; it must be between 0 and 1")
        for name in (
            "prompts",
            "text_prompts",
            "lr_encoder",
            "lr_adapter",
            "warmup",
            "weight_decay",
            "mixup",
            "cutmix",
            "epochs",
        ):
            if (value := getattr(self, name)) < 0:
                raise PipelineError(f"{_flag(name)} is {value}; it must be at least 0")

    def _check_cache(self) -> None:
        if self.last_blocks is None:
            raise PipelineError(
                "--cache-tokens keeps what frozen blocks made, and here every block learns or has prompts; "
                "give --last-blocks N too"
            )
        if self.augment != "none" and (self.mixup or self.cutmix):
            raise PipelineError(
                "--cache-tokens keeps tokens, and mixing wants pixels: give --augment none for the pictures as they "
                "are, or --mixup 0 --cutmix 0 --cache-draws N for N augmented draws of every video"
            )
        if self.augment == "none" and self.cache_draws > 1:
            raise PipelineError(
                f"--cache-draws is {self.cache_draws} and --augment none: without augmentation all draws are alike"
            )

    @property
    def cached(self) -> bool:
        """Whether training reads stored tokens and not videos."""
        return self.cache_tokens != "none"

    def adapter_options(self) -> dict[str, Any]:
        """What this says in the adapter's own words, for its run's config."""
        shared = {name: getattr(self, name) for name in ADAPTER_OPTIONS}
        return shared | {"lr": self.lr_adapter, "device": self.device}

    def decides(self) -> dict[str, Any]:
        """The options that decide the result, by name: what a training that goes on must have in common."""
        machine = {"checkpointing", "save_steps", "decode_workers", "video_seconds", "device"}
        machine |= {"cache_folder", "cache_gb"}
        return {spec.name: getattr(self, spec.name) for spec in fields(self) if spec.name not in machine}


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")
