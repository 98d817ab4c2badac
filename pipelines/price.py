"""What an ``alt run`` would cost, before it begins: videos, frames, bytes, and hours from a short measurement.

Some videos are decoded and encoded, a few texts embedded and a few training steps taken, on the device at hand; the
rest is multiplication. Nothing is written, and the weights of a built-in model are random, for they take the same time.
"""

import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from pipelines.checks import in_config_words
from pipelines.config import AblationSection, AdapterSection, AlignmentsSection, PipelineConfig
from pipelines.errors import USER_ERRORS, PipelineError
from pipelines.workflow import Layout, Say, all_alignments, videos_of

# Entities are counted only when the corpus is built. Labels of Kinetics-400, UCF101 and HMDB51 hold about one each,
# beside the body parts; captions and expansions may hold any number.
ENTITIES, BODY_PARTS = 2000, 30
TEXTS, VIDEOS, STEPS = 8, 4, 2
ASSUMED = (
    f"every video takes as long as the probed ones; {ENTITIES:,} entities in captions or expansions; mining, "
    "startup, waiting for the disk and the report are left out; another device, or more of them, scales the hours"
)


@dataclass(frozen=True)
class Cost:
    """Of one stage: ``seconds`` of one device as low, middle and high, None where nothing could be measured."""

    stage: str
    seconds: tuple[float, float, float] | None
    videos: int = 0
    frames: int = 0
    missing: int = 0
    bytes: dict[str, int] = field(default_factory=dict)
    note: str = ""


def price(
    config: PipelineConfig, layout: Layout, steps: dict[str, str], probe: int, say: Say
) -> dict[str, Any]:
    """Costs of the steps that would run, told by ``say`` as a table and returned as JSON types.

    Raises:
        PipelineError: a model, tag or tower that cannot be used, in the config's words.
    """
    todo = {name for name, state in steps.items() if state == "would run"}
    if not todo - {"report"}:
        say("nothing to pay: every stage is up to date")
        return {"stages": [], "assumed": ASSUMED}
    try:
        found, device = _Pricing(config, layout, probe).costs(todo)
    except USER_ERRORS as error:
        raise PipelineError(in_config_words(str(error), AlignmentsSection.model_fields)) from error
    total = [cost.seconds for cost in found if cost.seconds is not None]
    hours = [sum(part[place] for part in total) / 3600 for place in range(3)]
    for line in _words(found, device, config.alignments.store, hours, probe):
        say(line)
    return {
        "device": device,
        "assumed": ASSUMED,
        "stages": [asdict(cost) for cost in found],
        "device_hours": dict(zip(("low", "median", "high"), hours, strict=True)),
    }


