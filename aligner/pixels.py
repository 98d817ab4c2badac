"""Pictures cut to a model's size exactly as open_clip's transform does, without torch.

Decoding processes use this: they start in a fraction of a second, and hand over bytes, a quarter of the size
of floats. ``normalise`` in engine.py is the other half of the transform.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import PIL
from jaxtyping import UInt8
from PIL import Image, ImageOps

from aligner.views import CROPS

# Versions of Pillow differ in what they resize first, hence in bytes: recorded in the manifest.
RESIZER = f"Pillow {PIL.__version__}"
INTERPOLATIONS = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}


@dataclass(frozen=True)
class Cutter:
    """Resize and crop to ``size`` (height, width) pixels.

    ``resize_mode`` is open_clip's: ``shortest`` fills the size and crops the middle, ``longest`` fits into it
    and pads with ``fill_color``, ``squash`` changes the aspect ratio. ``crops`` is how many crops ``cuts`` takes
    of what overhangs (``views.CROPS``). ``whole`` leaves pictures as they are, to be cut on a device (resize.py).
    """

    size: tuple[int, int]
    resize_mode: str = "shortest"
    interpolation: str = "bicubic"
    fill_color: int = 0
    crops: int = 1
    whole: bool = False

    @classmethod
    def of(cls, settings: dict[str, Any]) -> "Cutter":
        """The cutter that the configuration in a manifest tells."""
        size = settings["image_size"]
        names = ("resize_mode", "interpolation", "fill_color")
        known = {name: settings[name] for name in names}
        return cls((size[0], size[1]), **known, crops=settings.get("crops", 1))

    def __call__(self, rgb: UInt8[np.ndarray, "height width 3"]) -> UInt8[np.ndarray, "rows columns 3"]:
        """One picture, cut to size unless it is to stay whole: the middle crop."""
        return self.cuts(rgb)[0]

    def cuts(self, rgb: UInt8[np.ndarray, "height width 3"]) -> UInt8[np.ndarray, "crops rows columns 3"]:
        """All crops of one picture, the middle one first; it is resized once. A whole one is its only crop."""
        if self.whole:
            return rgb[None]
        height, width = self.resized(*rgb.shape[:2])
        picture = Image.fromarray(rgb)
        if (width, height) != picture.size:
            picture = picture.resize((width, height), self.filter())
        picture = self._padded(picture)
        return np.stack([self._cropped(picture, before) for _, before in CROPS[self.crops]])

    def stack(
        self, pictures: Sequence[UInt8[np.ndarray, "_ _ 3"]]
    ) -> UInt8[np.ndarray, "pictures rows columns 3"]:
        """The pictures of a video as one array; whole ones of several sizes are cut here after all."""
        if len({picture.shape for picture in pictures}) > 1:
            pictures = [replace(self, whole=False)(picture) for picture in pictures]
        return np.stack(pictures)

    def filter(self) -> Image.Resampling:
        """With what a picture is resized."""
        # open_clip resizes to a size that is not square bicubically, whatever the model asks for.
        oblong = self.resize_mode == "shortest" and self.size[0] != self.size[1]
        return Image.Resampling.BICUBIC if oblong else INTERPOLATIONS[self.interpolation]

    def resized(self, height: int, width: int) -> tuple[int, int]:
        """Height and width of a picture before it is cropped or padded."""
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

    def _padded(self, picture: Image.Image) -> Image.Image:
        rows, columns = self.size
        across, down = max(0, columns - picture.width), max(0, rows - picture.height)
        if not across and not down:
            return picture
        border = (across // 2, down // 2, (across + 1) // 2, (down + 1) // 2)
        fill = self.fill_color if self.resize_mode == "longest" else 0
        return ImageOps.expand(picture, border, fill=(fill,) * 3)

    def _cropped(self, picture: Image.Image, before: float) -> np.ndarray:
        """The crop with the share ``before`` of the longer overhang before it, in the middle of the other."""
        rows, columns = self.size
        down, across = picture.height - rows, picture.width - columns
        top = round(down * (before if down > across else 0.5))
        left = round(across * (0.5 if down > across else before))
        return np.asarray(picture.crop((left, top, left + columns, top + rows)))
