"""The error class of the pipelines, and the stages' errors seen from here."""

from adapter.config import AdapterError
from aligner.config import AlignerError
from corpus_builder.config import CorpusError, did_you_mean

__all__ = ["USER_ERRORS", "PipelineError", "Unfinished", "did_you_mean"]


class PipelineError(ValueError):
    """Something the user can mend; the message says what was got, what was expected and what to do."""


class Unfinished(PipelineError):
    """Work that was stopped, or goes on elsewhere: the same command goes on from there."""

    exit_code = 75  # EX_TEMPFAIL: try again


USER_ERRORS = (PipelineError, CorpusError, AlignerError, AdapterError)
