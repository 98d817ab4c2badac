"""The commented config that ``alt init`` writes."""

from pathlib import Path

from pipelines.errors import PipelineError
from pipelines.ledger import write_text

TEMPLATE = """\
# alt run THIS_FILE: every relative path is read from this file's folder.
# A key has the name of the stage's own option: see `corpus-builder build --help` and so on.
out: runs/first            # all artifacts go here; run again to continue or to update
model: ViT-B-16            # any open_clip ViT, hf-hub:ORG/REPO, or local-dir:FOLDER
pretrained: openai         # a tag, a checkpoint file, or none (random weights, for a trial of the plumbing)
device: auto

corpus:                    # which entities regions may be aligned with
  labels: labels.csv       # txt, csv or json; their nouns become entities
  # captions: captions.txt
  # related: 5               # things that WordNet relates, per label; expansions: [cues.json] for a language model's
  taggers: both            # spacy and nltk; `alt doctor` says what they need
  spacy_model: en_core_web_sm

labels:                    # sets of classes, by a name of your choice
  train: {file: labels.csv}
  # new: {file: other_labels.txt}     # classes never trained on: zero-shot

alignments:
  videos: videos.csv       # a folder CLASS/clip.mp4, or a manifest with columns path, label, split
  frames: 8
  merge: 8                 # ViT-B-16 and L-14 at 224 px: 8; ViT-B-32 has few patches: 3 or less; auto scales
  top_k: 16

adapters:                  # one or more, trained on the same cache
  alt: {labels: train, epochs: 30}
  # baseline: {labels: train, model: adapt_then_align}

evaluations:
  - {name: test, labels: train}         # split test, or all videos where the manifest has no splits
  # - {name: zeroshot, labels: new, split: new}

report: {adapter: alt, evaluation: test, videos: 24, max_mb: 20}
"""


def write_template(path: Path, force: bool = False) -> None:
    """Write the template.

    Raises:
        PipelineError: the file is there already and ``force`` is off.
    """
    if path.exists() and not force:
        raise PipelineError(f"{path} is there already; give another name, or --force to overwrite it")
    write_text(path, TEMPLATE)
