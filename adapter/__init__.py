"""Third stage: train and evaluate a small video transformer on cached alignments.

Reads an Alignments artifact (regions, entities) and a Labels artifact (text embeddings); writes a Run. The
model is Eq. 4-9 of "Align before Adapt" (CVPR 2024) beside our own forms and controls; see
``adapter/README.md``.
"""

__version__ = "0.1.0"
