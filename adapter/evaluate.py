"""Score a run: supervised, zero-shot and generalised zero-shot, every video once, with n and spread.

Metrics are pure NumPy functions of (logits, truth); ties between logits go to the lower class, as in
``argmax``.
"""

import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float32, Float64, Int64
from torch import Tensor

from adapter.alignments import Alignments, Planned, open_alignments
from adapter.artifact import (
    PREDICTIONS_SCHEMA,
    Run,
    check_same_model,
    evaluation_name,
    make_folder,
    open_run,
    predictions_name,
    with_model,
    write_atomic,
    write_json,
    write_table,
)
from adapter.baselines import Videos, fit_head
from adapter.checkpoint import load_model, settings_of
from adapter.config import HEADS, AdapterError, did_you_mean, make_settings
from adapter.dataset import (
    Batch,
    Sample,
    Selection,
    VideoDataset,
    default_split,
    require_samples,
    select,
    split_videos,
)
from adapter.describe import describe
from adapter.labels import Labels, name_key, open_labels
from adapter.losses import average_views
from adapter.measures import calibration
from adapter.model import Output, VideoAdapter, mean_cls
from adapter.ranks import Ranks, joined
from adapter.sensitivity import measure_sensitivity
from adapter.train import choose_device, precision

Logits = Float32[np.ndarray, "videos classes"]
Truth = Int64[np.ndarray, " videos"]
Change = Callable[[Batch], Batch]


@dataclass(frozen=True)
class Opened:
    """A run, its model and the artifacts it is scored on, checked to belong together."""

    run: Run
    model: VideoAdapter
    alignments: Alignments
    labels: Labels
    ranks: Ranks
    clip_scale: float

    @property
    def device(self) -> torch.device:
        """Where this process computes."""
        return self.ranks.device

    def same_corpus(self) -> bool:
        """Whether the videos are aligned to the corpus that the run was trained with; it may be another."""
        known = self.run.manifest["inputs"].get("corpus", {})
        return known.get("fingerprint") == self.alignments.manifest["corpus"]["fingerprint"]

    def seen(self) -> Bool[np.ndarray, " classes"]:
        """Which labels of the set the run was trained on, by ``name_key``."""
        trained = {name_key(label) for label in self.run.train_labels}
        return np.array([name_key(label) in trained for label in self.labels.labels])


@dataclass(frozen=True)
class Scores:
    """Logits of videos over a label set; ``truth`` -1 where unknown."""

    video_ids: tuple[str, ...]
    truth: Truth
    logits: Logits


# ------------------------------------------------------------------ metrics


def ranks(logits: Logits, truth: Truth) -> Truth:
    """How many classes come before the true one: 0 is a top-1 hit."""
    own = logits[np.arange(len(truth)), truth][:, None]
    earlier = np.arange(logits.shape[1])[None] < truth[:, None]
    return ((logits > own) | ((logits == own) & earlier)).sum(1)


def topk_accuracy(logits: Logits, truth: Truth, k: int) -> float:
    """Share of videos whose class is among the k highest logits."""
    return float((ranks(logits, truth) < k).mean())


def mean_class_accuracy(logits: Logits, truth: Truth) -> float:
    """Top-1 accuracy of each class that occurs, averaged over classes."""
    hit = ranks(logits, truth) == 0
    return float(np.mean([hit[truth == c].mean() for c in np.unique(truth)]))


def bootstrap_interval(hits: Bool[np.ndarray, " videos"], draws: int = 1000, seed: int = 0) -> list[float]:
    """95 % interval of the mean over videos drawn with replacement: spread of videos, not of training."""
    # A resampled mean of zeros and ones depends on their share alone.
    means = np.random.default_rng(seed).binomial(len(hits), hits.mean(), draws) / len(hits)
    return [float(q) for q in np.quantile(means, [0.025, 0.975])]


def harmonic_mean(a: float, b: float) -> float:
    """2ab / (a + b), 0 where both are 0."""
    return 2 * a * b / (a + b) if a + b else 0.0


