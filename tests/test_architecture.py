"""Import rules of the house: who may import whom, and what ``--help`` may cost."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
STAGES = ("corpus_builder", "aligner", "adapter")
HEAVY = {
    "torch",
    "open_clip",
    "spacy",
    "nltk",
    "faiss",
    "pandas",
    "pyarrow",
    "av",
    "numpy",
    "transformers",
    "safetensors",
}
FILES = [path for stage in (*STAGES, "pipelines") for path in sorted((ROOT / stage).rglob("*.py"))]


def imports(path: Path, top_level_only: bool = False) -> set[str]:
    """Full dotted names that a file imports (``from a import b`` counts as ``a``)."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    nodes = tree.body if top_level_only else list(ast.walk(tree))
    found: set[str] = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative imports hide who imports whom"
            found.add(node.module or "")
    return found


def roots(names: set[str]) -> set[str]:
    return {name.split(".")[0] for name in names}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_stages_never_import_each_other(path: Path) -> None:
    stage = path.relative_to(ROOT).parts[0]
    forbidden = set() if stage == "pipelines" else {*STAGES, "pipelines"} - {stage}
    assert not roots(imports(path)) & forbidden


@pytest.mark.parametrize("stage", STAGES)
def test_config_imports_the_standard_library_only(stage: str) -> None:
    assert roots(imports(ROOT / stage / "config.py")) <= {*sys.stdlib_module_names}


@pytest.mark.parametrize("stage", STAGES)
def test_artifact_imports_storage_only(stage: str) -> None:
    """The contract can be read without a model: no torch in it, nor the work files that need one."""
    allowed = {*sys.stdlib_module_names, "pyarrow", "numpy", "faiss", "pandas", "safetensors"}
    names = imports(ROOT / stage / "artifact.py")
    own = {name for name in names if name.startswith(f"{stage}.")} | {stage} & names
    assert roots(names - own) <= allowed
    assert own <= {f"{stage}.config", stage}


@pytest.mark.parametrize(
    "path",
    [path for path in FILES if path.stem.startswith("cli") or path.stem == "options"],
    ids=lambda path: path.relative_to(ROOT).as_posix(),
)
def test_cli_is_light_at_import(path: Path) -> None:
    assert not roots(imports(path, top_level_only=True)) & HEAVY


@pytest.mark.parametrize("stage", (*STAGES, "pipelines"))
def test_help_loads_nothing_heavy(stage: str) -> None:
    program = (
        f"import sys\nfrom {stage}.cli import app\n"
        "try:\n    app(['--help'], prog_name='x')\nexcept SystemExit:\n    pass\n"
        f"heavy = sorted({HEAVY!r} & set(sys.modules))\nassert not heavy, heavy\n"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "Usage" in done.stdout


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_no_file_shadows_the_standard_library(path: Path) -> None:
    assert path.stem in ("__init__", "__main__") or path.stem not in sys.stdlib_module_names


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_no_function_is_longer_than_70_lines(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            body = node.body[1:] if ast.get_docstring(node) else node.body
            lines = (node.end_lineno or 0) - body[0].lineno + 1 if body else 0
            assert lines <= 70, f"{path.name}:{node.name} has {lines} lines"


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_no_pickle(path: Path) -> None:
    names = roots(imports(path))
    assert not names & {"pickle", "dill", "joblib"}
    assert "torch.load(" not in path.read_text(encoding="utf-8")
