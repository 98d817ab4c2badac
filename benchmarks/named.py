"""Do real CLIP texts tell which entity a class names? ``python -m benchmarks.named --texts FILE``.

FILE is a Parquet of unit CLIP text embeddings with columns entity, text, source, embedding: words of class names
(source label) and, under each, things that a language model named for it (source llm_expansion). ``readout=labels``
rests on a word being nearer to its own things than to those of others once texts are centred; this counts how often
it is, and how far apart the cosines lie. Videos play no part.
"""

import argparse
from pathlib import Path

import numpy as np
import pandas as pd

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)


def centred(vectors: np.ndarray) -> np.ndarray:
    """Unit vectors after the mean of their kind is taken away."""
    moved = vectors - vectors.mean(0)
    return moved / np.linalg.norm(moved, axis=1, keepdims=True)


def report(texts: pd.DataFrame) -> list[str]:
    """Lines of the report."""
    words = texts[texts.source == "label"].drop_duplicates("entity")
    things = texts[(texts.source == "llm_expansion") & ~texts.text.isin(set(words.text))]
    words = words[words.entity.isin(set(things.entity))]
    lines = [
        f"{len(words)} words of class names, {len(things)} things named for them",
        "",
        "| texts | nearest thing is its own, % | own nearer than another's, % | best own | others |",
        "|---|---|---|---|---|",
    ]
    own = words.entity.to_numpy()[:, None] == things.entity.to_numpy()[None]
    for name, change in (("as they are", lambda v: v), ("centred", centred)):
        first, second = (change(np.stack(table.embedding).astype(np.float32)) for table in (words, things))
        cosine = first @ second.T
        best_own = np.where(own, cosine, -1).max(1)
        best_other = np.where(own, -1, cosine).max(1)
        numbers = f"{100 * (best_own > best_other).mean():.1f} | {100 * auc(cosine, own):.1f}"
        lines += [f"| {name} | {numbers} | {quantiles(best_own)} | {quantiles(cosine[~own])} |"]
    return [*lines, "", "Cosines at 5, 25, 50, 75 and 95 % of words, and of pairs."]


def auc(cosine: np.ndarray, own: np.ndarray) -> float:
    """Mean over words: chance that a thing of its own is nearer than one of another."""
    shares = [(row[mine][:, None] > row[~mine][None]).mean() for row, mine in zip(cosine, own, strict=True)]
    return float(np.mean(shares))


def quantiles(values: np.ndarray) -> str:
    """Cosines at 5, 25, 50, 75 and 95 %."""
    return " ".join(f"{value:.2f}" for value in np.quantile(values, QUANTILES))


def main() -> None:
    """Print the report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--texts", type=Path, required=True)
    print("\n".join(report(pd.read_parquet(parser.parse_args().texts))))


if __name__ == "__main__":
    main()
