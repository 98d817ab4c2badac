"""Procedural object drawings: every sprite is one of countless variants, chosen by a seed."""

import colorsys
from collections.abc import Callable, Sequence
from functools import lru_cache

import numpy as np
from PIL import Image, ImageDraw

SPRITE_PIXELS = 96
Colour = tuple[int, int, int]
Point = tuple[float, float]


def hsv(hue: float, saturation: float, value: float) -> Colour:
    """An RGB colour from hue, saturation and value in [0, 1] (hue wraps round)."""
    red, green, blue = colorsys.hsv_to_rgb(hue % 1.0, min(max(saturation, 0), 1), min(max(value, 0), 1))
    return int(red * 255), int(green * 255), int(blue * 255)


def shade(colour: Colour, factor: float) -> Colour:
    """The colour multiplied by a factor: below 1 darker, above 1 lighter."""
    return tuple(min(255, max(0, int(channel * factor))) for channel in colour)  # type: ignore[return-value]


class Pen:
    """Draws shapes in unit coordinates (0..1, y down) with a dark outline on a transparent square."""

    def __init__(self, pixels: int) -> None:
        self.pixels = pixels
        self.image = Image.new("RGBA", (pixels, pixels), (0, 0, 0, 0))
        self._draw = ImageDraw.Draw(self.image)

    def _scaled(self, points: Sequence[Point]) -> list[Point]:
        return [(x * self.pixels, y * self.pixels) for x, y in points]

    def _width(self, width: float) -> int:
        return max(1, round(width * self.pixels))

    def polygon(self, points: Sequence[Point], fill: Colour, outline: float = 0.02) -> None:
        """A filled polygon."""
        self._draw.polygon(self._scaled(points), fill=fill)
        if outline:
            self.line([*points, points[0]], shade(fill, 0.6), outline)

    def box(self, x0: float, y0: float, x1: float, y1: float, fill: Colour, round_by: float = 0.0) -> None:
        """A filled rectangle, its corners rounded by a radius."""
        self._draw.rounded_rectangle(
            self._scaled([(x0, y0), (x1, y1)]),
            radius=round_by * self.pixels,
            fill=fill,
            outline=shade(fill, 0.6),
            width=self._width(0.02),
        )

    def disc(self, x: float, y: float, rx: float, fill: Colour, ry: float | None = None) -> None:
        """A filled ellipse around a centre."""
        ry = rx if ry is None else ry
        bounds = self._scaled([(x - rx, y - ry), (x + rx, y + ry)])
        self._draw.ellipse(bounds, fill=fill, outline=shade(fill, 0.6), width=self._width(0.02))

    def ring(self, x: float, y: float, radius: float, colour: Colour, width: float) -> None:
        """A circle without filling."""
        bounds = self._scaled([(x - radius, y - radius), (x + radius, y + radius)])
        self._draw.ellipse(bounds, outline=colour, width=self._width(width))

    def line(self, points: Sequence[Point], colour: Colour, width: float) -> None:
        """A line with round ends and joints."""
        scaled = self._scaled(points)
        self._draw.line(scaled, fill=colour, width=self._width(width), joint="curve")
        half = self._width(width) / 2
        for x, y in (scaled[0], scaled[-1]):
            self._draw.ellipse((x - half, y - half, x + half, y + half), fill=colour)

    def arc(
        self, x: float, y: float, radius: float, start: float, end: float, colour: Colour, width: float
    ) -> None:
        """A part of a circle, angles in degrees clockwise from the right."""
        bounds = self._scaled([(x - radius, y - radius), (x + radius, y + radius)])
        self._draw.arc(bounds, start, end, fill=colour, width=self._width(width))


class Style:
    """The random choices of one sprite variant."""

    def __init__(self, seed: int) -> None:
        self._random = np.random.default_rng(seed)

    def near(self, value: float, spread: float) -> float:
        """A number close to ``value``."""
        return value + float(self._random.uniform(-spread, spread))

    def colour(self, hues: tuple[float, ...], saturation: float = 0.75, value: float = 0.85) -> Colour:
        """A colour near one of the hues."""
        hue = self.near(hues[int(self._random.integers(len(hues)))], 0.02)
        return hsv(hue, self.near(saturation, 0.1), self.near(value, 0.08))

    def grey(self, value: float, spread: float = 0.08) -> Colour:
        """A nearly neutral grey."""
        return hsv(self.near(0.6, 0.1), 0.06, self.near(value, spread))


WOOD = (0.07, 0.09)
METAL = 0.72
WHITE: Colour = (245, 243, 238)
DARK: Colour = (48, 46, 54)