def confusion_pairs(
    logits: Logits, truth: Truth, labels: Sequence[str], top: int = 20
) -> list[dict[str, Any]]:
    """The most frequent (truth, prediction) pairs that are wrong."""
    predicted = logits.argmax(1)
    wrong = Counter((int(t), int(p)) for t, p in zip(truth, predicted, strict=True) if t != p)
    ordered = sorted(wrong.items(), key=lambda item: (-item[1], item[0]))[:top]
    return [{"label": labels[t], "predicted": labels[p], "n": n} for (t, p), n in ordered]


def restrict(logits: Logits, classes: Bool[np.ndarray, " classes"]) -> Logits:
    """Logits with only some classes as candidates."""
    return np.where(classes[None], logits, np.float32(-np.inf))


# ------------------------------------------------------------------ scoring


def open_all(
    run: Path,
    alignments: Path,
    labels: Path,
    device: str = "auto",
    ranks: Ranks | None = None,
    model: VideoAdapter | None = None,
) -> Opened:
    """Open a run and what it is to be scored on; a mismatch says what was needed, found and what to run.

    With ``ranks`` (of ``joined``) these processes share what is scored, else this one does it all, on ``device``.
    ``model`` is the run's where the caller has it in memory already, on that device.
    """
    opened_run = open_run(run)
    opened = open_alignments(alignments)
    needed = opened_run.manifest
    command = f"aligner run --videos DIR --corpus DIR MODEL --frames {needed['frames']} --out DIR"
    again = with_model(command, needed["model"])
    check_same_model(
        opened.model, needed["model"], f"alignments {alignments.name} were", f"run {run.name}", again
    )
    for name in ("dim", "frames"):
        if opened.manifest[name] != needed[name]:
            raise AdapterError(
                f"alignments {alignments.name} have {name} {opened.manifest[name]}, run {run.name} expects "
                f"{needed[name]}; run {again}"
            )
    label_set = open_labels(labels, needed["model"], f"run {run.name}")
    ranks = ranks or Ranks(choose_device(device))
    model = model or load_model(opened_run, ranks.device)
    opened.require_regions(make_settings(opened_run.config).model, f"run {run.name}: ")
    return Opened(opened_run, model, opened, label_set, ranks, opened_run.config["logit_scale"])


def score(
    opened: Opened,
    samples: Sequence[Sample],
    blend: float = 0.0,
    candidates: Bool[np.ndarray, " classes"] | None = None,
    change: Change = lambda batch: batch,
) -> Scores:
    """Logits of every sample exactly once, in the order given.

    Where videos have several views, the probabilities (among the ``candidates``, by default all labels) are averaged
    over all of them, and the logits are the logarithms of that. ``blend`` and ``change`` are those of ``score_views``.
    """
    views = torch.from_numpy(score_views(opened, samples, blend, change))
    part = np.ones(views.shape[-1], bool) if candidates is None else candidates
    logits = average_views(views.masked_fill(torch.from_numpy(~part), -torch.inf)).numpy()
    truth = np.array([sample.label for sample in samples], np.int64)
    return Scores(tuple(sample.video_id for sample in samples), truth, logits)


def score_views(
    opened: Opened,
    samples: Sequence[Sample],
    blend: float = 0.0,
    change: Change = lambda batch: batch,
) -> Float32[np.ndarray, "views videos classes"]:
    """Logits over all labels that each view of each sample has, for the samples in the order given.

    ``change`` is done to every batch, such as playing it backwards. ``blend`` in 0..1 mixes in zero-shot CLIP late:
    the logits become (1 - blend) log p_model + blend log p_clip, which keeps unseen classes alive in an adapter trained
    without them. The bits depend on the set of samples alone, not on their order or the number of ranks.
    """
    if not 0 <= blend <= 1:
        raise AdapterError(f"--blend is {blend}; it must be between 0 (the run) and 1 (zero-shot CLIP)")
    labels = torch.from_numpy(opened.labels.embeddings).to(opened.device)

    def logits(batch: Batch, output: Output) -> Tensor:
        if not blend:
            return output.logits
        own, clip = output.logits.float(), opened.clip_scale * mean_cls(batch) @ labels.T
        return (1 - blend) * F.log_softmax(own, -1) + blend * F.log_softmax(clip, -1)

    found = _each_view(opened, samples, len(labels), logits, change)
    if not np.isfinite(found).all():
        raise AdapterError(
            "some logits are not finite; the run or the alignments are damaged: `aligner verify DIR`"
        )
    return found


