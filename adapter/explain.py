"""What carried a prediction: entities, frames and regions, each by leaving it out; and where the model looked.

The effect of a part is the predicted class's logit minus its logit without that part. An entity is left out with
all regions whose best entity it is, in queries and context alike; the cls token stays, since it is no region: what
it knows of the entity is not taken away, so effects are a lower bound of the entity's part. A frame is left out
whole, cls included. Effects need not sum to the logit. Attention says where the model looked, not what mattered.
Whether either finds what matters is measured in ``adapter/deletion.py``.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float32
from torch import Tensor

from adapter.alignments import Video
from adapter.artifact import make_folder, write_json
from adapter.config import AdapterError
from adapter.dataset import Batch, collate, split_videos
from adapter.evaluate import Opened, open_all, softmax
from adapter.model import AltEncoder
from adapter.train import seeded

BEST = 5  # labels of which an explanation tells


@dataclass(frozen=True)
class Without:
    """What the prediction becomes without a part: the best label, its probability, and that of the one before."""

    label: str
    probability: float
    kept: float


@dataclass(frozen=True)
class EntityEffect:
    """An entity of a video: effect of leaving it out (logits), its frames, its (frame, region) pairs.

    ``effects`` are those on the explanation's ``labels``, the first of which is ``effect``.
    """

    entity_id: int
    name: str
    effect: float
    frames: list[int]
    regions: list[list[int]]
    effects: list[float]
    without: Without


@dataclass(frozen=True)
class Explanation:
    """A prediction and its entities, largest effect first.

    ``labels`` are the ``BEST`` best, best first, with their ``probabilities``. ``entities_left_out`` counts entities
    beyond the limit. ``frame_effects`` has one effect a frame, ``label_frame_effects`` the same for each label, and
    ``frames_without`` the prediction without each frame.
    ``region_effects`` (optional) is frames x tokens, null where no region was left out (cls, padding).
    ``attention`` (optional) is cross-attention on each frame's context tokens, mean over queries and blocks,
    summing to 1 a video: where the model looked, not what mattered.
    """

    video_id: str
    label: str | None
    predicted: str
    probability: float
    logit: float
    entities: list[EntityEffect]
    entities_left_out: int
    frame_effects: list[float]
    labels: list[str]
    probabilities: list[float]
    label_frame_effects: list[list[float]]
    frames_without: list[Without]
    region_effects: list[list[float | None]] | None = None
    attention: list[list[float]] | None = None

    def to_json(self) -> dict[str, Any]:
        """As JSON types."""
        return asdict(self)


Places = list[list[int]]


@dataclass(frozen=True)
class Prober:
    """Scores one video with parts of it left out."""

    opened: Opened
    entities: Tensor
    labels: Tensor

    @classmethod
    def of(cls, opened: Opened) -> "Prober":
        """A prober of a run on what it was opened with."""
        tables = opened.alignments.entities.embeddings, opened.labels.embeddings
        return cls(opened, *(torch.from_numpy(table).to(opened.device) for table in tables))

    @torch.no_grad()
    def logits(self, whole: Batch, groups: Sequence[Places]) -> Float32[np.ndarray, "groups classes"]:
        """Logits of the single video without each group of (frame, region) pairs, 16 copies at a time."""
        parts = []
        for start in range(0, len(groups), 16):
            batch = leave_out(whole, groups[start : start + 16]).to(self.opened.device)
            parts.append(self.opened.model(batch, self.entities, self.labels).logits)
        return torch.cat(parts).float().cpu().numpy()

    @torch.no_grad()
    def attention(self, whole: Batch) -> Float32[np.ndarray, "frames keys"]:
        """Cross-attention of the single video; one key a frame where the context is pooled or cls."""
        model = self.opened.model
        if not isinstance(model.encoder, AltEncoder):
            raise AdapterError("--attention needs a run with model=alt; this one has no cross-attention")
        inputs = model.inputs(whole.to(self.opened.device), self.entities, self.labels)
        return model.encoder.attention(*inputs)[0].float().cpu().numpy()


def explain(
    run: Path,
    alignments: Path,
    labels: Path,
    video_ids: Sequence[str] | None = None,
    max_videos: int = 0,
    max_entities: int = 24,
    attention: bool = False,
    device: str = "auto",
    split: str | None = None,
    regions: bool = False,
) -> list[Explanation]:
    """Explain the predictions of some videos (default: all aligned ones, or the first ``max_videos``).

    Of videos with several views the first is explained, whose prediction need not be that of all views together.
    """
    opened = open_all(run, alignments, labels, device)
    chosen = choose_videos(opened, video_ids, split)[: max_videos or None]
    truth = {video.video_id: video.label for video in opened.alignments.plan}
    with seeded(opened.run.config["seed"]):
        return [
            explain_video(opened, video, truth[video.video_id], max_entities, attention, regions)
            for video in opened.alignments.read(chosen)
        ]


def choose_videos(opened: Opened, video_ids: Sequence[str] | None, split: str | None) -> list[str]:
    """The videos named, or those aligned (of a split); one that cannot be explained raises with the reason."""
    plan = split_videos(opened.alignments, split or "all")
    chosen = list(video_ids or (v.video_id for v in plan if v.video_id in opened.alignments.index))
    for video_id in chosen:
        if video_id not in opened.alignments.index:
            why = opened.alignments.failed.get(video_id, "not in the plan")
            raise AdapterError(
                f"cannot explain '{video_id}': {why}; see `aligner status {opened.alignments.path}`"
            )
    return chosen


def explain_video(
    opened: Opened,
    video: Video,
    label: str | None,
    max_entities: int = 24,
    attention: bool = False,
    regions: bool = False,
) -> Explanation:
    """Explain one video by one forward pass over a copy for each part that is left out, and one whole."""
    prober, whole = Prober.of(opened), collate([(video, -1)])
    places = entity_places(video)
    largest = sorted(places, key=lambda e: (-len(places[e]), e))[:max_entities]
    frames, single = frame_places(video), region_places(video) if regions else []
    logits = prober.logits(whole, [[], *(places[e] for e in largest), *frames, *single])
    change = Change(logits, opened.labels.labels)
    first, last = 1, 1 + len(largest)
    found = [_effect(opened, e, places[e], change, at) for at, e in enumerate(largest, first)]
    of_frames = range(last, last + len(frames))
    single_effects = [float(change.effects[at, 0]) for at in range(last + len(frames), len(logits))]
    return Explanation(
        video.video_id,
        label,
        change.names[0],
        change.probabilities[0],
        float(logits[0].max()),
        sorted(found, key=lambda effect: -effect.effect),
        len(places) - len(largest),
        [float(change.effects[at, 0]) for at in of_frames],
        change.names,
        change.probabilities,
        [[float(change.effects[at, place]) for at in of_frames] for place in range(len(change.names))],
        [change.without(at) for at in of_frames],
        _grid(video, single, single_effects) if regions else None,
        prober.attention(whole).tolist() if attention else None,
    )


class Change:
    """What leaving parts out does to the best labels; row 0 of the logits is of the whole video."""

    def __init__(self, logits: Float32[np.ndarray, "groups classes"], labels: Sequence[str]) -> None:
        best = np.argsort(-logits[0], kind="stable")[:BEST]
        self.labels = labels
        self.names = [labels[place] for place in best]
        self.softmax = softmax(logits)
        self.probabilities = [float(share) for share in self.softmax[0, best]]
        self.effects = logits[0, best] - logits[:, best]
        self.first = best[0]

    def without(self, group: int) -> Without:
        """The prediction without a group."""
        shares = self.softmax[group]
        best = int(shares.argmax())
        return Without(self.labels[best], float(shares[best]), float(shares[self.first]))


def explain_to_file(out: Path, explanations: Sequence[Explanation]) -> None:
    """Write explanations as a JSON list."""
    write_explanation(out, [explanation.to_json() for explanation in explanations])


def write_explanation(out: Path, value: Any) -> None:
    """Write what explains predictions as JSON; another suffix than ``.json`` raises ``AdapterError``."""
    if out.suffix != ".json":
        raise AdapterError(f"--out {out.name} must end in .json")
    make_folder(out.parent)
    write_json(out, value)


def entity_places(video: Video) -> dict[int, Places]:
    """Per entity the (frame, region) pairs whose best entity it is; regions only, without cls."""
    places: dict[int, Places] = defaultdict(list)
    for frame, region in np.argwhere(video.mask):
        if region > 0:
            places[int(video.topk_entity[frame, region, 0])].append([int(frame), int(region)])
    return dict(places)


def frame_places(video: Video) -> list[Places]:
    """Per frame its (frame, token) pairs, cls included; none for a video of one frame, which is all there is."""
    if len(video.mask) == 1:
        return []
    return [[[frame, int(token)] for token in np.flatnonzero(kept)] for frame, kept in enumerate(video.mask)]


def region_places(video: Video) -> list[Places]:
    """Every region on its own, without cls."""
    return [[[int(frame), int(region)]] for frame, region in np.argwhere(video.mask) if region > 0]


def leave_out(whole: Batch, groups: Sequence[Places]) -> Batch:
    """One copy of the single video a group, with the group's (frame, region) pairs masked."""
    batch = whole.map(lambda tensor: tensor.repeat(len(groups), *[1] * (tensor.ndim - 1)))
    mask = batch.mask.clone()
    for i, pairs in enumerate(groups):
        for frame, region in pairs:
            mask[i, frame, region] = False
    return replace(batch, mask=mask)


def _effect(opened: Opened, entity: int, places: Places, change: Change, at: int) -> EntityEffect:
    frames, effects = sorted({frame for frame, _ in places}), change.effects[at].tolist()
    name = opened.alignments.entities.names[entity]
    return EntityEffect(entity, name, effects[0], frames, places, effects, change.without(at))


def _grid(video: Video, single: Sequence[Places], effects: Sequence[float]) -> list[list[float | None]]:
    grid: list[list[float | None]] = [[None] * video.mask.shape[1] for _ in video.mask]
    for ((frame, region),), effect in zip(single, effects, strict=True):
        grid[frame][region] = effect
    return grid
