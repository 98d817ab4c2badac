"""Eight backdrops, each redrawn with random colours and details."""

from collections.abc import Callable
from functools import lru_cache

import numpy as np
from PIL import Image

from pipelines.toyworld.sprites import DARK, WHITE, Colour, Pen, Style, hsv, shade

GROUND = 0.74  # height of the ground line in frame units, y down


def _sky(p: Pen, top: Colour, bottom: Colour, until: float = GROUND) -> None:
    """A vertical gradient in bands, from the top of the frame down."""
    bands = 14
    for index in range(bands):
        mix = index / (bands - 1)
        colour = tuple(int(a + (b - a) * mix) for a, b in zip(top, bottom, strict=True))
        p.polygon(
            [(0, until * index / bands), (1, until * index / bands), (1, until * (index + 1) / bands + 0.01)]
            + [(0, until * (index + 1) / bands + 0.01)],
            colour,  # type: ignore[arg-type]
            0,
        )


def _ground(p: Pen, colour: Colour) -> None:
    p.polygon([(0, GROUND), (1, GROUND), (1, 1), (0, 1)], colour, 0)


def _stripes(p: Pen, colour: Colour, count: int, width: float) -> None:
    """Floor boards in perspective."""
    for x in np.linspace(-0.6, 1.6, count):
        p.line([(0.5 + (x - 0.5) * 0.6, GROUND), (x, 1.02)], colour, width)


def _park(p: Pen, s: Style) -> None:
    _sky(p, s.colour((0.57,), 0.45, 0.92), s.colour((0.55,), 0.15, 0.98))
    for x in (s.near(0.14, 0.08), s.near(0.5, 0.1), s.near(0.86, 0.08)):
        p.line([(x, GROUND), (x, 0.46)], (110, 78, 52), 0.045)
        leaf = s.colour((0.3, 0.34), 0.5, 0.55)
        for dx, dy, radius in ((-0.08, 0.0, 0.1), (0.08, 0.0, 0.1), (0.0, -0.09, 0.12)):
            p.disc(x + dx, 0.42 + dy, radius, leaf)
    _ground(p, s.colour((0.29,), 0.5, 0.68))
    p.polygon([(0.35, GROUND), (0.5, GROUND), (0.8, 1), (0.3, 1)], s.colour((0.11,), 0.25, 0.86), 0)


def _beach(p: Pen, s: Style) -> None:
    _sky(p, s.colour((0.55,), 0.5, 0.96), s.colour((0.12,), 0.18, 0.99), 0.5)
    p.disc(s.near(0.78, 0.1), s.near(0.16, 0.05), 0.075, (255, 226, 120))
    sea = s.colour((0.53,), 0.7, 0.75)
    p.polygon([(0, 0.5), (1, 0.5), (1, GROUND), (0, GROUND)], sea, 0)
    for y in (0.56, 0.62, 0.69):
        x = s.near(0.3, 0.3)
        p.line([(x, y), (x + 0.25, y)], shade(sea, 1.3), 0.012)
    _ground(p, s.colour((0.12,), 0.35, 0.93))


def _street(p: Pen, s: Style) -> None:
    _sky(p, s.colour((0.6,), 0.2, 0.85), s.colour((0.6,), 0.08, 0.95))
    x = -0.02
    while x < 1:
        width, top = s.near(0.2, 0.05), s.near(0.24, 0.14)
        wall = s.colour((0.02, 0.08, 0.6, 0.95), 0.3, 0.68)
        p.polygon([(x, top), (x + width, top), (x + width, GROUND), (x, GROUND)], wall)
        for y in np.arange(top + 0.05, GROUND - 0.08, 0.12):
            for dx in (0.2, 0.6):
                p.polygon(
                    [(x + width * dx, y), (x + width * (dx + 0.22), y)]
                    + [(x + width * (dx + 0.22), y + 0.06), (x + width * dx, y + 0.06)],
                    (250, 236, 170),
                    0,
                )
        x += width
    _ground(p, s.grey(0.42, 0.04))
    for x in (0.05, 0.4, 0.75):
        p.line([(x, 0.9), (x + 0.18, 0.9)], WHITE, 0.022)


def _kitchen(p: Pen, s: Style) -> None:
    _sky(p, s.colour((0.13,), 0.2, 0.95), s.colour((0.13,), 0.25, 0.9))
    tile = s.colour((0.45, 0.55), 0.2, 0.9)
    for row in range(3):
        for column in range(8):
            x, y = column * 0.13, 0.34 + row * 0.08
            p.polygon([(x, y), (x + 0.125, y), (x + 0.125, y + 0.075), (x, y + 0.075)], tile, 0.006)
    cupboard = s.colour((0.08, 0.38), 0.35, 0.75)
    for x in (0.02, 0.26, 0.62, 0.82):
        p.box(x, 0.04, x + 0.2, 0.28, cupboard)
    p.polygon([(0, 0.58), (1, 0.58), (1, 0.64), (0, 0.64)], s.grey(0.85))
    p.polygon([(0, 0.64), (1, 0.64), (1, GROUND), (0, GROUND)], shade(cupboard, 0.9))
    _ground(p, s.colour((0.07,), 0.3, 0.75))
    _stripes(p, shade(s.colour((0.07,), 0.3, 0.75), 0.8), 9, 0.008)


