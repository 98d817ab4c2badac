"""``alt finetune``: decode, encode with gradients, align live, adapt; from a cached run or from a new adapter.

What comes of it is a folder like that of ``alt run``: ``clip`` (the tuned model, an open_clip ``local-dir:``),
``corpus`` and ``labels`` in its name, ``runs/finetuned`` (an ordinary run of the adapter), ``pipeline.yaml``.
The text tower's weights never change, and so do the embeddings that it made: corpus and labels are carried over with
their vectors, and say so in their manifests. Only where it has prompts that learn, the labels are embedded anew.
"""

import json
import math
import shutil
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
import yaml
from open_clip import get_tokenizer
from safetensors.torch import load_file
from torch import nn

from adapter import artifact as runs
from adapter.alignments import Alignments, open_alignments
from adapter.artifact import check_same_model, open_run, publish, start_run, write_json, write_table
from adapter.checkpoint import load_model, save_weights, state_of
from adapter.config import ModelConfig, Settings, make_settings
from adapter.dataset import Sample
from adapter.labels import Labels, open_labels
from adapter.losses import classification_loss
from adapter.model import Shape, VideoAdapter, build_model, fit_labels
from adapter.train import TrainData, choose_device, learning_rate, prepare, seeded, validation_rank
from aligner.encoder import load_clip
from aligner.engine import Stop
from aligner.plan import FRAME_RATE, make_plan
from aligner.run import stop_signals
from corpus_builder import artifact as corpora
from corpus_builder.embed import embed_labels, load_text_encoder
from corpus_builder.tables import with_embeddings
from pipelines.augment import refuse_mirrored_classes
from pipelines.config import PipelineConfig, check_config, inputs_only
from pipelines.errors import PipelineError
from pipelines.feed import ClipFeed
from pipelines.ledger import Ledger, sha256_of, write_text
from pipelines.predict import find_pipeline, find_source
from pipelines.token_cache import TokenCache, TokenFeed
from pipelines.tuned_encoder import TunedEncoder, write_clip
from pipelines.tuned_labels import TunedLabels, label_tokens, new_text_prompts
from pipelines.tuner import Progress, Tuner, load_state, save_state, seed_of
from pipelines.tuning_config import TuneConfig
from pipelines.workflow import OWN, Layout, Say, refuse_foreign, steps, videos_of

NAME = "finetuned"
STATE_FOLDER = "tuning"
STATE, BEST, TOKENS = "state.safetensors", "best.safetensors", "tokens"


@dataclass(frozen=True)
class Inputs:
    """What a tuning starts from: artifacts of one model, its weights, the videos, and an adapter unless it is new.

    ``config`` is that of the ``alt run`` behind them, if there is one; ``label_set`` is the name of the labels in it.
    """

    alignments: Path
    corpus: Path
    labels: Path
    videos: Path
    model: str
    pretrained: str | None = None
    videos_root: Path | None = None
    run: Path | None = None
    config: PipelineConfig | None = None
    label_set: str = "train"


@dataclass
class TuneReport:
    """What a tuning did; ``stopped`` where a signal ended it before its time."""

    out: Path
    parameters: dict[str, int]
    counts: dict[str, Any]
    best: dict[str, Any] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)
    stopped: bool = False
    seconds: float = 0.0


def inputs_of(run: Path, fresh: bool = False, label_set: str | None = None) -> Inputs:
    """The inputs that an ``alt run`` folder (or one of its ``runs/NAME``) holds; ``fresh`` takes no adapter of it.

    Raises:
        PipelineError: no such folder, or no label set of that name.
    """
    config, layout = find_pipeline(run.resolve())
    adapter = None if fresh else find_source(run.resolve()).adapter
    trained = config.adapters[adapter].labels if adapter in config.adapters else next(iter(config.labels))
    name = label_set or trained
    if name not in config.labels:
        raise PipelineError(
            f"--labels {name}: {layout.config} has no such label set; it has {', '.join(config.labels)}"
        )
    videos, root = videos_of(layout, None, config.alignments)
    return Inputs(
        layout.alignments,
        layout.corpus,
        layout.labels(name),
        videos,
        config.model,
        config.pretrained,
        root,
        layout.run(adapter) if adapter else None,
        config,
        name,
    )


