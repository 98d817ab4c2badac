"""The state of a training: all that the next step depends on, in one file, so that a kill costs no more than time.

A state is one safetensors file ``state-STEPS.safetensors``: tensors (weights, moving average, AdamW's moments, random
generators of every rank) and, in the file's head, one JSON text (place, figures, history, config and inputs). One file
renamed into place is there as a whole or not at all.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from torch.optim import Optimizer

from adapter.artifact import (
    MANIFEST,
    best_name,
    is_unfinished,
    remove_temporaries,
    saved_states,
    start_run,
    state_name,
)
from adapter.checkpoint import save_weights
from adapter.config import AdapterError, reason
from adapter.ranks import Ranks

RESUME = ("auto", "never", "restart")
NOTE = "training"


@dataclass
class Position:
    """How far a training is: ``steps`` of ``epoch`` are done, with these sums over the videos seen in it."""

    epoch: int = 1
    steps: int = 0
    total_steps: int = 0
    sums: dict[str, float] = field(default_factory=dict)
    seconds: float = 0.0
    best: dict[str, Any] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)


def begin(out: Path, identity: Mapping[str, Any], force: bool, resume: str) -> str | None:
    """Make the run's folder ready; returns the path of the state to go on from, or None for a new training.

    ``resume`` is ``auto`` (an unfinished training of equal config and inputs goes on, another is an error),
    ``never``, or ``restart`` (as ``auto``, but what cannot go on is replaced, a finished run too). ``force`` replaces
    whatever run is there. Raises ``AdapterError`` with the keys that differ.
    """
    if resume not in RESUME:
        raise AdapterError(f"--resume is '{resume}'; it must be one of {', '.join(RESUME)}")
    if is_unfinished(out) and not force:
        if resume == "never":
            raise AdapterError(
                f"--out {out} holds an unfinished training; --resume auto goes on with it, --force starts over"
            )
        states = saved_states(out)
        different = differing(read_note(states[-1])["identity"], identity) if states else []
        if states and not different:
            remove_temporaries(out)
            return str(states[-1])
        if different and resume == "auto":
            raise AdapterError(
                f"--out {out} holds an unfinished training with other {'; '.join(different)}; go on with the "
                "former values, choose another folder, or pass --force to start over"
            )
        # Killed before its first state: there is nothing to lose.
        force = True
    start_run(out, force or resume == "restart")
    return None


def differing(stored: Mapping[str, Any], given: Mapping[str, Any]) -> list[str]:
    """Names whose values differ, with both values; a name that only one side has differs, too."""
    return [
        f"{name} ({_short(stored.get(name))} there, {_short(given.get(name))} now)"
        for name in sorted({*stored, *given})
        if stored.get(name) != given.get(name)
    ]


def save_state(
    out: Path, tensors: dict[str, Tensor], position: Position, note: Mapping[str, Any], keep: int
) -> None:
    """Write a state, then delete all but the newest ``keep`` and the best weights that none of those names."""
    words = {**note, "position": vars(position)}
    text = json.dumps(words, sort_keys=True, allow_nan=False)
    save_weights(out / state_name(position.total_steps), tensors, {NOTE: text})
    states = saved_states(out)
    for old in states[:-keep]:
        old.unlink(missing_ok=True)
    needed = {best_name(read_note(state)["position"]["best"]["epoch"]) for state in states[-keep:]}
    for weights in out.glob("best-*.safetensors"):
        if weights.name not in needed:
            weights.unlink(missing_ok=True)


def load_state(path: Path, device: torch.device) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and note of a state; a damaged file raises ``AdapterError``."""
    note = read_note(path)
    with safe_open(path, framework="pt", device=str(device)) as file:
        return {name: file.get_tensor(name) for name in file.keys()}, note  # noqa: SIM118


def read_note(path: Path) -> dict[str, Any]:
    """What a state says beside its tensors."""
    try:
        with safe_open(path, framework="pt") as file:
            return json.loads(file.metadata()[NOTE])
    except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
        raise AdapterError(
            f"{path} is no state of a training, or damaged ({reason(error)}); delete it to go on from the state "
            "before it, or pass --force to start over"
        ) from error


def remove_states(out: Path) -> None:
    """Delete what only an unfinished training needs; called after the manifest is there."""
    assert (out / MANIFEST).is_file()
    for file in (*saved_states(out), *out.glob("best-*.safetensors")):
        file.unlink(missing_ok=True)


def under(part: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors under the name of the part of a state that they are."""
    return {f"{part}.{name}": tensor for name, tensor in tensors.items()}


def part_of(part: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What ``under`` put there."""
    start = f"{part}."
    return {name.removeprefix(start): tensor for name, tensor in tensors.items() if name.startswith(start)}


def moments(optimizer: Optimizer) -> dict[str, Tensor]:
    """What an optimiser remembers of every weight, as tensors ``NUMBER.NAME`` on the CPU."""
    held = optimizer.state_dict()["state"]
    return {f"{i}.{name}": value.detach().cpu() for i, kept in held.items() for name, value in kept.items()}


def set_moments(
    optimizer: Optimizer, tensors: Mapping[str, Tensor], rates: Sequence[float] | None = None
) -> None:
    """Give an optimiser what ``moments`` returned and, unless they are as they are, the groups' learning rates."""
    state: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        i, _, moment = name.partition(".")
        state.setdefault(int(i), {})[moment] = tensor
    groups = optimizer.state_dict()["param_groups"]
    if rates is not None:
        groups = [{**group, "lr": rate} for group, rate in zip(groups, rates, strict=True)]
    optimizer.load_state_dict({"state": state, "param_groups": groups})


def generators(ranks: Ranks) -> dict[str, Tensor]:
    """The random generators of every rank, one row each."""
    kept = {"random.cpu": ranks.stacked(torch.get_rng_state())}
    if ranks.device.type == "cuda":
        kept["random.cuda"] = ranks.stacked(torch.cuda.get_rng_state(ranks.device))
    return kept


def set_generators(tensors: Mapping[str, Tensor], ranks: Ranks, seed: int) -> None:
    """This rank's generators as they were saved; where the number of ranks is another, seeded anew by ``seed``."""
    rows = tensors["random.cpu"]
    if len(rows) != ranks.world:
        torch.manual_seed(seed + ranks.rank)
        return
    # A copy each: torch reads a state from where the memory begins, whatever the row.
    torch.set_rng_state(rows[ranks.rank].cpu().clone())
    if ranks.device.type == "cuda" and "random.cuda" in tensors:
        torch.cuda.set_rng_state(tensors["random.cuda"][ranks.rank].cpu().clone(), ranks.device)


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 24 else text[:12] + "..."
