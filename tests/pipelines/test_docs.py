"""Documentation that cannot drift: links lead somewhere, commands exist, snippets run."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from pipelines.config import PipelineConfig

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted(
    path for path in (*ROOT.glob("*.md"), *ROOT.glob("*/README.md")) if "tinyclip" not in path.parts
)
COMMANDS = {
    "corpus-builder": "corpus_builder",
    "aligner": "aligner",
    "adapter": "adapter",
    "alt": "pipelines",
}


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(
        rf"^```{language}\n(.*?)^```", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL
    )


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_relative_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
        if not target.startswith(("http://", "https://", "mailto:")):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


def documented_commands() -> list[tuple[str, str, list[str]]]:
    """(command, subcommand, options) of every line of every bash block."""
    found = []
    for page in PAGES:
        for block in blocks(page, "bash"):
            for line in block.replace("\\\n", " ").splitlines():
                for part in line.split("&&"):
                    words = shlex.split(part, comments=True)
                    if words and words[0] in COMMANDS and len(words) > 1:
                        options = [word.split("=")[0] for word in words[2:] if word.startswith("--")]
                        found.append((words[0], words[1], options))
    return found


@pytest.fixture(scope="module")
def helps() -> dict[tuple[str, str], str]:
    """Help text of every documented subcommand, each command asked in one process."""
    texts = {}
    for command, module in COMMANDS.items():
        names = sorted({sub for name, sub, _ in documented_commands() if name == command})
        program = (
            f"import sys\nfrom {module}.cli import app\nfor name in {names!r}:\n"
            "    print('=====', name)\n    try:\n        app([name, '--help'], prog_name='x')\n"
            "    except SystemExit as stop:\n        assert not stop.code, name\n"
        )
        environment = {"PATH": "", "COLUMNS": "200", "TERM": "dumb", "PYTHONPATH": str(ROOT)}
        done = subprocess.run(
            [sys.executable, "-c", program], env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        parts = re.split(r"^===== (.*)$", done.stdout, flags=re.MULTILINE)
        texts |= {(command, name): text for name, text in zip(parts[1::2], parts[2::2], strict=True)}
    return texts


@pytest.mark.parametrize(("command", "subcommand", "options"), documented_commands())
def test_documented_commands_exist(
    command: str, subcommand: str, options: list[str], helps: dict[tuple[str, str], str]
) -> None:
    text = helps[command, subcommand]
    for option in options:
        assert option in text, f"{command} {subcommand} has no {option}"


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