def finetune(
    inputs: Inputs,
    config: TuneConfig,
    out: Path,
    adapter_options: dict[str, Any] | None = None,
    force: bool = False,
    say: Say = lambda line: None,
) -> TuneReport:
    """Tune encoder and adapter together, and write the folder that ``alt predict`` and ``adapter eval`` use.

    A training that was stopped goes on where it saved its state; on a CPU it ends with the same bits as one that was
    not. The weights are those of the best validation epoch, of the last without validation videos. A video that cannot
    be decoded is left out and counted.

    Raises:
        PipelineError: inputs that do not belong together, another training in ``out``, a loss that is no number.
    """
    started = time.perf_counter()
    make_room(out, force)
    session = Session.open(inputs, config, adapter_options or {})
    learning = " and ".join(f"{count:,} of the {part}" for part, count in session.tuner.parameters.items())
    say(
        f"parameters that learn: {learning}; {len(session.data.train)} videos, {session.steps} steps an epoch"
    )
    report = TuneReport(out, session.tuner.parameters, session.data.counts)
    with stop_signals(0.0) as stop:
        if config.cached:
            session.cache_tokens(out / STATE_FOLDER, stop, say)
        progress = session.train(out / STATE_FOLDER, stop, say)
    report.history, report.best, report.stopped = progress.history, progress.best, stop.asked
    if not report.stopped:
        write_results(session, progress, out)
        shutil.rmtree(out / STATE_FOLDER)
    report.seconds = time.perf_counter() - started
    return report


def make_room(out: Path, force: bool) -> None:
    """Refuse a folder with foreign things or a finished tuning; ``force`` throws away what tuning left there."""
    refuse_foreign(out, OWN | {"clip", STATE_FOLDER})
    finished = Layout(out).run(NAME) / runs.MANIFEST
    if finished.is_file() and not force:
        raise PipelineError(
            f"--out {out} holds a finished tuning; choose another folder, or --force to begin anew"
        )
    if force:
        finished.unlink(missing_ok=True)
        shutil.rmtree(out / STATE_FOLDER, ignore_errors=True)
    (out / STATE_FOLDER).mkdir(parents=True, exist_ok=True)