def _gym(p: Pen, s: Style) -> None:
    _sky(p, s.grey(0.66), s.grey(0.75))
    p.polygon([(0, 0.42), (1, 0.42), (1, 0.5), (0, 0.5)], s.colour((0.0, 0.6), 0.7, 0.7), 0)
    for x in (0.06, 0.38, 0.7):
        p.box(x, 0.08, x + 0.24, 0.34, s.colour((0.55,), 0.15, 0.93))
    _ground(p, s.colour((0.08,), 0.5, 0.82))
    _stripes(p, (200, 146, 92), 9, 0.01)
    p.line([(0, 0.86), (1, 0.86)], WHITE, 0.016)


def _stage(p: Pen, s: Style) -> None:
    _sky(p, hsv(0.75, 0.5, 0.18), hsv(0.8, 0.5, 0.34))
    curtain = s.colour((0.97,), 0.75, 0.5)
    for side in (0, 1):
        for index in range(3):
            x = index * 0.06 if side == 0 else 1 - index * 0.06
            step = 0.06 if side == 0 else -0.06
            p.polygon(
                [(x, 0), (x + step, 0), (x + step * 0.8, GROUND), (x, GROUND)],
                shade(curtain, 1 - 0.15 * index),
            )
    for x in (0.3, 0.5, 0.7):
        light = s.colour((0.14, 0.5, 0.85), 0.25, 0.98)
        p.polygon(
            [(x - 0.02, 0.02), (x + 0.02, 0.02), (x + 0.14, GROUND), (x - 0.14, GROUND)],
            shade(light, 0.45),
            0,
        )
        p.disc(x, 0.03, 0.035, light)
    _ground(p, s.colour((0.06,), 0.55, 0.42))
    _stripes(p, (72, 46, 34), 11, 0.01)


def _snow(p: Pen, s: Style) -> None:
    _sky(p, s.colour((0.6,), 0.3, 0.82), s.colour((0.6,), 0.08, 0.97))
    for x in (s.near(0.2, 0.1), s.near(0.7, 0.1)):
        rock = s.grey(0.55)
        p.polygon([(x - 0.38, GROUND), (x, 0.2), (x + 0.38, GROUND)], rock, 0)
        p.polygon([(x - 0.13, 0.38), (x, 0.2), (x + 0.13, 0.38), (x, 0.44)], WHITE, 0)
    for x in (0.06, 0.94):
        for y in (0.5, 0.59, 0.68):
            p.polygon([(x, y - 0.1), (x - 0.09, y + 0.06), (x + 0.09, y + 0.06)], (50, 100, 84))
    _ground(p, (240, 246, 252))
    for _ in range(24):
        x, y = s.near(0.5, 0.5), s.near(0.4, 0.4)
        p.line([(x, y), (x + 0.001, y)], WHITE, 0.014)


def _library(p: Pen, s: Style) -> None:
    _sky(p, s.colour((0.1,), 0.35, 0.5), s.colour((0.1,), 0.4, 0.44))
    for y in (0.22, 0.46, 0.7):
        x = 0.02
        while x < 0.96:
            width, height = s.near(0.035, 0.012), s.near(0.15, 0.03)
            colour = s.colour((0.0, 0.1, 0.33, 0.6, 0.9), 0.5, 0.6)
            p.polygon([(x, y - height), (x + width, y - height), (x + width, y), (x, y)], colour, 0.005)
            x += width + 0.004
        p.line([(0, y + 0.01), (1, y + 0.01)], (90, 62, 40), 0.022)
    _ground(p, s.colour((0.02,), 0.5, 0.5))
    p.line([(0, GROUND), (1, GROUND)], DARK, 0.012)


DRAW: dict[str, Callable[[Pen, Style], None]] = {
    "park": _park,
    "beach": _beach,
    "street": _street,
    "kitchen": _kitchen,
    "gym": _gym,
    "stage": _stage,
    "snow": _snow,
    "library": _library,
}


@lru_cache(maxsize=2048)
def backdrop(name: str, seed: int, pixels: int) -> Image.Image:
    """The RGB backdrop of a scene variant, ``pixels`` square."""
    pen = Pen(pixels)
    DRAW[name](pen, Style(seed))
    return pen.image.convert("RGB")