def _ball(p: Pen, s: Style) -> None:
    p.disc(0.5, 0.5, 0.44, s.colour((0.07,), 0.85, 0.92))
    for x in (0.5, 0.28, 0.72):
        p.line([(x, 0.12), (1 - x if x == 0.5 else x * 0.9 + 0.05, 0.88)], DARK, 0.04)
    p.line([(0.08, 0.5), (0.92, 0.5)], DARK, 0.04)


def _frisbee(p: Pen, s: Style) -> None:
    colour = s.colour((0.52, 0.56), 0.75, 0.95)
    p.disc(0.5, 0.5, 0.47, colour, s.near(0.24, 0.03))
    p.disc(0.5, 0.47, 0.3, shade(colour, 1.25), 0.13)


def _balloon(p: Pen, s: Style) -> None:
    colour = s.colour((0.92, 0.96, 0.85), 0.6, 0.97)
    p.line([(0.5, 0.7), (0.46, 0.85), (0.52, 0.99)], DARK, 0.02)
    p.disc(0.5, 0.38, s.near(0.31, 0.03), colour, 0.37)
    p.polygon([(0.5, 0.72), (0.44, 0.8), (0.56, 0.8)], colour)
    p.disc(0.4, 0.25, 0.06, WHITE, 0.09)


def _box(p: Pen, s: Style) -> None:
    colour = s.colour((0.085,), 0.5, 0.78)
    p.box(0.08, 0.22, 0.92, 0.92, colour)
    p.polygon([(0.08, 0.22), (0.22, 0.06), (0.98, 0.06), (0.92, 0.22)], shade(colour, 1.18))
    p.box(0.42, 0.22, 0.58, 0.92, shade(colour, 0.82))


def _cup(p: Pen, s: Style) -> None:
    colour = s.colour((0.0, 0.02), 0.7, 0.88)
    p.ring(0.76, 0.52, 0.2, shade(colour, 0.8), 0.08)
    p.polygon([(0.12, 0.18), (0.76, 0.18), (0.68, 0.9), (0.2, 0.9)], colour)
    p.disc(0.44, 0.18, 0.32, WHITE, 0.09)
    p.disc(0.44, 0.19, 0.24, (96, 60, 40), 0.05)


def _suitcase(p: Pen, s: Style) -> None:
    colour = s.colour((0.48, 0.5), 0.6, 0.6)
    p.ring(0.5, 0.2, 0.14, DARK, 0.05)
    p.box(0.06, 0.24, 0.94, 0.9, colour, 0.08)
    p.box(0.2, 0.24, 0.3, 0.9, shade(colour, 0.65))
    p.box(0.7, 0.24, 0.8, 0.9, shade(colour, 0.65))


def _bottle(p: Pen, s: Style) -> None:
    colour = s.colour((0.36, 0.4), 0.7, 0.62)
    p.box(0.42, 0.02, 0.58, 0.3, colour)
    p.box(0.3, 0.26, 0.7, 0.98, colour, 0.1)
    p.box(0.3, 0.5, 0.7, 0.78, WHITE)
    p.box(0.41, 0.0, 0.59, 0.08, s.colour((0.0, 0.12)))


def _book(p: Pen, s: Style) -> None:
    colour = s.colour((0.62, 0.65), 0.75, 0.7)
    p.polygon([(0.02, 0.24), (0.5, 0.3), (0.98, 0.24), (0.98, 0.84), (0.5, 0.9), (0.02, 0.84)], colour)
    p.polygon([(0.08, 0.2), (0.5, 0.27), (0.5, 0.82), (0.08, 0.76)], WHITE)
    p.polygon([(0.92, 0.2), (0.5, 0.27), (0.5, 0.82), (0.92, 0.76)], shade(WHITE, 0.94))
    for y in (0.36, 0.48, 0.6):
        p.line([(0.16, y), (0.42, y + 0.05)], s.grey(0.55), 0.025)
        p.line([(0.58, y + 0.05), (0.84, y)], s.grey(0.55), 0.025)


def _phone(p: Pen, s: Style) -> None:
    p.box(0.26, 0.04, 0.74, 0.96, DARK, 0.08)
    p.box(0.31, 0.13, 0.69, 0.8, s.colour((0.5, 0.55), 0.35, 0.98))
    p.disc(0.5, 0.88, 0.045, WHITE)


def _chair(p: Pen, s: Style) -> None:
    colour = s.colour((0.04, 0.06), 0.7, 0.55)
    for x in (0.2, 0.78):
        p.line([(x, 0.6), (x, 0.96)], shade(colour, 0.75), 0.08)
    p.box(0.14, 0.04, 0.3, 0.6, colour, 0.03)
    p.box(0.14, 0.52, 0.86, 0.66, shade(colour, 1.2), 0.03)


