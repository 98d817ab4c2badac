"""Train a model on cached alignments: one readable loop, seeded, in one process or in several, resumable.

The validation split (or a held-out part of the training split) chooses the epoch; the test split is never
read.
"""

import math
import signal
import threading
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from adapter import artifact
from adapter.alignments import Alignments, open_alignments
from adapter.artifact import append_line, publish, removed_on_failure, write_json, write_lines, write_table
from adapter.augment import Augmentation, mixup
from adapter.averaging import MovingAverage, between, wearing
from adapter.checkpoint import save_weights, state_of
from adapter.config import BOOKKEEPING, AdapterError, Settings, TrainConfig, TrainingStopped
from adapter.dataset import (
    Batch,
    Sample,
    Selection,
    VideoDataset,
    all_views,
    draw_shots,
    require_samples,
    select,
    train_and_val,
)
from adapter.labels import Labels, open_labels
from adapter.losses import average_views, balanced_weights, classification_loss, mixed_loss
from adapter.model import Shape, VideoAdapter, build_model, count_parameters, fit_labels
from adapter.ranks import Ranks, joined
from adapter.sampling import EpochOrder
from adapter.state import (
    Position,
    begin,
    generators,
    load_state,
    moments,
    part_of,
    remove_states,
    save_state,
    set_generators,
    set_moments,
    under,
)
from adapter.tracking import TRACKERS, Tracker

STATE_SECONDS = 15.0  # an epoch's end saves a state when the last one is older
SUMS = ("loss", "right", "agreement")

Progress = Callable[[dict[str, Any]], None]


@dataclass(frozen=True)
class TrainData:
    """Videos and labels of a training run, with the account of what was left out."""

    train: VideoDataset
    val: VideoDataset
    labels: Labels
    counts: dict[str, Any]


@dataclass
class TrainReport:
    """What training did; ``history`` has one entry an epoch, as in ``metrics.jsonl``."""

    out: Path
    parameters: int
    counts: dict[str, Any]
    best_epoch: int
    best_val_top1: float | None
    seconds: float
    random_weights: bool
    history: list[dict[str, Any]] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """The report without the history, as JSON types."""
        return {**{k: v for k, v in asdict(self).items() if k != "history"}, "out": str(self.out)}


def train(
    alignments: Path,
    labels: Path,
    out: Path,
    settings: Settings,
    force: bool = False,
    progress: Progress | None = None,
    resume: str = "auto",
) -> TrainReport:
    """Train and publish a run in ``out``, or go on with a training that was stopped there.

    Classes are the labels that have training videos; other labels of the set are no candidates, so an unseen
    class is never a negative. The published weights are those of the best validation epoch (the last without
    validation videos). ``force`` and ``resume`` are those of ``state.begin``. Under ``torchrun`` all processes call
    this and share the work; the first one writes. Raises ``AdapterError`` on artifacts that are missing, incomplete
    or made with another model, and ``TrainingStopped`` on SIGTERM and SIGUSR1, once the state is saved. A training
    that fails before its first saved state leaves no folder.
    """
    config, started = settings.train, time.perf_counter()
    device = choose_device(config.device)
    require_precision(device, config.precision)
    opened = open_alignments(alignments)
    opened.require_regions(settings.model)
    label_set = open_labels(labels, opened.model)
    data = prepare(opened, label_set, config)
    with joined(device) as ranks, seeded(config.seed, config.threads):
        require_videos(data, config, ranks)
        model = _fresh_model(settings, opened, data.labels, ranks.device)
        inputs = _inputs(opened, label_set)
        identity = _identity(settings, inputs, data.train.window)
        state = ranks.first(lambda: begin(out, identity, force, resume))
        with removed_on_failure(out) if ranks.leads else nullcontext():
            training = Training.of(model, data, opened, config, ranks, out, identity)
            training.restore(Path(state)) if state else training.start(settings)
            tracker = _tracker(settings, out, training)
            training.fit(tracker, progress if ranks.leads else None)
            averaging = training.choose_weights()
            report = TrainReport(
                out,
                count_parameters(model),
                data.counts,
                averaging["best_epoch"],
                averaging["best_val_top1"],
                time.perf_counter() - started,
                bool(opened.model.get("random_weights")),
                training.position.history,
            )
            ranks.first(lambda: _publish(report, data, opened, inputs, settings, averaging))
    return report


