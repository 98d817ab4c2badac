"""Parts of pages that are made from the code: ``python -m docs.generate`` writes them, a test says when it is due.

The licences are those that the installed packages state about themselves; a requirement that is not installed
keeps the row that it has.
"""

import importlib
import re
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from docs.blocks import fill

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
PROGRAMS = {
    "corpus-builder": "corpus_builder",
    "aligner": "aligner",
    "adapter": "adapter",
    "alt": "pipelines",
}
TYPES = {int: "integer", float: "number", Path: "path"}
STATISTICS = {"single": "", "mean": "mean and standard deviation", "harmonic": "harmonic mean of the means"}
BUNDLED = {
    "av": "FFmpeg, which calls itself LGPL 3; **x264 and x265, which are GPL 2 or later**",
    "opencv-python-headless": "FFmpeg (LGPL)",
    "torch": "on Linux brings NVIDIA's CUDA libraries, under NVIDIA's own terms",
    "faiss-cpu": "OpenBLAS (BSD), libgfortran and libgomp (GPL with the runtime exception)",
    "faiss-gpu": "brings NVIDIA's CUDA libraries, under NVIDIA's own terms",
}
SHORT = {"Apache Software License": "Apache-2.0", "MIT License": "MIT", "BSD License": "BSD"}
ABSENT = "not installed where this page was written"


# ------------------------------------------------------------------ commands


def commands() -> Iterator[tuple[str, Any]]:
    """``("aligner slurm submit", command)`` of every command of the four programs."""
    import typer

    def walk(command: Any, name: str) -> Iterator[tuple[str, Any]]:
        if not hasattr(command, "commands"):
            yield name, command
        for word, inner in sorted(getattr(command, "commands", {}).items()):
            yield from walk(inner, f"{name} {word}")

    for program, package in PROGRAMS.items():
        yield from walk(typer.main.get_command(importlib.import_module(f"{package}.cli").app), program)


def command_pages(page: str) -> dict[str, str]:
    """Every command with every option, as its ``--help`` has them."""
    parts = []
    for name, command in commands():
        shown = [parameter for parameter in command.params if not getattr(parameter, "hidden", False)]
        head = ["| | takes | default | |", "|---|---|---|---|"] if shown else []
        parts += [f"## {name}", _sentences(command.help or ""), "\n".join([*head, *map(option_row, shown)])]
    return {"commands": "\n\n".join(parts)}


def _sentences(text: str) -> str:
    """A docstring's paragraphs, one line each."""
    return "\n\n".join(" ".join(part.split()) for part in text.split("\n\n")).replace("<", "&lt;")


def option_row(parameter: Any) -> str:
    """A table row of an option or argument."""
    options = [option for option in (*parameter.opts, *parameter.secondary_opts) if option.startswith("-")]
    names = options or [(parameter.metavar or parameter.name).upper()]
    words = " ".join((parameter.help or "").split())
    told = re.search(r" \(default: ([^)]*)\)\.?$", words)
    words = f"{words[: told.start()].removesuffix('.')}." if told else words
    default = "required" if parameter.required else f"`{told[1]}`" if told else _default(parameter)
    cells = [", ".join(f"`{name}`" for name in names), _takes(parameter), default, words]
    return f"| {' | '.join(cell.replace('|', chr(92) + '|').replace('<', '&lt;') for cell in cells)} |"


def _takes(parameter: Any) -> str:
    if getattr(parameter, "is_flag", False):
        return ""
    return parameter.metavar or TYPES.get(parameter.type_descriptor.annotation, "text")


def _default(parameter: Any) -> str:
    value = parameter.default
    if getattr(parameter, "is_flag", False):
        return f"`{parameter.opts[0]}`" if value and parameter.secondary_opts else ""
    return "" if value in (None, (), []) or callable(value) else f"`{value}`"


# ------------------------------------------------------------------ the config of alt run


def config_tables(page: str) -> dict[str, str]:
    """Every key of ``alt run``'s file, as ``pipelines/config.py`` checks it."""
    from pipelines.config import PipelineConfig

    parts = []
    for key, section in _sections(PipelineConfig, ""):
        about = _first_line(section)
        rows = [_key_row(name, field) for name, field in section.model_fields.items()]
        head = ["| key | takes | default | |", "|---|---|---|---|"]
        parts += [f"## {f'`{key}`' if key else 'The file'}", about, "\n".join([*head, *rows])]
    return {"config": "\n\n".join(parts)}


def _first_line(section: Any) -> str:
    return (section.__doc__ or "").strip().splitlines()[0].replace("``", "`")


def _sections(section: Any, key: str) -> Iterator[tuple[str, Any]]:
    """A section and those inside it, by where they stand; in lists and mappings ``NAME`` stands for each."""
    yield key, section
    for name, field in section.model_fields.items():
        inner = [part for part in _parts(field.annotation) if hasattr(part, "model_fields")]
        among = ".NAME" if get_origin(field.annotation) in (dict, list) else ""
        for part in inner:
            yield from _sections(part, f"{key}.{name}{among}".removeprefix("."))


def _parts(annotation: Any) -> list[Any]:
    return [annotation] + [part for inner in get_args(annotation) for part in _parts(inner)]


