"""Weights to and from safetensors, atomically; no pickle."""

from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from adapter.artifact import WEIGHTS, Run, write_atomic
from adapter.config import AdapterError, Settings, make_settings
from adapter.model import Shape, VideoAdapter, build_model


def state_of(model: nn.Module) -> dict[str, Tensor]:
    """A copy of the weights on the CPU."""
    return {name: tensor.detach().cpu().clone().contiguous() for name, tensor in model.state_dict().items()}


def save_weights(path: Path, state: dict[str, Tensor]) -> None:
    """Write weights; equal weights give equal bytes."""
    write_atomic(path, lambda temporary: save_file(state, temporary))


def load_model(run: Run, device: torch.device) -> VideoAdapter:
    """The trained model of a run, in evaluation mode."""
    settings: Settings = make_settings(run.config)
    shape = Shape(run.manifest["dim"], run.manifest["frames"])
    with torch.random.fork_rng(devices=[]):
        model = build_model(settings.model, shape)
    try:
        model.load_state_dict(load_file(run.path / WEIGHTS))
    except (SafetensorError, RuntimeError, OSError) as error:
        raise AdapterError(
            f"{run.path / WEIGHTS} does not hold the weights of its config ({str(error).splitlines()[0]}); "
            f"train again with `adapter train ... --out {run.path} --force`"
        ) from error
    return model.to(device).eval()
