"""The toolkit from Python: ``alt.load("runs/first").predict("clip.mp4", labels=[...])``, which is in ``pipelines``."""

from pipelines import __version__
from pipelines.api import Model, Prediction, load, zero_shot
from pipelines.errors import PipelineError as AltError

__all__ = ["AltError", "Model", "Prediction", "__version__", "load", "zero_shot"]
