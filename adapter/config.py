"""What a user may choose: the model's form and the training recipe, each choice with its reason.

One flat vocabulary of names serves the command line, a ``--config`` file, ``--set`` and ``RUN/config.json``.
"""

import difflib
import json
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any


class AdapterError(ValueError):
    """Something the user can mend; the message says what was got, what is needed and what to run."""


class TrainingStopped(AdapterError):
    """A signal asked training to stop; its state is saved, and the same command goes on from there."""

    exit_code = 75  # EX_TEMPFAIL: try again


def did_you_mean(got: str, known: Iterable[str]) -> str:
    """`` (did you mean 'x'?)`` for the nearest known word, or an empty string."""
    near = difflib.get_close_matches(got, list(known), n=1)
    return f" (did you mean '{near[0]}'?)" if near else ""


def reason(error: BaseException) -> str:
    """First line of an error's text; its class where it has none."""
    return (str(error).splitlines() or [type(error).__name__])[0]


def option(default: Any, help: str, *, choices: tuple[str, ...] = (), low: int | float | None = None) -> Any:
    """A config field that carries its own sentence and its own check."""
    return field(default=default, metadata={"help": help, "choices": choices, "low": low})


def _check(config: Any) -> None:
    for spec in fields(config):
        value, choices, low = getattr(config, spec.name), spec.metadata["choices"], spec.metadata["low"]
        if choices and value not in choices:
            hint = did_you_mean(str(value), choices)
            raise AdapterError(f"{spec.name} is '{value}'; it must be one of {', '.join(choices)}{hint}")
        if low is not None and value < low:
            raise AdapterError(f"{spec.name} is {value}; it must be at least {low}")


HEADS = ("text", "probe", "knn", "tip")
"""How a video's z becomes scores of classes: against their texts (Eq. 10), or by labelled videos (``baselines.py``)."""

# Dense convolution, a feed-forward part after each attention and MLPs of six times the width are not in the paper's
# text: they are what brings its number of parameters nearest (README).
_PAPER: dict[str, Any] = {
    "context": "pooled",
    "time_codes": "none",
    "dropout": 0.0,
    "conv": "dense",
    "ffn": "each",
    "mlp_ratio": 6,
}
_LABEL_TRACKS: dict[str, Any] = {
    "queries": "tracks",
    "track_identity": False,
    "context": "cls",
    "components": "sa",
    "readout": "labels",
    "logit_scale": 15.0,
}
VARIANTS: dict[str, dict[str, Any]] = {
    "none": {},
    "paper": _PAPER,
    "paper-adapt-then-align": {**_PAPER, "model": "adapt_then_align"},
    "paper-labels": {**_PAPER, "entities": "labels", "align": "cls", "context": "cls"},
    "paper-cls": {**_PAPER, "align": "cls", "context": "cls"},
    "label-tracks": _LABEL_TRACKS,
    **{f"paper-{parts}": {**_PAPER, "components": parts} for parts in ("sa", "ca", "sa+ca", "ca+conv")},
}


