"""A jointed person: a pose is a few angles, the drawing a handful of round limbs."""

from dataclasses import dataclass

import numpy as np

from pipelines.toyworld.sprites import Colour, Style, hsv, shade

# Lengths in units of the person's height.
HEAD, NECK, TORSO, UPPER_ARM, FOREARM, THIGH, SHIN = 0.095, 0.03, 0.3, 0.16, 0.15, 0.22, 0.22
Point = tuple[float, float]


@dataclass(frozen=True)
class Pose:
    """Joint angles in degrees and the place of the hips.

    Angles are measured from straight down, positive towards where the person faces: arm 0 hangs, 90 points
    forwards, 180 up. ``x`` is the hips' place in frame units, ``lift`` raises the feet off the ground and
    ``crouch`` in [0, 1] bends the knees.
    """

    x: float = 0.5
    lift: float = 0.0
    lean: float = 0.0
    near_arm: tuple[float, float] = (10.0, 20.0)
    far_arm: tuple[float, float] = (-10.0, 10.0)
    near_leg: tuple[float, float] = (8.0, 0.0)
    far_leg: tuple[float, float] = (-8.0, 0.0)
    crouch: float = 0.0


@dataclass(frozen=True)
class Skeleton:
    """Joint positions in frame units (x right, y down)."""

    head: Point
    shoulder: Point
    hips: Point
    near_elbow: Point
    near_hand: Point
    far_elbow: Point
    far_hand: Point
    near_knee: Point
    near_foot: Point
    far_knee: Point
    far_foot: Point


def _swing(origin: Point, degrees: float, length: float, facing: int) -> Point:
    angle = np.deg2rad(degrees)
    return origin[0] + facing * length * float(np.sin(angle)), origin[1] + length * float(np.cos(angle))


def skeleton(pose: Pose, ground: float, height: float, facing: int) -> Skeleton:
    """The joints of a pose for a person of ``height`` (frame units) facing right (+1) or left (-1)."""
    bend = 75.0 * pose.crouch
    leg = THIGH * np.cos(np.deg2rad(bend)) + SHIN * np.cos(np.deg2rad(bend * 0.7))
    hips = (pose.x, ground - pose.lift - float(leg) * height)
    shoulder = _swing(hips, 180.0 - pose.lean, TORSO * height, facing)
    head = _swing(shoulder, 180.0 - pose.lean * 0.6, (NECK + HEAD) * height, facing)

    def limb(origin: Point, angles: tuple[float, float], upper: float, lower: float) -> tuple[Point, Point]:
        joint = _swing(origin, angles[0], upper * height, facing)
        return joint, _swing(joint, sum(angles), lower * height, facing)

    near_elbow, near_hand = limb(shoulder, pose.near_arm, UPPER_ARM, FOREARM)
    far_elbow, far_hand = limb(shoulder, pose.far_arm, UPPER_ARM, FOREARM)
    near_knee, near_foot = limb(hips, (pose.near_leg[0] + bend, pose.near_leg[1] - 1.7 * bend), THIGH, SHIN)
    far_knee, far_foot = limb(hips, (pose.far_leg[0] + bend, pose.far_leg[1] - 1.7 * bend), THIGH, SHIN)
    return Skeleton(
        head,
        shoulder,
        hips,
        near_elbow,
        near_hand,
        far_elbow,
        far_hand,
        near_knee,
        near_foot,
        far_knee,
        far_foot,
    )


@dataclass(frozen=True)
class Look:
    """Colours and size of one person."""

    skin: Colour
    hair: Colour
    shirt: Colour
    trousers: Colour
    shoes: Colour
    height: float


def look(seed: int) -> Look:
    """A random person."""
    s = Style(seed)
    tone = s.near(0.65, 0.3)
    return Look(
        skin=hsv(0.065, 0.55 - 0.25 * tone, 0.45 + 0.5 * tone),
        hair=s.colour((0.06, 0.08, 0.1), 0.5, 0.3),
        shirt=s.colour((0.0, 0.1, 0.35, 0.55, 0.65, 0.8), 0.6, 0.85),
        trousers=s.colour((0.6, 0.62, 0.1), 0.4, 0.4),
        shoes=shade(s.colour((0.0, 0.6, 0.1), 0.4, 0.35), 1.0),
        height=s.near(0.56, 0.04),
    )
