"""What a model is made of and what a video costs: parameters by part, GMACs by part, before or after training."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from adapter.alignments import MADE_BY
from adapter.artifact import check_same_model, open_run, read_manifest, with_model
from adapter.checkpoint import settings_of
from adapter.config import AdapterError, ModelConfig
from adapter.flops import TOWERS, Cost, Setting, Tower, cost, find_tower, tokens_after
from adapter.model import build_model, parameters_by_part

# What is assumed where neither options nor a folder say it: B/16 as the paper uses it, and a corpus that fits its cost.
# The classes are those of Kinetics-400; they count with readout=labels alone.
ASSUMED: dict[str, Any] = {
    "tower": "ViT-B-16",
    "frames": 8,
    "merge": 8,
    "entities": 10_000,
    "top_k": 16,
    "classes": 400,
}


@dataclass(frozen=True)
class Description:
    """A model on its data; ``tower`` is None where the encoder's sizes are unknown."""

    config: ModelConfig
    at: Setting
    tower: str | None
    merge: int
    views: int
    parameters: dict[str, int]
    cost: Cost

    def to_json(self) -> dict[str, Any]:
        """As JSON types; costs are MACs of one view and of all."""
        return {
            "model": asdict(self.config),
            "setting": {**asdict(self.at), "tower": self.tower, "merge": self.merge, "views": self.views},
            "parameters": {**self.parameters, "total": sum(self.parameters.values())},
            "macs_per_view": {**asdict(self.cost), "total": self.cost.total},
            "macs": self.views * self.cost.total,
        }


def describe(
    config: ModelConfig | None,
    run: Path | None = None,
    alignments: Path | None = None,
    views: int = 1,
    given: Mapping[str, Any] | None = None,
) -> Description:
    """Describe a form (``config``) or a run (whose form it is), on alignments or on what is assumed.

    ``given`` overrides, by name: tower, frames, merge, entities, top_k, classes. Raises ``AdapterError`` where the
    sizes contradict each other, or a tower is unknown and no alignments tell its tokens.
    """
    if views < 1:
        raise AdapterError(f"--views is {views}; it must be at least 1")
    facts: dict[str, Any] = {**ASSUMED}
    if run:
        opened = open_run(run)
        config = settings_of(opened).model
        facts |= {**_of_model(opened.manifest), "frames": opened.manifest["frames"]}
        facts["classes"] = len(opened.train_labels)
    if alignments:
        manifest = read_manifest(alignments, "alignments", MADE_BY)
        if run:
            again = with_model(
                "aligner run --videos DIR --corpus DIR MODEL --out DIR", opened.manifest["model"]
            )
            words = f"alignments {alignments.name} were", f"run {run.name}", again
            check_same_model(manifest["model"], opened.manifest["model"], *words)
        facts |= _of_alignments(manifest)
    asked = {name: value for name, value in (given or {}).items() if value is not None}
    if asked.keys() & {"tower", "merge"}:
        facts.pop("tokens", None)
    facts |= asked
    tower = find_tower(facts["tower"]) if facts["tower"] else None
    at = _setting(facts, tower)
    form = config or ModelConfig()
    with torch.device("meta"):
        parts = parameters_by_part(build_model(form, at.shape))
    return Description(
        form, at, facts["tower"], facts["merge"], views, parts, cost(form, at, tower, facts["merge"])
    )


def _of_model(manifest: Mapping[str, Any]) -> dict[str, Any]:
    name = str(manifest["model"].get("name")).removesuffix("-quickgelu")
    return {"dim": manifest["dim"], "tower": name if name in TOWERS else None}


def _of_alignments(manifest: Mapping[str, Any]) -> dict[str, Any]:
    config = manifest["config"]
    return {
        **_of_model(manifest),
        "frames": manifest["frames"],
        "merge": config.get("merge", ASSUMED["merge"]),
        "tokens": manifest["regions"] + 1,
        "top_k": config["top_k"],
        "entities": manifest["corpus"].get("entities", ASSUMED["entities"]),
    }


def _setting(facts: dict[str, Any], tower: Tower | None) -> Setting:
    for name in ("frames", "entities", "classes"):
        if facts[name] < 1:
            raise AdapterError(f"--{name} is {facts[name]}; it must be at least 1")
    tokens = facts.get("tokens") or (tokens_after(tower, facts["merge"])[-1] if tower else 0)
    if not tokens:
        raise AdapterError(
            "the run's encoder is none of the known towers, so its tokens are unknown; pass --alignments, or "
            "--tower WIDTH,LAYERS,PATCH,IMAGE,DIM"
        )
    dim = facts.get("dim", tower.dim if tower else 0)
    if tower and tower.dim != dim:
        raise AdapterError(
            f"--tower {facts['tower']} has {tower.dim} dimensions, the run or the alignments have {dim}; name theirs"
        )
    return Setting(dim, facts["frames"], tokens, facts["entities"], facts["top_k"], facts["classes"])