def prepare(alignments: Alignments, labels: Labels, config: TrainConfig) -> TrainData:
    """Choose videos and classes; everything left out is counted by reason."""
    train_videos, val_videos = train_and_val(alignments, config.split, config.val_split, config.val_fraction)
    chosen = select(alignments, train_videos, labels)
    require_samples(chosen, labels, alignments.path, f"to train on in split '{config.split}'")
    classes = sorted({sample.label for sample in chosen.samples})
    renumber = {old: new for new, old in enumerate(classes)}
    validation = select(alignments, val_videos, labels)
    seen = [sample for sample in validation.samples if sample.label in renumber]
    # More validation than training videos a class would be supervision by the back door.
    train_set, val_set = (
        [replace(s, label=renumber[s.label]) for s in draw_shots(samples, config.shots, config.seed)]
        for samples in (chosen.samples, seen)
    )
    counts = _counts(
        chosen, validation, train_set, val_set, len(seen), len(classes), len(labels.labels), config.shots
    )
    trained = all_views(train_set, alignments.views if config.views == "all" else 1)
    train_data, val_data = (VideoDataset(alignments, part, config.cache_gb) for part in (trained, val_set))
    return TrainData(train_data, val_data, labels.take(classes), counts)


def require_videos(data: TrainData, config: TrainConfig, ranks: Ranks) -> None:
    """Refuse more processes than there are videos to share."""
    shared = min(len(data.train), config.batch_size)
    if ranks.world > shared:
        raise AdapterError(
            f"{ranks.world} processes cannot share {len(data.train)} training videos in batches of "
            f"{config.batch_size}; start at most {shared} (torchrun --nproc-per-node), or raise --batch-size"
        )


