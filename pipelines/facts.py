"""What a reader needs to repeat or to doubt a report: run facts, and warnings that it must carry in plain sight."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

SHOWN = 12  # hexadecimal digits of a hash
REASONS = 8  # of failed videos, named


def facts(
    manifest: dict[str, Any], alignments: Path, run: Path, labels: Path, command: str
) -> dict[str, str]:
    """Model, data, throughput, what was left out and why, hashes, and the command that makes it again.

    ``manifest`` is that of ``alignments``; ``run`` and ``labels`` are the artifacts that the predictions are of.
    """
    model, corpus = manifest["model"], manifest["corpus"]
    counts = manifest["counts"]
    return {
        "model": f"{model['name']}, pretrained {model['pretrained'] or 'in the folder'}",
        "alignments": f"{manifest['videos']} videos, {manifest['frames']} frames, "
        f"{manifest['patches']} patches merged to {manifest['regions']} regions, top-{manifest['top_k']} of "
        f"{corpus['entities']} entities",
        "plan": ", ".join(
            f"{name} {value}" for name, value in counts.items() if not isinstance(value, dict | list)
        ),
        "throughput": _throughput(alignments),
        "skipped": skipped(alignments),
        "adapter": _adapter(run),
        "hashes": "\n".join(
            f"{name} {value[:SHOWN]}"
            for name, value in (
                ("weights", model["weights_sha256"]),
                ("corpus", corpus["fingerprint"]),
                ("alignments", manifest["fingerprint"]),
                ("labels", _fingerprint(labels)),
                ("run", _fingerprint(run)),
            )
        ),
        "packages": ", ".join((manifest["package"], _manifest(run).get("package", ""))).strip(", "),
        "repeat with": command,
    }


def skipped(alignments: Path) -> str:
    """How many videos gave nothing, by reason."""
    from aligner.artifact import all_failures

    reasons = Counter(f"{row['stage']}: {row['error']}" for row in all_failures(alignments))
    named = [f"{count} {reason}" for reason, count in reasons.most_common(REASONS)]
    more = sum(reasons.values()) - sum(count for _, count in reasons.most_common(REASONS))
    return ", ".join(named + ([f"{more} for other reasons"] if more else [])) or "no video"


def _throughput(alignments: Path) -> str:
    from aligner.stats import throughput

    found = throughput(alignments)
    if found is None:
        return "not known"
    share = ", ".join(
        f"{name.replace('_', ' for ')} {part:.0%}" for name, part in found["share"].items() if part >= 0.005
    )
    return f"{found['frames_per_second']:.1f} frames/s a process while aligning ({share} of the time)"


def _adapter(run: Path) -> str:
    manifest = _manifest(run)
    if not manifest:
        return "none"
    config = manifest.get("config", {})
    said = [
        run.name,
        f"model {config.get('model', '?')}",
        f"{manifest.get('parameters', 0) / 1e6:.2f} M parameters",
    ]
    if manifest.get("parameters"):
        said.append(f"best epoch {manifest.get('best_epoch')} of {config.get('epochs')}")
    return ", ".join(said)


def _manifest(folder: Path) -> dict[str, Any]:
    try:
        found = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _fingerprint(folder: Path) -> str:
    return str(_manifest(folder).get("fingerprint", "unknown"))


def notices(manifest: dict[str, Any]) -> list[str]:
    """Warnings that a report must carry in plain sight."""
    found, views = [], len(manifest.get("views", [None]))
    if manifest["model"]["random_weights"]:
        found.append(
            "The vision-language model has random weights (--pretrained none): this shows the plumbing, nothing else."
        )
    if views > 1:
        found.append(
            f"Pictures, regions and effects are those of the first of {views} views of each video; predictions are the "
            "mean over all views."
        )
    return found
