"""Near-duplicates among unit vectors. Pure."""

import numpy as np
from jaxtyping import Float

BLOCK = 1024


def near_duplicates(vectors: Float[np.ndarray, "entities dim"], above: float) -> list[tuple[int, int, float]]:
    """Pairs (survivor, merged, cosine) such that each merged row is within ``above`` of its survivor.

    Rows are visited in order: a row is merged into the nearest earlier survivor whose cosine is at least
    ``above`` (ties: the lower row), else it survives itself. So survivors are never within ``above`` of each
    other, and no chain of neighbours draws a row to one it is not near to.

    Args:
        vectors: unit rows, float32.
        above: cosine from 0 to 1.
    """
    survivors: list[int] = []
    pairs = []
    for start in range(0, len(vectors), BLOCK):
        block = vectors[start : start + BLOCK]
        earlier = np.asarray(survivors, dtype=np.int64)
        before = block @ vectors[earlier].T
        within = block @ block.T
        for offset in range(len(block)):
            fresh = [row - start for row in survivors[len(earlier) :]]
            ids = [
                *earlier[before[offset] >= above],
                *(start + f for f in fresh if within[offset, f] >= above),
            ]
            if not ids:
                survivors.append(start + offset)
                continue
            cosines = vectors[ids] @ block[offset]
            best = int(np.argmax(cosines))
            pairs.append((int(ids[best]), start + offset, float(cosines[best])))
    return pairs