@dataclass
class Training:
    """One training: what learns, on what, and how far it is."""

    model: VideoAdapter
    data: TrainData
    config: TrainConfig
    ranks: Ranks
    out: Path
    identity: dict[str, Any]
    entities: Tensor
    labels: Tensor
    class_weights: Tensor | None
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    schedule: torch.optim.lr_scheduler.LambdaLR
    average: MovingAverage | None
    initial: dict[str, Tensor]
    epochs: int
    position: Position = field(default_factory=Position)
    saved_at: float = field(default_factory=time.monotonic)

    @classmethod
    def of(
        cls,
        model: VideoAdapter,
        data: TrainData,
        alignments: Alignments,
        config: TrainConfig,
        ranks: Ranks,
        out: Path,
        identity: dict[str, Any],
    ) -> "Training":
        """A training that has not begun, of a fresh model."""
        entities, labels = (
            torch.from_numpy(part).to(ranks.device)
            for part in (alignments.entities.embeddings, data.labels.embeddings)
        )
        weights = None
        if config.class_weights == "balanced":
            videos = torch.tensor([sample.label for sample in data.train.samples])
            weights = balanced_weights(videos, len(labels)).to(ranks.device)
        optimizer = build_optimizer(model, config)
        steps = math.ceil(len(data.train) / config.batch_size)
        return cls(
            model,
            data,
            config,
            ranks,
            out,
            identity,
            entities,
            labels,
            weights,
            optimizer,
            loss_scaler(ranks.device, config.precision),
            torch.optim.lr_scheduler.LambdaLR(optimizer, learning_rate(config, steps)),
            MovingAverage(model, config.ema) if config.ema else None,
            state_of(model) if config.wise_alpha < 1 else {},
            config.epochs if count_parameters(model) else 0,
        )

    def start(self, settings: Settings) -> None:
        """Write the config, score the untrained model and keep its weights as the best so far."""
        if self.ranks.leads:
            write_json(self.out / artifact.CONFIG, settings.flat())
        if self.ranks.rank:
            # Noise and dropout differ between ranks; the first rank's are those of a single process.
            torch.manual_seed(self.config.seed + 1_000_003 * self.ranks.rank)
        self._keep({"epoch": 0, "of": "weights", **self._validate()})

    def fit(self, tracker: Tracker, progress: Progress | None) -> None:
        """Every epoch trains, validates, logs, and keeps the weights when validation is better."""
        position = self.position
        with asked_to_stop() as asked:
            while position.epoch <= self.epochs:
                began = time.perf_counter() - position.seconds
                line = {"epoch": position.epoch, "lr": self._first_rate()}
                line |= self.train_epoch(asked, began)
                line |= self.score()
                line["seconds"] = round(time.perf_counter() - began, 3)
                position.history.append(line)
                self.position = position = Position(
                    position.epoch + 1, 0, position.total_steps, best=position.best, history=position.history
                )
                if self.ranks.leads:
                    append_line(self.out / artifact.METRICS, line)
                    tracker.log(line)
                if progress:
                    progress(line)
                if position.epoch <= self.epochs:
                    self.save_if_due(asked())
        tracker.close()
        if self.ranks.leads:
            save_weights(self.out / artifact.LAST_WEIGHTS, state_of(self.model))
            (self.out / artifact.METRICS).touch()

    def train_epoch(self, asked: Callable[[], bool], began: float) -> dict[str, float]:
        """The rest of an epoch over the training videos, in one view each or in all; means over what was seen."""
        config, dataset, position = self.config, self.data.train, self.position
        self.model.train()
        if config.views == "one":
            dataset.draw_views(config.seed, position.epoch)
        strengths = config.frame_dropout, config.region_dropout, config.frame_jitter, config.mixup
        dataset.augment(Augmentation(*strengths), config.seed, position.epoch)
        epoch = EpochOrder(dataset.epoch_order(config.seed, position.epoch), config.batch_size)
        shares = epoch.shares(self.ranks.rank, self.ranks.world, position.steps * config.batch_size)
        for share, batches in dataset.load(shares, config.accumulate):
            said = self.train_step(batches, share.total, asked)
            position.sums = {name: position.sums.get(name, 0.0) + said[name] for name in SUMS}
            position.steps += 1
            position.total_steps += 1
            if self.average:
                self.average.update(self.model, position.total_steps)
            if said["asked"] or (config.save_every and position.total_steps % config.save_every == 0):
                position.seconds = time.perf_counter() - began
                self.save(stop=said["asked"] > 0)
        mean = {name: total / len(dataset) for name, total in position.sums.items()}
        return {"loss": mean["loss"], "top1": mean["right"], "agreement": mean["agreement"]}

    def train_step(self, batches: list[Batch], videos: int, asked: Callable[[], bool]) -> dict[str, float]:
        """One optimiser step on the ``videos`` of all ranks, of which ``batches`` are this one's; returns sums.

        The loss is the mean over all of them: each part that is computed at a time counts by its share.
        """
        self.optimizer.zero_grad(set_to_none=True)
        sums = dict.fromkeys((*SUMS, "asked"), 0.0)
        for batch in batches:
            self._backward(batch.to(self.ranks.device), videos, sums)
        sums["asked"] = float(asked())
        values = self.ranks.sum(torch.tensor(list(sums.values()), dtype=torch.float64))
        sums = dict(zip(sums, values.tolist(), strict=True))
        self._require_finite(sums)
        # Every rank has the same sum, so an overflow on one of them makes all leave the step out.
        self.ranks.sum_gradients(self.model.parameters())
        self.scaler.unscale_(self.optimizer)
        if self.config.grad_clip:
            nn.utils.clip_grad_norm_(self.model.parameters(), self.config.grad_clip)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        with warnings.catch_warnings():
            # A first step that overflowed is left out; torch takes that for calls in the wrong order.
            warnings.filterwarnings("ignore", "Detected call of `lr_scheduler.step")
            self.schedule.step()
        return sums

    def score(self) -> dict[str, float]:
        """Validate the weights, and their moving average; the better of these and the best so far is kept."""
        figures = self._validate()
        self._keep_if_better({"epoch": self.position.epoch, "of": "weights", **figures})
        if not self.average:
            return figures
        with wearing(self.model, self.average.weights):
            averaged = self._validate()
            self._keep_if_better({"epoch": self.position.epoch, "of": "ema", **averaged})
        return figures | {f"ema_{name}": value for name, value in averaged.items()}

    def choose_weights(self) -> dict[str, Any]:
        """Publish the best weights, or their average with the initial ones; says which, and how both validate."""
        self.ranks.wait()
        best = self.position.best
        weights = load_file(self.out / artifact.best_name(best["epoch"]))
        found = {"best_epoch": best["epoch"], "best_val_top1": best.get("val_top1"), "best_of": best["of"]}
        if (alpha := self.config.wise_alpha) < 1:
            weights = between(self.initial, weights, alpha)
            with wearing(self.model, weights):
                figures = self._validate()
            found |= {
                "best_val_top1": figures.get("val_top1"),
                "val_top1_before_averaging": best.get("val_top1"),
            }
        if self.ranks.leads:
            save_weights(self.out / artifact.WEIGHTS, weights)
        return found

    def save_if_due(self, asked: bool) -> None:
        """Save at an epoch's end, at most once in ``STATE_SECONDS`` unless asked; the first rank's clock counts."""
        late = time.monotonic() - self.saved_at > STATE_SECONDS
        wish = torch.tensor([float(late and self.ranks.leads), float(asked)])
        due, stop = (value > 0 for value in self.ranks.sum(wish).tolist())
        if due or stop:
            self.save(stop)

    def save(self, stop: bool = False) -> None:
        """Write the state; with ``stop`` raise ``TrainingStopped`` afterwards."""
        tensors = generators(self.ranks)
        if self.ranks.leads:
            tensors |= under("model", state_of(self.model)) | under("optimizer", moments(self.optimizer))
            if self.average:
                tensors |= under("average", {name: w.cpu() for name, w in self.average.weights.items()})
            schedule = {**self.schedule.state_dict(), "lr_lambdas": [None] * len(self.optimizer.param_groups)}
            note = {"identity": self.identity, "schedule": schedule, "scaler": self.scaler.state_dict()}
            save_state(self.out, tensors, self.position, note, self.config.keep_states)
        self.saved_at = time.monotonic()
        if stop:
            raise TrainingStopped(
                f"stopped by a signal in epoch {self.position.epoch}; the state is saved in {self.out}, and the "
                "same command goes on from there"
            )

    def restore(self, path: Path) -> None:
        """Go on from a state; what was logged after it is taken back."""
        tensors, note = load_state(path, self.ranks.device)
        try:
            self.position = Position(**note["position"])
            self.model.load_state_dict(part_of("model", tensors))
            if self.average:
                self.average.weights = part_of("average", tensors)
            self.schedule.load_state_dict(note["schedule"])
            if self.scaler.is_enabled():
                self.scaler.load_state_dict(note["scaler"])
            set_moments(self.optimizer, part_of("optimizer", tensors), note["schedule"]["_last_lr"])
        except (KeyError, TypeError, RuntimeError) as error:
            raise AdapterError(
                f"{path} does not fit this model ({str(error).splitlines()[0]}); delete it to go on from the state "
                "before it, or pass --force to start over"
            ) from error
        set_generators(tensors, self.ranks, self.config.seed + self.position.total_steps)
        if self.ranks.leads:
            write_lines(self.out / artifact.METRICS, self.position.history)

    def _backward(self, batch: Batch, videos: int, sums: dict[str, float]) -> None:
        config, n = self.config, len(batch.label)
        with precision(self.ranks.device, config.precision):
            output = self.model(batch, self.entities, self.labels)
            how = config.label_smoothing, self.class_weights
            if batch.share is None:
                loss = classification_loss(output.logits, batch.label, *how)
            else:
                loss = mixed_loss(*mixup(output.logits, output.z, batch.label, batch.share), *how)
        self.scaler.scale(loss * (n / videos)).backward()
        sums["loss"] += loss.item() * n
        sums["right"] += int((output.logits.argmax(1) == batch.label).sum())
        sums["agreement"] += output.agreement.item() * n

    def _require_finite(self, sums: dict[str, float]) -> None:
        if math.isfinite(sums["loss"]):
            return
        raise AdapterError(
            f"the loss became {sums['loss']} in epoch {self.position.epoch}; try a lower --lr (now {self.config.lr})"
        )

    def _first_rate(self) -> float:
        # Of the epoch's first step, also when it was stopped in between.
        steps_before = self.position.total_steps - self.position.steps
        return float(self.schedule.base_lrs[0]) * self.schedule.lr_lambdas[0](steps_before)

    def _validate(self) -> dict[str, float]:
        return validate(self.model, self.data.val, self.entities, self.labels, self.config, self.ranks)

    def _keep_if_better(self, line: dict[str, Any]) -> None:
        if _better(line, self.position.best):
            self._keep(line)

    def _keep(self, line: dict[str, Any]) -> None:
        self.position.best = line
        if self.ranks.leads:
            save_weights(self.out / artifact.best_name(line["epoch"]), state_of(self.model))