@dataclass(frozen=True)
class ModelConfig:
    """The form of the model. Numbers that the data decide (dim, frames) are not here."""

    variant: str = option(
        "none",
        "A named form that other options override. label-tracks = paths of entities, read by the classes whose texts "
        "name them (ours); paper = as published; paper-adapt-then-align, paper-labels and "
        "paper-cls = rows a to c of the paper's first ablation (paper is d); paper-sa, paper-ca, paper-sa+ca and "
        "paper-ca+conv = the second.",
        choices=tuple(VARIANTS),
    )
    model: str = option(
        "alt",
        "alt = entity queries over the video's context (Eq. 4-9); adapt_then_align = a temporal "
        "transformer over "
        "cls embeddings of about the same size (the baseline); mean_pool = zero-shot, nothing is trained.",
        choices=("alt", "adapt_then_align", "mean_pool"),
    )
    queries: str = option(
        "aligned",
        "aligned = one query a frame from its aligned entities (Eq. 6); tracks = one query an entity "
        "with its path "
        "through the video; learned and cls are controls; random and shuffled are short for aligned with "
        "identities=permuted and identities=shuffled.",
        choices=("aligned", "tracks", "learned", "cls", "random", "shuffled"),
    )
    identities: str = option(
        "aligned",
        "Which entities the queries see. Controls: permuted = ids renamed by one fixed permutation "
        "(consistent, wrong "
        "meaning); scrambled = another id for every region (no meaning); shuffled = those of another "
        "video in the batch.",
        choices=("aligned", "permuted", "scrambled", "shuffled"),
    )
    entities: str = option(
        "corpus",
        "What tokens are aligned to: corpus = the entities of the alignments; labels = the label set at hand, by exact "
        "cosine with the cached embeddings (the control of a corpus that is no more than the class names).",
        choices=("corpus", "labels"),
    )
    align: str = option(
        "all",
        "Tokens whose entities make the queries of a frame: all = cls and regions, as printed (Eq. 5 has a row for "
        "cls); regions; or cls alone.",
        choices=("all", "regions", "cls"),
    )
    rematch: bool = option(
        False,
        "Learn a residual projection of the token embeddings and score the cached top-k entities again with it. It "
        "starts at zero, so at the cached alignment, and lets alignment learn although the backbone is frozen.",
    )
    context: str = option(
        "regions",
        "Keys and values. pooled = one vector a frame (Eq. 6, the paper's form); regions = every region "
        "token with "
        "position, size and time codes (ours); cls = the frame's cls embedding alone.",
        choices=("pooled", "regions", "cls"),
    )
    pool: str = option(
        "mean",
        "How the tokens of a frame become one vector (the paper does not say).",
        choices=("mean", "attention"),
    )
    time_codes: str = option(
        "fourier",
        "Code of the frame's place in time, added to queries and context: fourier = fixed features, projected; "
        "learned = a vector a frame; none = only the convolution tells order (the paper names no code). "
        "true and false are short for fourier and none.",
        choices=("fourier", "learned", "none"),
    )
    residual: str = option(
        "none",
        "none = z is learned alone (best supervised in a prototype); cls = z starts as the mean cls "
        "embedding, which "
        "keeps CLIP's zero-shot ability as the starting point.",
        choices=("none", "cls"),
    )
    noise: str = option(
        "train",
        "When Gumbel noise is added to the alignment (Eq. 4): always as printed, train as in GroupViT, "
        "or never.",
        choices=("train", "always", "never"),
    )
    scale: float = option(
        100.0,
        "Factor on the cosines before noise and softmax. The paper prints none; a cosine spans about "
        "0.25, so with 1 "
        "the sampled entity would be almost random.",
        low=1e-6,
    )
    learn_scale: bool = option(
        False, "Learn the factor; beside rematch it is all that the straight-through gradient reaches."
    )
    tau: float = option(1.0, "Temperature of the alignment's softmax.", low=1e-6)
    components: str = option(
        "sa+ca+conv",
        "Parts of a block (Eq. 8): self-attention over queries, cross-attention to the context, temporal convolution "
        "of its keys. Without cross-attention nothing but the queries reaches z.",
        choices=("sa+ca+conv", "sa+ca", "ca+conv", "ca", "sa"),
    )
    conv: str = option(
        "depthwise",
        "The temporal convolution: a kernel for each channel, or dense over channels, which fits the paper's "
        "number of parameters.",
        choices=("depthwise", "dense"),
    )
    ffn: str = option(
        "block",
        "Feed-forward parts of a block: one at its end, or one after each attention as in a transformer, "
        "which fits the paper's number of parameters.",
        choices=("block", "each"),
    )
    blocks: int = option(4, "Number of blocks M (paper: 4 for ViT-B, 6 for ViT-L).", low=1)
    width: int = option(0, "Width of the blocks; 0 = the embedding's dimension.", low=0)
    heads: int = option(0, "Attention heads; 0 = width / 64, but at least 2.", low=0)
    ffn_ratio: int = option(4, "Hidden width of a feed-forward block over its width.", low=1)
    mlp_ratio: int = option(
        1, "Hidden width of the MLPs before and after the blocks (Eq. 6 and 9) over their output's.", low=1
    )
    kernel: int = option(3, "Frames that the temporal convolution of Eq. 8 sees; odd.", low=1)
    tracks: int = option(
        8, "Entities that become queries with queries=tracks: the highest summed scores.", low=1
    )
    track_identity: bool = option(
        True,
        "Whether a track's token holds its entity's embedding beside its path. Without it the blocks see paths alone, "
        "nothing is learned about single entities, and readout=labels alone says whose path it is.",
    )
    readout: str = option(
        "mean",
        "What of the queries makes z (Eq. 9). mean = their mean, one z a video, as printed; labels = each class has "
        "a z of its own, from the tracks whose entities its text names, compared with the rest of the text (ours; "
        "needs queries=tracks).",
        choices=("mean", "labels"),
    )
    match_scale: float = option(
        30.0,
        "With readout=labels: factor on the cosine of a class's text and an entity's, before the softmax over tracks; "
        "learned from here.",
        low=1e-6,
    )
    null_score: float = option(
        0.5,
        "With readout=labels: cosine at which a class rather reads the null token, which stands for an entity that is "
        "not there; learned from here.",
    )
    dropout: float = option(0.1, "Dropout on every residual branch in training.", low=0.0)
    logit_scale: float = option(100.0, "Factor on the cosine of z and a label (CLIP's own value).", low=1e-6)
    learn_logit_scale: bool = option(False, "Learn that factor.")
    whiten_labels: bool = option(
        False,
        "Centre and whiten label embeddings by the training labels' statistics: caption-like labels are "
        "nearly parallel.",
    )
    shrinkage: float = option(
        0.3, "Share of the identity in the whitening's covariance; 1 only centres.", low=1e-6
    )
    control_seed: int = option(0, "Seed of the fixed permutation behind identities=permuted.", low=0)

    def has(self, component: str) -> bool:
        """Whether the blocks have a part: sa, ca or conv."""
        return component in self.components.split("+")

    def __post_init__(self) -> None:
        # Until there were three of them, time codes were switched on or off.
        switch = {"true": "fourier", "false": "none"}
        given = str(self.time_codes).lower()
        object.__setattr__(self, "time_codes", switch.get(given, self.time_codes))
        _check(self)
        shorthand = {"random": "permuted", "shuffled": "shuffled"}
        if self.queries in shorthand:
            object.__setattr__(self, "identities", shorthand[self.queries])
            object.__setattr__(self, "queries", "aligned")
        if self.kernel % 2 == 0:
            raise AdapterError(
                f"kernel is {self.kernel}; it must be odd, so that a frame sees as far back as ahead"
            )
        if self.dropout >= 1:
            raise AdapterError(f"dropout is {self.dropout}; it must be below 1")
        if self.shrinkage > 1:
            raise AdapterError(f"shrinkage is {self.shrinkage}; it must be at most 1")
        if self.identities != "aligned" and self.queries in ("learned", "cls"):
            raise AdapterError(f"identities={self.identities} has no effect with queries={self.queries}")
        if self.queries != "tracks" and (self.readout == "labels" or not self.track_identity):
            asked = "readout=labels" if self.readout == "labels" else "track_identity=false"
            raise AdapterError(
                f"{asked} needs queries=tracks, not {self.queries}: tracks alone are an entity each"
            )
        if self.rematch and (self.model != "alt" or self.queries != "aligned"):
            raise AdapterError(
                "rematch needs model=alt with queries=aligned: nothing else mixes the cached top-k"
            )
        if not self.has_own_z and (self.residual == "cls" or self.whiten_labels):
            asked = "residual=cls" if self.residual == "cls" else "whiten_labels"
            raise AdapterError(
                f"{asked} changes what whole labels are compared with, and readout=labels compares with what they say "
                "beyond their entities; leave out one of the two (`adapter eval --blend` adds zero-shot CLIP)"
            )
        if self.whiten_labels and (self.residual == "cls" or self.model == "mean_pool"):
            raise AdapterError(
                "whiten_labels moves labels away from CLIP's space, where the mean cls embedding lives; "
                "use residual=none and a trained model with it"
            )

    @property
    def reads_regions(self) -> bool:
        """Whether embeddings of regions are read, beside those of frames."""
        return self.model == "alt" and self.context != "cls"

    @property
    def has_own_z(self) -> bool:
        """Whether a video has one z, whatever the classes; without, nothing but class texts can score it."""
        return self.model != "alt" or self.readout == "mean"

    @property
    def reads_entities(self) -> bool:
        """Whether the corpus's entities, as aligned, reach z."""
        return self.model == "alt" and self.entities == "corpus" and self.queries not in ("learned", "cls")


