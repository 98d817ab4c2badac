"""What a language model is asked, as data: the prompts of the expansion and the form of the answer.

After the paper's first stage (method 1.1): per label, concise visual cues of four sorts. A change of any text here is
a new ``PROMPT_VERSION``, and so a new request.
"""

from typing import Any

PROMPT_VERSION = "cues-1"

SORTS = ("objects", "body_parts", "scenes", "roles")
"""What is asked for: things to be seen, parts of the body that act, places, and who does it."""

SYSTEM = (
    "You list what can be seen in a video. Answer with one JSON object and nothing else. Each value is a list of short"
    " English noun phrases in lower case, without articles, adjectives of opinion, or sentences."
)

ASK = (
    'The action is "{label}". Which objects, body_parts, scenes and roles of people tell it from other actions in a'
    " picture? Give at most {most} phrases for each of the four keys: objects, body_parts, scenes, roles."
)

REPAIR = (
    "That was not the JSON object asked for ({problem}). Answer again with the JSON object alone: the keys objects,"
    " body_parts, scenes, roles, each a list of strings."
)

SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {sort: {"type": "array", "items": {"type": "string"}} for sort in SORTS},
    "required": list(SORTS),
    "additionalProperties": False,
}
