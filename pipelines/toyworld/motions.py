"""Motion patterns: where the person's joints and the object are at each moment of an action."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from pipelines.toyworld.person import Pose, Skeleton


@dataclass(frozen=True)
class Place:
    """Where the object is: centre in frame units, size (share of the frame's width), angle in degrees."""

    x: float
    y: float
    size: float
    angle: float = 0.0
    behind: bool = False


@dataclass(frozen=True)
class Script:
    """One motion: ``pose`` at time t in [0, 1], then ``place`` of the object given the joints.

    ``facing`` (+1 right, -1 left) mirrors the motion, ``start`` is where the person begins and ``ground`` the
    height of the floor, both in frame units.
    """

    pose: Callable[[float, "Setting"], Pose]
    place: Callable[[float, "Setting", Skeleton], Place]


@dataclass(frozen=True)
class Setting:
    """The random circumstances of one clip."""

    start: float
    facing: int
    ground: float
    height: float
    phase: float
    speed: float


def ease(t: float) -> float:
    """Smooth start and stop: 0 at 0, 1 at 1, flat at both ends."""
    t = min(max(t, 0.0), 1.0)
    return t * t * (3 - 2 * t)


def _mix(a: float, b: float, t: float) -> float:
    return a + (b - a) * t


def _stride(t: float, s: Setting) -> float:
    return float(np.sin(2 * np.pi * (2.2 * t * s.speed + s.phase)))


def _walking(t: float, s: Setting, x: float, arms: tuple[tuple[float, float], tuple[float, float]]) -> Pose:
    step = 26 * _stride(t, s)
    return Pose(
        x,
        0,
        4,
        arms[0],
        arms[1],
        (step, -10 - 14 * max(0, step / 26)),
        (-step, -10 - 14 * max(0, -step / 26)),
    )


# --- pick up: the hands go down to an object on the floor and bring it to the chest


def _pick_pose(t: float, s: Setting) -> Pose:
    down = ease(t / 0.4) if t < 0.45 else 1 - ease((t - 0.45) / 0.5)
    lifted = ease((t - 0.45) / 0.5)
    arm = (_mix(25, 42, down) + 22 * lifted, 15 + 45 * lifted)
    return Pose(s.start, 0, 62 * down, arm, arm, crouch=0.55 * down)


def _pick_place(t: float, s: Setting, j: Skeleton) -> Place:
    size = 0.28
    floor = (s.start + s.facing * 0.22, s.ground - size / 2)
    held = (j.near_hand[0] + s.facing * 0.04, j.near_hand[1])
    grip = ease((t - 0.4) / 0.12)
    return Place(_mix(floor[0], held[0], grip), _mix(floor[1], held[1], grip), size)


# --- throw: an arm swings over and the object flies away in an arc


def _throw_pose(t: float, s: Setting) -> Pose:
    swing = ease((t - 0.05) / 0.35)
    arm = (_mix(-130, 95, swing), _mix(-30, 5, swing))
    return Pose(s.start, 0, _mix(-12, 18, swing), arm, (25, 30), (14, -6), (-14, -6))


def _throw_place(t: float, s: Setting, j: Skeleton) -> Place:
    size = 0.24
    flight = max(0.0, (t - 0.36) / 0.64)
    if flight == 0:
        return Place(j.near_hand[0], j.near_hand[1] - 0.04, size)
    x = j.near_hand[0] + s.facing * 0.62 * flight
    return Place(x, j.near_hand[1] - 0.34 * flight + 0.42 * flight**2, size, 200 * flight * s.facing)


# --- push: walk forwards behind a thing that rolls ahead (pulling is the same, backwards in time)


def _push_pose(t: float, s: Setting) -> Pose:
    return _walking(t, s, s.start + s.facing * 0.36 * (t - 0.3), ((72, 8), (66, 10)))


def _push_place(t: float, s: Setting, j: Skeleton) -> Place:
    return Place(j.hips[0] + s.facing * 0.29, s.ground - 0.17, 0.36)


# --- lift: from the waist to above the head with both hands


def _lift_pose(t: float, s: Setting) -> Pose:
    up = ease((t - 0.1) / 0.75)
    arm = (_mix(28, 168, up), _mix(75, 8, up))
    return Pose(s.start, 0, 0, arm, (arm[0] - 12, arm[1]), crouch=0.3 * (1 - up))


def _lift_place(t: float, s: Setting, j: Skeleton) -> Place:
    return Place((j.near_hand[0] + j.far_hand[0]) / 2, j.near_hand[1] - 0.05, 0.37)


# --- climb a ladder


def _climb_pose(t: float, s: Setting) -> Pose:
    step = float(np.sin(2 * np.pi * (2 * t * s.speed + s.phase)))
    return Pose(
        s.start,
        0.34 * t,
        6,
        (120 + 26 * step, 30),
        (120 - 26 * step, 30),
        (34 + 26 * step, -50),
        (34 - 26 * step, -50),
    )


def _climb_place(t: float, s: Setting, j: Skeleton) -> Place:
    return Place(s.start + s.facing * 0.16, s.ground - 0.38, 0.78, 0, True)


# --- ride: seated over something that carries the person across the frame


def _ride_pose(t: float, s: Setting) -> Pose:
    pedal = 18 * _stride(t, s)
    return Pose(
        s.start + s.facing * 0.5 * (t - 0.5),
        0.12,
        16,
        (62, 14),
        (56, 14),
        (50 + pedal, -70),
        (50 - pedal, -70),
    )


def _ride_place(t: float, s: Setting, j: Skeleton) -> Place:
    return Place(j.hips[0] + s.facing * 0.04, s.ground - 0.19, 0.42, 4 * _stride(t, s))


# --- play an instrument: small quick movements of one hand at the object


def _play_pose(t: float, s: Setting) -> Pose:
    strum = 16 * float(np.sin(2 * np.pi * (3.1 * t * s.speed + s.phase)))
    return Pose(s.start, 0, 3 * _stride(t, s), (30 + strum, 70), (58, 62))


def _play_place(t: float, s: Setting, j: Skeleton) -> Place:
    return Place(j.hips[0] + s.facing * 0.13, j.hips[1] - 0.06, 0.34, -12.0)


# --- swing: a held thing sweeps a wide half circle


def _swing_pose(t: float, s: Setting) -> Pose:
    sweep = 0.5 - 0.5 * float(np.cos(2 * np.pi * (1.3 * t * s.speed + 0.2 * s.phase)))
    return Pose(
        s.start,
        0,
        _mix(-10, 16, sweep),
        (_mix(175, 40, sweep), 5),
        (_mix(160, 30, sweep), 8),
        (14, 0),
        (-14, 0),
    )


def _swing_place(t: float, s: Setting, j: Skeleton) -> Place:
    dx, dy = j.near_hand[0] - j.shoulder[0], j.near_hand[1] - j.shoulder[1]
    length = max(1e-6, float(np.hypot(dx, dy)))
    size = 0.36
    x, y = j.near_hand[0] + dx / length * 0.42 * size, j.near_hand[1] + dy / length * 0.42 * size
    return Place(x, y, size, float(np.rad2deg(np.arctan2(dx, -dy))))


# --- walk an animal


def _walk_pose(t: float, s: Setting) -> Pose:
    return _walking(t, s, s.start + s.facing * 0.36 * (t - 0.6), ((34, 10), (-14 * _stride(t, s), 10)))


def _walk_place(t: float, s: Setting, j: Skeleton) -> Place:
    return Place(j.hips[0] + s.facing * 0.27, s.ground - 0.12 + 0.012 * _stride(t, s), 0.3)


# --- hold still before the chest, head nodding


def _hold_pose(t: float, s: Setting) -> Pose:
    nod = float(np.sin(2 * np.pi * (0.8 * t * s.speed + s.phase)))
    return Pose(s.start, 0, 4 + 4 * nod, (38 + 3 * nod, 78), (32 + 3 * nod, 78))


def _hold_place(t: float, s: Setting, j: Skeleton) -> Place:
    return Place(j.near_hand[0] + s.facing * 0.03, j.near_hand[1] - 0.05, 0.28)


# --- fly something high on a string


def _fly_pose(t: float, s: Setting) -> Pose:
    return Pose(s.start, 0, -8, (130 + 8 * _stride(t, s), 16), (20, 20))


def _fly_place(t: float, s: Setting, j: Skeleton) -> Place:
    sway = float(np.sin(2 * np.pi * (0.9 * t * s.speed + s.phase)))
    return Place(s.start + s.facing * (0.3 + 0.07 * sway), 0.19 + 0.05 * sway, 0.3, 14 * sway)


# --- kick along the ground


def _kick_pose(t: float, s: Setting) -> Pose:
    kick = ease((t - 0.08) / 0.3) - 0.6 * ease((t - 0.45) / 0.4)
    return Pose(s.start, 0, -8 * kick, (-30, 15), (40, 20), (_mix(-48, 62, kick), -8), (-4, -4))


def _kick_place(t: float, s: Setting, j: Skeleton) -> Place:
    roll = max(0.0, (t - 0.3) / 0.7)
    hop = 0.16 * float(np.sin(np.pi * min(1.0, roll * 1.1)))
    return Place(s.start + s.facing * (0.2 + 0.5 * roll), s.ground - 0.12 - hop, 0.24, 320 * roll * s.facing)


MOTIONS: dict[str, Script] = {
    "pick_up": Script(_pick_pose, _pick_place),
    "throw": Script(_throw_pose, _throw_place),
    "push": Script(_push_pose, _push_place),
    "lift": Script(_lift_pose, _lift_place),
    "climb": Script(_climb_pose, _climb_place),
    "ride": Script(_ride_pose, _ride_place),
    "play": Script(_play_pose, _play_place),
    "swing": Script(_swing_pose, _swing_place),
    "walk": Script(_walk_pose, _walk_place),
    "hold": Script(_hold_pose, _hold_place),
    "fly": Script(_fly_pose, _fly_place),
    "kick": Script(_kick_pose, _kick_place),
}
