"""Configs to start from: the one that ``alt init`` writes, and all others of ``alt recipes``."""

from importlib.resources import files
from pathlib import Path

from pipelines.errors import PipelineError, did_you_mean
from pipelines.ledger import write_text

START = "own-data"


def recipes() -> list[str]:
    """Names of all recipes."""
    found = (file.name for file in files("pipelines").joinpath("recipes").iterdir())
    return sorted(name.removesuffix(".yaml") for name in found if name.endswith(".yaml"))


def read_recipe(name: str) -> str:
    """The text of a recipe; its first line says what it is.

    Raises:
        PipelineError: no such recipe.
    """
    known = recipes()
    if name not in known:
        raise PipelineError(f"no recipe '{name}'{did_you_mean(name, known)}; there are {', '.join(known)}")
    return files("pipelines").joinpath("recipes", f"{name}.yaml").read_text(encoding="utf-8")


def write_template(path: Path, force: bool = False) -> None:
    """Write the recipe for one's own data.

    Raises:
        PipelineError: the file is there already and ``force`` is off.
    """
    if path.exists() and not force:
        raise PipelineError(f"{path} is there already; give another name, or --force to overwrite it")
    write_text(path, read_recipe(START))
