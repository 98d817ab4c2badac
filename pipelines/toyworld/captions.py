"""Sentences about the demo world: captions for pretraining and a caption file for corpus mining."""

import re
from functools import cache

import numpy as np

from pipelines.toyworld.lexicon import gloss_of
from pipelines.toyworld.vocabulary import ACTIONS, BODY_PARTS, ENTITIES, OBJECTS, SCENES, Action, with_article

STEMS = ("a photo of", "a video of", "an example of", "a demonstration of", "a picture of", "a clip of")


def somewhere(scene: str) -> str:
    """``in the kitchen``, ``on the beach``."""
    return f"{'on' if scene in ('beach', 'street', 'stage') else 'in'} the {scene}"


def listing(nouns: list[str]) -> str:
    """``a cup, a dog and an apple``."""
    parts = [with_article(noun) for noun in nouns]
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"


def action_caption(action: Action, scene: str, others: list[str], random: np.random.Generator) -> str:
    """A caption of a frame of an action; place and bystanders are mentioned half of the time each."""
    stem = f"{random.choice(STEMS)} " if random.uniform() < 0.5 else ""
    subject = "a person " if random.uniform() < 0.7 else ""
    caption = f"{stem}{subject}{action.label}"
    if random.uniform() < 0.5:
        caption += f" {somewhere(scene)}"
    if others and random.uniform() < 0.5:
        caption += f" with {listing(others[:2])}"
    return caption


def still_caption(objects: list[str], scene: str, random: np.random.Generator) -> str:
    """A caption of a picture of things without a person."""
    chosen = [str(name) for name in random.permutation(objects)[: int(random.integers(1, 5))]]
    stem = f"{random.choice(STEMS)} " if random.uniform() < 0.5 else ""
    caption = stem + (listing(chosen) if chosen else "an empty place")
    return f"{caption} {somewhere(scene)}" if random.uniform() < 0.5 else caption


def entity_text(entity: str, random: np.random.Generator) -> str:
    """The entity's bare name, a prompt, or the corpus form ``unit: description``."""
    form = int(random.integers(3))
    if form == 0:
        return entity
    return f"{random.choice(STEMS)} {with_article(entity)}" if form == 1 else f"{entity}: {gloss_of(entity)}"


def caption_sentences() -> list[str]:
    """Captions that mention what the labels do not (scenes, bystanders, body parts), as a user's caption file would."""
    scenes = [somewhere(SCENES[index % len(SCENES)]) for index in range(len(ACTIONS))]
    sentences = [f"{action.label} {scene}" for action, scene in zip(ACTIONS, scenes, strict=True)]
    named = {action.object for action in ACTIONS}
    sentences += [f"{with_article(name)} on the floor" for name in OBJECTS if name not in named]
    return sentences + [f"a {part} in the gym" for part in BODY_PARTS]


@cache
def known_words() -> frozenset[str]:
    """All words of the captions that the tiny CLIP was trained on."""
    texts = [*STEMS, "a person with an empty place and", *map(somewhere, SCENES)]
    texts += [action.label for action in ACTIONS]
    texts += [f"{with_article(entity)}: {gloss_of(entity)}" for entity in ENTITIES]
    return frozenset(word for text in texts for word in words_of(text))


def unknown_words(label: str) -> list[str]:
    """Words of a label that the tiny CLIP has never read."""
    return [word for word in words_of(label) if word not in known_words()]


def words_of(text: str) -> list[str]:
    """Words of a text in lower case, without punctuation."""
    return re.findall(r"[^\W_]+", text.lower())