def represent(
    opened: Opened, videos: Sequence[str], change: Change = lambda batch: batch
) -> Float64[np.ndarray, "videos dim"]:
    """Z of every video, mean over its views, in the order given: what the run makes of it before it meets classes."""
    if not settings_of(opened.run).model.has_own_z:
        raise AdapterError(
            f"run {opened.run.path.name} has readout=labels: a video has a z for each class and none of its own, so "
            "nothing but class texts can score it; use --head text, or a run with readout=mean"
        )
    samples = [Sample(video, -1) for video in videos]
    found = _each_view(opened, samples, opened.alignments.dim, lambda batch, output: output.z, change)
    return found.mean(0).astype(np.float64)


@torch.no_grad()
def _each_view(
    opened: Opened,
    samples: Sequence[Sample],
    size: int,
    take: Callable[[Batch, Output], Tensor],
    change: Change,
) -> Float32[np.ndarray, "views videos size"]:
    """What is taken of the model's output for every view of every sample; the ranks share the videos."""
    # Whatever the order given, a video is computed with the same others.
    places = sorted(range(len(samples)), key=lambda i: samples[i].video_id)
    dataset = VideoDataset(opened.alignments, [samples[i] for i in places], cache_gb=0.0)
    entities = torch.from_numpy(opened.alignments.entities.embeddings).to(opened.device)
    labels = torch.from_numpy(opened.labels.embeddings).to(opened.device)

    def work(part: Sequence[int]) -> Tensor:
        (views,) = dataset.view_batches(part, len(part))
        said = []
        for batch in views:
            batch = change(batch.to(opened.device))
            with precision(opened.device):
                output = opened.model(batch, entities, labels)
            said.append(take(batch, output).float())
        return torch.stack(said, 1)

    shape = opened.alignments.views, size
    rows = opened.ranks.rows(dataset.reading_order(), shape, work, opened.run.config["seed"])
    found = np.empty((shape[0], len(samples), size), np.float32)
    found[:, places] = rows.transpose(0, 1).numpy()
    return found


Scorer = Callable[[Change], Scores]


def head_scorer(
    opened: Opened, head: str, samples: Sequence[Sample], part: Bool[np.ndarray, " classes"]
) -> tuple[Scorer, dict[str, float | int]]:
    """What scores samples by a head fitted to z of the run's training videos, and what its validation videos chose.

    Only candidates (``part``) vote; a head that knows none of them, or lacks its videos, raises ``AdapterError``.
    """
    train, val = (_labelled(opened, role, part) for role in ("train", "val"))
    if not len(train.truth):
        raise AdapterError(
            f"--head {head} knows classes by the videos that the run was trained on, and none of those has a label "
            "among the candidates; use --head text"
        )
    fitted = fit_head(head, train, val, len(part))
    ids, truth = [s.video_id for s in samples], np.array([s.label for s in samples], np.int64)

    def scored(change: Change) -> Scores:
        z = represent(opened, ids, change=change)
        logits = np.where(part, fitted.score(z, _against(opened, z)), -np.inf)
        return Scores(tuple(ids), truth, logits.astype(np.float32))

    return scored, fitted.choice


