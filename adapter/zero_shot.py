"""A run that nothing was trained for: zero-shot CLIP, as an ordinary run, so that everything that takes runs takes it.

z is the mean of the frames' cls embeddings and is compared with the texts of whatever label set is asked (the baseline
``model=mean_pool``). Regions and entities play no part in what it says.
"""

from pathlib import Path

import pyarrow as pa
import torch

from adapter import artifact
from adapter.alignments import open_alignments
from adapter.artifact import publish, removed_on_failure, start_run, write_json, write_table
from adapter.checkpoint import save_weights, state_of
from adapter.config import BOOKKEEPING, make_settings
from adapter.model import Shape, build_model


def write_zero_shot(alignments: Path, out: Path, force: bool = False) -> None:
    """Write a run of zero-shot CLIP in ``out``, for videos aligned like those of ``alignments``.

    It has no training videos and knows no labels: give ``predict`` a label set of the same model.

    Raises:
        AdapterError: no alignments there, or a folder that holds other things.
    """
    opened = open_alignments(alignments)
    settings = make_settings({"model": "mean_pool"})
    start_run(out, force)
    with removed_on_failure(out):
        write_json(out / artifact.CONFIG, settings.flat())
        state = state_of(build_model(settings.model, Shape(opened.dim, opened.frames)))
        for name in (artifact.WEIGHTS, artifact.LAST_WEIGHTS):
            save_weights(out / name, state)
        write_table(out / artifact.VIDEOS, pa.table([[], [], []], schema=artifact.VIDEOS_SCHEMA))
        (out / artifact.METRICS).touch()
        body = {
            "config": {name: value for name, value in settings.flat().items() if name not in BOOKKEEPING},
            "inputs": {"corpus": {"fingerprint": opened.manifest["corpus"]["fingerprint"]}},
            "model": dict(opened.model),
            "labels": [],
            "dim": opened.dim,
            "frames": opened.frames,
            "parameters": 0,
            "counts": {},
            "torch": torch.__version__,
        }
        files = (artifact.CONFIG, artifact.WEIGHTS, artifact.LAST_WEIGHTS, artifact.METRICS, artifact.VIDEOS)
        publish(out, body, dict.fromkeys(files, 0))
