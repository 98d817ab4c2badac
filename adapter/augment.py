"""Changes of cached videos in training, off by default; each is drawn by (seed, epoch, video) alone.

No pixels are left to crop or to colour, so these act on what is cached. Several cached draws and crops
(``aligner run --draws --crops``) are the augmentation of pixels; which view is seen is drawn by the dataset.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, fields, replace

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor

from adapter.alignments import Video


@dataclass(frozen=True)
class Augmentation:
    """How strongly videos are changed: probabilities, and mixup's alpha; zero changes nothing.

    - ``frame_dropout``: a frame is hidden: all its tokens are masked and zero. One frame always stays.
    - ``region_dropout``: a region (never cls) of a frame is hidden alike.
    - ``frame_jitter``: a pair of neighbouring frames changes places; contents move, the clock does not. Pairs are
      disjoint, so no frame moves further than one place.
    - ``mixup``: see ``mix_shares`` and ``mixup``.
    """

    frame_dropout: float = 0.0
    region_dropout: float = 0.0
    frame_jitter: float = 0.0
    mixup: float = 0.0

    def video(self, video: Video, key: str) -> Video:
        """A video as training sees it; ``key`` (seed, epoch, video) decides every draw."""
        if not (self.frame_dropout or self.region_dropout or self.frame_jitter):
            return video
        rng = generator(f"video {key}")
        frames, tokens = video.mask.shape
        # Drawn whether or not they are used, so that one option never changes another's draws.
        draws, first, kept = rng.random((frames, tokens + 2)), int(rng.integers(2)), int(rng.integers(frames))
        if self.frame_jitter:
            order = swapped(draws[:, 0] < self.frame_jitter, first)
            video = _each_frame(video, lambda array: array[order])
        if self.frame_dropout or self.region_dropout:
            hidden = draws[:, 2:] < self.region_dropout
            hidden[:, 0] = False
            hidden[(draws[:, 1] < self.frame_dropout) & (np.arange(frames) != kept)] = True
            video = hide(video, hidden)
        return video


def swapped(chosen: np.ndarray, first: int) -> np.ndarray:
    """Order of frames in which pairs (t, t + 1), t = first, first + 2, ..., change places where ``chosen[t]``."""
    order = np.arange(len(chosen))
    for t in range(first, len(chosen) - 1, 2):
        if chosen[t]:
            order[[t, t + 1]] = t + 1, t
    return order


def hide(video: Video, hidden: np.ndarray) -> Video:
    """Tokens [frames, tokens] masked, and zero where they stood, for models that look at no mask."""
    mask = video.mask & ~hidden
    held = video.embeddings.shape[1]
    return replace(
        video,
        embeddings=np.where(mask[:, :held, None], video.embeddings, np.float16(0)),
        norms=np.where(mask, video.norms, np.float32(0)),
        topk_score=np.where(mask[..., None], video.topk_score, np.float32(0)),
        geometry=np.where(mask[..., None], video.geometry, np.float32(0)),
        mask=mask,
    )


def _each_frame(video: Video, change: Callable[[np.ndarray], np.ndarray]) -> Video:
    names = (spec.name for spec in fields(video) if spec.name not in ("video_id", "times"))
    return Video(video.video_id, times=video.times, **{name: change(getattr(video, name)) for name in names})


def generator(key: str) -> np.random.Generator:
    """A generator that a text seeds, the same on every machine and in every process."""
    return np.random.default_rng(int.from_bytes(hashlib.sha256(key.encode()).digest()[:16], "big"))


def mix_shares(alpha: float, keys: list[str]) -> Float[Tensor, " videos"]:
    """The share that each video keeps: the larger part of a draw of Beta(alpha, alpha) by its key; 1 at alpha 0."""
    if not alpha:
        return torch.ones(len(keys))
    draws = [generator(f"mixup {key}").beta(alpha, alpha) for key in keys]
    return torch.tensor([max(draw, 1 - draw) for draw in draws], dtype=torch.float32)


def partners(videos: int) -> Int64[Tensor, " videos"]:
    """Who each video is mixed with: 0 with 1, 2 with 3, ...; an odd last one with itself."""
    other = torch.arange(videos) ^ 1
    return torch.where(other < videos, other, torch.arange(videos))


def mixup(
    logits: Float[Tensor, "videos classes"],
    z: Float[Tensor, "videos *each dim"],
    label: Int64[Tensor, " videos"],
    share: Float[Tensor, " videos"],
) -> tuple[Float[Tensor, "videos classes"], Float[Tensor, "videos classes"]]:
    """Logits and targets of mixed videos: z_mix = normalise(s z + (1 - s) z'), target s y + (1 - s) y'.

    The mix is of the video embeddings z (Eq. 9), the one place where a sum of two videos means something: regions
    of two videos do not correspond, and entity ids cannot be averaged. Logits are scale * cos(z, c), linear in
    z, so those of z_mix are (s l + (1 - s) l') / |s z + (1 - s) z'|, whatever made them. The targets of a
    video sum to one. With a share of one nothing changes.

    Args:
        logits: scores of the videos as they are.
        z: their embeddings, of unit length; one for each class where each has its own.
        label: their classes, none unknown.
        share: what each keeps of itself (``mix_shares``); the rest is its partner's (``partners``).
    """
    other = partners(len(label)).to(label.device)
    s = share.to(z.device).unsqueeze(1)
    kept = s.unsqueeze(-1) if z.ndim == 3 else s
    length = (kept * z + (1 - kept) * z[other]).norm(dim=-1).clamp_min(1e-6)
    length = length if z.ndim == 3 else length.unsqueeze(1)
    truth = F.one_hot(label, logits.shape[1]).to(s.dtype)
    return (s * logits + (1 - s) * logits[other]) / length, s * truth + (1 - s) * truth[other]
