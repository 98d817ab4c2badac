"""Train a model on cached alignments: one readable loop, seeded, on one machine.

The validation split (or a held-out part of the training split) chooses the epoch; the test split is never
read.
"""

import math
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch
from torch import Tensor, nn

from adapter import artifact
from adapter.alignments import Alignments, open_alignments
from adapter.artifact import append_line, publish, removed_on_failure, start_run, write_json, write_table
from adapter.checkpoint import save_weights, state_of
from adapter.config import AdapterError, Settings, TrainConfig
from adapter.dataset import (
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
from adapter.losses import average_views, classification_loss
from adapter.model import Shape, VideoAdapter, build_model, count_parameters

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
) -> TrainReport:
    """Train and publish a run in ``out``.

    Classes are the labels that have training videos; other labels of the set are no candidates, so an unseen
    class is never a negative. The published weights are those of the best validation epoch (the last without
    validation videos). Raises ``AdapterError`` on artifacts that are missing, incomplete or made with another
    model. A training that fails leaves no folder.
    """
    config, started = settings.train, time.perf_counter()
    device = choose_device(config.device)
    opened = open_alignments(alignments)
    opened.require_regions(settings.model)
    label_set = open_labels(labels, opened.model)
    data = prepare(opened, label_set, config)
    with seeded(config.seed, config.threads):
        model = _fresh_model(settings, opened, data.labels, device)
        start_run(out, force)
        with removed_on_failure(out):
            write_json(out / artifact.CONFIG, settings.flat())
            history, best = fit(model, data, opened, settings, device, out, progress)
            report = TrainReport(
                out,
                count_parameters(model),
                data.counts,
                best["epoch"],
                best.get("val_top1"),
                time.perf_counter() - started,
                bool(opened.model.get("random_weights")),
                history,
            )
            _publish(report, data, opened, label_set, settings)
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


def fit(
    model: VideoAdapter,
    data: TrainData,
    alignments: Alignments,
    settings: Settings,
    device: torch.device,
    out: Path,
    progress: Progress | None,
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """The loop: every epoch trains, validates, logs, and keeps the weights when validation is better."""
    config = settings.train
    entities = torch.from_numpy(alignments.entities.embeddings).to(device)
    labels = torch.from_numpy(data.labels.embeddings).to(device)
    epochs = config.epochs if count_parameters(model) else 0
    steps = math.ceil(len(data.train) / config.batch_size)
    optimizer = build_optimizer(model, config)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, learning_rate(config, steps)) if epochs else None
    history: list[dict[str, Any]] = []
    best: dict[str, Any] = {"epoch": 0, **validate(model, data.val, entities, labels, config, device)}
    save_weights(out / artifact.WEIGHTS, state_of(model))
    for epoch in range(1, epochs + 1):
        started = time.perf_counter()
        line = {"epoch": epoch, "lr": optimizer.param_groups[0]["lr"]}
        line |= train_epoch(model, data.train, entities, labels, optimizer, schedule, config, epoch, device)
        line |= validate(model, data.val, entities, labels, config, device)
        line["seconds"] = round(time.perf_counter() - started, 3)
        if _better(line, best):
            best = line
            save_weights(out / artifact.WEIGHTS, state_of(model))
        history.append(line)
        append_line(out / artifact.METRICS, line)
        if progress:
            progress(line)
    save_weights(out / artifact.LAST_WEIGHTS, state_of(model))
    (out / artifact.METRICS).touch()
    return history, best


