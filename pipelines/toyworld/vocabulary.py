"""What exists in the demo world: objects, scenes, body parts and the actions that combine them."""

from dataclasses import dataclass

OBJECTS = (
    "ball frisbee balloon box cup suitcase bottle book phone chair cart barbell ladder bicycle skateboard horse "
    "dog cat guitar drum trumpet violin bat racket hammer broom kite umbrella lamp bucket flower apple"
).split()
SCENES = "park beach street kitchen gym stage snow library".split()
BODY_PARTS = "head torso arm hand leg foot".split()
ENTITIES: tuple[str, ...] = (*OBJECTS, *SCENES, *BODY_PARTS)
ENTITY_ID = {name: index for index, name in enumerate(ENTITIES)}


@dataclass(frozen=True)
class Action:
    """A class of the demo world: a motion pattern applied to one object.

    ``backwards`` plays the motion in reverse (putting down is picking up, backwards); ``held_out`` actions are never
    shown to the adapter in training and form the zero-shot label set.
    """

    verb: str
    motion: str
    object: str
    backwards: bool = False
    held_out: bool = False

    @property
    def label(self) -> str:
        """The class name: "picking up an umbrella"."""
        return f"{self.verb} {with_article(self.object)}"


def with_article(noun: str) -> str:
    """``an apple``, ``a ball``."""
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


def _pair(forward: str, backward: str, motion: str, objects: str, held_out: str = "") -> list[Action]:
    """Both directions of a reversible motion for each object, e.g. picking up / putting down."""
    actions = []
    for name in f"{objects} {held_out}".split():
        unseen = name in held_out.split()
        actions.append(Action(forward, motion, name, False, unseen))
        actions.append(Action(backward, motion, name, True, unseen))
    return actions


def _single(verb: str, motion: str, objects: str, held_out: str = "") -> list[Action]:
    """An action without a reversed partner for each object."""
    return [
        Action(verb, motion, name, False, name in held_out.split())
        for name in f"{objects} {held_out}".split()
    ]


ACTIONS: tuple[Action, ...] = (
    *_pair("picking up", "putting down", "pick_up", "box cup", "bottle"),
    *_pair("throwing", "catching", "throw", "ball frisbee", "balloon"),
    *_pair("pushing", "pulling", "push", "cart chair", "suitcase"),
    *_pair("lifting", "lowering", "lift", "barbell umbrella", "lamp"),
    *_pair("climbing up", "climbing down", "climb", "ladder"),
    *_single("riding", "ride", "bicycle horse", "skateboard"),
    *_single("playing", "play", "guitar drum trumpet", "violin"),
    *_single("swinging", "swing", "bat racket", "hammer"),
    *_single("walking", "walk", "dog", "cat"),
    *_single("holding", "hold", "book phone", "flower"),
    *_single("flying", "fly", "kite"),
    *_single("kicking", "kick", "ball", "bucket"),
)
ACTION_BY_LABEL = {action.label: action for action in ACTIONS}


def reversed_label(label: str) -> str | None:
    """The label of the same motion played backwards, or None when the action has no such partner."""
    action = ACTION_BY_LABEL[label]
    for other in ACTIONS:
        if (other.motion, other.object) == (action.motion, action.object) and other != action:
            return other.label
    return None
