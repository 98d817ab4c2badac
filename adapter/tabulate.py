"""Recipes and results in words: the rows that papers print, and what was done."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from adapter.protocols import FIGURES, open_lists, part_videos
from adapter.recipes import find

Row = tuple[str, ...]
HEAD: Row = ("part", "videos", "missing", "classes", "top-1", "95 % interval", "top-5", "mean class")


def table_of(result: Mapping[str, Any]) -> list[Row]:
    """The rows that papers print, in per cent, a part a row and the recipe's statistic below."""
    several = len(result["runs"]) > 1
    rows = [HEAD]
    for part in result["parts"]:
        name = f"{part['part']}, {part['run']}" if several else part["part"]
        lost = len(part["missing"]) + len(part["failed"])
        counts = (str(part["n"]), str(lost), str(part["classes"]))
        figures = [_percent(part[figure]) for figure in FIGURES]
        rows.append((name, *counts, figures[0], _between(part["top1_interval"]), *figures[1:]))
    return rows + (_summary(result) if len(result["parts"]) > 1 else [])


def result_words(result: Mapping[str, Any]) -> str:
    """A result as text: the table, seen and unseen classes, and everything that was done."""
    lines = [f"{result['protocol']}, version {result['version']}: {result['about']}", ""]
    lines += _aligned_rows(table_of(result))
    lines += ["", *_seen_words(result["parts"]), *_calibration_words(result["parts"])]
    lines += [f"interval: {result['interval']}", f"published with: {result['published_views']}"]
    lines += [_run_words(run) for run in result["runs"]]
    lines += [
        f"list {file['name']}: {file['videos']} videos, {file['file']} (sha256 {file['sha256'][:16]}), classes "
        f"{file['classes_file']} ({file['classes_sha256'][:16]})"
        for file in result["lists"]
    ]
    lines += _lost_words(result["parts"])
    return "\n".join(lines + [f"note: {note}" for note in result["notes"]])


def comparison_words(result: Mapping[str, Any]) -> str:
    """A comparison as text: the difference of the whole, then each part with its tests."""
    lines = [
        f"{result['protocol']}, version {result['version']}: first - second {100 * result['difference']:+.2f} "
        f"points {_between(result['interval'])}"
    ]
    for name, part in result["parts"].items():
        if "mcnemar" in part:
            test = part["mcnemar"]
            p = f"McNemar p = {test['p']:.3g} ({test['only_first']} against {test['only_second']} videos)"
        else:
            p = f"sign flips over {part['runs']} runs p = {part['sign_flip_p']:.3g}"
        gap = f"{100 * part['difference']:+.2f} points {_between(part['interval'])}"
        lines.append(f"  {name}: {gap}, {p}, n = {part['n']}")
    return "\n".join(lines)


def recipe_json(name: str, root: Path | None = None) -> dict[str, Any]:
    """A recipe as data; with ``root``, its lists as found there and the size of every part."""
    recipe = find(name)
    found = asdict(recipe)
    if root is not None:
        lists = open_lists(recipe, root)
        found["lists"] = [listed.described() for listed in lists.values()]
        for entry, part in zip(found["parts"], recipe.parts, strict=True):
            scored = part_videos(part, lists)
            entry |= {"videos": len(scored.videos), "classes": len(scored.classes)}
    return found


def recipe_words(name: str, root: Path | None = None) -> str:
    """A recipe as text."""
    found = recipe_json(name, root)
    lines = [
        f"{found['name']}, version {found['version']}: {found['about']}",
        f"statistic: {found['statistic']}",
        f"published with: {found['views']}",
    ]
    if found["runs"] and not found["probe"]:
        lines.append(f"runs, in this order: {', '.join(found['runs'])}")
    for part in found["parts"]:
        drawn = f", draw {part['draw']['index']} of {part['draw']['scheme']}" if part["draw"] else ""
        train = f", trained on {' and '.join(part['train'])}" if part["train"] else ""
        size = f": {part['videos']} videos, {part['classes']} classes" if "videos" in part else ""
        lines.append(f"  {part['name']}: {' and '.join(part['test'])}{drawn}{train}{size}")
    for file in found.get("lists", ()):
        size = f"{file['videos']} videos"
        if file["published_videos"] not in (None, file["videos"]):
            size += f", as published {file['published_videos']}"
        lines.append(f"list {file['name']}: {file['file']}, {size}, sha256 {file['sha256']}")
    return "\n".join(lines)


def _summary(result: Mapping[str, Any]) -> list[Row]:
    table, between = result["table"], _between(result["top1_interval"])
    if result["statistic"] != "harmonic":
        first = table["top1"]
        return [_summary_row(f"mean ± std, {first['n']} {first['over']}", table, between)]
    halves = [
        _summary_row(f"{half}, mean ± std", {name: table[name][half] for name in FIGURES}, "")
        for half in ("base", "novel")
    ]
    means = [_percent(table[name]["harmonic_mean"]) for name in FIGURES]
    return [*halves, ("harmonic mean of the means", "", "", "", means[0], between, *means[1:])]


def _summary_row(name: str, table: Mapping[str, Mapping[str, float]], between: str) -> Row:
    words = [f"{_percent(table[f]['mean'])} ± {_percent(table[f]['std'])}" for f in FIGURES]
    return name, "", "", "", words[0], between, *words[1:]


def _aligned_rows(rows: Sequence[Row]) -> list[str]:
    widths = [max(len(row[i]) for row in rows) for i in range(len(HEAD))]
    return [
        "  ".join(
            [row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True))]
        ).rstrip()
        for row in rows
    ]


def _percent(value: float) -> str:
    return f"{100 * value:.1f}"


def _between(interval: Sequence[float]) -> str:
    return f"[{100 * interval[0]:.1f}, {100 * interval[1]:.1f}]"


def _seen_words(parts: Sequence[Mapping[str, Any]]) -> list[str]:
    return [
        f"{part['part']}: {word} classes {_percent(part[word]['top1'])} (among themselves "
        f"{_percent(part[word]['top1_among_own'])}; {part[word]['classes']} classes, n = {part[word]['n']})"
        for part in parts
        if "seen" in part and "unseen" in part
        for word in ("seen", "unseen")
    ]


def _calibration_words(parts: Sequence[Mapping[str, Any]]) -> list[str]:
    errors = ", ".join(_percent(part["calibration"]["ece"]) for part in parts)
    return [f"expected calibration error, by part: {errors}"]


def _run_words(run: Mapping[str, Any]) -> str:
    views = ", ".join(f"{key} {value}" for key, value in run.get("views", {}).items())
    if "run" not in run:
        return f"scores: {run['name']}"
    return f"run {run['name']} ({run['run'][:16]}): {views}, trained with seed {run['train_seed']}"


def _lost_words(parts: Sequence[Mapping[str, Any]]) -> list[str]:
    lines = []
    for part in parts:
        failed = [f"{video} ({why})" for video, why in part["failed"].items()]
        for word, lost in (("missing", part["missing"]), ("failed", failed)):
            if lost:
                more = f" and {len(lost) - 5} more" if len(lost) > 5 else ""
                counted = f"; as errors they give top-1 {_percent(part['top1_missing_wrong'])}"
                lines.append(f"{part['part']}: {len(lost)} {word}: {', '.join(lost[:5])}{more}{counted}")
    return lines
