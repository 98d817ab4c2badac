"""Prompts that class names are embedded with: named sets, of which ``templates.json`` tells the sources, or a file."""

import json
from importlib.resources import files
from pathlib import Path

from corpus_builder.config import CorpusError, check_templates, did_you_mean

SETS = "templates.json"


def template_sets() -> dict[str, tuple[str, ...]]:
    """The named sets, from name to prompts."""
    told = json.loads(files("corpus_builder").joinpath(SETS).read_text(encoding="utf-8"))
    return {name: tuple(entry["templates"]) for name, entry in told.items()}


def load_templates(given: str) -> tuple[str, ...]:
    """The prompts of a named set, or of a UTF-8 text file with one a line.

    Raises :class:`CorpusError` if it is neither, or if a prompt does not hold ``{}`` exactly once.
    """
    sets = template_sets()
    if given in sets:
        return sets[given]
    if not Path(given).is_file():
        raise CorpusError(
            f"--templates '{given}' is neither a file nor a named set{did_you_mean(given, sets)}; the sets are"
            f" {', '.join(sets)}"
        )
    try:
        lines = Path(given).read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise CorpusError(f"--templates {Path(given).name} is not UTF-8 text ({error.reason})") from None
    return check_templates([line.strip() for line in lines if line.strip()])
