"""The error class of the pipelines, and the stages' errors seen from here."""

from adapter.config import AdapterError
from aligner.config import AlignerError
from corpus_builder.config import CorpusError, did_you_mean

__all__ = ["USER_ERRORS", "PipelineError", "did_you_mean"]


class PipelineError(ValueError):
    """Something the user can mend; the message says what was got, what was expected and what to do."""


USER_ERRORS = (PipelineError, CorpusError, AlignerError, AdapterError)