def _key_row(name: str, field: Any) -> str:
    value = None if field.is_required() else field.get_default(call_default_factory=True)
    empty = value is None or value in ([], {}) or hasattr(value, "model_fields")
    shown = str(value).lower() if isinstance(value, bool) else value
    default = "required" if field.is_required() else "" if empty else f"`{shown}`"
    inner = [_first_line(part) for part in _parts(field.annotation) if hasattr(part, "model_fields")]
    words = (field.description or " ".join(inner)).replace("|", chr(92) + "|").replace("<", "&lt;")
    return f"| `{name}` | {_takes_words(field.annotation)} | {default} | {words} |"


def _takes_words(annotation: Any) -> str:
    inner = [part for part in get_args(annotation) if part is not type(None)]
    if hasattr(annotation, "model_fields"):
        return "a section, below"
    if get_origin(annotation) is Literal:
        return ", ".join(map(str, inner))
    if get_origin(annotation) in (list, tuple):
        return f"list: {_takes_words(inner[0])}"
    if get_origin(annotation) is dict:
        return f"by name: {_takes_words(inner[1])}"
    if inner:
        return " or ".join(dict.fromkeys(map(_takes_words, inner)))
    return {bool: "true or false", **TYPES}.get(annotation, "text")


# ------------------------------------------------------------------ protocols


def protocol_tables(page: str) -> dict[str, str]:
    """Every published protocol as ``adapter/recipes.py`` has it."""
    from adapter.recipes import RECIPES

    about = [
        "| protocol | version | is | parts | runs | statistic | views |",
        "|---|---|---|---|---|---|---|",
    ]
    lists = ["| protocol | tests | refuses to test the videos of | candidates |", "|---|---|---|---|"]
    for name, recipe in RECIPES.items():
        plain = " (labels without brackets)" if recipe.plain_templates else ""
        statistic = STATISTICS[recipe.statistic]
        runs = len(recipe.runs) or 1
        facts = recipe.version, recipe.about + plain, len(recipe.parts), runs, statistic, recipe.views
        about.append(f"| `{name}` | {' | '.join(map(str, facts))} |")
        tests, trains = (
            _names(used) for used in zip(*((p.test, p.train) for p in recipe.parts), strict=True)
        )
        lists.append(f"| `{name}` | {tests} | {trains} | {_candidates(recipe)} |")
    return {"protocols": "\n".join(about), "lists": "\n".join(lists)}


def _names(lists: tuple[tuple[str, ...], ...]) -> str:
    return ", ".join(f"`{name}`" for name in dict.fromkeys(name for part in lists for name in part))


def _candidates(recipe: Any) -> str:
    draws = {part.draw.scheme for part in recipe.parts if part.draw}
    if draws:
        return f"half of the classes, drawn as published ({', '.join(draws)})"
    return "its own half of the classes" if recipe.statistic == "harmonic" else "all classes of the list"


# ------------------------------------------------------------------ licences


def requirements() -> dict[str, list[str]]:
    """Every package that a requirements file names, with the files that name it."""
    found: dict[str, list[str]] = {}
    for file in sorted((*ROOT.glob("*/requirements*.txt"), *ROOT.glob("requirements/*.txt"))):
        for line in file.read_text(encoding="utf-8").splitlines():
            if name := re.match(r"[A-Za-z0-9._-]+", line):
                found.setdefault(name[0].lower(), []).append(file.relative_to(ROOT).as_posix())
    return found


def licence_of(name: str) -> str | None:
    """What the installed package says in its metadata, in a few words; None where it is not installed."""
    try:
        told = metadata.metadata(name)
    except metadata.PackageNotFoundError:
        return None
    classifiers = [c.split(" :: ")[-1] for c in told.get_all("Classifier") or [] if c.startswith("License")]
    words = ", ".join(SHORT.get(classifier, classifier) for classifier in classifiers)
    text = told.get("License-Expression") or words or (told.get("License") or "").split("\n")[0]
    return text.strip() or "not stated"


def written_licences(page: str) -> dict[str, str]:
    """The licences that the page has now."""
    return dict(re.findall(r"^\| `([^`]+)` \| ([^|]*) \|", page, re.MULTILINE))


def licence_table(page: str) -> dict[str, str]:
    """Every direct requirement with its licence."""
    old = written_licences(page)
    lines = ["| package | licence, by its metadata | bundled in the wheel | named by |", "|---|---|---|---|"]
    for name, files in sorted(requirements().items()):
        licence = licence_of(name) or old.get(name, ABSENT)
        lines.append(f"| `{name}` | {licence} | {BUNDLED.get(name, '')} | {', '.join(files)} |")
    return {"licences": "\n".join(lines)}


PAGES: dict[str, Callable[[str], dict[str, str]]] = {
    "cli.md": command_pages,
    "config.md": config_tables,
    "protocols.md": protocol_tables,
    "licences.md": licence_table,
}


def main() -> None:
    """Write the generated parts of all pages."""
    for name, blocks in PAGES.items():
        text = (DOCS / name).read_text(encoding="utf-8")
        (DOCS / name).write_text(fill(text, blocks(text)), encoding="utf-8")


if __name__ == "__main__":
    main()
