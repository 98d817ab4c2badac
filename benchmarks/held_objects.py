"""Choices of ``label-tracks``, by classes held out of training: ``python -m benchmarks.held_objects --out DIR``.

DIR is that of ``benchmarks.toyworld``, whose videos and cache are used. The test and zero-shot splits are not read:
of the 30 training classes, those of some objects are left out of training, and their *validation* videos are the
zero-shot test. Every motion keeps an object to train on. Two folds, each the other half of most motions.
"""

import argparse
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from adapter.ablation import Column, Data, Row, ablate
from benchmarks.toyworld import BLEND, COMMON, build
from pipelines import stages
from pipelines.config import LabelsSection
from pipelines.toyworld.vocabulary import ACTIONS
from pipelines.workflow import Layout

FOLDS = (
    "cup frisbee chair umbrella horse trumpet racket phone".split(),
    "box ball cart barbell bicycle guitar bat book".split(),
)
FORM: dict[str, Any] = {"variant": "label-tracks"}
ROWS = (
    Row("clip", "CLIP, mean of frames, no training", {"model": "mean_pool"}),
    Row("tracks", "entity tracks, mean readout, cls context", {"queries": "tracks", "context": "cls"}),
    Row("label-tracks", "label-tracks", FORM),
    Row("identity", "- with the entity in its token", {**FORM, "track_identity": True}),
    Row("context", "- over cls context", {**FORM, "components": "sa+ca+conv"}),
    *(Row(f"scale-{n}", f"- logit_scale {n}", {**FORM, "logit_scale": n}) for n in (10, 30, 100)),
    Row("null", "- null_score 0.3", {**FORM, "null_score": 0.3}),
)


def label_set(root: Path, folder: Path, name: str, labels: Sequence[str]) -> Path:
    """A label set of some of the world's classes."""
    file = folder / f"{name}.txt"
    file.write_text("\n".join(labels) + "\n")
    stages.build_labels(build(root, "full"), LabelsSection(file=file), folder / name)
    return folder / name


def run(out: Path, seeds: Sequence[int]) -> list[str]:
    """Both folds; the lines of their tables."""
    layout, lines = Layout(out), []
    classes = [action for action in ACTIONS if not action.held_out]
    for number, objects in enumerate(FOLDS):
        folder = out / f"fold-{number}"
        folder.mkdir(exist_ok=True)
        held = [action.label for action in classes if action.object in objects]
        kept = [action.label for action in classes if action.object not in objects]
        sets = {
            name: label_set(out, folder, name, labels) for name, labels in (("kept", kept), ("held", held))
        }
        columns = [
            Column("zero-shot", "val", sets["held"]),
            Column("blended", "val", sets["held"], blend=BLEND),
        ]
        data, say = Data(layout.alignments, sets["kept"]), partial(print, flush=True)
        ablate(data, folder, columns, ROWS, seeds, COMMON, {}, say)
        lines += [f"Fold {number}: {len(kept)} classes trained on, {len(held)} held out", ""]
        lines += [(folder / "ablation.md").read_text()]
    return lines


def main() -> None:
    """Run, and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("out/benchmarks"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    options = parser.parse_args()
    print("\n".join(run(options.out.resolve(), options.seeds)))


if __name__ == "__main__":
    main()
