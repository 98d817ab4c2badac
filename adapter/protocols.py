"""Run a recipe: official lists and scores of videos in, the table that papers print out.

Scores are a table of videos by classes for each view, of a run or of any other model, over all candidates or more. A
part of a recipe takes its videos and its candidates out of it, so a video is scored once for all parts. Videos that are
not there are counted and named, never replaced.
"""

import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float64

from adapter.config import AdapterError
from adapter.evaluate import Scores, harmonic_mean, ranks, summarise
from adapter.labels import name_key, spaced_name
from adapter.lists import (
    VideoList,
    has_classes,
    keys,
    names_are_unique,
    open_classes,
    open_list,
    shared_videos,
)
from adapter.measures import interval, paired, resampled, spread
from adapter.recipes import Draw, Part, Recipe
from adapter.scoretable import ScoreTable

FIGURES = ("top1", "top5", "mean_class_accuracy")
Lists = Mapping[str, VideoList]


@dataclass(frozen=True)
class PartVideos:
    """Videos of a part, each with its class; ``keys`` are what videos are compared by."""

    videos: tuple[str, ...]
    labels: tuple[str, ...]
    classes: tuple[str, ...]
    keys: tuple[str, ...]
    by_name: bool


@dataclass(frozen=True)
class PartResult:
    """What a part came to: the keys of its scored videos, which were right, and all figures."""

    part: Part
    keys: tuple[str, ...]
    hits: Bool[np.ndarray, " videos"]
    figures: dict[str, Any]


def open_lists(recipe: Recipe, root: Path) -> dict[str, VideoList]:
    """All lists of a recipe, checked, so that nothing is scored before they are."""
    lists = {name: open_list(root, name, recipe.as_numbered) for name in recipe.lists()}
    for part in recipe.parts:
        part_videos(part, lists)
    return lists


def part_videos(part: Part, lists: Lists) -> PartVideos:
    """Videos and candidates of a part; refuses a video listed twice, and one of training among them."""
    parts = [lists[name] for name in part.test]
    videos = [video for one in parts for video in one.videos]
    # The first list that names a class spells it.
    spelling: dict[str, str] = {}
    for one in parts:
        for name in one.classes.names:
            spelling.setdefault(name_key(name), name)
    spelled = [{name: spelling[name_key(name)] for name in one.classes.names} for one in parts]
    labels = [names[label] for one, names in zip(parts, spelled, strict=True) for label in one.labels]
    by_name = all(names_are_unique(one.videos) for one in parts)
    found = keys(videos, by_name)
    if twice := [key for key, n in Counter(found).items() if n > 1]:
        raise AdapterError(f"{' and '.join(part.test)} both list {len(twice)} videos, such as {twice[:3]}")
    for name in part.train:
        _check_training(part, lists[name], videos)
    classes = tuple(spelling.values())
    if part.draw:
        classes = tuple(classes[i] for i in drawn(part.draw, len(classes)))
    candidates = set(classes)
    kept = [i for i, label in enumerate(labels) if label in candidates]
    pick = lambda values: tuple(values[i] for i in kept)  # noqa: E731
    return PartVideos(pick(videos), pick(labels), classes, pick(found), by_name)


