"""Settings: their checks, the share of a job array, suggestions, error classes."""

from dataclasses import FrozenInstanceError, fields
from pathlib import Path

import pytest

from aligner.config import AlignConfig, AlignerError, ChangedSettings, array_share, did_you_mean


def slurm(task: int, count: int, first: int, last: int, step: int = 1) -> dict[str, str]:
    names = {"ID": task, "COUNT": count, "MIN": first, "MAX": last, "STEP": step}
    return {f"SLURM_ARRAY_TASK_{name}": str(number) for name, number in names.items()}


@pytest.mark.parametrize(
    ("flags", "env", "share"),
    [
        ((None, None), {}, (1, 0)),
        ((4, 3), {}, (4, 3)),
        ((4, 3), slurm(0, 2, 0, 1), (4, 3)),
        ((4, 3), {"SLURM_ARRAY_TASK_ID": "no number"}, (4, 3)),
        ((None, None), slurm(0, 4, 0, 3), (4, 0)),
        ((None, None), slurm(3, 4, 0, 3), (4, 3)),
        ((None, None), slurm(4, 4, 1, 4), (4, 3)),
        ((None, None), slurm(6, 4, 0, 6, step=2), (4, 3)),
        ((None, None), {"SLURM_ARRAY_TASK_ID": "2", "SLURM_ARRAY_TASK_COUNT": "3"}, (3, 2)),
    ],
)
def test_shares_of_an_array(flags: tuple, env: dict[str, str], share: tuple[int, int]) -> None:
    assert array_share(*flags, env) == share


@pytest.mark.parametrize(
    ("flags", "env", "message"),
    [
        ((4, None), {}, "--shard-index is missing"),
        ((None, 0), {}, "--num-shards is missing"),
        # Resubmitting tasks 3 and 7 of a larger array must not look like an array of two.
        ((None, None), slurm(7, 2, 3, 7), "unevenly spaced tasks: give --num-shards and --shard-index"),
        ((None, None), slurm(0, 1, 0, 0, step=0), "give --num-shards and --shard-index"),
        ((None, None), {"SLURM_ARRAY_TASK_ID": "0"}, "give --num-shards and --shard-index"),
        (
            (None, None),
            slurm(0, 1, 0, 0) | {"SLURM_ARRAY_TASK_ID": "x1"},
            "SLURM_ARRAY_TASK_ID must be a whole number, got 'x1': give --num-shards and --shard-index",
        ),
        (
            (None, None),
            slurm(0, 1, 0, 0) | {"SLURM_ARRAY_TASK_MAX": ""},
            "SLURM_ARRAY_TASK_MAX must be a whole number, got ''",
        ),
    ],
)
def test_shares_that_nobody_can_tell(flags: tuple, env: dict[str, str], message: str) -> None:
    with pytest.raises(AlignerError, match=message):
        array_share(*flags, env)


@pytest.mark.parametrize(
    ("word", "hint"),
    [
        ("lable", " (did you mean 'label'?)"),
        ("splits", " (did you mean 'split'?)"),
        ("duration", ""),
        ("", ""),
    ],
)
def test_did_you_mean(word: str, hint: str) -> None:
    assert did_you_mean(word, ["path", "label", "split"]) == hint


def config(**changes: object) -> AlignConfig:
    return AlignConfig(Path("v"), Path("c"), "ViT-B-16", **changes)


def test_config_has_the_methods_defaults_and_is_frozen() -> None:
    made = config()
    assert (made.frames, made.merge, made.top_k, made.proportional_attention) == (8, 8, 16, True)
    assert made.dense == "none" and config(merge="auto").merge == "auto"
    assert {field.name: getattr(made, field.name) for field in fields(made)} == vars(made)
    with pytest.raises(FrozenInstanceError):
        made.frames = 9


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"videos_per_shard": 0}, "--videos-per-shard must be at least 1, got 0"),
        ({"merge": -1}, "--merge must be at least 0, got -1"),
        ({"merge": "most"}, "--merge must be a whole number or auto, got 'most'"),
        ({"preprocess": "gpu"}, "--preprocess must be one of cpu, device, got 'gpu'"),
        ({"dense": "query"}, "--dense must be one of none, value, self, got 'query'"),
        ({"precision": "fp8"}, "--precision must be one of fp32, bf16, fp16, got 'fp8'"),
        ({"num_shards": 2, "shard_index": 2}, "--shard-index must be below --num-shards 2, got 2"),
        ({"shard_index": -1}, "--shard-index must be at least 0, got -1"),
    ],
)
def test_every_refusal_names_the_option(changes: dict, message: str) -> None:
    with pytest.raises(AlignerError, match=f"^{message}$"):
        config(**changes)


def test_changed_settings_can_be_told_from_all_other_problems() -> None:
    assert issubclass(ChangedSettings, AlignerError) and issubclass(AlignerError, ValueError)
    with pytest.raises(AlignerError) as refusal:
        config(frames=0)
    assert not isinstance(refusal.value, ChangedSettings)