def _cart(p: Pen, s: Style) -> None:
    colour = s.colour((0.33,), 0.65, 0.72)
    p.line([(0.04, 0.14), (0.16, 0.2)], DARK, 0.06)
    p.polygon([(0.1, 0.24), (0.96, 0.24), (0.86, 0.7), (0.2, 0.7)], colour)
    for x in (0.34, 0.52, 0.7):
        p.line([(x, 0.28), (x, 0.66)], shade(colour, 0.65), 0.03)
    for x in (0.3, 0.76):
        p.disc(x, 0.86, 0.12, DARK)
        p.disc(x, 0.86, 0.04, s.grey(0.8))


def _barbell(p: Pen, s: Style) -> None:
    plate = s.grey(0.25, 0.05)
    p.line([(0.0, 0.5), (1.0, 0.5)], s.grey(0.8), 0.06)
    for x in (0.06, 0.8):
        p.box(x, 0.22, x + 0.14, 0.78, plate, 0.04)
    for x in (0.2, 0.72):
        p.box(x, 0.32, x + 0.08, 0.68, s.colour((0.0,), 0.8, 0.8), 0.03)


def _ladder(p: Pen, s: Style) -> None:
    colour = s.colour((0.13, 0.14), 0.65, 0.9)
    for x in (0.3, 0.7):
        p.line([(x, 0.02), (x, 0.98)], colour, 0.07)
    for y in np.linspace(0.1, 0.9, 6):
        p.line([(0.3, y), (0.7, y)], shade(colour, 0.82), 0.055)


def _bicycle(p: Pen, s: Style) -> None:
    frame = s.colour((0.97, 0.0), 0.85, 0.85)
    for x in (0.22, 0.78):
        p.ring(x, 0.66, 0.22, DARK, 0.055)
        p.disc(x, 0.66, 0.03, s.grey(0.7))
    hub, seat, head = (0.46, 0.68), (0.36, 0.36), (0.7, 0.36)
    for a, b in (
        ((0.22, 0.66), seat),
        ((0.22, 0.66), hub),
        (hub, seat),
        (hub, head),
        (seat, head),
        (head, (0.78, 0.66)),
    ):
        p.line([a, b], frame, 0.05)
    p.line([(0.27, 0.32), (0.43, 0.32)], DARK, 0.07)
    p.line([(0.7, 0.36), (0.68, 0.22), (0.8, 0.2)], DARK, 0.05)


def _skateboard(p: Pen, s: Style) -> None:
    colour = s.colour((0.78, 0.82), 0.65, 0.8)
    p.line([(0.04, 0.42), (0.16, 0.54), (0.84, 0.54), (0.96, 0.42)], colour, 0.12)
    for x in (0.26, 0.74):
        p.disc(x, 0.7, 0.11, s.colour((0.13,), 0.5, 0.95))


def _horse(p: Pen, s: Style) -> None:
    coat = s.colour((0.05, 0.06), 0.6, 0.48)
    for x in (0.24, 0.36, 0.62, 0.74):
        p.line([(x, 0.6), (x, 0.96)], shade(coat, 0.85), 0.07)
    p.line([(0.14, 0.44), (0.04, 0.74)], DARK, 0.07)
    p.disc(0.46, 0.5, 0.34, coat, 0.17)
    p.polygon([(0.62, 0.46), (0.74, 0.06), (0.88, 0.12), (0.8, 0.54)], coat, 0.0)
    p.polygon([(0.74, 0.04), (0.98, 0.2), (0.94, 0.3), (0.76, 0.24)], coat)
    p.line([(0.7, 0.08), (0.62, 0.4)], DARK, 0.06)


def _dog(p: Pen, s: Style) -> None:
    coat = s.colour((0.09, 0.1), 0.5, 0.85)
    for x in (0.2, 0.32, 0.58, 0.68):
        p.line([(x, 0.66), (x, 0.94)], shade(coat, 0.85), 0.08)
    p.line([(0.12, 0.5), (0.02, 0.26)], coat, 0.07)
    p.disc(0.42, 0.56, 0.32, coat, 0.17)
    p.disc(0.76, 0.36, 0.19, coat, 0.17)
    p.disc(0.92, 0.42, 0.09, shade(coat, 1.1), 0.07)
    p.disc(0.66, 0.34, 0.07, shade(coat, 0.55), 0.15)
    p.disc(0.98, 0.39, 0.03, DARK)


