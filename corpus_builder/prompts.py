"""What a language model is asked, as data: prompts and the form of the answer.

After the paper's first two stages (method 1.1): per label, concise visual cues of four sorts; per phrase that WordNet
does not know, possible explanations, what it looks like, and one sentence. A change of any text here is a new
``version``, and so a new request.
"""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Prompt:
    """One kind of request: what is said to the model, and the JSON schema of its answer."""

    version: str
    system: str
    ask: str
    """The question, with places in braces that :mod:`corpus_builder.expansion` fills."""
    repair: str
    """What is said to an answer that cannot be read; ``{problem}`` tells why."""
    schema: dict[str, Any]


def _schema(**properties: dict[str, Any]) -> dict[str, Any]:
    """A JSON schema of exactly these properties, all required, as strict servers want it."""
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


TEXT: dict[str, Any] = {"type": "string"}
TEXTS: dict[str, Any] = {"type": "array", "items": TEXT}

SORTS = ("objects", "body_parts", "scenes", "roles")
"""What is asked for of a label: things to be seen, parts of the body that act, places, and who does it."""

CUES = Prompt(
    version="cues-1",
    system=(
        "You list what can be seen in a video. Answer with one JSON object and nothing else. Each value is a list of"
        " short English noun phrases in lower case, without articles, adjectives of opinion, or sentences."
    ),
    ask=(
        'The action is "{label}". Which objects, body_parts, scenes and roles of people tell it from other actions in'
        " a picture? Give at most {most} phrases for each of the four keys: objects, body_parts, scenes, roles."
    ),
    repair=(
        "That was not the JSON object asked for ({problem}). Answer again with the JSON object alone: the keys objects,"
        " body_parts, scenes, roles, each a list of strings."
    ),
    schema=_schema(**dict.fromkeys(SORTS, TEXTS)),
)

DESCRIPTIONS = Prompt(
    version="descriptions-1",
    system=(
        "You write the entries of a picture dictionary. Answer with one JSON object and nothing else. Write plain"
        " English in the manner of a dictionary: no markup, no opinion, and do not begin with the phrase itself."
    ),
    # the meanings come first, so that the sentence is written after they were weighed
    ask=(
        'The phrase is "{phrase}". It was found in these texts, which tell the meaning wanted: {contexts}. Give'
        " explanations: up to three meanings that the phrase may have, each in a few words; looks: what the thing meant"
        " in those texts looks like in a picture, in at most 20 words; sentence: what it is, in one sentence of at most"
        " 20 words."
    ),
    repair=(
        "That was not what was asked for ({problem}). Answer again with the JSON object alone: explanations, a list of"
        " strings; looks, a string; sentence, a string; plain English, each string at most 20 words."
    ),
    schema=_schema(explanations=TEXTS, looks=TEXT, sentence=TEXT),
)