def without_regions(config: ModelConfig, alignments: str) -> str:
    """Why a model that reads regions cannot use alignments that hold embeddings of frames alone."""
    return (
        f"context={config.context} reads the embeddings of regions, and {alignments} keep those of frames alone "
        "(store topk): use context=cls (queries=tracks or aligned need no region's embedding), or "
        "run `aligner run --store fp16` (or int8) into another folder"
    )


# Options of the recipe that are a share or a probability.
_SHARES: tuple[str, ...] = (
    *("val_fraction", "label_smoothing", "min_lr", "beta1", "beta2", "ema", "wise_alpha"),
    *("frame_dropout", "region_dropout", "frame_jitter"),
)


@dataclass(frozen=True)
class TrainConfig:
    """The recipe: optimiser, schedule, data selection, machine."""

    recipe: str = option(
        "small",
        "Starting values that explicit options override: small = a cached data set of up to some ten "
        "thousand "
        "videos; paper = the published form and settings.",
        choices=("small", "paper"),
    )
    epochs: int = option(30, "Passes over the training videos.", low=0)
    batch_size: int = option(32, "Videos a step, over all processes together.", low=1)
    accumulate: int = option(
        1,
        "Parts that a process takes its share of a step in, to save memory; the step stays the same.",
        low=1,
    )
    lr: float = option(1e-3, "Peak learning rate (paper: 8e-5 at batch 256).", low=0.0)
    min_lr: float = option(0.01, "Final learning rate as a share of the peak.", low=0.0)
    warmup: float = option(2.0, "Epochs of linear warm-up.", low=0.0)
    weight_decay: float = option(1e-3, "AdamW weight decay; none on vectors and scalars.", low=0.0)
    beta1: float = option(0.9, "AdamW's first beta.", low=0.0)
    beta2: float = option(0.98, "AdamW's second beta (X-CLIP's value).", low=0.0)
    label_smoothing: float = option(0.1, "Label smoothing.", low=0.0)
    class_weights: str = option(
        "none",
        "balanced = videos of rare classes weigh more in the loss: a video of a class with n of N videos among C "
        "classes weighs N / (C n), 1 on average.",
        choices=("none", "balanced"),
    )
    ema: float = option(
        0.0,
        "Decay of a moving average of the weights over steps, such as 0.999; 0 = none. Validation scores the average "
        "beside the weights themselves, and the better of the two is a candidate for publication.",
        low=0.0,
    )
    wise_alpha: float = option(
        1.0,
        "Share of the trained weights in what is published; the rest are the initial weights (WiSE-FT). Needs "
        "residual=cls, whose initial model is zero-shot CLIP; 1 = as trained.",
        low=0.0,
    )
    grad_clip: float = option(1.0, "Largest norm of the gradient; 0 = no clipping.", low=0.0)
    seed: int = option(0, "Seed of initial weights, order, noise and the few-shot draw.", low=0)
    shots: int = option(0, "Videos a class to train (and at most as many to validate) on; 0 = all.", low=0)
    views: str = option(
        "one",
        "Of videos cached in several views (draws, clips, crops), what an epoch trains on: one of each video, drawn "
        "anew every epoch, or all. Evaluation always averages over all.",
        choices=("one", "all"),
    )
    frame_dropout: float = option(
        0.0, "Probability that a frame is hidden in training; one always stays.", low=0.0
    )
    region_dropout: float = option(
        0.0, "Probability that a region of a frame is hidden in training.", low=0.0
    )
    frame_jitter: float = option(
        0.0, "Probability that a pair of neighbouring frames changes places in training.", low=0.0
    )
    mixup: float = option(
        0.0,
        "Alpha of mixup, which mixes the video embeddings z of neighbours in a batch and their targets alike "
        "(X-CLIP, on pixels: 0.8); 0 = none.",
        low=0.0,
    )
    split: str = option("train", "Split to train on, from the alignments' split column.")
    val_split: str = option(
        "val",
        "Split that chooses the epoch; where it has no videos, some are held out of the training split.",
    )
    val_fraction: float = option(
        0.1, "Share of each class held out for validation when there is no such split.", low=0.0
    )
    cache_gb: float = option(4.0, "Keep the videos in memory when they fit this many gigabytes.", low=0.0)
    device: str = option("auto", "auto, cpu, cuda or cuda:N.")
    precision: str = option(
        "auto",
        "fp32, bf16 or fp16 (autocast; weights stay float32; fp16 scales the loss and needs CUDA), or auto: bf16 on "
        "CUDA, fp32 elsewhere.",
        choices=("auto", "fp32", "bf16", "fp16"),
    )
    threads: int = option(0, "CPU threads; 0 leaves torch's choice (one can be faster on busy cores).", low=0)
    save_every: int = option(
        0,
        "Steps between saved states, from which a killed training goes on; 0 = at the end of an epoch, but at most "
        "once in 15 seconds.",
        low=0,
    )
    keep_states: int = option(2, "Saved states to keep while training; a finished run keeps none.", low=1)
    tracker: str = option(
        "none",
        "Where epochs are logged beside metrics.jsonl (optional packages).",
        choices=("none", "tensorboard", "wandb"),
    )

    def __post_init__(self) -> None:
        _check(self)
        for name in _SHARES:
            if getattr(self, name) > 1:
                raise AdapterError(f"{name} is {getattr(self, name)}; it must be between 0 and 1")
        # Official lists end in the number of their split: hmdb51_test1.
        if self.val_split.rstrip("0123456789").endswith("test"):
            raise AdapterError(
                f"--val-split is {self.val_split}; the test split chooses no epoch: give another, or none, and part of "
                "the training split is held out (--val-fraction)"
            )


