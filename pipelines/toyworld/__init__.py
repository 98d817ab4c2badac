"""The embedded demo world: drawn videos, a lexicon, a tagger and the tiny CLIP trained on them."""

from pathlib import Path

TINYCLIP = Path(__file__).parent / "tinyclip"
"""Folder of the demo's model, for ``--model local-dir:...``."""