@torch.no_grad()
def validate(
    model: VideoAdapter,
    dataset: VideoDataset,
    entities: Tensor,
    labels: Tensor,
    config: TrainConfig,
    ranks: Ranks,
) -> dict[str, float]:
    """Loss and accuracy on the validation videos, over all their views; empty where there are none.

    Neither the batch size nor the number of ranks changes a bit of the result.
    """
    if len(dataset) == 0:
        return {}
    model.eval()

    def score(part: Sequence[int]) -> Tensor:
        (views,) = dataset.view_batches(part, len(part))
        with precision(ranks.device, config.precision):
            said = [model(batch.to(ranks.device), entities, labels).logits for batch in views]
        return average_views(torch.stack(said))

    logits = ranks.rows(dataset.reading_order(), (len(labels),), score, config.seed)
    label = torch.tensor([sample.label for sample in dataset.samples])
    loss = F.cross_entropy(logits.double(), label)
    return {"val_loss": loss.item(), "val_top1": int((logits.argmax(1) == label).sum()) / len(dataset)}


@contextmanager
def asked_to_stop() -> Iterator[Callable[[], bool]]:
    """Whether SIGTERM or SIGUSR1 has come; outside of the main thread no signal is listened to."""
    received: list[int] = []
    before = {}
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGTERM, signal.SIGUSR1):
            before[number] = signal.signal(number, lambda got, frame: received.append(got))
    try:
        yield lambda: bool(received)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def build_optimizer(model: nn.Module, config: TrainConfig) -> torch.optim.AdamW:
    """AdamW; vectors and scalars (norms, biases, scales) are not decayed."""
    learned = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in learned if p.ndim >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in learned if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=config.lr, betas=(config.beta1, config.beta2), eps=1e-8)


