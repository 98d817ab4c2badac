"""The error class of the pipelines, and the stages' errors seen from here."""

import difflib
from collections.abc import Iterable

from adapter.config import AdapterError
from aligner.config import AlignerError
from corpus_builder.config import CorpusError


class PipelineError(ValueError):
    """Something the user can mend; the message says what was got, what was expected and what to do."""


USER_ERRORS = (PipelineError, CorpusError, AlignerError, AdapterError)


def did_you_mean(word: str, choices: Iterable[str]) -> str:
    """`` (did you mean 'x'?)`` for the closest choice, or an empty string."""
    close = difflib.get_close_matches(word, list(choices), n=1)
    return f" (did you mean '{close[0]}'?)" if close else ""