def drawn(draw: Draw, n: int) -> list[int]:
    """The classes of a published draw of floor(n / 2) of n, ascending."""
    if draw.scheme == "numpy":
        order = np.random.RandomState(draw.index).permutation(n).tolist()
        return sorted(order[: n // 2])
    stream = random.Random(2023)
    for _ in range(draw.index + 1):
        order = list(range(n))
        stream.shuffle(order)
    return sorted(order[: n // 2])


def run_protocol(recipe: Recipe, tables: Sequence[ScoreTable], root: Path) -> dict[str, Any]:
    """Evaluate scores by a recipe on the lists below ``root``.

    ``tables`` are the runs that the recipe names, in its order; a recipe that names none takes one or more
    (seeds), evaluated alike. The result can be stored as JSON and shown with ``table_of``.
    """
    lists = open_lists(recipe, root)
    results = _evaluate(recipe, tables, lists, root)
    flat = [result for group in results for result in group]
    files = [listed.described() for listed in lists.values()]
    return {
        "protocol": recipe.name,
        "version": recipe.version,
        "about": recipe.about,
        "statistic": recipe.statistic,
        "published_views": recipe.views,
        "table": {name: _figure(recipe, results, name) for name in FIGURES},
        "top1_interval": interval(_bootstrapped(recipe, flat)),
        "interval": "95 % bootstrap over videos, 1000 draws; training seeds are not in it",
        "parts": [result.figures for result in flat],
        "lists": files,
        "runs": [{"name": table.name, **table.about} for table in tables],
        "notes": _notes(recipe, tables, files, root),
    }


def compare(
    recipe: Recipe, first: Sequence[ScoreTable], second: Sequence[ScoreTable], root: Path
) -> dict[str, Any]:
    """Two models on a recipe, paired by video (and by run): difference, interval and tests for each part.

    Runs are paired in the order given. ``sign_flip_p`` is exact over runs; with one run McNemar's test is over
    videos. Videos that only one model scored raise.
    """
    if len(first) != len(second):
        raise AdapterError(f"{len(first)} runs against {len(second)}; runs are compared in pairs")
    lists = open_lists(recipe, root)
    ones, others = (
        [result for group in _evaluate(recipe, tables, lists, root) for result in group]
        for tables in (first, second)
    )
    pairs: dict[str, list[tuple[PartResult, PartResult]]] = {}
    for one, other in zip(ones, others, strict=True):
        if one.keys != other.keys:
            raise AdapterError(
                f"part {one.part.name}: {len(set(one.keys) ^ set(other.keys))} videos are scored by one of the "
                "two models only; compare them on the same videos"
            )
        pairs.setdefault(one.part.name, []).append((one, other))
    gap = _bootstrapped(recipe, ones) - _bootstrapped(recipe, others)
    return {
        "protocol": recipe.name,
        "version": recipe.version,
        "difference": _headline(recipe, ones) - _headline(recipe, others),
        "interval": interval(gap),
        "parts": {name: _paired(found) for name, found in pairs.items()},
    }


# ------------------------------------------------------------------ parts


def _evaluate(
    recipe: Recipe, tables: Sequence[ScoreTable], lists: Lists, root: Path
) -> list[list[PartResult]]:
    """A group of results for each set of runs: one set where the recipe names its runs, else one a run."""
    _check_runs(recipe, tables)
    source = _source_classes(recipe, root)
    groups = [tables] if recipe.runs else [[table] for table in tables]
    return [
        [
            _part(recipe, part, part_videos(part, lists), group[part.run], lists, source)
            for part in recipe.parts
        ]
        for group in groups
    ]


def _check_runs(recipe: Recipe, tables: Sequence[ScoreTable]) -> None:
    if recipe.runs and len(tables) != len(recipe.runs):
        raise AdapterError(
            f"{recipe.name} needs {len(recipe.runs)} runs in this order: {', '.join(recipe.runs)}; got "
            f"{len(tables)}"
        )
    if not tables:
        raise AdapterError(f"{recipe.name} needs at least one run or file of scores")
    for table in tables:
        brackets = [label for label in table.labels if "[" in label or "]" in label]
        if recipe.plain_templates and brackets:
            raise AdapterError(
                f"{table.name} was scored with templates in brackets, such as '{brackets[0]}'; {recipe.name} "
                "takes them without: make the label set from the published file of classes"
            )


def _source_classes(recipe: Recipe, root: Path) -> tuple[str, ...] | None:
    if recipe.source and has_classes(root, recipe.source):
        return open_classes(root, recipe.source).names
    return None


def _part(
    recipe: Recipe,
    part: Part,
    listed: PartVideos,
    table: ScoreTable,
    lists: Lists,
    source: tuple[str, ...] | None,
) -> PartResult:
    if recipe.statistic == "harmonic" and part.group == "novel" and table.train_labels:
        _check_novel(part, listed, table)
    _refuse_trained(part, listed, table)
    rows = table.rows(listed.keys, listed.by_name)
    kept = [i for i, row in enumerate(rows) if row is not None]
    if not kept:
        raise AdapterError(
            f"{table.name} has none of the {len(rows)} videos of part {part.name}, such as {listed.videos[0]}; "
            "their file names must be those of the lists"
        )
    if not recipe.as_numbered:
        _check_known(part, listed, table, rows)
    place = {name: i for i, name in enumerate(listed.classes)}
    truth = np.array([place[listed.labels[i]] for i in kept], np.int64)
    logits = table.logits([row for row in rows if row is not None], listed.classes)
    videos = tuple(listed.keys[i] for i in kept)
    scores = Scores(videos, truth, logits)
    figures = {
        "part": part.name,
        "run": table.name,
        **_figures(scores, listed.classes, table.train_labels or source),
        **_account(part, listed, table, rows, lists),
    }
    hits = ranks(scores.logits, truth) == 0
    lost = len(rows) - len(kept)
    figures["top1_missing_wrong"] = float(hits.sum() / (len(hits) + lost))
    return PartResult(part, videos, hits, figures)


def _figures(scores: Scores, classes: Sequence[str], trained: Sequence[str] | None) -> dict[str, Any]:
    known = {name_key(name) for name in trained or ()}
    seen = np.array([name_key(name) in known for name in classes])
    found = summarise(scores, [spaced_name(name) for name in classes], seen, np.ones(len(classes), bool))
    if trained is None:
        for name in ("seen", "unseen", "harmonic_mean"):
            found.pop(name, None)
        found["per_class"] = [{k: v for k, v in row.items() if k != "seen"} for row in found["per_class"]]
    return found


def _account(
    part: Part, listed: PartVideos, table: ScoreTable, rows: Sequence[int | None], lists: Lists
) -> dict[str, Any]:
    """Which listed videos have no scores, and how the run's training videos compare with the list's."""
    failed = dict(zip(keys(list(table.failed), listed.by_name), table.failed.values(), strict=True))
    lost = [(listed.videos[i], listed.keys[i]) for i, row in enumerate(rows) if row is None]
    found: dict[str, Any] = {
        "listed": len(rows),
        "missing": [video for video, key in lost if key not in failed],
        "failed": {video: failed[key] for video, key in lost if key in failed},
        "candidates": [spaced_name(name) for name in listed.classes],
    }
    if part.train and table.trained_on:
        train = [video for name in part.train for video in lists[name].videos]
        both = len(shared_videos(sorted(table.trained_on), train))
        found["training"] = {"listed": len(train), "run": len(table.trained_on), "both": both}
    return found


def _check_training(part: Part, train: VideoList, videos: Sequence[str]) -> None:
    if shared := shared_videos(train.videos, videos):
        raise AdapterError(
            f"part {part.name}: {len(shared)} of the {len(train.videos)} training videos of {train.name} "
            f"({train.file}) are tested too, such as {shared[:3]}; a video cannot do both"
        )
    count = Counter(train.labels)
    if part.shots and (other := {name: n for name, n in count.items() if n != part.shots}):
        name, n = next(iter(other.items()))
        raise AdapterError(
            f"{train.file} should hold {part.shots} videos of each class; it holds {n} of '{name}'"
            f"{f' and another number of {len(other) - 1} more' if len(other) > 1 else ''}"
        )


def _check_novel(part: Part, listed: PartVideos, table: ScoreTable) -> None:
    trained = {name_key(name) for name in table.train_labels or ()}
    if known := [name for name in listed.classes if name_key(name) in trained]:
        raise AdapterError(
            f"part {part.name}: {table.name} was trained on {len(known)} of the novel classes, such as "
            f"'{known[0]}'; train it on the base classes alone"
        )


def _refuse_trained(part: Part, listed: PartVideos, table: ScoreTable) -> None:
    if shared := shared_videos(sorted(table.trained_on), listed.videos):
        raise AdapterError(
            f"part {part.name}: {len(shared)} of its {len(listed.videos)} videos trained {table.name} or chose "
            f"its epoch, such as {shared[:3]}; train it without them"
        )


def _check_known(part: Part, listed: PartVideos, table: ScoreTable, rows: Sequence[int | None]) -> None:
    """The labels that came with the videos must not contradict the list: a check of the numbers of classes."""
    candidates = {name_key(name) for name in listed.classes}
    for i, row in enumerate(rows):
        label = None if row is None else table.known.get(table.video_ids[row])
        if label and name_key(label) in candidates and name_key(label) != name_key(listed.labels[i]):
            raise AdapterError(
                f"part {part.name}: {listed.videos[i]} is '{listed.labels[i]}' by the list and '{label}' by the "
                "alignments; is the file of classes the one that was published with the list?"
            )


# ------------------------------------------------------------------ statistics


def _statistic(recipe: Recipe, parts: Sequence[Part], values: np.ndarray) -> Any:
    """The recipe's statistic over the last axis, one value a part."""
    if recipe.statistic != "harmonic":
        return values.mean(-1)
    base, novel = (
        values[..., [i for i, part in enumerate(parts) if part.group == group]].mean(-1)
        for group in ("base", "novel")
    )
    return np.vectorize(harmonic_mean)(base, novel)


def _headline(recipe: Recipe, results: Sequence[PartResult], name: str = "top1") -> float:
    values = np.array([result.figures[name] for result in results], np.float64)
    return float(_statistic(recipe, [result.part for result in results], values))


def _bootstrapped(recipe: Recipe, results: Sequence[PartResult]) -> Float64[np.ndarray, " draws"]:
    draws = resampled([(result.keys, result.hits) for result in results])
    return _statistic(recipe, [result.part for result in results], draws)


def _figure(recipe: Recipe, groups: Sequence[Sequence[PartResult]], name: str) -> dict[str, Any]:
    """A figure of the whole: over parts within a run, over runs where there are several."""
    if recipe.statistic == "harmonic":
        halves = {
            half: spread([r.figures[name] for r in groups[0] if r.part.group == half])
            for half in ("base", "novel")
        }
        return {**halves, "harmonic_mean": _headline(recipe, groups[0], name)}
    if len(groups) > 1:
        return {**spread([_headline(recipe, group, name) for group in groups]), "over": "runs"}
    values = [result.figures[name] for result in groups[0]]
    over = groups[0][0].part.name.split()[0] + "s"
    return {**spread(values), "over": over if len(values) > 1 else ""}


def _paired(found: Sequence[tuple[PartResult, PartResult]]) -> dict[str, Any]:
    return paired(*(np.stack([pair[side].hits for pair in found]) for side in (0, 1)))


def _notes(
    recipe: Recipe, tables: Sequence[ScoreTable], files: Sequence[Mapping[str, Any]], root: Path
) -> list[str]:
    notes = [
        f"{file['name']} lists {file['videos']} videos, as published it has {file['published_videos']}"
        for file in files
        if file["published_videos"] not in (None, file["videos"])
    ]
    if any(table.about.get("random_weights") for table in tables):
        notes.append("the vision-language model has random weights; these figures mean nothing")
    unknown = [table.name for table in tables if table.train_labels is None]
    if recipe.source and unknown and not has_classes(root, recipe.source):
        notes.append(
            f"seen and unseen classes are not told apart for {', '.join(unknown)}: the lists lack the classes of "
            f"{recipe.source}"
        )
    if recipe.as_numbered:
        notes.append("classes have the names that the published file gives to their numbers, errors included")
    return notes