def train_epoch(
    model: VideoAdapter,
    dataset: VideoDataset,
    entities: Tensor,
    labels: Tensor,
    optimizer: torch.optim.Optimizer,
    schedule: torch.optim.lr_scheduler.LambdaLR | None,
    config: TrainConfig,
    epoch: int,
    device: torch.device,
) -> dict[str, float]:
    """One pass over the training videos, in one view each or in all of them; means over what was seen."""
    model.train()
    if config.views == "one":
        dataset.draw_views(config.seed, epoch)
    sums = dict.fromkeys(("loss", "right", "agreement"), 0.0)
    for batch in dataset.batches(dataset.epoch_order(config.seed, epoch), config.batch_size):
        batch = batch.to(device)
        with precision(device):
            output = model(batch, entities, labels)
            loss = classification_loss(output.logits, batch.label, config.label_smoothing)
        if not torch.isfinite(loss):
            raise AdapterError(
                f"the loss became {loss.item()} in epoch {epoch}; try a lower --lr (now {config.lr})"
            )
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        if config.grad_clip:
            nn.utils.clip_grad_norm_(model.parameters(), config.grad_clip)
        optimizer.step()
        if schedule:
            schedule.step()
        n = len(batch.label)
        sums["loss"] += loss.item() * n
        sums["right"] += int((output.logits.argmax(1) == batch.label).sum())
        sums["agreement"] += output.agreement.item() * n
    n = len(dataset)
    return {"loss": sums["loss"] / n, "top1": sums["right"] / n, "agreement": sums["agreement"] / n}


@torch.no_grad()
def validate(
    model: VideoAdapter,
    dataset: VideoDataset,
    entities: Tensor,
    labels: Tensor,
    config: TrainConfig,
    device: torch.device,
) -> dict[str, float]:
    """Loss and accuracy on the validation videos, over all their views; empty where there are none."""
    if len(dataset) == 0:
        return {}
    model.eval()
    loss, right = 0.0, 0
    for views in dataset.view_batches(dataset.reading_order(), config.batch_size):
        said = []
        for batch in views:
            batch = batch.to(device)
            with precision(device):
                said.append(model(batch, entities, labels).logits)
        logits, label = average_views(torch.stack(said)), batch.label
        loss += classification_loss(logits, label).item() * len(label)
        right += int((logits.argmax(1) == label).sum())
    return {"val_loss": loss / len(dataset), "val_top1": right / len(dataset)}


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
def precision(device: torch.device) -> Iterator[None]:
    """bfloat16 autocast on CUDA, float32 elsewhere."""
    with torch.autocast(device.type, dtype=torch.bfloat16, enabled=device.type == "cuda"):
        yield


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
    if settings.model.whiten_labels:
        model.whitening.fit(torch.from_numpy(labels.embeddings), settings.model.shrinkage)
    return model.to(device)


def _better(line: dict[str, Any], best: dict[str, Any]) -> bool:
    # Equal accuracy: the lower validation loss. Without validation videos the last epoch is kept.
    def key(entry: dict[str, Any]) -> tuple[float, float]:
        return entry["val_top1"], -entry["val_loss"]

    return "val_top1" not in line or best["epoch"] == 0 or key(line) > key(best)


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


def _publish(
    report: TrainReport, data: TrainData, opened: Alignments, labels: Labels, settings: Settings
) -> None:
    out = report.out
    rows = [(s.video_id, data.labels.labels[s.label], role) for s, role in _roles(data)]
    columns = [list(column) for column in zip(*rows, strict=True)]
    write_table(out / artifact.VIDEOS, pa.table(columns, schema=artifact.VIDEOS_SCHEMA))
    body = {
        "config": _config_that_matters(settings),
        "inputs": {
            "alignments": {"fingerprint": opened.fingerprint},
            "labels": {"fingerprint": labels.fingerprint},
            "corpus": {"fingerprint": opened.manifest["corpus"]["fingerprint"]},
        },
        "model": dict(opened.model),
        "labels": list(data.labels.labels),
        "dim": opened.dim,
        "frames": opened.frames,
        "parameters": report.parameters,
        "best_epoch": report.best_epoch,
        "best_val_top1": report.best_val_top1,
        "counts": report.counts,
        "torch": torch.__version__,
    }
    files = {name: 0 for name in (artifact.CONFIG, artifact.WEIGHTS, artifact.LAST_WEIGHTS)}
    publish(out, body, {**files, artifact.METRICS: len(report.history), artifact.VIDEOS: len(rows)})


def _roles(data: TrainData) -> Iterator[tuple[Sample, str]]:
    for part, role in ((data.train, "train"), (data.val, "val")):
        seen = {sample.video_id: sample for sample in part.samples}
        yield from ((sample, role) for sample in seen.values())


def _config_that_matters(settings: Settings) -> dict[str, Any]:
    return {k: v for k, v in settings.flat().items() if k not in ("cache_gb", "device", "threads")}