@dataclass
class Session:
    """Everything a training needs, opened and checked to belong together."""

    inputs: Inputs
    config: TuneConfig
    settings: Settings
    alignments: Alignments
    labels: Labels
    data: TrainData
    clip: nn.Module
    tuner: Tuner
    feed: ClipFeed | TokenFeed

    @classmethod
    def open(cls, inputs: Inputs, config: TuneConfig, adapter_options: dict[str, Any]) -> "Session":
        """Open all inputs; see ``finetune`` for what is refused."""
        device = choose_device(config.device)
        alignments = open_alignments(inputs.alignments)
        labels = open_labels(inputs.labels, alignments.model)
        clip, info = load_clip(inputs.model, inputs.pretrained)
        clip.requires_grad_(False)
        needs = f"alignments {inputs.alignments.name}"
        check_same_model(
            info, alignments.model, f"model {inputs.model} is", needs, "with the model of the alignments"
        )
        settings = adapter_settings(inputs.run, config, adapter_options)
        data = prepare(alignments, labels, settings.train)
        refuse_mirrored_classes(data.labels.labels, config)
        cached = alignments.manifest["config"]
        with seeded(config.seed):
            adapter = start_adapter(inputs.run, settings, alignments, data.labels, device)
            encoder = TunedEncoder(clip, cached["merge"], cached.get("dense", "none"), config, device)
            text = tuned_labels(clip, inputs, data.labels, config, device) if config.text_prompts else None
        tuner = Tuner(
            encoder,
            adapter,
            torch.from_numpy(alignments.entities.embeddings).to(device),
            torch.from_numpy(data.labels.embeddings).to(device),
            cached["top_k"],
            settings.train,
            config,
            text,
        )
        plan = make_plan(
            inputs.videos,
            cached["videos_per_shard"],
            inputs.videos_root,
            True,
            cached.get("frame_rate", FRAME_RATE),
        )
        feed = ClipFeed(plan, cached, len(data.labels.labels), config, device)
        missing = [
            s.video_id for s in (*data.train.samples, *data.val.samples) if s.video_id not in feed.paths
        ]
        if missing:
            raise PipelineError(
                f"{len(missing)} videos of the alignments are not in {inputs.videos}, such as {missing[0]}; "
                "give the videos that were aligned"
            )
        return cls(inputs, config, settings, alignments, labels, data, clip, tuner, feed)

    @property
    def steps(self) -> int:
        """Steps of an epoch."""
        return math.ceil(len(self.data.train) / self.config.batch_size)

    def key(self) -> str:
        """What training this is: options that decide the result, and identities of its inputs."""
        run = runs.open_run(self.inputs.run).manifest["fingerprint"] if self.inputs.run else None
        inputs = [self.alignments.fingerprint, self.labels.fingerprint, run]
        options = {
            k: v for k, v in self.settings.flat().items() if k not in ("cache_gb", "device", "threads")
        }
        return sha256_of([self.config.decides(), options, inputs])

    def cache_tokens(self, folder: Path, stop: Stop, say: Say) -> None:
        """Store what the frozen lower blocks make of all videos, as far as it is not there, and train from it."""
        assert isinstance(self.feed, ClipFeed)
        origin = {
            "alignments": self.alignments.fingerprint,
            "weights": self.alignments.model["weights_sha256"],
        }
        place = self.config.cache_folder or folder / TOKENS
        cache = TokenCache(place, self.tuner, self.config, self.alignments.frames, origin)
        cache.plan(self.data.train.samples, self.data.val.samples)
        say(cache.make_room(self.alignments.views))
        cache.write(self.feed, lambda: stop.asked)
        if not stop.asked:
            self.feed = TokenFeed(cache, len(self.data.labels.labels))

    def train(self, folder: Path, stop: Stop, say: Say) -> Progress:
        """All epochs that are left; ``stop`` ends them after the step at hand, whose state is saved."""
        state, key = folder / STATE, self.key()
        progress = load_state(state, self.tuner, key) if state.is_file() else Progress()
        with self.feed:
            while progress.epoch <= self.config.epochs and not stop.asked:
                self._train_epoch(progress, state, key, stop)
                if progress.step == self.steps:
                    say(self._end_epoch(progress, folder))
                    save_state(state, self.tuner, progress, key)
        return progress

    def _train_epoch(self, progress: Progress, state: Path, key: str, stop: Stop) -> None:
        """The steps of an epoch that are left, or those before a stop."""
        samples, epoch = self._order(progress.epoch), progress.epoch
        factor = learning_rate(self.settings.train, self.steps)
        for passes in self.feed.steps(samples, epoch, progress.step):
            step = (epoch - 1) * self.steps + progress.step
            videos = min(self.config.batch_size, len(samples) - progress.step * self.config.batch_size)
            for number, clips in enumerate(passes):
                with seeded(seed_of(self.config.seed, step, number)):
                    progress.add(**self.tuner.learn(clips, self.config.label_smoothing, videos))
            self.tuner.step(factor(step))
            progress.step += 1
            if stop.asked or (progress.step % self.config.save_steps == 0 and progress.step < self.steps):
                save_state(state, self.tuner, progress, key)
            if stop.asked:
                return

    def _order(self, epoch: int) -> list[Sample]:
        samples = self.data.train.samples
        return [
            samples[i] for i in np.random.default_rng((self.config.seed, epoch)).permutation(len(samples))
        ]

    def _end_epoch(self, progress: Progress, folder: Path) -> str:
        """Validate, keep the weights if they are the best, begin the next epoch; returns a line for people."""
        clips = progress.sums.get("clips", 0.0)
        if not clips:
            raise PipelineError("not one of the videos could be decoded; `aligner check-videos` says why")
        line: dict[str, Any] = {
            "epoch": progress.epoch,
            "loss": progress.sums["loss"] / clips,
            "top1": progress.sums["right"] / clips,
            "undecoded": len(self.data.train) - int(clips),
            **self.validate(),
        }
        if (
            "val_top1" not in line
            or not progress.best
            or validation_rank(line) > validation_rank(progress.best)
        ):
            progress.best = line
            save_weights(folder / BEST, self.tuner.weights())
        progress.history.append(line)
        progress.epoch, progress.step, progress.sums = progress.epoch + 1, 0, {}
        return ", ".join(f"{name} {value:.4g}" for name, value in line.items())

    def validate(self) -> dict[str, float]:
        """Loss and accuracy on the validation videos, as `adapter train` measures them; empty without any."""
        loss = right = n = 0.0
        for samples, logits in self.score(self.data.val.samples):
            label = torch.tensor([sample.label for sample in samples], device=logits.device)
            loss += classification_loss(logits, label).item() * len(label)
            right += int((logits.argmax(1) == label).sum())
            n += len(label)
        return {"val_loss": loss / n, "val_top1": right / n, "val_n": n} if n else {}

    def score(self, samples: Iterable[Sample]) -> Iterable[tuple[tuple[Sample, ...], torch.Tensor]]:
        """Logits of videos over the trained labels, without noise and augmentation, over all views."""
        for found, views in self.feed.scored(tuple(samples)):
            yield found, self.tuner.score(views)


