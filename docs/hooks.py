"""What MkDocs is told about this repository (`make docs`).

Pages keep the paths that they have in the repository, READMEs of the stages included, so that one link works on
disk, in a code browser and in the site. Files that a page links to come along. Equations become MathML.
"""

import re
from html import unescape
from pathlib import Path
from typing import Any
from urllib.parse import unquote

ROOT = Path(__file__).resolve().parent.parent
LINK = re.compile(r"\]\(([^)#\s]+)(?:#[^)\s]*)?\)")
EQUATION = re.compile(r'<(span|div) class="arithmatex">\\[\[(](.*?)\\[\])]</\1>', re.DOTALL)


def pages() -> list[Path]:
    """Every page, in the order of the file system's names."""
    found = (*ROOT.glob("*.md"), *ROOT.glob("[!.]*/README.md"), *(ROOT / "docs").rglob("*.md"))
    return sorted(set(found))


def linked_files(page: Path) -> list[Path]:
    """Files of the repository that a page links to and that are no pages."""
    targets = (unquote(target) for target in LINK.findall(page.read_text(encoding="utf-8")))
    files = ((page.parent / target).resolve() for target in targets if "://" not in target)
    return [file for file in files if file.is_file() and file.suffix != ".md"]


def on_config(config: Any) -> Any:
    """Research notes are in the navigation as soon as they are there."""
    notes = sorted(path for path in (ROOT / "docs" / "research").glob("*.md") if path.name != "README.md")
    method = next(section["The method"] for section in config.nav if "The method" in section)
    place = next(i for i, entry in enumerate(method) if "Research notes" in entry) + 1
    method[place:place] = [path.relative_to(ROOT).as_posix() for path in notes]
    return config


def on_files(files: Any, config: Any) -> Any:
    """The repository's pages in place of the files below docs/."""
    from mkdocs.structure.files import File

    for file in [file for file in files if file.src_dir == config.docs_dir]:
        files.remove(file)
    chosen = pages()
    for path in sorted({*chosen, *(file for page in chosen for file in linked_files(page))}):
        files.append(File.generated(config, path.relative_to(ROOT).as_posix(), abs_src_path=str(path)))
    return files


def on_page_content(html: str, **_: Any) -> str:
    """Equations as MathML, which browsers draw by themselves."""
    from latex2mathml.converter import convert

    def mathml(found: re.Match[str]) -> str:
        return convert(unescape(found[2]).strip(), display="block" if found[1] == "div" else "inline")

    return EQUATION.sub(mathml, html)