def _labelled(opened: Opened, role: str, part: Bool[np.ndarray, " classes"]) -> Videos:
    """Videos of a role of the run whose classes are candidates."""
    named = {video: opened.labels.match(label) for video, label in opened.run.videos(role).items()}
    kept = {video: label for video, label in named.items() if label >= 0 and part[label]}
    if lost := [video for video in kept if video not in opened.alignments.index]:
        raise AdapterError(
            f"alignments {opened.alignments.path} lack {len(lost)} of the videos that run {opened.run.path.name} was "
            f"trained on, such as {lost[0]}; the head needs them: give the alignments of the training"
        )
    z = represent(opened, list(kept))
    return Videos(z, _against(opened, z), np.array(list(kept.values()), np.int64))


@torch.no_grad()
def _against(opened: Opened, z: Float64[np.ndarray, "videos dim"]) -> Float64[np.ndarray, "videos classes"]:
    labels, unit = (torch.from_numpy(v).float().to(opened.device) for v in (opened.labels.embeddings, z))
    return opened.model.against(F.normalize(unit, dim=-1), labels).double().cpu().numpy()


def evaluate(
    run: Path,
    alignments: Path,
    labels: Path,
    split: str | None = None,
    name: str | None = None,
    candidates: str = "all",
    reverse_time: bool = False,
    blend: float = 0.0,
    device: str = "auto",
    head: str = "text",
    sensitivity: bool = False,
) -> dict[str, Any]:
    """Evaluate a run and store ``eval-NAME.json`` and ``predictions-NAME.parquet`` in it.

    ``split`` defaults to ``test``, or to ``all`` where no video names a split; ``n_trained_on`` then tells.
    ``candidates`` is ``all`` (every label of the set; generalised zero-shot when some are unseen), ``seen``
    or ``unseen`` (videos and candidates of that part only). ``name`` defaults to the split, and says the head
    where that is not text. ``head`` is one of ``HEADS``; ``sensitivity`` scores again with frames in other orders and
    with only some kinds of entities to align to.
    """
    if name is not None:
        _check_name(name)
    if head not in HEADS or (blend and head != "text"):
        raise AdapterError(
            f"--head is '{head}'{did_you_mean(head, HEADS)}; it must be one of {', '.join(HEADS)}, and text where "
            "--blend is given"
        )
    with joined(choose_device(device)) as group:
        opened = open_all(run, alignments, labels, ranks=group)
        result, scores = _evaluated(opened, split, name, candidates, reverse_time, blend, head, sensitivity)
        group.first(lambda: _store(run, result, scores, opened.labels.labels))
    return result


def _evaluated(
    opened: Opened,
    split: str | None,
    name: str | None,
    candidates: str,
    reverse_time: bool,
    blend: float,
    head: str,
    sensitivity: bool,
) -> tuple[dict[str, Any], Scores]:
    split = split or default_split(opened.alignments)
    name = name or (split if head == "text" else f"{split}-{head}")
    _check_name(name)
    selection = select(opened.alignments, split_videos(opened.alignments, split), opened.labels)
    require_samples(selection, opened.labels, opened.alignments.path, f"to evaluate in split '{split}'")
    seen = opened.seen()
    part = candidate_classes(seen, candidates)
    samples = [sample for sample in selection.samples if part[sample.label]]
    if not samples:
        raise AdapterError(
            f"--candidates {candidates}: no video of split '{split}' has such a label; use --candidates all"
        )
    scorer, choice = _scorer(opened, head, samples, part, blend)
    scores = scorer(Batch.reversed if reverse_time else lambda batch: batch)
    failed = [video for video in selection.failed if _counts_as(video, opened.labels, part)]
    result = {
        "name": name,
        "split": split,
        "candidates": candidates,
        "reverse_time": reverse_time,
        "blend": blend,
        "head": head,
        "head_choice": choice,
        "views": opened.alignments.views,
        "run": opened.run.manifest["fingerprint"],
        "alignments": opened.alignments.fingerprint,
        "labels": opened.labels.fingerprint,
        "same_corpus": opened.same_corpus(),
        "random_weights": bool(opened.alignments.model.get("random_weights")),
        **summarise(scores, opened.labels.labels, seen, part),
        **_account(selection, samples, failed, scores, opened.run),
        "cost": _cost(
            opened.run.path, opened.alignments.path, opened.alignments.views, len(opened.labels.labels)
        ),
    }
    if sensitivity:
        result["sensitivity"] = measure_sensitivity(
            opened.alignments,
            make_settings(opened.run.config).model,
            lambda change: ranks((again := scorer(change)).logits, again.truth) == 0,
        )
    return result, scores


