"""Frames of the demo world, each with the entity of every pixel as ground truth."""

from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

from pipelines.toyworld import scenes
from pipelines.toyworld.motions import MOTIONS, Place, Setting
from pipelines.toyworld.person import HEAD, Look, Skeleton, look, skeleton
from pipelines.toyworld.sprites import Colour, shade, sprite
from pipelines.toyworld.vocabulary import ENTITY_ID, OBJECTS, SCENES, Action

_SOLID = [0] * 128 + [255] * 128  # alpha to mask
OVERSAMPLE = 2  # frames are drawn this much larger, then reduced: smooth edges
UPRIGHT = frozenset(
    {"ladder", "chair", "cart", "horse", "dog", "cat", "bicycle", "skateboard", "flower", "lamp"}
)


@dataclass(frozen=True)
class Thing:
    """An object drawn in a clip: which, which variant, its place, and its drift per unit of time."""

    name: str
    seed: int
    place: Place
    drift: tuple[float, float] = (0.0, 0.0)


@dataclass(frozen=True)
class Clip:
    """Everything random about a clip, decided before a frame is drawn."""

    scene: str
    scene_seed: int
    action: Action | None
    setting: Setting
    person: Look
    sprite_seed: int
    bystanders: tuple[Thing, ...]


@dataclass(frozen=True)
class Frame:
    """``rgb`` (pixels, pixels, 3) uint8 and ``entity`` (pixels*2, pixels*2) uint8 indices into ENTITIES."""

    rgb: np.ndarray
    entity: np.ndarray


class Canvas:
    """A square picture and its entity map, drawn together in frame units."""

    def __init__(self, scene: str, seed: int, pixels: int) -> None:
        self.pixels = pixels * OVERSAMPLE
        self.image = scenes.backdrop(scene, seed, self.pixels).copy()
        self.entity = Image.new("L", self.image.size, ENTITY_ID[scene])
        self._draw = ImageDraw.Draw(self.image)
        self._mark = ImageDraw.Draw(self.entity)

    def stick(self, points: list[tuple[float, float]], width: float, colour: Colour, name: str) -> None:
        """A round limb through the points."""
        scaled = [(x * self.pixels, y * self.pixels) for x, y in points]
        thick = max(1, round(width * self.pixels))
        half = thick / 2
        for draw, fill in ((self._draw, colour), (self._mark, ENTITY_ID[name])):
            draw.line(scaled, fill=fill, width=thick)
            for x, y in scaled:
                draw.ellipse((x - half, y - half, x + half, y + half), fill=fill)

    def disc(self, centre: tuple[float, float], radius: float, colour: Colour, name: str) -> None:
        """A filled circle."""
        x, y, r = centre[0] * self.pixels, centre[1] * self.pixels, radius * self.pixels
        self._draw.ellipse((x - r, y - r, x + r, y + r), fill=colour)
        self._mark.ellipse((x - r, y - r, x + r, y + r), fill=ENTITY_ID[name])

    def object(self, name: str, seed: int, place: Place, flip: bool) -> None:
        """An object's sprite at a place."""
        side = max(4, round(place.size * self.pixels))
        picture = sprite(name, seed).resize(
            (side, side), Image.Resampling.BOX if side < 96 else Image.Resampling.BICUBIC
        )
        if flip:
            picture = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        if round(place.angle) % 360:
            picture = picture.rotate(-place.angle, Image.Resampling.BILINEAR, expand=True)
        corner = (
            round(place.x * self.pixels - picture.width / 2),
            round(place.y * self.pixels - picture.height / 2),
        )
        self.image.paste(picture, corner, picture)
        solid = picture.getchannel("A").point(_SOLID)
        self.entity.paste(
            ENTITY_ID[name], (*corner, corner[0] + picture.width, corner[1] + picture.height), solid
        )

    def person(self, joints: Skeleton, who: Look, facing: int) -> None:
        """A person: far limbs first, near limbs last."""
        h = who.height
        for knee, foot, arm_far in (
            (joints.far_knee, joints.far_foot, True),
            (joints.near_knee, joints.near_foot, False),
        ):
            colour = shade(who.trousers, 0.8 if arm_far else 1.0)
            self.stick([joints.hips, knee, foot], 0.075 * h, colour, "leg")
            self.stick([foot, (foot[0] + facing * 0.06 * h, foot[1])], 0.06 * h, who.shoes, "foot")
        self._arm(joints.far_elbow, joints.far_hand, joints, who, 0.8)
        self.stick([joints.shoulder, joints.hips], 0.16 * h, who.shirt, "torso")
        self.disc(joints.head, HEAD * h, who.skin, "head")
        hair = (joints.head[0] - facing * 0.025 * h, joints.head[1] - 0.035 * h)
        self.disc(hair, 0.075 * h, who.hair, "head")
        self.disc((joints.head[0] + facing * 0.02 * h, joints.head[1] + 0.02 * h), 0.07 * h, who.skin, "head")
        self.disc(
            (joints.head[0] + facing * 0.055 * h, joints.head[1] + 0.005 * h), 0.012 * h, (30, 30, 36), "head"
        )
        self._arm(joints.near_elbow, joints.near_hand, joints, who, 1.0)

    def _arm(
        self, elbow: tuple[float, float], hand: tuple[float, float], j: Skeleton, who: Look, light: float
    ) -> None:
        self.stick([j.shoulder, elbow, hand], 0.06 * who.height, shade(who.shirt, 0.85 * light), "arm")
        self.disc(hand, 0.042 * who.height, shade(who.skin, light), "hand")

    def frame(self) -> Frame:
        """The finished frame at the asked size; the entity map stays at the drawing size."""
        return Frame(np.asarray(self.image.reduce(OVERSAMPLE)), np.asarray(self.entity))


