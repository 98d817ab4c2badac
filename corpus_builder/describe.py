"""The text of an entity, as it is embedded: its unit and a description that tells its sense."""


def describe(unit: str, gloss: str | None) -> str:
    """``"unit: description"`` (method 1.1), or the bare unit where there is no gloss.

    WordNet's remarks in brackets at the front of a gloss, such as ``(baseball)``, stay: they tell the field.
    """
    return f"{unit}: {gloss}" if gloss else unit
