"""The text of an entity, as it is embedded: its unit and a description that tells its sense."""

from collections.abc import Mapping
from typing import Any

from corpus_builder.config import ENTITY_TEXT

PARTS = ("sentence", "looks")
"""Parts of a language model's answer that make a description, in this order; its explanations are for people."""


def describe(unit: str, gloss: str | None, form: str = ENTITY_TEXT) -> str:
    """``"unit: description"`` (method 1.1) or another ``form`` of the two; the bare unit where there is no gloss.

    WordNet's remarks in brackets at the front of a gloss, such as ``(baseball)``, stay: they tell the field.
    """
    return form.replace("{unit}", unit, 1).replace("{description}", gloss, 1) if gloss else unit


def joined(answer: Mapping[str, Any]) -> str:
    """The description that ``PARTS`` make, joined as the parts of a WordNet gloss are: ``"what; looks"``."""
    return "; ".join(" ".join(answer[name].split()) for name in PARTS if name in answer)