# Options of the machine and the bookkeeping: they change no weight, and no run is told apart by them.
BOOKKEEPING = ("cache_gb", "device", "threads", "save_every", "keep_states", "tracker")
RECIPES: dict[str, dict[str, Any]] = {
    "small": {},
    "paper": {
        "variant": "paper",
        "epochs": 30,
        "warmup": 5.0,
        "batch_size": 256,
        "lr": 8e-5,
    },
}


@dataclass(frozen=True)
class Settings:
    """Both configs, as one flat set of names outside and two typed objects inside."""

    model: ModelConfig
    train: TrainConfig

    def __post_init__(self) -> None:
        if self.train.wise_alpha < 1 and (self.model.residual != "cls" or self.model.model == "mean_pool"):
            raise AdapterError(
                f"wise_alpha is {self.train.wise_alpha}; it averages with the initial model, which is zero-shot CLIP "
                "with residual=cls alone: add --residual cls (and a trained model), or leave it at 1"
            )

    def flat(self) -> dict[str, Any]:
        """One dictionary of every value, as stored in ``RUN/config.json``."""
        return {**asdict(self.model), **asdict(self.train)}


def help_of(name: str) -> str:
    """The sentence of a field and its default before any recipe, for the command line."""
    default = _FIELDS[name].default
    return f"{_FIELDS[name].metadata['help']} (default: {str(default).lower()})"