def _cat(p: Pen, s: Style) -> None:
    coat = s.grey(0.5, 0.06)
    p.line([(0.14, 0.7), (0.04, 0.44), (0.14, 0.24)], coat, 0.07)
    for x in (0.24, 0.34, 0.56, 0.66):
        p.line([(x, 0.7), (x, 0.94)], shade(coat, 0.85), 0.07)
    p.disc(0.44, 0.62, 0.32, coat, 0.17)
    for x in (0.62, 0.84):
        p.polygon([(x - 0.08, 0.3), (x, 0.1), (x + 0.08, 0.3)], coat)
    p.disc(0.73, 0.4, 0.2, coat, 0.18)
    for x in (0.66, 0.8):
        p.disc(x, 0.38, 0.035, (150, 210, 70))
    for y in (0.26, 0.22):
        p.line([(0.4, 0.5 + y), (0.44, 0.34 + y)], shade(coat, 0.6), 0.04)


def _guitar(p: Pen, s: Style) -> None:
    body = s.colour((0.07,), 0.8, 0.85)
    p.box(0.46, 0.0, 0.54, 0.56, (80, 52, 36))
    p.disc(0.5, 0.56, 0.2, body)
    p.disc(0.5, 0.78, 0.27, body, 0.21)
    p.disc(0.5, 0.62, 0.085, DARK)
    p.line([(0.5, 0.08), (0.5, 0.84)], WHITE, 0.018)


def _drum(p: Pen, s: Style) -> None:
    colour = s.colour((0.99, 0.0), 0.8, 0.75)
    p.polygon([(0.08, 0.3), (0.92, 0.3), (0.92, 0.8), (0.08, 0.8)], colour)
    p.disc(0.5, 0.8, 0.42, colour, 0.14)
    p.disc(0.5, 0.3, 0.42, WHITE, 0.15)
    for x in (0.12, 0.36, 0.6):
        p.line([(x, 0.42), (x + 0.14, 0.84), (x + 0.26, 0.42)], (235, 200, 90), 0.03)


def _trumpet(p: Pen, s: Style) -> None:
    brass = s.colour((0.125,), 0.75, 0.92)
    p.line([(0.04, 0.46), (0.74, 0.46)], brass, 0.08)
    p.polygon([(0.7, 0.42), (0.98, 0.2), (0.98, 0.74), (0.7, 0.5)], brass)
    p.ring(0.4, 0.58, 0.16, brass, 0.06)
    for x in (0.34, 0.44, 0.54):
        p.line([(x, 0.3), (x, 0.44)], shade(brass, 0.7), 0.05)


def _violin(p: Pen, s: Style) -> None:
    body = s.colour((0.02, 0.03), 0.8, 0.5)
    p.line([(0.86, 0.06), (0.72, 0.98)], (225, 205, 160), 0.04)
    p.box(0.38, 0.0, 0.46, 0.5, DARK)
    p.disc(0.42, 0.5, 0.16, body, 0.14)
    p.disc(0.42, 0.78, 0.22, body, 0.19)
    p.box(0.24, 0.58, 0.6, 0.66, body, 0.02)
    p.line([(0.42, 0.3), (0.42, 0.86)], WHITE, 0.02)


def _bat(p: Pen, s: Style) -> None:
    wood = s.colour(WOOD, 0.45, 0.86)
    p.line([(0.5, 0.98), (0.5, 0.55)], shade(wood, 0.8), 0.08)
    p.polygon([(0.46, 0.6), (0.38, 0.2), (0.4, 0.04), (0.6, 0.04), (0.62, 0.2), (0.54, 0.6)], wood)


def _racket(p: Pen, s: Style) -> None:
    colour = s.colour((0.58, 0.6), 0.8, 0.8)
    p.line([(0.5, 0.98), (0.5, 0.6)], DARK, 0.08)
    for offset in (0.36, 0.5, 0.64):
        p.line([(offset, 0.1), (offset, 0.54)], WHITE, 0.025)
        p.line([(0.3, offset - 0.18), (0.7, offset - 0.18)], WHITE, 0.025)
    p.ring(0.5, 0.32, 0.28, colour, 0.07)


def _hammer(p: Pen, s: Style) -> None:
    p.line([(0.5, 0.98), (0.5, 0.2)], s.colour(WOOD, 0.6, 0.7), 0.1)
    p.box(0.2, 0.06, 0.82, 0.28, s.grey(0.45, 0.06), 0.03)
    p.polygon([(0.2, 0.08), (0.04, 0.17), (0.2, 0.26)], s.grey(0.45, 0.06))


