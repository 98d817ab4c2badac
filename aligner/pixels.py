"""Pictures cut to a model's size exactly as open_clip's transform does, without torch.

Decoding processes use this: they start in a fraction of a second, and hand over bytes, a quarter of the size
of floats. ``normalise`` in engine.py is the other half of the transform.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageOps

INTERPOLATIONS = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}


@dataclass(frozen=True)
class Cutter:
    """Resize and crop to ``size`` (height, width) pixels.

    ``resize_mode`` is open_clip's: ``shortest`` fills the size and crops the middle, ``longest`` fits into it
    and pads with ``fill_color``, ``squash`` changes the aspect ratio.
    """

    size: tuple[int, int]
    resize_mode: str = "shortest"
    interpolation: str = "bicubic"
    fill_color: int = 0

    @classmethod
    def of(cls, settings: dict[str, Any]) -> "Cutter":
        """The cutter that the configuration in a manifest tells."""
        size = settings["image_size"]
        names = ("resize_mode", "interpolation", "fill_color")
        return cls((size[0], size[1]), *(settings[name] for name in names))

    def __call__(self, rgb: UInt8[np.ndarray, "height width 3"]) -> UInt8[np.ndarray, "rows columns 3"]:
        """One picture, cut to size."""
        height, width = self._resized(*rgb.shape[:2])
        picture = Image.fromarray(rgb)
        if (width, height) != picture.size:
            picture = picture.resize((width, height), self._filter())
        return np.asarray(self._cropped(picture))

    def _filter(self) -> Image.Resampling:
        # open_clip resizes to a size that is not square bicubically, whatever the model asks for.
        oblong = self.resize_mode == "shortest" and self.size[0] != self.size[1]
        return Image.Resampling.BICUBIC if oblong else INTERPOLATIONS[self.interpolation]

    def _resized(self, height: int, width: int) -> tuple[int, int]:
        rows, columns = self.size
        if self.resize_mode == "squash":
            return rows, columns
        if self.resize_mode == "shortest" and rows == columns:
            # The longer edge is cut down to a whole number here and rounded below: so does torchvision.
            short = min(height, width)
            return (rows * height) // short, (rows * width) // short
        pick = max if self.resize_mode == "longest" else min
        ratio = pick(height / rows, width / columns)
        return round(height / ratio), round(width / ratio)

    def _cropped(self, picture: Image.Image) -> Image.Image:
        rows, columns = self.size
        across, down = max(0, columns - picture.width), max(0, rows - picture.height)
        if across or down:
            border = (across // 2, down // 2, (across + 1) // 2, (down + 1) // 2)
            fill = self.fill_color if self.resize_mode == "longest" else 0
            picture = ImageOps.expand(picture, border, fill=(fill,) * 3)
        top, left = round((picture.height - rows) / 2), round((picture.width - columns) / 2)
        return picture.crop((left, top, left + columns, top + rows))