def make_settings(values: Mapping[str, Any] | None = None) -> Settings:
    """Settings from flat values over the recipe they name, and over the variant that either names.

    Unknown names raise with the nearest known one.
    """
    values = dict(values or {})
    for name in values:
        if name not in _FIELDS:
            raise AdapterError(f"unknown option '{name}'{did_you_mean(name, _FIELDS)}")
    recipe = TrainConfig(recipe=values.get("recipe", "small")).recipe
    values = {**RECIPES[recipe], **values}
    variant = ModelConfig(variant=values.get("variant", "none")).variant
    merged = {name: _typed(name, value) for name, value in {**VARIANTS[variant], **values}.items()}
    return Settings(
        ModelConfig(**{k: v for k, v in merged.items() if k in _MODEL_NAMES}),
        TrainConfig(**{k: v for k, v in merged.items() if k not in _MODEL_NAMES}),
    )


def read_config(path: Path) -> dict[str, Any]:
    """Flat values from a TOML or JSON file, such as another run's ``config.json``."""
    if not path.is_file():
        raise AdapterError(f"no config file at {path}")
    try:
        text = path.read_text(encoding="utf-8-sig")
        values = tomllib.loads(text) if path.suffix == ".toml" else json.loads(text)
    except (ValueError, OSError) as error:
        kind = "TOML" if path.suffix == ".toml" else "JSON"
        raise AdapterError(
            f"--config {path.name} is not valid {kind} in UTF-8: {reason(error)}; a run's config.json is one"
        ) from error
    if not isinstance(values, dict):
        raise AdapterError(
            f"{path.name} holds a {type(values).__name__}; a table of option = value is needed"
        )
    return values


