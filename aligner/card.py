"""The data card of exported alignments: front matter for the Hugging Face hub, and what a reader has to know."""

import json
import re
from typing import Any

import pyarrow as pa

CARD = "README.md"

SIZES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"))

COLUMNS = {
    "video_id": "path of the video, relative to the root of all videos",
    "label": "class of the video, if it was known",
    "split": "split of the video, if it was known",
    "frame_index": "position among the sampled frames",
    "time_s": "seconds, the frame's timestamp in the file",
    "region_index": "0 is the whole frame, the others are regions in the encoder's order",
    "patches": "patches in the region, 0 for the whole frame",
    "cx": "centre, to the right, as a fraction of the model's crop",
    "cy": "centre, downwards, likewise",
    **{corner: "box, as a fraction of the model's crop" for corner in ("x0", "y0", "x1", "y1")},
    "patch_ids": "numbers of its patches, row by row; a region need not be connected",
    "entities": "names of the nearest entities, the best first",
    "entity_ids": "their numbers in the corpus",
    "scores": "their cosines",
    "embedding": "unit vector in the space of the model (rounded to what the folder stores)",
    "norm": "its length before it was made a unit vector",
}

WHAT = """\
One row is a region of a video frame: a set of patches that a frozen CLIP image encoder merged, with the entities
of a text corpus that are nearest to it. Made by the `aligner` of an open toolkit for "Align before Adapt" (ALT,
CVPR 2024)."""

LIMITS = """\
- Entities are nearest neighbours by cosine, not labels that anybody checked: the nearest may still be wrong.
- Coordinates are those of the picture that the model saw, which may be a crop of the frame.
- Embeddings go together with vectors of the very same weights (SHA-256 above) and with no others.
- No licence is granted here: what the videos, the corpus and the model allow is for whoever publishes this to see."""


def data_card(
    manifest: dict[str, Any],
    schema: pa.Schema,
    files: list[str],
    *,
    rows: int,
    videos: int,
    planned: int,
    loading: str | None = None,
) -> str:
    """The card as Markdown; it depends on what the alignments are, not on where they lie or when they were made.

    ``loading`` is said of how to load them; by default what fits the ``files`` of an export.
    """
    sections = {
        "What is in it": _counts(manifest, rows, videos, planned),
        "How it was made": _made(manifest),
        "Columns": "\n".join(
            f"- `{name}`: {COLUMNS.get(name, 'as in the alignments folder')}" for name in schema.names
        ),
        "How to load it": loading or _loading(files),
        "Known limits": LIMITS,
    }
    body = "\n\n".join(f"## {title}\n\n{text}" for title, text in sections.items())
    return (
        f"{_front_matter(files, rows)}# Regions of {videos} videos and their entities\n\n{WHAT}\n\n{body}\n"
    )


def _front_matter(files: list[str], rows: int) -> str:
    """Front matter where ``datasets`` looks for it: splits and their files."""
    splits = sorted(
        {name.removeprefix("data/").rpartition("-")[0] for name in files if name.startswith("data/")}
    )
    if not splits:
        return ""
    size = next((name for limit, name in SIZES if rows < limit), "n>1M")
    listed = "".join(f"  - split: {split}\n    path: data/{split}-*.parquet\n" for split in splits)
    return (
        f"---\nlicense: other\ntags:\n- clip\n- action-recognition\n- alt-toolkit\nsize_categories:\n- {size}\n"
        f"configs:\n- config_name: default\n  data_files:\n{listed}---\n\n"
    )


def _counts(manifest: dict[str, Any], rows: int, videos: int, planned: int) -> str:
    return (
        f"{rows} rows of {videos} videos, {manifest['frames']} frames each, {manifest['regions']} regions and the "
        f"whole frame in each. {planned - videos} more videos could not be read. Entities: the nearest "
        f"{manifest['top_k']} of {manifest['corpus']['entities']}."
    )


def _made(manifest: dict[str, Any]) -> str:
    model = manifest["model"]
    weights = (
        "RANDOM WEIGHTS: embeddings and entities mean nothing"
        if model["random_weights"]
        else model["pretrained"]
    )
    config = json.dumps(manifest["config"], indent=2, sort_keys=True)
    return (
        f"By {manifest['package']}; fingerprint of the alignments `{manifest['fingerprint']}`, of the corpus "
        f"`{manifest['inputs']['corpus']['fingerprint']}`. Model: {_shown(model['name'])}, weights: "
        f"{_shown(weights or 'its own')}, SHA-256 `{model['weights_sha256']}`. Settings:\n\n```json\n{config}\n```"
    )


def _shown(name: str) -> str:
    """A model's name without the folders of the machine that it lay on."""
    return re.sub(r"^(local-dir:)?/.*/", r"\1", name)


def _loading(files: list[str]) -> str:
    if any(name.endswith(".jsonl") for name in files):
        return '```python\nimport pandas as pd\n\nrows = pd.read_json("regions-00000.jsonl", lines=True)\n```'
    if any(name.startswith("data/") for name in files):
        return '```python\nfrom datasets import load_dataset\n\nregions = load_dataset("path/to/this/folder")\n```'
    return (
        "```python\nimport duckdb\n\nduckdb.sql(\"SELECT entities[1] AS entity, count(*) FROM 'regions-*.parquet' "
        'WHERE region_index > 0 GROUP BY entity ORDER BY 2 DESC")\n```'
    )
