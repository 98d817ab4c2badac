"""Prediction from Python: a run by folder or address, videos and labels in, typed results out; no file is left."""

import csv
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, overload

from pipelines import hub
from pipelines.errors import PipelineError
from pipelines.predict import LISTS, Source, find_source, predict_videos
from pipelines.towers import Towers
from pipelines.workflow import Layout, Say
from pipelines.zero_shot import NAME as ZERO_SHOT
from pipelines.zero_shot import ZeroShot

if TYPE_CHECKING:
    from adapter.explain import EntityEffect
    from aligner.verify import RegionLine

Videos = str | Path


@dataclass(frozen=True)
class Prediction:
    """What was seen in one video: the best labels, best first, with their probabilities among all candidates.

    ``error`` says why a video could not be read; there are no labels then. ``regions`` (on request) are the regions of
    the first view's frames with their nearest entities and cosines, ``entities`` (on request) what carried the
    prediction: for each entity by how much the best label's logit falls without it.
    """

    video: str
    labels: tuple[str, ...]
    probabilities: tuple[float, ...]
    error: str | None = None
    regions: "tuple[RegionLine, ...] | None" = None
    entities: "tuple[EntityEffect, ...] | None" = None

    @property
    def label(self) -> str | None:
        """The best label; None for a video that could not be read."""
        return self.labels[0] if self.labels else None

    @property
    def probability(self) -> float | None:
        """Probability of the best label."""
        return self.probabilities[0] if self.probabilities else None


class Model:
    """A trained run with its corpus and model, or a vision-language model alone; from ``load`` or ``zero_shot``."""

    def __init__(self, using: Source | ZeroShot, say: Say = lambda line: None) -> None:
        self._using, self._say = using, say
        made = using if isinstance(using, ZeroShot) else using.config
        self._towers = Towers(made.model, made.pretrained, made.device)

    def __repr__(self) -> str:
        if isinstance(self._using, ZeroShot):
            return f"<alt.Model zero-shot, {self._using.model} {self._using.pretrained or ''}>"
        return f"<alt.Model {self._using.adapter!r}, {self._using.config.model}, {len(self.labels)} labels>"

    @property
    def run(self) -> Path | None:
        """Folder of the run; None for a model alone."""
        return None if isinstance(self._using, ZeroShot) else self._using.layout.run(self._using.adapter)

    @property
    def labels(self) -> tuple[str, ...]:
        """The labels that it was trained on, the candidates where none are named; none for a model alone."""
        from adapter.artifact import open_run

        return () if self.run is None else tuple(open_run(self.run).train_labels)

    @overload
    def predict(  # type: ignore[overload-overlap] # a name is a sequence of names to the checker
        self,
        videos: Videos,
        labels: Sequence[str] | None = None,
        topk: int = 5,
        regions: bool = False,
        entities: bool = False,
    ) -> Prediction: ...

    @overload
    def predict(
        self,
        videos: Sequence[Videos],
        labels: Sequence[str] | None = None,
        topk: int = 5,
        regions: bool = False,
        entities: bool = False,
    ) -> list[Prediction]: ...

    def predict(
        self,
        videos: Videos | Sequence[Videos],
        labels: Sequence[str] | None = None,
        topk: int = 5,
        regions: bool = False,
        entities: bool = False,
    ) -> Prediction | list[Prediction]:
        """Predict the action in each video.

        CLIP is loaded by the first call and kept.

        Args:
            videos: a video file, for which one ``Prediction`` comes back; or a list of files and folders of videos, for
                which a list does, in order.
            labels: the candidates, any words; by default the labels trained on.
            topk: labels of a prediction, at most.
            regions: whether the regions of every frame come along, with their nearest entities.
            entities: whether the effect of every entity comes along.

        Raises:
            PipelineError: no video or no label, or one name for several videos; likewise the stages' errors.
        """
        one = isinstance(videos, str | Path)
        paths = [Path(videos)] if isinstance(videos, str | Path) else [Path(path) for path in videos]
        if one and (paths[0].is_dir() or paths[0].suffix.lower() in LISTS):
            raise PipelineError(
                f"{videos} names several videos; give [{str(videos)!r}], for which a list comes back"
            )
        if isinstance(labels, str):
            raise PipelineError(f"labels are {labels!r}; give a list of them, such as [{labels!r}, ...]")
        candidates = self.labels if labels is None else labels
        with tempfile.TemporaryDirectory(prefix="alt-predict-") as folder:
            work, zero = Path(folder).resolve(), self._using if isinstance(self._using, ZeroShot) else None
            found = predict_videos(
                paths,
                candidates,
                self.run,
                work,
                topk=topk,
                say=self._say,
                zero_shot=zero,
                report=False,
                towers=self._towers,
            )
            made = [
                Prediction(
                    item.video,
                    tuple(item.labels),
                    tuple(item.probabilities),
                    item.error,
                    _regions(work, video) if regions and not item.error else None,
                    self._entities(work, video) if entities and not item.error else None,
                )
                for item, video in zip(found, _video_ids(work), strict=True)
            ]
        return made[0] if one else made

    def _entities(self, work: Path, video: str) -> "tuple[EntityEffect, ...]":
        from adapter.explain import explain

        layout, using = Layout(work), self._using
        device = using.device if isinstance(using, ZeroShot) else using.config.device
        run = self.run or layout.run(ZERO_SHOT)
        return tuple(
            explain(run, layout.alignments, layout.labels("own"), [video], device=device)[0].entities
        )


def load(run: str | Path, say: Say = lambda line: None) -> Model:
    """A run to predict with.

    Args:
        run: the folder of an ``alt run`` (or of ``alt demo``, or one of its ``runs/NAME``), a folder that was pulled or
            copied, or an address on the Hugging Face hub, ``hf://OWNER/NAME[@REVISION]``.
        say: called with lines about progress.

    Raises:
        PipelineError: no such run, or one that cannot predict from videos.
    """
    return Model(find_source(hub.local(run).resolve()), say)


def zero_shot(
    model: str, pretrained: str | None = None, device: str = "auto", say: Say = lambda line: None
) -> Model:
    """A vision-language model to predict with as it is, without any training.

    Args:
        model: any of open_clip: ``ViT-B-16``, ``hf-hub:ORG/REPO`` or ``local-dir:FOLDER``.
        pretrained: its weights, a tag or a file.
        device: auto, cpu, cuda or cuda:N.
        say: called with lines about progress.
    """
    return Model(ZeroShot(model, pretrained, device=device), say)


def _video_ids(work: Path) -> list[str]:
    with (work / "videos.csv").open(newline="", encoding="utf-8") as handle:
        return [row["path"] for row in csv.DictReader(handle)]


def _regions(work: Path, video: str) -> "tuple[RegionLine, ...]":
    from aligner.verify import region_lines

    return tuple(line for line in region_lines(Layout(work).alignments, video) if line.view == 0)
