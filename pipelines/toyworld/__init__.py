"""The embedded demo world: drawn videos, a lexicon, a tagger and the tiny CLIP trained on them."""
