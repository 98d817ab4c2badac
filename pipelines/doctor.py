"""``alt doctor``: what is installed, what works, what is missing and the command that mends it."""

import importlib.metadata
import os
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

PACKAGES = (
    ("torch", "torch"),
    ("open_clip_torch", "open_clip"),
    ("av", "av"),
    ("nltk", "nltk"),
    ("spacy", "spacy"),
    ("pandas", "pandas"),
    ("pyarrow", "pyarrow"),
    ("typer", "typer"),
    ("safetensors", "safetensors"),
)


@dataclass(frozen=True)
class Finding:
    """One line of the doctor: ``status`` is ok, note (works without) or missing, ``remedy`` a command or advice."""

    name: str
    status: str
    detail: str
    remedy: str = ""


def _package(distribution: str, module: str) -> Finding:
    try:
        __import__(module)
        return Finding(distribution, "ok", importlib.metadata.version(distribution))
    except ImportError as error:
        return Finding(distribution, "missing", str(error), 'pip install -e ".[all]" -c constraints.txt')


def _python() -> Finding:
    version = sys.version.split()[0]
    good = sys.version_info >= (3, 11)
    return Finding("python", "ok" if good else "missing", version, "" if good else "use Python 3.11 or newer")


def _gpu() -> Finding:
    import torch

    if torch.cuda.is_available():
        return Finding("GPU", "ok", f"{torch.cuda.get_device_name(0)}, CUDA {torch.version.cuda}")
    return Finding(
        "GPU", "note", f"none, {torch.get_num_threads()} CPU threads", "everything runs on the CPU, slower"
    )


def _ffmpeg() -> Finding:
    import av

    libraries = ", ".join(
        f"{name} {'.'.join(map(str, version))}" for name, version in av.library_versions.items()
    )
    codecs = [name for name in ("h264", "hevc", "vp9", "av1", "mpeg4") if name in av.codecs_available]
    return Finding("FFmpeg (in PyAV)", "ok", f"{libraries}; decodes {', '.join(codecs)}")


def _faiss() -> Finding:
    import torch  # noqa: F401  # before faiss: the other order can crash when their CUDA versions differ

    installed = [name for name in ("faiss-cpu", "faiss-gpu") if _has(name)]
    if len(installed) == 2:
        return Finding(
            "faiss",
            "missing",
            "faiss-cpu and faiss-gpu are both installed and own one module",
            "pip uninstall -y faiss-cpu faiss-gpu, then install one",
        )
    try:
        import faiss
        import numpy as np
    except ImportError:
        return Finding(
            "faiss", "missing", "not installed", "pip install faiss-cpu (or faiss-gpu, never both)"
        )
    vectors = np.eye(8, dtype=np.float32)
    index = faiss.IndexFlatIP(8)
    index.add(vectors)
    found = index.search(vectors, 1)[1][:, 0].tolist()
    works = found == list(range(8))
    return Finding(
        "faiss",
        "ok" if works else "missing",
        f"{', '.join(installed)} {faiss.__version__}, search works: {works}",
    )


def _has(distribution: str) -> bool:
    try:
        importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def _nltk_data(name: str, resource: str, package: str) -> Finding:
    import nltk

    for suffix in ("", ".zip"):
        try:
            path = nltk.data.find(f"{resource}{suffix}")
            return Finding(
                name, "ok", f"found in {Path(str(path)).parent.parent.name}/{Path(str(path)).parent.name}"
            )
        except (LookupError, OSError):
            continue
    return Finding(name, "note", "not found; the demo brings its own", f"python -m nltk.downloader {package}")


def _spacy_pipelines() -> Finding:
    import spacy.util

    names = spacy.util.get_installed_models()
    if names:
        return Finding("spaCy pipeline", "ok", ", ".join(names))
    return Finding(
        "spaCy pipeline",
        "note",
        "none installed",
        "python -m spacy download en_core_web_sm (or --taggers nltk)",
    )


def _tinyclip() -> Finding:
    from pipelines.toyworld import TINYCLIP

    if (TINYCLIP / "open_clip_model.safetensors").is_file():
        return Finding("demo model", "ok", "tiny CLIP of the drawn world")
    return Finding(
        "demo model",
        "missing",
        f"{TINYCLIP.name} is not in the package",
        "python -m pipelines.toyworld.pretrain",
    )


def _machine() -> Finding:
    free = shutil.disk_usage(Path.cwd()).free / 1e9
    return Finding("machine", "ok", f"{os.cpu_count()} cores, {free:.0f} GB free here")


def examine() -> list[Finding]:
    """All findings; a check that breaks is a finding too, never a traceback."""
    checks: list[tuple[str, Callable[[], Finding]]] = [("python", _python), ("machine", _machine)]
    for distribution, module in PACKAGES:
        checks.append((distribution, lambda d=distribution, m=module: _package(d, m)))  # type: ignore[misc]
    checks += [
        ("GPU", _gpu),
        ("FFmpeg (in PyAV)", _ffmpeg),
        ("faiss", _faiss),
        ("WordNet", lambda: _nltk_data("WordNet", "corpora/wordnet", "wordnet")),
        (
            "NLTK tagger",
            lambda: _nltk_data(
                "NLTK tagger", "taggers/averaged_perceptron_tagger_eng", "averaged_perceptron_tagger_eng"
            ),
        ),
        ("spaCy pipeline", _spacy_pipelines),
        ("demo model", _tinyclip),
    ]
    findings = []
    for name, check in checks:
        try:
            findings.append(check())
        except Exception as error:  # a broken installation can raise anything at import
            findings.append(
                Finding(name, "missing", f"{type(error).__name__}: {error}", 'pip install -e ".[all]"')
            )
    return findings
