"""Which frames and which crops of a video become its views (pure, standard library only).

A view is one sample of frames in time, a *draw* of ``tsn`` or a *clip* of the other samplings, seen through one
crop. Its rows stand beside those of the video's other views; view 0 is the first sample through the middle crop.

Moments are fractions of the video's duration, so that what is chosen is a matter of timestamps: files of variable
frame rate need no rule of their own.
"""

import json
import random
from collections.abc import Mapping
from dataclasses import dataclass, fields
from fractions import Fraction
from typing import Any

from aligner.config import DENSE_SAMPLING, SAMPLINGS, TSN

# Crops by number: name, and the share of the overhanging part of the resized frame that lies before the crop (to
# its left, or above it). The middle comes first, so that view 0 is what a single view would be.
CROPS = {
    1: (("middle", 0.5),),
    3: (("middle", 0.5), ("start", 0.0), ("end", 1.0)),
}
# Fineness of a draw within its segment.
DRAW_BITS = 32


@dataclass(frozen=True)
class Sampling:
    """How ``frames`` frames are chosen from a video, once for each draw or clip.

    ``uniform``: one frame from each of equal segments of the duration, at the same place in all; with C clips, clip
    c at the middle of the c-th of C parts of each segment. ``tsn``: one frame at a random place of each segment,
    ``draws`` times; drawn from the seed, the draw and the video's id. ``dense``: frames ``stride`` apart, in
    frames of the video's average rate; the clips are windows slid evenly from the beginning to the end, a single
    one lies in the middle, and a video that is shorter holds its last frame.
    """

    frames: int
    sampling: str = SAMPLINGS[0]
    draws: int = 1
    stride: int | None = None
    clips: int = 1
    seed: int = 0

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> "Sampling":
        """The sampling of a manifest's ``config``; that of versions before 3 is ``uniform``."""
        names = {field.name for field in fields(cls)}
        known = {name: value for name, value in config.items() if name in names}
        return cls(**known | {"sampling": config["sampling"] if "clips" in config else SAMPLINGS[0]})

    def moments(self, video_id: str, length: int) -> list[list[Fraction]]:
        """Per draw or clip the moments of its frames, in [0, 1) of the duration of a video of ``length`` frames."""
        if self.sampling == TSN:
            return [self._drawn(video_id, draw) for draw in range(self.draws)]
        if self.sampling == DENSE_SAMPLING:
            return [self._window(clip, length) for clip in range(self.clips)]
        return [self._in_segments(2 * clip + 1, 2 * self.clips) for clip in range(self.clips)]

    def _in_segments(self, place: int, places: int) -> list[Fraction]:
        return [Fraction(i * places + place, self.frames * places) for i in range(self.frames)]

    def _drawn(self, video_id: str, draw: int) -> list[Fraction]:
        # Seeded by a text, this generator gives the same numbers in every version of Python 3.
        rng = random.Random(json.dumps([self.seed, draw, video_id]))
        places = 1 << DRAW_BITS
        return [
            Fraction(i * places + rng.getrandbits(DRAW_BITS), self.frames * places)
            for i in range(self.frames)
        ]

    def _window(self, clip: int, length: int) -> list[Fraction]:
        stride = self.stride or 1
        slack = max(0, length - (self.frames - 1) * stride - 1)
        first = slack * clip // (self.clips - 1) if self.clips > 1 else slack // 2
        # The middle of the time that a frame is on display: neither rounding nor jitter moves it to a neighbour.
        return [Fraction(2 * min(first + i * stride, length - 1) + 1, 2 * length) for i in range(self.frames)]


def view_table(sampling: Sampling, crops: int) -> list[dict[str, Any]]:
    """What each view is, by its number: its draw or clip, its crop, and the share of the overhang before the crop.

    The frame is resized so that its shorter side fills the crop. A place x along the longer side, a fraction of the
    crop, lies at ``(before * (long - size) + x * size) / long`` of the frame, where ``long`` and ``size`` are the
    longer side and the crop in the same pixels; along the shorter side x is that of the frame.
    """
    moment, count = ("draw", sampling.draws) if sampling.sampling == TSN else ("clip", sampling.clips)
    return [
        {moment: place, "crop": name, "before": before}
        for place in range(count)
        for name, before in CROPS[crops]
    ]