def _scorer(
    opened: Opened, head: str, samples: Sequence[Sample], part: Bool[np.ndarray, " classes"], blend: float
) -> tuple[Scorer, dict[str, float | int]]:
    if head == "text":
        return lambda change: score(opened, samples, blend, candidates=part, change=change), {}
    return head_scorer(opened, head, samples, part)


def _cost(run: Path, alignments: Path, views: int, classes: int) -> dict[str, Any]:
    """Parameters, and MACs of a view and of all views, on alignments like these."""
    described = describe(None, run, alignments, views, {"classes": classes}).to_json()
    return {name: described[name] for name in ("parameters", "macs_per_view", "macs")} | {"views": views}


def candidate_classes(seen: Bool[np.ndarray, " classes"], candidates: str) -> Bool[np.ndarray, " classes"]:
    """The classes that ``--candidates`` names."""
    choices = {"all": np.ones_like(seen), "seen": seen, "unseen": ~seen}
    if candidates not in choices:
        raise AdapterError(f"--candidates is '{candidates}'; it must be one of {', '.join(choices)}")
    if not choices[candidates].any():
        raise AdapterError(
            f"--candidates {candidates}: the label set has none ({int(seen.sum())} of {len(seen)} labels "
            "are seen)"
        )
    return choices[candidates]


def summarise(
    scores: Scores,
    labels: Sequence[str],
    seen: Bool[np.ndarray, " classes"],
    part: Bool[np.ndarray, " classes"],
) -> dict[str, Any]:
    """All figures that follow from logits and truth; ``part`` are the candidates."""
    logits, truth = scores.logits, scores.truth
    hits = ranks(logits, truth) == 0
    k = min(5, int(part.sum()))
    result: dict[str, Any] = {
        "n": len(truth),
        "classes": int(part.sum()),
        "top1": float(hits.mean()),
        "top1_interval": bootstrap_interval(hits),
        "interval": "95 % bootstrap over videos, 1000 draws; training seeds are not in it",
        "top5": topk_accuracy(logits, truth, k),
        "top5_k": k,
        "mean_class_accuracy": mean_class_accuracy(logits, truth),
        "per_class": [
            {
                "label": labels[c],
                "seen": bool(seen[c]),
                "n": int((truth == c).sum()),
                "top1": float(hits[truth == c].mean()),
            }
            for c in np.unique(truth)
        ],
        "confusions": confusion_pairs(logits, truth, labels),
        "calibration": calibration(softmax(logits), truth),
    }
    for word, group in (("seen", seen), ("unseen", ~seen)):
        rows = group[truth]
        if rows.any():
            result[word] = _group_figures(logits[rows], truth[rows], group & part)
    if "seen" in result and "unseen" in result:
        result["harmonic_mean"] = harmonic_mean(result["seen"]["top1"], result["unseen"]["top1"])
    return result


def predictions_table(scores: Scores, labels: Sequence[str], k: int = 5) -> pa.Table:
    """One row a video: truth where known, the k best labels and their probabilities."""
    k = min(k, len(labels))
    order = np.argsort(-scores.logits, axis=1, kind="stable")[:, :k]
    probability = np.take_along_axis(softmax(scores.logits), order, axis=1).astype(np.float32)
    truth = [labels[t] if t >= 0 else None for t in scores.truth]
    best = [labels[c] for c in order[:, 0]]
    correct = [None if t is None else t == p for t, p in zip(truth, best, strict=True)]
    names = [[labels[c] for c in row] for row in order]
    columns = [list(scores.video_ids), truth, best, correct, names, probability.tolist()]
    return pa.table(columns, schema=PREDICTIONS_SCHEMA)


