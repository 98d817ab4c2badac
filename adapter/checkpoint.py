"""Weights to and from safetensors, atomically; no pickle."""

from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from adapter.artifact import CONFIG, WEIGHTS, Run, train_again, write_atomic
from adapter.config import AdapterError, Settings, make_settings, reason
from adapter.model import Shape, VideoAdapter, build_model


def state_of(model: nn.Module) -> dict[str, Tensor]:
    """A copy of the weights on the CPU."""
    return {name: tensor.detach().cpu().clone().contiguous() for name, tensor in model.state_dict().items()}


def save_weights(path: Path, state: dict[str, Tensor], note: dict[str, str] | None = None) -> None:
    """Write weights atomically, with a ``note`` in the file's head; equal weights give equal bytes.

    A disk that refuses raises ``AdapterError``.
    """
    try:
        write_atomic(path, lambda temporary: save_file(state, temporary, note))
    except (SafetensorError, OSError) as error:
        raise AdapterError(
            f"cannot write {path} ({reason(error)}); check the space and the rights there"
        ) from error


def settings_of(run: Run) -> Settings:
    """The settings that a run was trained with, by this or an earlier version."""
    # Before there were variants, a run spelled its form out and had today's defaults for what was no option yet.
    return make_settings({"variant": "none", **run.config})


def load_model(run: Run, device: torch.device) -> VideoAdapter:
    """The trained model of a run, in evaluation mode."""
    shape = Shape(run.manifest["dim"], run.manifest["frames"])
    try:
        with torch.random.fork_rng(devices=[]):
            model = build_model(settings_of(run).model, shape)
    except AdapterError as error:
        raise AdapterError(f"{run.path / CONFIG}: {error}; {train_again(run.path)}") from error
    try:
        model.load_state_dict(load_file(run.path / WEIGHTS))
    except (SafetensorError, RuntimeError, OSError) as error:
        raise AdapterError(
            f"{run.path / WEIGHTS} does not hold the weights of its config ({reason(error)}); "
            f"{train_again(run.path)}"
        ) from error
    return model.to(device).eval()
