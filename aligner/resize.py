"""Pictures cut to a model's size on the device that encodes them, as near to ``pixels.Cutter`` as floats allow.

Pillow resizes in whole numbers, first along the rows, rounded to bytes, then along the columns. So does this, with
weights in floats: no value differs by more than 2 of 255, and of real frames not one in a hundred differs at all
(tests/aligner/test_resize.py). Pillow 13 takes the columns first where that is cheaper (python-pillow/Pillow#9549),
which shows in noise, where a half-resized picture is clipped, and hardly in real frames.
"""

import torch
import torch.nn.functional as F
from jaxtyping import UInt8
from torch import Tensor

from aligner.pixels import Cutter


def cut(
    pictures: UInt8[Tensor, "frames height width 3"], cutter: Cutter
) -> UInt8[Tensor, "frames rows columns 3"]:
    """Pictures of one size, resized and cropped (or padded) to the size of ``cutter``."""
    height, width = cutter.resized(*pictures.shape[1:3])
    method = cutter.filter().name.lower()
    planes = pictures.permute(0, 3, 1, 2)
    for size in ((pictures.shape[1], width), (height, width)):
        if planes.shape[2:] != size:
            planes = F.interpolate(planes.float(), size, mode=method, align_corners=False, antialias=True)
            planes = planes.add_(0.5).floor_().clamp_(0, 255).to(torch.uint8)
    (top, bottom), (left, right) = (_margins(a, b) for a, b in zip((height, width), cutter.size, strict=True))
    fill = cutter.fill_color if cutter.resize_mode == "longest" else 0
    return F.pad(planes, (left, right, top, bottom), value=fill).permute(0, 2, 3, 1)


def _margins(now: int, wanted: int) -> tuple[int, int]:
    """What is added before and after along an axis; below zero is cut off."""
    before = (wanted - now) // 2 if wanted > now else -round((now - wanted) / 2)
    return before, wanted - now - before