def combine(file: Mapping[str, Any], options: Mapping[str, Any]) -> dict[str, Any]:
    """Values of a ``--config`` file under those of the command line.

    A run's config spells every option out, so that another variant beside it would change its name and nothing else:
    that is refused.
    """
    variant = options.get("variant", file.get("variant"))
    if variant != file.get("variant") and file.keys() >= _MODEL_NAMES - {"variant"}:
        raise AdapterError(
            f"--config spells out a whole form, which beats variant {variant}; leave out one of the two, or set the "
            "options that are to differ"
        )
    return {**file, **options}


def parse_assignments(pairs: Iterable[str]) -> dict[str, str]:
    """``["blocks=2"]`` -> ``{"blocks": "2"}``; types are settled by ``make_settings``."""
    values = {}
    for pair in pairs:
        name, found, value = pair.partition("=")
        if not found:
            raise AdapterError(f"--set got '{pair}'; it needs NAME=VALUE, for example --set blocks=2")
        values[name.strip().replace("-", "_")] = value.strip()
    return values


def _typed(name: str, value: Any) -> Any:
    kind: Any = type(_FIELDS[name].default)
    words = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
    try:
        if kind is bool:
            return value if isinstance(value, bool) else words[str(value).lower()]
        if kind is int and isinstance(value, bool | float) and value != int(value):
            raise ValueError
        return kind(value)
    except (KeyError, TypeError, ValueError):
        raise AdapterError(f"{name} is '{value}'; it must be a {kind.__name__}") from None


_FIELDS = {spec.name: spec for config in (ModelConfig, TrainConfig) for spec in fields(config)}
_MODEL_NAMES = {spec.name for spec in fields(ModelConfig)}