def sample_clip(action: Action | None, random: np.random.Generator) -> Clip:
    """A clip of an action (or of objects alone) with everything else chosen at random.

    Bystander objects are preferably ones of rival actions, and some of them move: what tells the action is which
    object does what, not which objects are there.
    """
    scene = str(random.choice(SCENES))
    facing = int(random.choice((-1, 1)))
    setting = Setting(
        start=0.5 - facing * float(random.uniform(0.1, 0.26)),
        facing=facing,
        ground=float(random.uniform(0.86, 0.95)),
        height=0.0,
        phase=float(random.uniform()),
        speed=float(random.uniform(0.8, 1.25)),
    )
    count = int(random.integers(1, 3)) if action else int(random.integers(4, 8))
    bystanders = tuple(_bystander(action, bool(action), random) for _ in range(count))
    return Clip(
        scene,
        int(random.integers(64)),
        action,
        setting,
        look(int(random.integers(1 << 31))),
        _seed(random),
        bystanders,
    )


def _seed(random: np.random.Generator) -> int:
    return int(random.integers(100))


def _bystander(action: Action | None, small: bool, random: np.random.Generator) -> Thing:
    rivals = [name for name in OBJECTS if action is None or name != action.object]
    name = str(random.choice(rivals))
    size = float(random.uniform(0.22, 0.32) if small else random.uniform(0.22, 0.42))
    if name == "ladder":
        size *= 1.5
    angle = 0.0 if name in UPRIGHT else float(random.uniform(-30, 30))
    low = float(random.uniform(0.55, 0.9)) if name in UPRIGHT else float(random.uniform(0.12, 0.9))
    moving = bool(small and random.uniform() < 0.4)
    drift = (float(random.uniform(-0.5, 0.5)), float(random.uniform(-0.12, 0.12))) if moving else (0.0, 0.0)
    return Thing(name, _seed(random), Place(float(random.uniform(0.1, 0.9)), low, size, angle), drift)


def render(clip: Clip, time: float, pixels: int, sprite_offset: int = 0) -> Frame:
    """The frame of a clip at ``time`` in [0, 1], ``pixels`` square.

    ``sprite_offset`` shifts every sprite's variant, so that one range of variants can be kept for pretraining and
    another for the videos.
    """
    canvas = Canvas(clip.scene, clip.scene_seed + sprite_offset, pixels)
    for thing in clip.bystanders:
        canvas.object(thing.name, thing.seed + sprite_offset, _drifted(thing, time), thing.seed % 2 == 0)
    if clip.action:
        _act(canvas, clip, clip.action, 1 - time if clip.action.backwards else time, sprite_offset)
    return canvas.frame()


def _drifted(thing: Thing, time: float) -> Place:
    place = thing.place
    x, y = place.x + thing.drift[0] * (time - 0.5), place.y + thing.drift[1] * (time - 0.5)
    return Place(x, y, place.size, place.angle)


def _act(canvas: Canvas, clip: Clip, action: Action, time: float, sprite_offset: int) -> None:
    script, setting = MOTIONS[action.motion], clip.setting
    pose = script.pose(time, setting)
    joints = skeleton(pose, setting.ground, clip.person.height, setting.facing)
    place = script.place(time, setting, joints)
    flip = setting.facing < 0
    if place.behind or action.motion in ("ride", "fly", "walk"):
        canvas.object(action.object, clip.sprite_seed + sprite_offset, place, flip)
        canvas.person(joints, clip.person, setting.facing)
    else:
        canvas.person(joints, clip.person, setting.facing)
        canvas.object(action.object, clip.sprite_seed + sprite_offset, place, flip)
    if action.motion == "fly":
        canvas.stick([joints.near_hand, (place.x, place.y + 0.1)], 0.006, (60, 60, 70), action.object)