def adapter_settings(run: Path | None, config: TuneConfig, options: dict[str, Any]) -> Settings:
    """The adapter's settings: those of its run, or its defaults and ``options``; the recipe is the tuning's.

    Raises:
        PipelineError: options of the model's form for a model that is already there, or those that the tuning has.
    """
    form = set(options) & set(ModelConfig.__dataclass_fields__)
    if run and form:
        raise PipelineError(
            f"--set {', '.join(sorted(form))}: the form of run {run.name} is settled; use --fresh"
        )
    if clash := set(options) & set(config.adapter_options()):
        raise PipelineError(
            f"--set {', '.join(sorted(clash))}: `alt finetune` has an option of its own for that"
        )
    trained = open_run(run).config if run else {}
    return make_settings(trained | config.adapter_options() | options)


def start_adapter(
    run: Path | None, settings: Settings, alignments: Alignments, labels: Labels, device: torch.device
) -> VideoAdapter:
    """The adapter of a run, or a new one.

    Raises:
        PipelineError: a run of other frames or dimensions; AdapterError: of another model.
    """
    shape = Shape(alignments.dim, alignments.frames)
    if run is None:
        model = build_model(settings.model, shape)
        return fit_labels(model, settings.model, torch.from_numpy(labels.embeddings)).to(device)
    opened = open_run(run)
    needs = f"alignments {alignments.path.name}"
    check_same_model(
        opened.manifest["model"], alignments.model, f"run {run.name} was", needs, "`adapter train` on them"
    )
    if (opened.manifest["dim"], opened.manifest["frames"]) != (shape.dim, shape.frames):
        raise PipelineError(
            f"run {run.name} is for {opened.manifest['frames']} frames of dimension {opened.manifest['dim']}, the "
            f"alignments have {shape.frames} of {shape.dim}; choose those that it was trained on"
        )
    return load_model(opened, device)


def tuned_labels(
    clip: nn.Module, inputs: Inputs, labels: Labels, config: TuneConfig, device: torch.device
) -> TunedLabels:
    """The classes through the text tower of ``clip``, with new prompts, in the templates of their label set."""
    prompts = new_text_prompts(clip, config.text_prompts, device)
    templates = corpora.open_labels(inputs.labels).manifest["config"]["templates"]
    tokens = label_tokens(labels.names, templates, get_tokenizer(inputs.model), device)
    return TunedLabels(clip.to(device), tokens, prompts)


# What is written at the end.


def write_results(session: Session, progress: Progress, out: Path) -> None:
    """The model, corpus and labels in its name, the adapter's run (its manifest last), and the pipeline's config."""
    layout, tuner = Layout(out), session.tuner
    if (best := out / STATE_FOLDER / BEST).is_file():
        tuner.load_weights(load_file(best))
    random = bool(session.alignments.model.get("random_weights"))
    info = write_clip(session.clip, session.inputs.model, out / "clip", random)
    carry_over(session.inputs.corpus, layout.corpus, info, out / "clip")
    labels = session.inputs.labels, layout.labels(session.inputs.label_set)
    if tuner.text:
        embed_again(*labels, out / "clip", tuner.device)
    else:
        carry_over(*labels, info, out / "clip")
    if session.inputs.config is not None:
        _write_pipeline(session, out)
    write_run(session, progress, info, layout.run(NAME))


