"""Which entities carried a prediction, by leaving each out.

The effect of an entity is the predicted class's logit minus its logit without that entity: all regions whose
best entity it is are masked, in queries and context alike. The cls token stays, since it is no region: what
it knows of the entity is not taken away, so effects are a lower bound of the entity's part. Effects need not
sum to the logit.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from adapter.alignments import Video
from adapter.artifact import make_folder, write_json
from adapter.config import AdapterError
from adapter.dataset import Batch, collate
from adapter.evaluate import Opened, open_all, softmax
from adapter.model import AltEncoder
from adapter.train import seeded


@dataclass(frozen=True)
class EntityEffect:
    """An entity of a video: effect of leaving it out (logits), its frames, its (frame, region) pairs."""

    entity_id: int
    name: str
    effect: float
    frames: list[int]
    regions: list[list[int]]


@dataclass(frozen=True)
class Explanation:
    """A prediction and its entities, largest effect first.

    ``entities_left_out`` counts those beyond the limit. ``attention`` (optional) is cross-attention on each
    frame's context tokens, mean over queries and blocks, summing to 1 a video: where the model looked, not
    what mattered.
    """

    video_id: str
    label: str | None
    predicted: str
    probability: float
    logit: float
    entities: list[EntityEffect]
    entities_left_out: int
    attention: list[list[float]] | None = None

    def to_json(self) -> dict[str, Any]:
        """As JSON types."""
        return asdict(self)


def explain(
    run: Path,
    alignments: Path,
    labels: Path,
    video_ids: Sequence[str] | None = None,
    max_videos: int = 0,
    max_entities: int = 24,
    attention: bool = False,
    device: str = "auto",
) -> list[Explanation]:
    """Explain the predictions of some videos (default: all aligned ones, or the first ``max_videos``).

    Of videos with several views the first is explained, whose prediction need not be that of all views together.
    """
    opened = open_all(run, alignments, labels, device)
    chosen = (
        list(video_ids)
        if video_ids
        else [v.video_id for v in opened.alignments.plan if v.video_id in opened.alignments.index]
    )
    for video_id in chosen:
        if video_id not in opened.alignments.index:
            why = opened.alignments.failed.get(video_id, "not in the plan")
            raise AdapterError(f"cannot explain '{video_id}': {why}; see `aligner status {alignments}`")
    truth = {video.video_id: video.label for video in opened.alignments.plan}
    chosen = chosen[: max_videos or None]
    with seeded(opened.run.config["seed"]), torch.no_grad():
        return [
            explain_video(opened, video, truth[video.video_id], max_entities, attention)
            for video in opened.alignments.read(chosen)
        ]


def explain_video(
    opened: Opened, video: Video, label: str | None, max_entities: int = 24, attention: bool = False
) -> Explanation:
    """Explain one video: one forward pass over as many copies as it has entities, and one whole."""
    places = entity_places(video)
    largest = sorted(places, key=lambda e: (-len(places[e]), e))[:max_entities]
    whole = collate([(video, -1)])
    entities = torch.from_numpy(opened.alignments.entities.embeddings).to(opened.device)
    labels = torch.from_numpy(opened.labels.embeddings).to(opened.device)
    logits = _logits(opened, leave_out(whole, [[], *(places[e] for e in largest)]), entities, labels)
    best = int(logits[0].argmax())
    effects = [
        _effect(opened, entity, places[entity], float(logits[0, best] - logits[i, best]))
        for i, entity in enumerate(largest, start=1)
    ]
    return Explanation(
        video.video_id,
        label,
        opened.labels.labels[best],
        float(softmax(logits[:1])[0, best]),
        float(logits[0, best]),
        sorted(effects, key=lambda effect: -effect.effect),
        len(places) - len(largest),
        _attention(opened, whole, entities) if attention else None,
    )


def explain_to_file(out: Path, explanations: Sequence[Explanation]) -> None:
    """Write explanations as a JSON list."""
    if out.suffix != ".json":
        raise AdapterError(f"--out {out.name} must end in .json")
    make_folder(out.parent)
    write_json(out, [explanation.to_json() for explanation in explanations])


def entity_places(video: Video) -> dict[int, list[list[int]]]:
    """Per entity the (frame, region) pairs whose best entity it is; regions only, without cls."""
    places: dict[int, list[list[int]]] = defaultdict(list)
    for frame, region in np.argwhere(video.mask):
        if region > 0:
            places[int(video.topk_entity[frame, region, 0])].append([int(frame), int(region)])
    return dict(places)


def leave_out(whole: Batch, groups: Sequence[list[list[int]]]) -> Batch:
    """One copy of the single video a group, with the group's (frame, region) pairs masked."""
    batch = whole.map(lambda tensor: tensor.repeat(len(groups), *[1] * (tensor.ndim - 1)))
    mask = batch.mask.clone()
    for i, pairs in enumerate(groups):
        for frame, region in pairs:
            mask[i, frame, region] = False
    return replace(batch, mask=mask)


def _logits(opened: Opened, batch: Batch, entities: Tensor, labels: Tensor) -> np.ndarray:
    parts = []
    for rows in torch.arange(len(batch.label)).split(16):
        part = batch.map(partial(torch.index_select, dim=0, index=rows))
        parts.append(opened.model(part.to(opened.device), entities, labels).logits)
    return torch.cat(parts).float().cpu().numpy()


def _attention(opened: Opened, whole: Batch, entities: Tensor) -> list[list[float]]:
    encoder = opened.model.encoder
    if not isinstance(encoder, AltEncoder):
        raise AdapterError("--attention needs a run with model=alt; this one has no cross-attention")
    return encoder.attention(whole.to(opened.device), entities)[0].cpu().tolist()


def _effect(opened: Opened, entity: int, places: list[list[int]], effect: float) -> EntityEffect:
    frames = sorted({frame for frame, _ in places})
    return EntityEffect(entity, opened.alignments.entities.names[entity], effect, frames, places)
