"""Documentation that cannot drift: links lead somewhere, commands and options exist, snippets run, errors are real."""

import ast
import importlib
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from docs.generate import PROGRAMS, commands
from docs.hooks import LINK, pages
from pipelines.config import PipelineConfig

ROOT = Path(__file__).resolve().parents[2]
PAGES = [page for page in pages() if "tinyclip" not in page.parts]
PAGES_BY_NAME = pytest.mark.parametrize(
    "page", PAGES, ids=[page.relative_to(ROOT).as_posix() for page in PAGES]
)
# Options that pages name and that are other programs'.
FOREIGN = {"--account", "--array", "--ntasks", "--requeue", "--signal"}
# Python in a page runs here, or elsewhere for the reason said.
RUN_ELSEWHERE = {
    "corpus_builder/README.md": "tests/corpus_builder/test_examples.py runs it",
    "adapter/README.md": "tests/adapter/test_export.py runs it",
    "pipelines/README.md": "tests/pipelines/test_api.py runs it",
}


@cache
def text_of(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", text_of(page), re.MULTILINE | re.DOTALL)


def prose(page: Path) -> str:
    """The page without its fenced blocks."""
    return re.sub(r"^```.*?^```", "", text_of(page), flags=re.MULTILINE | re.DOTALL)


@cache
def anchors(page: Path) -> set[str]:
    """What a code browser calls the page's headings."""
    titles = re.findall(r"^#+ (.+)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@PAGES_BY_NAME
def test_relative_links_lead_somewhere(page: Path) -> None:
    for target in LINK.findall(text_of(page)):
        if not target.startswith(("http://", "https://", "mailto:")):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


@PAGES_BY_NAME
def test_anchors_are_headings(page: Path) -> None:
    for target, anchor in re.findall(r"\]\(([^)#\s]*)#([^)\s]+)\)", text_of(page)):
        if "://" not in target:
            assert anchor in anchors((page.parent / target).resolve() if target else page), (target, anchor)


# ------------------------------------------------------------------ commands


@cache
def known() -> dict[str, set[str]]:
    """Options of every command, and of every group of commands none."""
    found: dict[str, set[str]] = {program: {"--help", "--version"} for program in PROGRAMS}
    for name, command in commands():
        words = name.split()
        for end in range(1, len(words)):
            found.setdefault(" ".join(words[:end]), set())
        options = {option for item in command.params for option in (*item.opts, *item.secondary_opts)}
        found[name] = options | {"--help"}
    for program in PROGRAMS:
        found[program] |= {"--install-completion", "--show-completion"}
    return found


def options_of(program: str) -> set[str]:
    """Of all its commands: sentences name a program with an option that several of them have."""
    return set().union(*(options for name, options in known().items() if name.split()[0] == program))


@cache
def options_of_benchmarks() -> set[str]:
    texts = (path.read_text(encoding="utf-8") for path in (ROOT / "benchmarks").glob("*.py"))
    return {option for text in texts for option in re.findall(r'"(--[a-z-]+)"', text)}


def test_no_help_is_taken_for_markup() -> None:
    """Rich prints nothing of what stands in square brackets, as it takes that for a style."""
    for name, command in commands():
        for words in (command.help, *(parameter.help for parameter in command.params)):
            assert "[" not in (words or ""), (name, words)


def test_names_that_commands_share_mean_the_same() -> None:
    """One sentence for an option that does the same everywhere; flags where there is nothing to switch off."""
    same = {"--device": set(), "--json": set(), "--quiet": set()}
    for _, command in commands():
        for parameter in command.params:
            for option in same.keys() & {*parameter.opts}:
                same[option].add(parameter.help.partition(" (default")[0])
            if parameter.opts[0] in ("--force", "--quiet", "--json", "--dry-run"):
                assert parameter.is_flag and not parameter.secondary_opts
    assert all(len(sentences) == 1 for sentences in same.values()), same


def command_lines(page: Path) -> Iterator[str]:
    """Lines of shell: fenced blocks but those of other languages, and indented ones."""
    fenced = re.findall(r"^```(\w*)\n(.*?)^```", text_of(page), re.MULTILINE | re.DOTALL)
    texts = [text for language, text in fenced if language in ("", "bash", "sh")]
    texts.append("\n".join(line[4:] for line in prose(page).splitlines() if line.startswith("    ")))
    for text in texts:
        for line in text.replace("\\\n", " ").splitlines():
            if line[:1].strip():  # what is further in is a drawing
                yield from re.split(r"&&|\|\|| \| |;", line)


def problems_of(words: list[str]) -> list[str]:
    """What is wrong with a command line that begins with one of our programs: no such command, no such option."""
    name = words[0]
    rest = words[1:]
    while rest and f"{name} {rest[0]}" in known():
        name, rest = f"{name} {rest[0]}", rest[1:]
    if name in PROGRAMS and rest and re.fullmatch(r"[a-z][a-z-]+", rest[0]):
        return [f"{name} has no command {rest[0]}"]
    told = [word.split("=")[0] for word in rest[: rest.index("--")] if rest] if "--" in rest else rest
    options = [word.split("=")[0] for word in told if word.startswith("--")]
    there = options_of(name) if name in PROGRAMS else known()[name]
    return [f"{name} has no {option}" for option in options if option not in there]


@PAGES_BY_NAME
def test_commands_of_blocks_exist(page: Path) -> None:
    for line in command_lines(page):
        words = line.split("#")[0].split()
        if words and words[0] in PROGRAMS:
            words = shlex.split(line, comments=True)
            assert not problems_of(words), line


def spans(text: str) -> Iterator[list[str]]:
    """Code in sentences that begins with one of our programs, `a|b` as both."""
    for span in re.findall(r"`([^`]+)`", text):
        words = span.split()
        if len(words) > 1 and words[0] in PROGRAMS:
            for choice in words[1].split("|"):
                yield [words[0], choice, *words[2:]]


@PAGES_BY_NAME
def test_commands_and_options_of_sentences_exist(page: Path) -> None:
    for words in spans(prose(page)):
        assert not problems_of(words), words
    every = set().union(*known().values(), FOREIGN, options_of_benchmarks())
    if page.name != "CHANGELOG.md":  # which speaks of former ones, too
        for option in re.findall(r"`(--[a-z][a-z-]+)", prose(page)):
            assert option in every, f"{page.name}: {option}"


@cache
def messages() -> tuple[str, ...]:
    """Every text in the code, with … for what an f-string puts in."""
    found = []
    for package in PROGRAMS.values():
        for path in (ROOT / package).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.JoinedStr):
                    parts = [part.value if isinstance(part, ast.Constant) else "…" for part in node.values]
                    found.append("".join(map(str, parts)))
                elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                    found.append(node.value)
    return tuple(found)


def test_commands_that_messages_advise_exist() -> None:
    for message in messages():
        for words in spans(message):
            assert not problems_of(words), message


def test_messages_of_the_troubleshooting_page_are_said() -> None:
    titles = re.findall(r"^### `(.+)`$", text_of(ROOT / "docs" / "troubleshooting.md"), re.MULTILINE)
    assert len(titles) > 20
    for title in titles:
        parts = [re.escape(part.strip()) for part in title.split("…") if part.strip()]
        pattern = re.compile(".*".join(parts), re.DOTALL)
        assert any(pattern.search(message) for message in messages()), title


@cache
def top_level(path: Path) -> set[str]:
    """Classes, functions and values of a module, read rather than imported."""
    names = set()
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        targets = getattr(node, "targets", [getattr(node, "target", None)])
        names |= {target.id for target in targets if isinstance(target, ast.Name)}
        names.add(getattr(node, "name", ""))
    return names


def test_symbols_of_the_method_page_exist() -> None:
    named = re.findall(r"\[`([\w.]+)`\]\(\.\./([\w/]+)\.py\)", text_of(ROOT / "docs" / "method.md"))
    assert len(named) > 30
    for symbol, path in named:
        module, _, name = symbol.rpartition(".")
        assert module.replace(".", "/") == path, symbol
        assert name in top_level(ROOT / f"{path}.py"), symbol


# ------------------------------------------------------------------ Python


@PAGES_BY_NAME
def test_python_of_pages_compiles(page: Path) -> None:
    for snippet in blocks(page, "python"):
        compile(snippet, page.name, "exec")
    name = page.relative_to(ROOT).as_posix()
    assert not blocks(page, "python") or name == "README.md" or name in RUN_ELSEWHERE


def test_readme_snippets_run(miniature: PipelineConfig) -> None:
    """The Python of the README, with the demo's folder replaced by a miniature run."""
    snippets = blocks(ROOT / "README.md", "python")
    assert snippets
    for snippet in snippets:
        code = snippet.replace('"demo', f'"{miniature.out}')
        done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr


def test_ci_runs_the_readme_s_own_test_command() -> None:
    readme = (ROOT / "README.md").read_text()
    after = readme.split("<!-- test-command -->")[1]
    command = re.search(r"```bash\n(.*?)\n```", after, re.DOTALL)
    assert command and "pytest" in command.group(1) and "-c constraints.txt" in command.group(1)
    assert "test-command" in (ROOT / ".ci" / "run").read_text()


# ------------------------------------------------------------------ exit codes


def documented_codes() -> dict[int, str]:
    page = text_of(ROOT / "docs" / "scripting.md")
    return {int(code): words for code, words in re.findall(r"^\| (\d+) \| ([^|]+) \|", page, re.MULTILINE)}


def test_exit_codes_are_those_of_the_page() -> None:
    from adapter.config import TrainingStopped
    from aligner import config as aligner
    from pipelines import options as alt

    codes = {
        aligner.EXIT_DONE: "done",
        aligner.EXIT_NOT_DONE: "not done",
        aligner.EXIT_DONE_WITH_FAILURES: "done, but",
        aligner.EXIT_REQUEUE: "stopped by SIGTERM",
        130: "stopped by Ctrl-C",
    }
    told = documented_codes()
    assert told.keys() == codes.keys()
    assert all(told[code].startswith(words) for code, words in codes.items())
    own = (alt.EXIT_DONE, alt.EXIT_NOT_DONE, alt.EXIT_DONE_WITH_FAILURES)
    assert own == (aligner.EXIT_DONE, aligner.EXIT_NOT_DONE, aligner.EXIT_DONE_WITH_FAILURES)
    assert TrainingStopped.exit_code == aligner.EXIT_REQUEUE


@pytest.mark.parametrize("program", PROGRAMS)
def test_wrong_usage_is_not_done_in_every_program(program: str) -> None:
    """Code 2, which other programs use for that, means failed videos here."""
    from typer.testing import CliRunner

    app: Any = importlib.import_module(f"{PROGRAMS[program]}.cli").app
    nested = {"aligner": "slurm", "adapter": "protocol", "corpus-builder": "expand", "alt": "predict"}
    for arguments in ([], ["--nonsense"], ["nonsense"], [nested[program], "--nonsense"], [nested[program]]):
        result = CliRunner().invoke(app, arguments)
        assert result.exit_code == 1, (program, arguments, result.output)
        assert "Usage" in result.output and "Traceback" not in result.output


@pytest.mark.parametrize(
    ("typed", "completed"),
    [
        ("alt fin", "finetune"),
        ("aligner run --vid", "--videos\n--videos-per-shard\n--videos-root\n--video-seconds"),
        ("adapter protocol man", "manifest"),
        ("corpus-builder re", "re-embed\nreport"),
    ],
)
def test_shells_complete_commands_and_options(typed: str, completed: str) -> None:
    """What bash asks for at Tab, in the way that `--install-completion` sets up."""
    from typer.testing import CliRunner

    program = typed.split()[0]
    app: Any = importlib.import_module(f"{PROGRAMS[program]}.cli").app
    variable = f"_{program.replace('-', '_').upper()}_COMPLETE"
    asked = {variable: "complete_bash", "COMP_WORDS": typed, "COMP_CWORD": str(len(typed.split()) - 1)}
    result = CliRunner().invoke(app, [], env=asked, prog_name=program)
    assert sorted(result.stdout.split()) == sorted(completed.split()), result.output
