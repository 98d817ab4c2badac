"""The part of a frame that the model saw."""

import numpy as np
from PIL import Image


def crop(rgb: np.ndarray, size: tuple[int, int], resize_mode: str = "shortest") -> np.ndarray:
    """The part of a frame [height, width, 3] uint8 that the model saw, at ``size`` (height, width).

    Cut by open_clip's rule for ``resize_mode``, so that the patch grid lies on the picture as it lay on the
    input: ``shortest`` fills the size and crops the middle, ``longest`` fits into it with black bars,
    ``squash`` stretches.
    """
    image, (height, width) = Image.fromarray(rgb), size
    sizes = {"shortest": _filling(image, width, height), "longest": _fitting(image, width, height)}
    image = image.resize(sizes.get(resize_mode, (width, height)), Image.Resampling.BICUBIC)
    left, top = round((image.width - width) / 2), round((image.height - height) / 2)
    return np.asarray(image.crop((left, top, left + width, top + height)))


def _filling(image: Image.Image, width: int, height: int) -> tuple[int, int]:
    # The longer side is rounded down, as torchvision does: half a pixel moves the crop by a visible amount.
    if width * image.height > height * image.width:
        return width, int(width * image.height / image.width)
    return int(height * image.width / image.height), height


def _fitting(image: Image.Image, width: int, height: int) -> tuple[int, int]:
    scale = min(width / image.width, height / image.height)
    return round(image.width * scale), round(image.height * scale)
