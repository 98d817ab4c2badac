"""Stage 2: precompute which entities the regions of a video's frames show.

Reads videos and a corpus, runs a frozen CLIP image encoder with token merging over sampled frames, and
writes an *alignments* folder: one Parquet row per region with its place, its embedding and its nearest
entities. The commands are ``aligner plan | run | status | verify | inspect``; see README.md beside this
file.
"""

__version__ = "0.1.0"