class _Pricing:
    """The model, loaded once, and what was found of every alignments folder."""

    def __init__(self, config: PipelineConfig, layout: Layout, probe: int) -> None:
        from aligner.estimate import rehearsed_model

        self.config, self.layout, self.probe = config, layout, probe
        section = config.alignments
        settings = section.settings(
            config, layout.corpus, layout.alignments, section.videos, section.videos_root
        )
        self.clip, self.info = rehearsed_model(settings)
        self.jobs: dict[str | None, Any] = {}
        self.measured: dict[Any, tuple[float, float]] = {}

    def costs(self, todo: set[str]) -> tuple[list[Cost], str]:
        """The costs of these steps in order, and the kind of device they were measured on."""
        found = [*self._texts(todo)]
        for name, section in all_alignments(self.config):
            cost = self._aligning(name, section, _title(name) in todo)
            found += [cost] if cost else []
        for name, adapter in self.config.adapters.items():
            found += self._adapter(name, adapter, todo)
        found += self._protocols(todo)
        if "ablation" in todo and self.config.ablation:
            found.append(self._ablation(self.config.ablation))
        device = next(iter(self.jobs.values())).matcher.entities.device.type
        return found, device

    def _texts(self, todo: set[str]) -> list[Cost]:
        """Corpus and label sets: texts by seconds a text."""
        from corpus_builder.sources import read_labels
        from corpus_builder.templates import load_templates

        sets = {"corpus": self._entities()} if "corpus" in todo else {}
        for name, section in self.config.labels.items():
            if f"labels/{name}" in todo:
                prompts = section.prompts() or load_templates("default")
                sets[f"labels/{name}"] = len(read_labels(section.file, section.label_column).labels) * len(
                    prompts
                )
        if not sets:
            return []
        each = self._seconds_a_text()
        return [Cost(name, _alike(n * each), note=f"{n:,} texts") for name, n in sets.items()]

    def _entities(self) -> int:
        """About how many the corpus will have."""
        from corpus_builder.sources import read_labels

        asked = self.config.corpus
        if asked.labels is None or asked.captions or asked.expansions:
            return ENTITIES
        labels = len(read_labels(asked.labels, asked.label_column).labels)
        return min(asked.size or ENTITIES, labels * (1 + asked.related) + BODY_PARTS)

    def _seconds_a_text(self) -> float:
        import torch

        from aligner.run import pick_device

        device = pick_device(self.config.device)
        clip: Any = self.clip.to(device)
        tokens = torch.ones(TEXTS, getattr(clip, "context_length", 77), dtype=torch.long, device=device)
        with torch.inference_mode():
            return _timed(lambda: clip.encode_text(tokens), device) / TEXTS

    def _aligning(self, name: str | None, section: AlignmentsSection, counted: bool) -> Cost | None:
        """Videos, frames, bytes and hours of alignments; of finished ones the job alone is kept."""
        from aligner.estimate import estimate, probe, rehearsal, sizes

        with tempfile.TemporaryDirectory(prefix="alt-price-") as folder:
            layout = Layout(Path(folder))
            if section.chooses:
                from pipelines import stages

                stages.choose_videos(self.config, layout, name, section)
            videos, root = videos_of(layout, name, section)
            settings = section.settings(
                self.config, self.layout.corpus, self.layout.aligned(name), videos, root
            )
            job = self.jobs[name] = rehearsal(settings, ENTITIES, self.clip, self.info)
            listed = _lines(layout.manifest(name).with_suffix(".missing.txt"))
        if not counted:
            return None
        planned, missing = len(job.plan.items), job.plan.missing
        there = planned - missing
        seconds, note = None, ""
        try:
            told = estimate(
                probe(job, self.probe), there, section.decode_workers, job.matcher.entities.device.type
            )
            hours = told.device_hours
            seconds = (3600 * hours.low, 3600 * hours.median, 3600 * hours.high)
            failed = sum(told.failures.values())
            note = f"{failed} of {told.probed} probed videos failed" if failed else ""
        except USER_ERRORS as error:
            note = f"time unknown: {error}"
        totals = {store: size["total"] for store, size in sizes(there, job).items()}
        frames = there * job.config.frames * len(job.manifest["views"])
        return Cost(_title(name), seconds, there, frames, missing + listed, totals, note)

    def _adapter(self, name: str, section: AdapterSection, todo: set[str]) -> list[Cost]:
        """Training and evaluations by the seconds of a step on made-up videos of the right size."""
        tests = [
            item
            for item in self.config.evaluations
            if f"evaluate/{name}/{item.name}" in todo and (item.adapters is None or name in item.adapters)
        ]
        if f"train/{name}" not in todo and not tests:
            return []
        from adapter.config import make_settings

        settings = make_settings(section.options())
        train_s, test_s = self._seconds_a_video(settings)
        found = []
        if f"train/{name}" in todo:
            videos = self._in_split(None, settings.train.split)
            if settings.train.shots:
                videos = min(videos, settings.train.shots * self._classes(section.labels))
            epochs = settings.train.epochs if settings.model.model != "mean_pool" else 0
            found.append(
                Cost(f"train/{name}", _alike(epochs * videos * train_s), videos, note=f"{epochs} epochs")
            )
        for item in tests:
            videos = self._in_split(item.alignments, item.split or "test")
            views = len(self.jobs[item.alignments].manifest["views"])
            found.append(Cost(f"evaluate/{name}/{item.name}", _alike(videos * views * test_s), videos))
        return found

    def _protocols(self, todo: set[str]) -> list[Cost]:
        """Every listed video once for each run."""
        from adapter.config import make_settings

        found = []
        for item in self.config.protocols:
            if f"protocol/{item.name}" in todo:
                job = self.jobs[item.alignments]
                videos = len(job.plan.items) - job.plan.missing
                each = sum(
                    self._seconds_a_video(make_settings(self.config.adapters[name].options()))[1]
                    for name in item.runs
                )
                found.append(
                    Cost(f"protocol/{item.name}", _alike(videos * len(job.manifest["views"]) * each), videos)
                )
        return found

    def _ablation(self, section: AblationSection) -> Cost:
        """Every row that learns, seed by seed, on all videos and on so many shots; testing is left out."""
        from adapter.ablation import choose_rows
        from adapter.config import make_settings

        all_videos, seconds, trainings = self._in_split(None, "train"), 0.0, 0
        for row in choose_rows(section.rows):
            if row.random_words or row.head != "text" or not row.learns:
                continue
            for shots in (0, *section.shots):
                few = section.few_options if shots else {}
                settings = make_settings({**section.options, **few, **row.options})
                videos = min(all_videos, shots * self._classes(section.labels)) if shots else all_videos
                seconds += section.seeds * settings.train.epochs * videos * self._seconds_a_video(settings)[0]
                trainings += section.seeds
        return Cost("ablation", _alike(seconds), note=f"{trainings} trainings")

    def _classes(self, labels: str) -> int:
        from corpus_builder.sources import read_labels

        section = self.config.labels[labels]
        return len(read_labels(section.file, section.label_column).labels)

    def _in_split(self, name: str | None, split: str) -> int:
        """Videos of a split that are there; all of them where no video names a split."""
        items = [item for item in self.jobs[name].plan.items if item.bytes]
        if split == "all" or not any(item.split for item in items):
            return len(items)
        return sum(split in item.splits for item in items)

    def _seconds_a_video(self, settings: Any) -> tuple[float, float]:
        """Of a training step, and of scoring, by video; each form is measured once."""
        if settings.model not in self.measured:
            self.measured[settings.model] = self._measure(settings)
        return self.measured[settings.model]

    def _measure(self, settings: Any) -> tuple[float, float]:
        import torch

        from adapter.model import Shape, build_model
        from aligner.run import pick_device

        manifest, device = self.jobs[None].manifest, pick_device(self.config.device)
        batch, entities = _made_up(manifest, device)
        labels = torch.nn.functional.normalize(torch.randn(100, manifest["dim"], device=device), dim=-1)
        model = build_model(settings.model, Shape(manifest["dim"], manifest["frames"])).to(device)

        def score() -> None:
            with torch.inference_mode():
                model(batch, entities, labels)

        def step() -> None:
            model(batch, entities, labels).logits.sum().backward()

        learns = any(parameter.requires_grad for parameter in model.parameters())
        return (_timed(step, device) / VIDEOS if learns else 0.0), _timed(score, device) / VIDEOS


