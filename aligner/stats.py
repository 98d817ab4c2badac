"""``aligner stats``: what an alignments folder holds and what it cost, in one pass with flat memory."""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from aligner import artifact
from aligner.verify import status

# Scores are counted in bins of this width.
BIN = 1e-3
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)


@dataclass(frozen=True)
class Stats:
    """Of the finished shards of a folder.

    ``entities`` counts regions whose nearest entity it is (``first``) or that have it among their nearest (``any``);
    the frame's own row counts as a region here. ``scores`` are of the nearest entity; its quantiles are exact to 0.001.
    ``throughput`` is None where no timings are known, and ``share`` in it is of the encoding thread's seconds.
    """

    shards: dict[str, int]
    videos: dict[str, int]
    rows: int
    frames: int
    regions_per_frame: int
    entities: dict[str, Any]
    scores: dict[str, Any]
    throughput: dict[str, Any] | None
    bytes: dict[str, int]
    failures: dict[str, int]

    def lines(self) -> list[str]:
        """For people."""
        videos, entities = self.videos, self.entities
        shards = ", ".join(f"{count} {state}" for state, count in self.shards.items())
        lines = [
            f"shards: {shards}",
            f"videos: {videos['planned']} planned, {videos['ok']} ok, {videos['failed']} failed",
            *(f"  failed at {kind}: {count}" for kind, count in self.failures.items()),
            f"rows: {self.rows}, of {self.frames} frames with {self.regions_per_frame} regions each and themselves",
            f"entities: {entities['used']} of {entities['corpus']} matched ({entities['share_used']:.1%}), "
            f"{entities['first_of_any']} of them as the nearest, {entities['never']} never",
        ]
        for told in ("most", "least"):
            named = ", ".join(f"{entity['name']} {entity['first']}" for entity in entities[told])
            lines.append(f"  {told} often nearest: {named or 'none'}")
        return [*lines, *self._numbers()]

    def _numbers(self) -> list[str]:
        scores, lines = self.scores, []
        if self.rows:
            at = ", ".join(f"{quantile} {value:.3f}" for quantile, value in scores["quantiles"].items())
            lines.append(f"score of the nearest: mean {scores['mean']:.3f}; quantiles {at}")
        if self.throughput is not None:
            share = ", ".join(f"{what} {part:.0%}" for what, part in self.throughput["share"].items())
            lines.append(
                f"throughput: {self.throughput['frames_per_second']:.2f} frames/s a process; {share}"
            )
        size = ", ".join(f"{kind} {count / 1e6:.1f} MB" for kind, count in self.bytes.items())
        return [*lines, f"on disk: {size}"]


def stats(out: Path, top: int = 10) -> Stats:
    """Count what is in the finished shards.

    Args:
        out: an alignments folder.
        top: entities to name at either end.

    Raises:
        AlignerError: not an alignments folder, or a damaged one.
    """
    manifest = artifact.read_manifest(out)
    found = status(out)
    done = [shard for shard in range(manifest["num_shards"]) if artifact.is_done(out, shard, manifest)]
    tally = Tally(manifest["corpus"]["entities"])
    for shard in done:
        for ids, scores in artifact.matches(out, shard):
            tally.add(ids, scores)
    return Stats(
        shards=found.shards,
        videos=found.videos,
        rows=tally.rows,
        frames=tally.rows // (manifest["regions"] + 1),
        regions_per_frame=manifest["regions"],
        entities=tally.entities(artifact.read_entity_names(out), top),
        scores=tally.scores(),
        throughput=throughput(out),
        bytes=artifact.bytes_on_disk(out),
        failures=found.failures,
    )


class Tally:
    """Counts of entities and scores, one number for each entity and each bin."""

    def __init__(self, entities: int) -> None:
        self.first = np.zeros(entities, np.int64)
        self.any = np.zeros(entities, np.int64)
        self.bins = np.zeros(round(2 / BIN) + 1, np.int64)
        self.sum, self.rows = 0.0, 0

    def add(self, ids: np.ndarray, scores: np.ndarray) -> None:
        """Count rows: ids [rows, k] int32 and scores [rows, k] float32, the nearest first."""
        self.first += np.bincount(ids[:, 0], minlength=len(self.first))
        self.any += np.bincount(ids.ravel(), minlength=len(self.any))
        best = scores[:, 0].astype(np.float64)
        places = np.clip(np.rint((best + 1) / BIN), 0, len(self.bins) - 1).astype(np.int64)
        self.bins += np.bincount(places, minlength=len(self.bins))
        self.sum += float(best.sum())
        self.rows += len(ids)

    def entities(self, names: list[str], top: int) -> dict[str, Any]:
        """Frequencies in words; ties go by id."""
        order = np.argsort(-self.first, kind="stable")
        nearest = [place for place in order.tolist() if self.first[place]]
        used = int((self.any > 0).sum())
        return {
            "corpus": len(self.any),
            "used": used,
            "share_used": used / len(self.any),
            "first_of_any": len(nearest),
            "never": len(self.any) - used,
            "most": [self._entity(place, names) for place in nearest[:top]],
            "least": [self._entity(place, names) for place in nearest[::-1][:top]],
        }

    def _entity(self, place: int, names: list[str]) -> dict[str, Any]:
        counts = {"first": int(self.first[place]), "any": int(self.any[place])}
        return {"entity_id": place, "name": names[place], **counts}

    def scores(self) -> dict[str, Any]:
        """Mean, quantiles and a histogram of tenths, of the nearest entity's cosine."""
        if not self.rows:
            return {}
        below = np.searchsorted(self.bins.cumsum(), [q * self.rows for q in QUANTILES])
        values = {
            f"{q:g}": round(float(place) * BIN - 1, 3) for q, place in zip(QUANTILES, below, strict=True)
        }
        return {"mean": self.sum / self.rows, "quantiles": values}


def throughput(out: Path) -> dict[str, Any] | None:
    """Frames a second of one process and what its time went into, over the shards whose timings are known.

    Raises:
        AlignerError: not an alignments folder, or a damaged one.
    """
    manifest = artifact.read_manifest(out)
    done = [shard for shard in range(manifest["num_shards"]) if artifact.is_done(out, shard, manifest)]
    tokens = manifest["regions"] + 1
    spent: Counter[str] = Counter()
    rows = 0
    for shard in done:
        timings = artifact.read_timings(out, shard)
        if not timings.get("seconds"):
            continue
        spent.update({name: value for name, value in timings.items() if name != "attempt"})
        rows += (artifact.read_whole_marker(out, shard) or {})["rows"]
    if not spent["seconds"]:
        return None
    parts = ("encode", "match", "wait_decode", "wait_write")
    return {
        "frames_per_second": rows / tokens / spent["seconds"],
        "share": {name: spent[name] / spent["seconds"] for name in parts},
        "seconds": {name: round(value, 3) for name, value in sorted(spent.items())},
    }
