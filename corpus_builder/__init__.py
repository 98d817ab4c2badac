"""Mine, disambiguate and embed a corpus of visual entities from action labels or captions.

First stage of the toolkit (method section 1.1): names of classes go in, a **Corpus** of ``{unit,
description}`` entries with unit-length CLIP text embeddings comes out, and a **Labels** artifact of
prompt-ensembled class vectors beside it. The flow, one file per step:

    sources -> taggers -> mine -> wordnet -> disambiguate -> describe -> embed -> index -> artifact

``build`` composes the steps; ``cli`` is the ``corpus-builder`` command. Importing this package loads
nothing heavy.
"""

__version__ = "0.1.0"
