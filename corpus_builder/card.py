"""The data card of a corpus given away: front matter for the Hugging Face hub, and what a reader has to know."""

import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from corpus_builder.artifact import Artifact

CARD = "README.md"
DATA = "data/train-00000-of-00001.parquet"

SIZES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"))

WHAT = """\
A corpus of visual entities: things, animals, people, body parts, scenes and activities that can be seen where
actions happen. Each has one WordNet sense or none, a text that describes it, and the unit vector of that text in the
space of a CLIP model. Such a corpus is the text side of "Align before Adapt" (ALT, CVPR 2024); this one was made by
the `corpus_builder` of an open toolkit for it, and serves whatever has vectors of the same model: tagging of pictures,
search, alignment."""

LIMITS = """\
- English only. Entities were found by part-of-speech taggers and WordNet, senses chosen by a program; some are wrong.
- What the input does not mention is not here, and what it says of people is here as it was said: `labels` and
  `contexts` are texts of the input, not reviewed.
- `count` counts mentions in the input and says nothing of how often a thing is seen.
- Embeddings go together with vectors of the very same weights (SHA-256 above) and with no others."""

RIGHTS = """\
Names of senses, glosses and lexicographer files are WordNet's, copyright Princeton University, under the
[WordNet licence](https://wordnet.princeton.edu/license-and-commercial-use). `labels`, `contexts` and names come from
the input files named above and stay under their terms; the embeddings were computed by the model named above. No
licence is granted beyond these: whoever publishes this folder has to see that the input allows it."""

LOADING = """\
```python
from datasets import load_dataset

entities = load_dataset("path/to/this/folder", split="train")
vectors = entities.with_format("numpy")["embedding"][:]
```

Or without `datasets`:

```python
import numpy as np
import pandas as pd

entities = pd.read_parquet("path/to/this/folder/data/train-00000-of-00001.parquet")
vectors = np.stack(entities["embedding"])
```"""

CITATION = """\
```bibtex
@inproceedings{chen2024alt,
  title     = {Align before Adapt: Leveraging Entity-to-Region Alignments for Generalizable Video Action Recognition},
  author    = {Chen, Yifei and Chen, Dapeng and Liu, Ruijin and Zhou, Sai and Xue, Wenyuan and Peng, Wei},
  booktitle = {IEEE/CVF Conference on Computer Vision and Pattern Recognition (CVPR)},
  year      = {2024}
}
@article{miller1995wordnet,
  title   = {{WordNet}: A Lexical Database for {English}},
  author  = {Miller, George A.},
  journal = {Communications of the ACM},
  volume  = {38},
  number  = {11},
  pages   = {39--41},
  year    = {1995}
}
```"""


def data_card(corpus: Artifact, data: str = DATA, loading: str = LOADING) -> str:
    """The card as Markdown. It depends on what the corpus is, not on where it lies or when it was made.

    ``data`` is the table's file beside the card, ``loading`` what is said of how to load it.
    """
    sections = {
        "How it was made": _made(corpus.manifest),
        "Model": _model(corpus.manifest["model"]),
        "What is in it": _counts(corpus),
        "Columns": _columns(corpus),
        "Known limits": "\n".join([LIMITS, *_own_limits(corpus.manifest)]),
        "How to load it": loading,
        "Rights": RIGHTS,
        "Citation": CITATION,
    }
    body = "\n\n".join(f"## {title}\n\n{text}" for title, text in sections.items())
    size = len(corpus.table)
    return f"{_front_matter(size, data)}\n# {size} visual entities\n\n{WHAT}\n\n{body}\n"


def _front_matter(size: int, data: str) -> str:
    category = next((name for limit, name in SIZES if size < limit), "1M<n<10M")
    return f"""---
pretty_name: {size} visual entities
license: other
license_name: wordnet-and-terms-of-the-input
language:
- en
tags:
- clip
- wordnet
- entities
- embeddings
- action-recognition
- alt-toolkit
task_categories:
- feature-extraction
- zero-shot-image-classification
size_categories:
- {category}
configs:
- config_name: default
  data_files:
  - split: train
    path: {data}
---
"""


def _made(manifest: Mapping[str, Any]) -> str:
    rows = [(name, entry["file"], entry["sha256"]) for name, entry in sorted(manifest["inputs"].items())]
    config = json.dumps(manifest["config"], indent=2, sort_keys=True, ensure_ascii=False)
    return "\n\n".join(
        [
            f"By {manifest['package']}; fingerprint of the corpus `{manifest['fingerprint']}`. From:",
            _table(("input", "file", "SHA-256 or fingerprint"), rows),
            f"With these settings:\n\n```json\n{config}\n```",
        ]
    )


def _model(model: Mapping[str, Any]) -> str:
    weights = "none: RANDOM WEIGHTS" if model["random_weights"] else model["pretrained"] or "the model's own"
    rows = [
        ("name (open_clip)", model["name"]),
        ("weights", weights),
        ("SHA-256 of the weights", model["weights_sha256"]),
        ("embedding", f"{model['embed_dim']} numbers"),
    ]
    table = _table(("model", ""), rows)
    warning = "**The weights are random: embeddings and cosines mean nothing. For tests only.**"
    return f"{table}\n\n{warning}" if model["random_weights"] else table


def _counts(corpus: Artifact) -> str:
    rows = [
        (column, value, number)
        for column in ("kind", "source")
        for value, number in sorted(Counter(corpus.table[column].to_pylist()).items())
    ]
    first = corpus.table.drop_columns(["embedding"]).slice(0, 1).to_pylist()[0]
    example = json.dumps(first, indent=2, ensure_ascii=False)
    return f"{_table(('by', 'is', 'entities'), rows)}\n\nThe first, without its embedding:\n\n```json\n{example}\n```"


def _columns(corpus: Artifact) -> str:
    rows = [
        (field.name, _type(field.type), (field.metadata or {}).get(b"unit", b"").decode(), _null(field))
        for field in corpus.table.schema
    ]
    return _table(("column", "type", "unit or meaning", "null"), rows)


def _type(kind: Any) -> str:
    return f"list of {kind.value_type}" if hasattr(kind, "value_type") else str(kind)


def _null(field: Any) -> str:
    return "where unknown" if field.nullable else "never"


def _own_limits(manifest: Mapping[str, Any]) -> list[str]:
    """What this corpus in particular lacks, as counted when it was made."""
    counts = manifest["counts"]
    dropped = sum(counts.get("dropped", {}).values())
    told = {
        "phrases of the input were dropped (stop words, abstract senses, too rare ...).": dropped,
        "labels have no entity of their own.": counts.get("labels_without_entity", 0),
        "texts are longer than the model reads and were cut.": counts.get("texts_truncated", 0),
    }
    return [f"- {number} {what}" for what, number in told.items() if number]


def _table(head: Iterable[str], rows: Iterable[Iterable[Any]]) -> str:
    head = list(head)
    lines = [head, ["---"] * len(head), *([_cell(value) for value in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cell(value: Any) -> str:
    """A value as plain text of a table: file names may hold what Markdown reads as its own."""
    return re.sub(r"([\\`*\[\]<>|])", r"\\\1", " ".join(str(value).split()))