def _broom(p: Pen, s: Style) -> None:
    p.line([(0.5, 0.02), (0.5, 0.66)], s.colour(WOOD, 0.6, 0.6), 0.06)
    straw = s.colour((0.14,), 0.6, 0.9)
    p.polygon([(0.42, 0.62), (0.58, 0.62), (0.78, 0.98), (0.22, 0.98)], straw)
    p.box(0.4, 0.58, 0.6, 0.68, s.colour((0.0, 0.6)))


def _kite(p: Pen, s: Style) -> None:
    colour = s.colour((0.75, 0.3), 0.75, 0.9)
    p.line([(0.5, 0.76), (0.6, 0.86), (0.48, 0.92), (0.56, 0.99)], DARK, 0.025)
    p.polygon([(0.5, 0.02), (0.86, 0.34), (0.5, 0.78), (0.14, 0.34)], colour)
    p.polygon([(0.5, 0.02), (0.86, 0.34), (0.5, 0.34)], hsv(s.near(0.14, 0.02), 0.8, 0.98))
    p.polygon([(0.14, 0.34), (0.5, 0.34), (0.5, 0.78)], hsv(s.near(0.14, 0.02), 0.8, 0.98))


def _umbrella(p: Pen, s: Style) -> None:
    colour = s.colour((0.83, 0.86), 0.65, 0.75)
    p.line([(0.5, 0.4), (0.5, 0.9), (0.58, 0.96), (0.66, 0.9)], DARK, 0.05)
    dome = [(0.5 - 0.46 * np.cos(a), 0.48 - 0.42 * np.sin(a)) for a in np.linspace(0, np.pi, 16)]
    p.polygon(dome, colour)
    for x in (0.28, 0.5, 0.72):
        p.line([(0.5, 0.06), (x, 0.48)], shade(colour, 0.7), 0.025)


def _lamp(p: Pen, s: Style) -> None:
    shade_colour = s.colour((0.14, 0.15), 0.4, 0.99)
    p.line([(0.5, 0.5), (0.5, 0.9)], s.grey(0.35), 0.06)
    p.disc(0.5, 0.92, 0.22, s.grey(0.35), 0.06)
    p.polygon([(0.34, 0.06), (0.66, 0.06), (0.86, 0.5), (0.14, 0.5)], shade_colour)


def _bucket(p: Pen, s: Style) -> None:
    colour = s.colour((0.55,), 0.18, 0.75)
    p.arc(0.5, 0.3, 0.36, 180, 360, DARK, 0.04)
    p.polygon([(0.1, 0.32), (0.9, 0.32), (0.74, 0.94), (0.26, 0.94)], colour)
    p.disc(0.5, 0.32, 0.4, shade(colour, 0.6), 0.1)
    p.line([(0.18, 0.6), (0.82, 0.6)], shade(colour, 0.75), 0.04)


def _flower(p: Pen, s: Style) -> None:
    petal = s.colour((0.9, 0.14, 0.97), 0.55, 0.97)
    p.line([(0.5, 0.4), (0.5, 0.98)], (70, 150, 70), 0.06)
    p.disc(0.64, 0.74, 0.14, (80, 170, 80), 0.06)
    for angle in np.linspace(0, 2 * np.pi, 7)[:-1]:
        p.disc(0.5 + 0.2 * np.cos(angle), 0.3 + 0.2 * np.sin(angle), 0.14, petal)
    p.disc(0.5, 0.3, 0.12, (120, 80, 40))


def _apple(p: Pen, s: Style) -> None:
    colour = s.colour((0.25, 0.22), 0.75, 0.8)
    p.disc(0.36, 0.58, 0.28, colour, 0.34)
    p.disc(0.64, 0.58, 0.28, colour, 0.34)
    p.disc(0.5, 0.6, 0.26, colour, 0.3)
    p.line([(0.5, 0.32), (0.54, 0.1)], (90, 60, 40), 0.05)
    p.disc(0.66, 0.16, 0.13, (70, 140, 60), 0.06)


DRAW: dict[str, Callable[[Pen, Style], None]] = {
    name.removeprefix("_"): function
    for name, function in list(globals().items())
    if name.startswith("_") and callable(function) and getattr(function, "__module__", "") == __name__
}


@lru_cache(maxsize=4096)
def sprite(name: str, seed: int) -> Image.Image:
    """The RGBA drawing of an object variant, ``SPRITE_PIXELS`` square (drawn twice as large, then reduced)."""
    pen = Pen(2 * SPRITE_PIXELS)
    DRAW[name](pen, Style(seed))
    return pen.image.reduce(2)