def _made_up(manifest: dict[str, Any], device: Any) -> tuple[Any, Any]:
    """A batch of random videos in the shape of the cache, and the entities they point to."""
    import torch

    from adapter.dataset import Batch

    frames, tokens, dim, k = manifest["frames"], manifest["regions"] + 1, manifest["dim"], manifest["top_k"]
    at = (VIDEOS, frames, tokens)
    held = 1 if manifest["config"]["store"] == "topk" else tokens
    batch = Batch(
        torch.nn.functional.normalize(torch.randn(VIDEOS, frames, held, dim), dim=-1),
        torch.ones(at),
        torch.randint(ENTITIES, (*at, k)),
        torch.rand(*at, k),
        torch.rand(*at, 3),
        torch.linspace(0, 10, frames).expand(VIDEOS, frames),
        torch.ones(at, dtype=torch.bool),
        torch.zeros(VIDEOS, dtype=torch.int64),
    ).to(device)
    return batch, torch.nn.functional.normalize(torch.randn(ENTITIES, dim, device=device), dim=-1)


def _timed(work: Callable[[], object], device: Any) -> float:
    """Seconds of one call, over some, after one that pays for allocations."""
    import torch

    work()
    wait = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    wait()
    start = time.perf_counter()
    for _ in range(STEPS):
        work()
    wait()
    return (time.perf_counter() - start) / STEPS


def _alike(seconds: float) -> tuple[float, float, float]:
    return seconds, seconds, seconds


def _title(name: str | None) -> str:
    return f"test-alignments/{name}" if name else "alignments"


def _lines(file: Path) -> int:
    return len(file.read_text(encoding="utf-8").splitlines()) if file.is_file() else 0


# ------------------------------------------------------------------ for people


def _words(found: list[Cost], device: str, store: str, hours: list[float], probe: int) -> list[str]:
    """The costs as a table with its assumptions."""
    unit = f"{'GPU' if device == 'cuda' else 'CPU'}-hours"
    width = max(len(cost.stage) for cost in found) if found else 0
    lines = [f"an estimate, measured on {device} from {probe} videos of each folder: {ASSUMED}"]
    lines += [f"  {cost.stage:{width}}  {'; '.join(_parts(cost, store, unit))}" for cost in found]
    disk = sum(cost.bytes.get(store, 0) for cost in found)
    return [
        *lines,
        f"  {'in total':{width}}  {_hours(hours[1])} {unit} ({_hours(hours[0])} to {_hours(hours[2])}), "
        f"{_gigabytes(disk)} as {store}",
    ]


def _parts(cost: Cost, store: str, unit: str) -> list[str]:
    parts = []
    if cost.frames:
        missing = f" ({cost.missing:,} more are missing)" if cost.missing else ""
        parts.append(f"{cost.videos:,} videos{missing}, {cost.frames:,} frames")
        others = ", ".join(f"{kind} {_gigabytes(n)}" for kind, n in cost.bytes.items() if kind != store)
        parts.append(f"{_gigabytes(cost.bytes[store])} as {store} ({others})")
    elif cost.videos:
        parts.append(f"{cost.videos:,} videos")
    if cost.note:
        parts.append(cost.note)
    if cost.seconds:
        low, middle, high = (part / 3600 for part in cost.seconds)
        between = f" ({_hours(low)} to {_hours(high)})" if high > low else ""
        parts.append(f"{_hours(middle)} {unit}{between}")
    return parts


def _hours(hours: float) -> str:
    return f"{hours:.3g}" if hours >= 0.01 else "under 0.01"


def _gigabytes(size: int) -> str:
    return f"{size / 1e9:.3g} GB"
