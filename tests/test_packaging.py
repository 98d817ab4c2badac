"""What an installation brings: every package and data file, and each stage's own requirements."""

import ast
import importlib
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
STAGES = ("corpus_builder", "aligner", "adapter")
# Import name of every distribution that a requirements file may name.
PROVIDES = {
    "ray": "ray",
    "tensorboard": "tensorboard",
    "wandb": "wandb",
    "transformers": "transformers",
    "huggingface_hub": "huggingface_hub",
    "gradio": "gradio",
    "onnx": "onnx",
    "onnxruntime": "onnxruntime",
    "onnxscript": "onnxscript",
    "openai": "openai",
    "torch": "torch",
    "torchvision": "torchvision",
    "open_clip_torch": "open_clip",
    "timm": "timm",
    "nltk": "nltk",
    "spacy": "spacy",
    "pandas": "pandas",
    "pyarrow": "pyarrow",
    "typer": "typer",
    "av": "av",
    "fsspec": "fsspec",
    "numpy": "numpy",
    "pillow": "PIL",
    "rich": "rich",
    "jaxtyping": "jaxtyping",
    "safetensors": "safetensors",
    "faiss-cpu": "faiss",
    "jinja2": "jinja2",
    "markupsafe": "markupsafe",
    "pydantic": "pydantic",
    "pyyaml": "yaml",
}


def requirements(*files: str) -> set[str]:
    """Import names that the requirement files of a folder provide."""
    lines = [
        line.strip() for name in files for line in (ROOT / name).read_text().splitlines() if line.strip()
    ]
    return {PROVIDES[line.split(">")[0].split("<")[0].split("=")[0].strip()] for line in lines}


def third_party(package: str) -> set[str]:
    """Top-level names that a package's files import and that are neither ours nor Python's."""
    import sys

    found = set()
    for path in (ROOT / package).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                found |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                found.add((node.module or "").split(".")[0])
    return found - sys.stdlib_module_names - {*STAGES, "pipelines", "__future__"}


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_requires_what_it_imports(stage: str) -> None:
    files = [path.relative_to(ROOT).as_posix() for path in (ROOT / stage).glob("requirements*.txt")]
    # typer brings click.
    assert third_party(stage) - {"click"} <= requirements(*files)


def test_pipelines_require_what_they_import() -> None:
    files = [f"{name}/requirements.txt" for name in (*STAGES, "pipelines")]
    more = ("corpus_builder/requirements-faiss.txt", "pipelines/requirements-app.txt")
    assert third_party("pipelines") <= requirements(*files, *more)


def test_root_lists_every_package() -> None:
    config = tomllib.loads((ROOT / "pyproject.toml").read_text())
    listed = set(config["tool"]["setuptools"]["packages"])
    folders = {Path(folder): name for name, folder in config["tool"]["setuptools"]["package-dir"].items()}
    found = {
        folders.get(folder := path.parent.relative_to(ROOT), ".".join(folder.parts))
        for name in (*STAGES, "pipelines")
        for path in (ROOT / name).rglob("__init__.py")
    }
    assert listed == found


def test_root_lists_every_data_file() -> None:
    config = tomllib.loads((ROOT / "pyproject.toml").read_text())
    data = config["tool"]["setuptools"]["package-data"]
    known = {pattern.removeprefix("*") for pattern in data["*"]} | {".py", ".toml", ".md", ".pyc"}
    for name in (*STAGES, "pipelines"):
        for path in (ROOT / name).rglob("*"):
            if path.is_file() and "__pycache__" not in path.parts:
                assert path.suffix in known or path.name in data["*"], path


def test_stages_have_the_same_version_and_no_stage_needs_another() -> None:
    versions = {importlib.import_module(name).__version__ for name in (*STAGES, "pipelines")}
    assert len(versions) == 1
    for stage in STAGES:
        config = tomllib.loads((ROOT / stage / "pyproject.toml").read_text())
        assert config["tool"]["setuptools"]["packages"] == [stage]
        files = config["tool"]["setuptools"]["dynamic"]["dependencies"]["file"]
        text = "".join((ROOT / stage / file).read_text() for file in files)
        assert "alt-toolkit" not in text


def test_only_one_faiss_in_any_extra() -> None:
    config = tomllib.loads((ROOT / "pyproject.toml").read_text())
    for name, extra in config["tool"]["setuptools"]["dynamic"]["optional-dependencies"].items():
        text = "\n".join((ROOT / file).read_text() for file in extra["file"])
        assert not ("faiss-cpu" in text and "faiss-gpu" in text), name


def test_no_hosts_in_requirements() -> None:
    for path in (
        ROOT / "constraints.txt",
        *ROOT.glob("requirements/*.txt"),
        *ROOT.glob("*/requirements*.txt"),
    ):
        assert "://" not in path.read_text(), path