def learning_rate(config: TrainConfig, steps_per_epoch: int) -> Callable[[int], float]:
    """Factor on the peak rate by step: linear warm-up, then half a cosine down to ``min_lr``."""
    warmup, total = config.warmup * steps_per_epoch, config.epochs * steps_per_epoch

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / (warmup + 1)
        done = min(1.0, (step - warmup) / max(1.0, total - warmup))
        return config.min_lr + (1 - config.min_lr) * 0.5 * (1 + math.cos(math.pi * done))

    return factor


def choose_device(name: str) -> torch.device:
    """``auto`` takes CUDA where there is one; an absent or unknown device raises."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise AdapterError(f"--device {name} is unknown; use auto, cpu, cuda or cuda:N") from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise AdapterError(
            f"--device {name}: torch {torch.__version__} sees no CUDA device; use --device cpu"
        )
    return device


@contextmanager
def precision(device: torch.device, kind: str = "auto") -> Iterator[None]:
    """bfloat16 or float16 autocast, or float32; ``auto`` is bfloat16 on CUDA, float32 elsewhere."""
    if kind == "auto":
        kind = "bf16" if device.type == "cuda" else "fp32"
    half = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(kind)
    with torch.autocast(device.type, dtype=half, enabled=half is not None):
        yield


def require_precision(device: torch.device, kind: str) -> None:
    """Refuse float16 where there is no CUDA."""
    if kind == "fp16" and device.type != "cuda":
        raise AdapterError(
            f"--precision fp16 needs a CUDA device and this training has {device.type}; use bf16 or fp32"
        )


def loss_scaler(device: torch.device, kind: str) -> torch.amp.GradScaler:
    """What keeps float16 gradients from vanishing; does nothing at other precisions."""
    return torch.amp.GradScaler(device.type, enabled=kind == "fp16")


@contextmanager
def seeded(seed: int, threads: int = 0) -> Iterator[None]:
    """A seeded global generator (and thread count) inside, the caller's own again afterwards."""
    before = torch.get_num_threads()
    if threads:
        torch.set_num_threads(threads)
    try:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            yield
    finally:
        torch.set_num_threads(before)