def softmax(logits: Logits) -> Float64[np.ndarray, "videos classes"]:
    """Probabilities over the candidates."""
    weights = np.exp(logits.astype(np.float64) - logits.max(1, keepdims=True))
    return weights / weights.sum(1, keepdims=True)


def predict(
    run: Path,
    alignments: Path,
    labels: Path,
    out: Path,
    topk: int = 5,
    blend: float = 0.0,
    device: str = "auto",
) -> dict[str, int]:
    """Predict every aligned video, labelled or not, into a parquet, csv or json file; returns counts."""
    if out.suffix not in (".parquet", ".csv", ".json"):
        raise AdapterError(f"--out {out.name} ends in '{out.suffix}'; it must end in .parquet, .csv or .json")
    if topk < 1:
        raise AdapterError(f"--top is {topk}; it must be at least 1")
    with joined(choose_device(device)) as group:
        opened = open_all(run, alignments, labels, ranks=group)
        samples = [
            Sample(video.video_id, opened.labels.match(video.label))
            for video in opened.alignments.plan
            if video.video_id in opened.alignments.index
        ]
        if not samples:
            raise AdapterError(
                f"{alignments} holds no aligned video ({len(opened.alignments.failed)} failed); see `aligner "
                f"status {alignments}`"
            )
        table = predictions_table(score(opened, samples, blend=blend), opened.labels.labels, topk)
        group.first(lambda: _store_predictions(out, table))
    return {
        "planned": len(opened.alignments.plan),
        "predicted": len(samples),
        "failed": len(opened.alignments.failed),
    }


def _group_figures(logits: Logits, truth: Truth, own: Bool[np.ndarray, " classes"]) -> dict[str, Any]:
    hits = ranks(logits, truth) == 0
    return {
        "n": len(truth),
        "classes": int(own.sum()),
        "top1": float(hits.mean()),
        "top1_interval": bootstrap_interval(hits),
        "top1_among_own": topk_accuracy(restrict(logits, own), truth, 1),
    }


def _account(
    selection: Selection, samples: Sequence[Sample], failed: Sequence[Planned], scores: Scores, run: Run
) -> dict[str, Any]:
    trained = run.trained_on()
    right = int((ranks(scores.logits, scores.truth) == 0).sum())
    return {
        "counts": {
            **selection.counts(),
            "not_a_candidate": len(selection.samples) - len(samples),
            "scored": len(samples),
        },
        "top1_failures_wrong": right / (len(samples) + len(failed)),
        "n_trained_on": sum(sample.video_id in trained for sample in samples),
        "unknown_labels": sorted({video.label or "" for video in selection.unknown})[:10],
    }


def _counts_as(video: Planned, labels: Labels, part: Bool[np.ndarray, " classes"]) -> bool:
    label = labels.match(video.label)
    return label >= 0 and bool(part[label])


def _check_name(name: str) -> None:
    if not name or any(c in name for c in "/\\") or name.startswith("."):
        raise AdapterError(
            f"--name is '{name}'; it becomes part of a file name, so use letters, digits, - and _"
        )


def _store(run: Path, result: dict[str, Any], scores: Scores, labels: Sequence[str]) -> None:
    name = result["name"]
    write_table(run / predictions_name(name), predictions_table(scores, labels))
    write_json(run / evaluation_name(name), result)


def _store_predictions(out: Path, table: pa.Table) -> None:
    make_folder(out.parent)
    write_atomic(out, lambda temporary: _write_predictions(table, temporary, out.suffix))


def _write_predictions(table: pa.Table, path: Path, suffix: str) -> None:
    if suffix == ".parquet":
        pq.write_table(table, path, compression="zstd")
    elif suffix == ".json":
        path.write_text(json.dumps(table.to_pylist(), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    else:
        flat = [
            {**row, "topk_label": "|".join(row["topk_label"]), "topk_prob": _joined(row)}
            for row in table.to_pylist()
        ]
        pd.DataFrame(flat).to_csv(path, index=False)


def _joined(row: dict[str, Any]) -> str:
    return "|".join(f"{p:.6g}" for p in row["topk_prob"])
