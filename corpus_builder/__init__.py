"""Mine, disambiguate and embed a corpus of visual entities from action labels or captions.

First stage of the toolkit (method section 1.1): names of classes go in, a **Corpus** of ``{unit,
description}`` entries with unit-length CLIP text embeddings comes out, and a **Labels** artifact of
prompt-ensembled class vectors beside it. The flow, one file per step:

    sources -> taggers -> mine -> wordnet -> disambiguate -> describe -> embed -> index -> artifact

``build`` composes the steps; ``cli`` is the ``corpus-builder`` command; ``reuse``, ``search`` and ``export`` serve a
corpus that is there. For programs, ``corpus_builder.open`` and ``corpus_builder.create`` give a ``Corpus``
(:mod:`corpus_builder.api`). Importing this package loads nothing heavy.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from corpus_builder.api import Corpus, create, open

__version__ = "0.1.0"
__all__ = ["Corpus", "create", "open"]


def __getattr__(name: str) -> Any:
    """The verbs of :mod:`corpus_builder.api`, loaded when one is first asked for."""
    if name not in __all__:
        raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
    from corpus_builder import api

    return getattr(api, name)
