"""The documentation's generated parts are those of the code at hand, and the site is whole and fetches nothing."""

import os
import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

from docs import generate
from docs.blocks import BLOCK, fill

ROOT = Path(__file__).resolve().parents[2]
AGAIN = "run `python -m docs.generate`"


@pytest.mark.parametrize("name", ["cli.md", "config.md", "protocols.md"])
def test_generated_parts_are_current(name: str) -> None:
    """Every command, option, key of a config and protocol is documented, as it is now."""
    page = (generate.DOCS / name).read_text(encoding="utf-8")
    assert fill(page, generate.PAGES[name](page)) == page, AGAIN


def test_licences_are_those_of_the_installed_packages() -> None:
    """Rows of packages in the pinned version equal their metadata; every requirement has a row."""
    page = (generate.DOCS / "licences.md").read_text(encoding="utf-8")
    told = generate.written_licences(page)
    assert told.keys() == generate.requirements().keys(), AGAIN
    pins = dict(line.lower().split("==") for line in (ROOT / "constraints.txt").read_text().splitlines()[1:])
    checked = 0
    for name, licence in told.items():
        if name in pins and generate.licence_of(name) is not None and metadata.version(name) == pins[name]:
            assert licence == generate.licence_of(name), f"{name}: {AGAIN}"
            checked += 1
    assert checked > 10
    assert "GPL" in page.split("<!-- generated")[0]


def test_the_wheel_of_pyav_still_bundles_what_the_page_says() -> None:
    bundled = {file.name.split("-")[0] for file in metadata.files("av") or () if "av.libs" in file.parts}
    if not bundled:
        pytest.skip("this PyAV is no Linux wheel")
    assert {"libx264", "libx265", "libavcodec"} <= bundled


def test_a_block_that_nothing_generates_is_an_error() -> None:
    page = "a\n<!-- generated: x -->\nold\n<!-- end -->\nb\n"
    assert BLOCK.search(fill(page, {"x": "new"}))[3].strip() == "new"  # type: ignore[index]
    for broken, blocks in ((page, {}), ("no block", {"x": ""})):
        with pytest.raises(ValueError, match="block"):
            fill(broken, blocks)


def test_the_site_builds_and_fetches_nothing(tmp_path: Path) -> None:
    """`make docs` in strict mode: every page in the navigation, every link and anchor, in MkDocs' own eyes."""
    pytest.importorskip("material", reason="needs MkDocs Material: pip install -r requirements/docs.txt")
    pytest.importorskip("latex2mathml", reason="needs latex2mathml: pip install -r requirements/docs.txt")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path)]
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    method = (tmp_path / "docs" / "method" / "index.html").read_text(encoding="utf-8")
    assert method.count("<math") > 10 and "arithmatex" not in method
    assert (tmp_path / "adapter" / "model.py").is_file(), "links to the code lead to it"
    for page in tmp_path.rglob("*.html"):
        text = page.read_text(encoding="utf-8")
        asked = re.findall(
            r"<(?:script|link|img|iframe|source)\b[^>]*?(?:src|href)=[\"']?(https?://[^\"'> ]+)", text
        )
        assert not asked, f"{page.name} asks for {asked}"
    for sheet in tmp_path.rglob("*.css"):
        assert not re.search(r"url\([\"']?https?:|@import", sheet.read_text(encoding="utf-8")), sheet.name