def _fresh_model(
    settings: Settings, alignments: Alignments, labels: Labels, device: torch.device
) -> VideoAdapter:
    model = build_model(settings.model, Shape(alignments.dim, alignments.frames))
    return fit_labels(model, settings.model, torch.from_numpy(labels.embeddings)).to(device)


def validation_rank(line: dict[str, Any]) -> tuple[float, float]:
    """By what epochs are compared, the greater the better: accuracy, and the lower loss where it is equal."""
    return line["val_top1"], -line["val_loss"]


def _better(line: dict[str, Any], best: dict[str, Any]) -> bool:
    # Without validation videos the last epoch is kept.
    if "val_top1" not in line or best["epoch"] == 0:
        return True
    return validation_rank(line) > validation_rank(best)


def _counts(
    train: Selection,
    val: Selection,
    train_set: list[Sample],
    val_set: list[Sample],
    val_seen: int,
    classes: int,
    labels: int,
    shots: int,
) -> dict[str, Any]:
    per_class = Counter(sample.label for sample in train_set)
    return {
        "train": {
            **train.counts(),
            "beyond_shots": len(train.samples) - len(train_set),
            "used": len(train_set),
        },
        "val": {
            **val.counts(),
            "class_not_in_training": len(val.samples) - val_seen,
            "beyond_shots": val_seen - len(val_set),
            "used": len(val_set),
        },
        "classes": classes,
        "labels_without_training_videos": labels - classes,
        "classes_below_shots": sum(n < shots for n in per_class.values()),
        "unknown_labels": sorted({video.label or "" for video in train.unknown + val.unknown})[:10],
    }


def _inputs(opened: Alignments, labels: Labels) -> dict[str, str]:
    return {
        "alignments": opened.fingerprint,
        "labels": labels.fingerprint,
        "corpus": opened.manifest["corpus"]["fingerprint"],
    }


def _identity(settings: Settings, inputs: dict[str, str], window: int) -> dict[str, Any]:
    # The order of videos depends on how many row groups fit in memory (--cache-gb).
    config = {**_config_that_matters(settings), "window (--cache-gb)": window}
    return {**config, **{f"inputs.{name}": fingerprint for name, fingerprint in inputs.items()}}


def _tracker(settings: Settings, out: Path, training: Training) -> Tracker:
    kind = settings.train.tracker if training.ranks.leads else "none"
    return TRACKERS[kind](out, settings.flat(), training.position.epoch)


def _publish(
    report: TrainReport,
    data: TrainData,
    opened: Alignments,
    inputs: dict[str, str],
    settings: Settings,
    averaging: dict[str, Any],
) -> None:
    out = report.out
    rows = [(s.video_id, data.labels.labels[s.label], role) for s, role in _roles(data)]
    columns = [list(column) for column in zip(*rows, strict=True)]
    write_table(out / artifact.VIDEOS, pa.table(columns, schema=artifact.VIDEOS_SCHEMA))
    body = {
        "config": _config_that_matters(settings),
        "inputs": {name: {"fingerprint": fingerprint} for name, fingerprint in inputs.items()},
        "model": dict(opened.model),
        "labels": list(data.labels.labels),
        "dim": opened.dim,
        "frames": opened.frames,
        "parameters": report.parameters,
        "counts": report.counts,
        "torch": torch.__version__,
        **averaging,
    }
    files = {name: 0 for name in (artifact.CONFIG, artifact.WEIGHTS, artifact.LAST_WEIGHTS)}
    publish(out, body, {**files, artifact.METRICS: len(report.history), artifact.VIDEOS: len(rows)})
    remove_states(out)


def _roles(data: TrainData) -> Iterator[tuple[Sample, str]]:
    for part, role in ((data.train, "train"), (data.val, "val")):
        seen = {sample.video_id: sample for sample in part.samples}
        yield from ((sample, role) for sample in seen.values())


def _config_that_matters(settings: Settings) -> dict[str, Any]:
    return {k: v for k, v in settings.flat().items() if k not in BOOKKEEPING}
