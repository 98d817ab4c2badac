"""Parts of a page that are generated stand between two comments; the words around them are written by hand."""

import re
from collections.abc import Mapping

BLOCK = re.compile(r"(<!-- generated: (\S+) -->\n)(.*?)(<!-- end -->)", re.DOTALL)


def fill(page: str, blocks: Mapping[str, str]) -> str:
    """The page with every block made anew; a block that nothing generates, or no block at all, is an error."""
    names = [found[2] for found in BLOCK.finditer(page)]
    unknown = [name for name in names if name not in blocks]
    if unknown or not names:
        raise ValueError(
            f"nothing generates the block {unknown[0]}" if unknown else "the page has no generated block"
        )
    return BLOCK.sub(lambda found: f"{found[1]}\n{blocks[found[2]].strip()}\n\n{found[4]}", page)
