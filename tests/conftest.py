"""Fixtures that every stage's tests share: the data folder beside the repository and a tiny real CLIP."""

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

# Test processes run side by side (-n): one thread each is faster than all threads each. Before torch is imported.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# How long an example takes says more of the machine than of the code.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")

ROOT = Path(__file__).resolve().parent.parent
SHARED = ROOT.parent / "shared"

TINY_CLIP = {
    "embed_dim": 32,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 32, "head_width": 16, "patch_size": 8},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2},
}


def write_tiny_clip(folder: Path, seed: int = 0) -> str:
    """A randomly initialised open_clip model in a folder; returns its ``local-dir:`` name."""
    import open_clip
    import torch
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = open_clip.CLIP(**TINY_CLIP)
    save_file(model.state_dict(), folder / "open_clip_model.safetensors")
    config = {"model_cfg": TINY_CLIP, "preprocess_cfg": {"size": 32}}
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    return f"local-dir:{folder}"


@pytest.fixture(scope="session")
def tiny_clip(tmp_path_factory: pytest.TempPathFactory) -> str:
    """``--model`` value of a tiny random CLIP (32 px, 16 patches, 32 dimensions)."""
    return write_tiny_clip(tmp_path_factory.mktemp("clip") / "tinyrandom")


@pytest.fixture(scope="session")
def other_clip(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The same architecture with other weights: what a consumer must refuse."""
    return write_tiny_clip(tmp_path_factory.mktemp("clip") / "otherrandom", seed=1)


@pytest.fixture(scope="session")
def shared() -> Path:
    """The data folder beside the repository; tests that need it skip where it is absent."""
    if not SHARED.is_dir():
        pytest.skip("needs ../shared (real clips, WordNet, a spaCy pipeline), which is not here")
    return SHARED


BROWSER_FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """A headless Chromium; tests that look at a page skip where it or Playwright is absent.

    One for each module: while Playwright runs, its event loop is the thread's, and no other can be started.
    """
    playwright = pytest.importorskip("playwright.sync_api", reason="needs Playwright for Python")
    program = shutil.which("chromium") or shutil.which("chromium-browser")
    if program is None:
        pytest.skip("needs Chromium (apt-get install chromium)")
    with playwright.sync_playwright() as running:
        started = running.chromium.launch(executable_path=program, args=list(BROWSER_FLAGS))
        yield started
        started.close()


@pytest.fixture
def open_page(browser: Any) -> Iterator[Any]:
    """``open_page(path, **context)`` shows a file; at the end nothing may have failed in it or left it."""
    problems: list[str] = []

    def opened(path: Path, **context: Any) -> Any:
        page = browser.new_context(**context).new_page()
        page.set_default_timeout(10_000)
        page.on("console", lambda message: problems.append(f"console {message.type}: {message.text}"))
        page.on("pageerror", lambda error: problems.append(f"error: {error}"))
        page.on("dialog", lambda dialog: (problems.append(f"dialog: {dialog.message}"), dialog.dismiss()))
        page.on(
            "request",
            lambda request: (
                None
                if request.url.split("#")[0] == path.as_uri() or request.url.startswith("data:")
                else problems.append(f"request: {request.url}")
            ),
        )
        page.goto(path.as_uri())
        return page

    yield opened
    for context in browser.contexts:
        context.close()
    assert not problems
