"""Expansion by WordNet alone: parts, materials, things of the field and kinds of what a class name holds.

The route that needs no language model (method 1.1 asks one for objects, body parts and scenes). What it adds has its
sense already, so nothing is left to disambiguate.
"""

from collections.abc import Iterable, Iterator

from corpus_builder.disambiguate import Choice
from corpus_builder.entities import Found
from corpus_builder.mine import Candidate
from corpus_builder.wordnet import Lexicon, Sense


def expand(found: Iterable[Found], lexicon: Lexicon, most: int) -> list[Found]:
    """At most ``most`` related things per class name, as finds of the source ``related``.

    The things a name holds take turns, so that a guitar's many kinds leave room for the strap's buckle. What the
    name holds already is not added; ``contexts`` tell what a thing is related to.
    """
    held: dict[str, dict[str, Found]] = {}
    for item in found:
        if item.label is not None and item.source == "label" and item.candidate.kept and item.choice.sense:
            held.setdefault(item.label, {}).setdefault(item.choice.sense.name, item)
    return [
        _found(label, sense, told)
        for label, items in held.items()
        for sense, told in _first(_turns(items, lexicon), most)
    ]


def _turns(items: dict[str, Found], lexicon: Lexicon) -> Iterator[tuple[Sense, str]]:
    queues = [[(sense, item.name) for sense in lexicon.related(key)] for key, item in items.items()]
    seen = set(items)
    for turn in range(max(map(len, queues), default=0)):
        for queue in queues:
            if turn < len(queue) and queue[turn][0].name not in seen:
                seen.add(queue[turn][0].name)
                yield queue[turn]


def _first(turns: Iterator[tuple[Sense, str]], most: int) -> list[tuple[Sense, str]]:
    return [found for _, found in zip(range(most), turns, strict=False)]


def _found(label: str, sense: Sense, related_to: str) -> Found:
    candidate = Candidate(sense.form, sense.form, "noun", taggers=frozenset({"wordnet"}))
    context = f"related to {related_to} in {label}"
    return Found(label, candidate, "related", Choice(sense, 0.0, senses=(sense,)), contexts=(context,))
