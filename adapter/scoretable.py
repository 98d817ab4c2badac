"""Scores of videos for classes, whoever made them: what protocols take their parts out of."""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float32, Float64

from adapter.artifact import read_scores
from adapter.config import AdapterError, did_you_mean
from adapter.labels import name_key
from adapter.lists import keys
from adapter.losses import average_views


@dataclass(frozen=True)
class ScoreTable:
    """Scores of one run: log-probabilities or logits of every view of every video, and what is known of the run.

    ``failed`` are videos that could not be read, with the reason; ``known`` the labels that came with the
    videos; ``trained_on`` the videos that trained the run or chose its epoch. ``train_labels`` None: unknown.
    """

    name: str
    video_ids: tuple[str, ...]
    labels: tuple[str, ...]
    scores: Float64[np.ndarray, "views videos classes"]
    failed: Mapping[str, str] = field(default_factory=dict)
    known: Mapping[str, str] = field(default_factory=dict)
    trained_on: frozenset[str] = frozenset()
    train_labels: tuple[str, ...] | None = None
    about: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuse what would score a video twice, or not at all."""
        count = Counter(keys(self.video_ids, False))
        if twice := [video for video, n in count.items() if n > 1]:
            raise AdapterError(f"{self.name} scores {len(twice)} videos twice, such as {twice[:3]}")
        names = Counter(map(name_key, self.labels))
        if same := [label for label in self.labels if names[name_key(label)] > 1]:
            raise AdapterError(f"{self.name} has a class twice: {', '.join(same[:4])}")
        bad = [self.video_ids[i] for i in np.flatnonzero(~np.isfinite(self.scores).all((0, 2)))]
        if bad:
            raise AdapterError(f"{self.name}: scores of {len(bad)} videos are not finite, such as {bad[:3]}")

    def logits(self, rows: Sequence[int], classes: Sequence[str]) -> Float32[np.ndarray, "rows candidates"]:
        """Logits of some videos over their candidates: the views' probabilities among these alone, averaged."""
        chosen = self.scores[:, list(rows)][:, :, self.columns(classes)]
        return average_views(torch.from_numpy(chosen.astype(np.float32))).numpy()

    def columns(self, classes: Sequence[str]) -> list[int]:
        """The column of every class; a class without one raises."""
        found = {name_key(label): i for i, label in enumerate(self.labels)}
        if lost := [name for name in classes if name_key(name) not in found]:
            raise AdapterError(
                f"{self.name} has no scores for {len(lost)} of {len(classes)} candidates, such as '{lost[0]}'"
                f"{did_you_mean(lost[0], self.labels)}; score it with a label set that holds them all"
            )
        return [found[name_key(name)] for name in classes]

    def rows(self, wanted: Sequence[str], by_name: bool) -> list[int | None]:
        """The row of every key of ``lists.keys``, None where the video is not scored."""
        places: dict[str, list[int]] = defaultdict(list)
        for i, key in enumerate(keys(self.video_ids, by_name)):
            places[key].append(i)
        found = [places.get(key, []) for key in wanted]
        if many := [rows for rows in found if len(rows) > 1]:
            first, second = (self.video_ids[i] for i in many[0][:2])
            raise AdapterError(
                f"{self.name}: {first} and {second} have one name, which the list has once; leave one of them out"
            )
        return [rows[0] if rows else None for rows in found]


def read_scores_file(file: Path) -> ScoreTable:
    """Scores from a Parquet or CSV file: ``video_id``, then a column of numbers for each label.

    A second column ``view`` numbers the views of every video from 0; without it each video has one. Numbers are logits
    or log-probabilities. Rows that lie in 0..1 and sum to 1 are taken as probabilities.
    """
    videos, labels, scores = read_scores(file)
    if (scores >= 0).all() and np.allclose(scores.sum(-1), 1, atol=1e-3):
        scores = np.log(np.maximum(scores, np.finfo(np.float64).tiny))
    return ScoreTable(file.name, videos, labels, scores, about={"file": file.name})