def carry_over(source: Path, out: Path, model: dict[str, Any], folder: Path) -> None:
    """Copy a corpus or a label set in the name of a model with the same text tower.

    What `corpus-builder re-embed` would compute again, number by number; the manifest's inputs say whence it came.
    """
    found = corpora.open_artifact(source)
    kind = found.manifest["artifact"]
    out.mkdir(parents=True, exist_ok=True)
    for name in corpora.FILES[kind]:
        corpora.write_file(out / name, (source / name).read_bytes())
    if kind == "corpus":
        location = json.dumps({"model": f"local-dir:{folder.resolve()}"})
        corpora.write_file(out / corpora.MODEL_LOCATION, location.encode())
    origin = {"fingerprint": found.fingerprint, "weights_sha256": found.manifest["model"]["weights_sha256"]}
    manifest = found.manifest | {
        "model": model,
        "inputs": found.manifest["inputs"] | {"same_text_tower": origin},
    }
    manifest["fingerprint"] = corpora.fingerprint(manifest)
    write_json(out / corpora.MANIFEST, manifest)


def embed_again(source: Path, out: Path, folder: Path, device: torch.device) -> None:
    """The classes of a label set by the model in ``folder``, prompts included, as `corpus-builder labels` does it."""
    found = corpora.open_labels(source)
    encoder = load_text_encoder(f"local-dir:{folder}", device=str(device), prompted=True)
    vectors = embed_labels(found.table["name"].to_pylist(), found.manifest["config"]["templates"], encoder)
    rows = found.table.drop_columns("embedding").to_pylist()
    table = with_embeddings(rows, vectors, corpora.labels_schema(vectors.shape[1]))
    facts = {name: found.manifest[name] for name in ("config", "inputs", "counts")} | {"model": encoder.info}
    corpora.write_labels(out, table, facts, force=True)


def _write_pipeline(session: Session, out: Path) -> None:
    """The config for `alt predict`, and for `alt run` to align anew; its corpus and labels count as made."""
    assert session.inputs.config is not None
    raw = inputs_only(session.inputs.config)
    raw.pop("pretrained", None)
    raw["labels"] = {session.inputs.label_set: raw["labels"][session.inputs.label_set]}
    raw |= {"out": str(out.resolve()), "model": f"local-dir:{(out / 'clip').resolve()}"}
    raw["alignments"]["proportional_attention"] = session.config.proportional_attention
    config, layout = check_config(raw, out, inputs=False), Layout(out.resolve())
    write_text(
        layout.config, yaml.safe_dump(config.model_dump(mode="json", exclude_none=True), sort_keys=False)
    )
    ledger = Ledger(layout.root)
    for step in steps(config, layout, False, None):
        if step.name == "corpus" or step.name.startswith("labels/"):
            ledger.record(step.name, sha256_of(step.key()), str(step.output()))


def write_run(session: Session, progress: Progress, model: dict[str, Any], out: Path) -> None:
    """An ordinary run of the adapter, made with the tuned model; the tuning's own options are in its manifest."""
    start_run(out, force=True)
    write_json(out / runs.CONFIG, session.settings.flat())
    save_weights(out / runs.WEIGHTS, state_of(session.tuner.adapter))
    for line in progress.history:
        runs.append_line(out / runs.METRICS, line)
    (out / runs.METRICS).touch()
    used = ((session.data.train, "train"), (session.data.val, "val"))
    seen = {
        (s.video_id, session.data.labels.labels[s.label], role): None
        for part, role in used
        for s in part.samples
    }
    columns = [list(column) for column in zip(*seen, strict=True)]
    write_table(out / runs.VIDEOS, pa.table(columns, schema=runs.VIDEOS_SCHEMA))
    run = open_run(session.inputs.run).manifest["fingerprint"] if session.inputs.run else None
    body = {
        "config": session.settings.flat() | {"finetune": session.config.decides()},
        "inputs": {
            "alignments": {"fingerprint": session.alignments.fingerprint},
            "labels": {"fingerprint": session.labels.fingerprint},
            "corpus": {"fingerprint": session.alignments.manifest["corpus"]["fingerprint"]},
            "run": {"fingerprint": run},
            "model": dict(session.alignments.model),
        },
        "model": model,
        "labels": list(session.data.labels.labels),
        "dim": session.alignments.dim,
        "frames": session.alignments.frames,
        "parameters": sum(session.tuner.parameters.values()),
        "best_epoch": progress.best.get("epoch", 0),
        "best_val_top1": progress.best.get("val_top1"),
        "counts": session.data.counts,
        "torch": torch.__version__,
    }
    files = dict.fromkeys((runs.CONFIG, runs.WEIGHTS), 0)
    publish(out, body, {**files, runs.METRICS: len(progress.history), runs.VIDEOS: len(seen)})
