"""Score runs on cached alignments for a protocol: every listed video once, by the run itself or by a probe of z."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from adapter.artifact import make_folder, protocol_name, scores_name, scores_table, write_json, write_table
from adapter.config import AdapterError
from adapter.dataset import Sample
from adapter.evaluate import Opened, open_all, represent, score_views
from adapter.lists import VideoList, keys, names_are_unique
from adapter.probe import Probe, fit_probe
from adapter.protocols import compare, open_lists, run_protocol
from adapter.ranks import Ranks, joined
from adapter.recipes import Recipe, find
from adapter.scoretable import ScoreTable, read_scores_file
from adapter.train import choose_device

# What of the aligner's settings says how a video was looked at.
_VIEWS = ("sampling", "frames", "stride", "draws", "clips", "crops", "seed")


def score_run(
    recipe: Recipe,
    lists: Mapping[str, VideoList],
    run: Path,
    alignments: Path,
    labels: Path,
    ranks: Ranks,
) -> list[ScoreTable]:
    """Scores of a run for the listed videos: one table, or one for each part of a linear probe."""
    opened = open_all(run, alignments, labels, ranks=ranks)
    if recipe.probe:
        return [
            _probed(opened, part.name, lists[part.train[0]], lists[part.test[0]]) for part in recipe.parts
        ]
    listed = [lists[name] for name in dict.fromkeys(name for part in recipe.parts for name in part.test)]
    samples = [Sample(video, -1) for video in _aligned(opened, listed)]
    if not samples:
        raise AdapterError(
            f"{alignments} holds none of the videos of {', '.join(one.name for one in listed)}, such as "
            f"{listed[0].videos[0]}; their file names must be those of the lists"
        )
    own = opened.labels.labels
    nothing = _table(opened, run.resolve().name, (), own, np.zeros((opened.alignments.views, 0, len(own))))
    for one in listed:
        nothing.columns(one.classes.names)  # Before the work, not after it.
    videos = tuple(sample.video_id for sample in samples)
    return [_table(opened, run.resolve().name, videos, own, score_views(opened, samples))]


def run_and_keep(
    name: str,
    sources: Sequence[Path],
    root: Path,
    alignments: Path | None = None,
    labels: Path | None = None,
    out: Path | None = None,
    device: str = "auto",
) -> dict[str, Any]:
    """Evaluate runs and files of scores by the protocol ``name`` on the lists below ``root``.

    The result is stored in every run, with its scores (those of a probe are not kept), and in ``out``. Lists are
    checked before anything is scored.
    """
    recipe = find(name)
    if out is not None and out.suffix != ".json":
        raise AdapterError(f"--out {out.name} ends in '{out.suffix}'; it must end in .json")
    with joined(choose_device(device)) as ranks:
        tables = _tables(recipe, sources, root, alignments, labels, ranks)
        result = run_protocol(recipe, tables, root)
        ranks.first(lambda: _keep(recipe, sources, tables, result, out))
    return result


def _keep(
    recipe: Recipe,
    sources: Sequence[Path],
    tables: Sequence[ScoreTable],
    result: dict[str, Any],
    out: Path | None,
) -> None:
    if out is not None:
        make_folder(out.parent)
        write_json(out, result)
    for i, run in enumerate(sources):
        if run.is_dir() and not recipe.probe:
            scores = tables[i].scores.astype(np.float32)
            table = scores_table(tables[i].video_ids, tables[i].labels, scores)
            write_table(run / scores_name(recipe.name), table)
        if run.is_dir():
            write_json(run / protocol_name(recipe.name), result)


def compare_sources(
    name: str,
    first: Sequence[Path],
    second: Sequence[Path],
    root: Path,
    alignments: Path | None = None,
    labels: Path | None = None,
    device: str = "auto",
) -> dict[str, Any]:
    """Compare two models by the protocol ``name``: as many runs or files of scores each, in pairs."""
    recipe = find(name)
    with joined(choose_device(device)) as ranks:
        tables = [_tables(recipe, sources, root, alignments, labels, ranks) for sources in (first, second)]
    return compare(recipe, tables[0], tables[1], root)


def _tables(
    recipe: Recipe,
    sources: Sequence[Path],
    root: Path,
    alignments: Path | None,
    labels: Path | None,
    ranks: Ranks,
) -> list[ScoreTable]:
    lists = open_lists(recipe, root)
    tables: list[ScoreTable] = []
    for source in sources:
        if not source.is_dir():
            tables.append(read_scores_file(source))
        elif alignments is None or labels is None:
            raise AdapterError(f"{source} is a run; give --alignments and --labels to score it with")
        else:
            tables += score_run(recipe, lists, source, alignments, labels, ranks)
    return tables


def _probed(opened: Opened, part: str, train: VideoList, test: VideoList) -> ScoreTable:
    """Scores of a linear classifier of z; videos of the training list that are not aligned are left out."""
    fitted, scored = _aligned(opened, [train]), _aligned(opened, [test])
    lost = sorted(set(train.labels) - set(fitted.values()))
    if lost or not scored:
        what = f"training videos of {', '.join(lost[:5])}" if lost else f"videos of {test.name}"
        raise AdapterError(
            f"part {part}: {opened.alignments.path} holds no {what}; align the videos of {train.file} and "
            f"{test.file}"
        )
    classes = list(train.classes.names)
    y = np.array([classes.index(name) for name in fitted.values()], np.int64)
    probe: Probe = fit_probe(represent(opened, list(fitted)), y, list(fitted), len(classes))
    table = _table(
        opened,
        f"probe of {opened.run.path.resolve().name} for {part}",
        tuple(scored),
        tuple(classes),
        probe.logits(represent(opened, list(scored)))[None],
    )
    about = {
        **table.about,
        "probe": {"penalty": probe.penalty, "videos": len(fitted), "listed": len(train.videos)},
    }
    return replace(table, trained_on=table.trained_on | frozenset(fitted), about=about)


def _aligned(opened: Opened, lists: Sequence[VideoList]) -> dict[str, str]:
    """Aligned videos that are on one of the lists, each with its class by the list."""
    found: dict[str, str] = {}
    videos = [video.video_id for video in opened.alignments.plan if video.video_id in opened.alignments.index]
    for one in lists:
        by_name = names_are_unique(one.videos)
        listed = dict(zip(keys(one.videos, by_name), one.labels, strict=True))
        found |= {
            video: listed[key]
            for video, key in zip(videos, keys(videos, by_name), strict=True)
            if key in listed
        }
    return found


def _table(
    opened: Opened, name: str, videos: tuple[str, ...], labels: tuple[str, ...], logits: np.ndarray
) -> ScoreTable:
    run, alignments = opened.run, opened.alignments
    settings = alignments.manifest["config"]
    about = {
        "run": run.manifest["fingerprint"],
        "alignments": alignments.fingerprint,
        "labels": opened.labels.fingerprint,
        "same_corpus": opened.same_corpus(),
        "train_seed": run.config["seed"],
        "views": {key: settings[key] for key in _VIEWS if settings.get(key) is not None},
        "random_weights": bool(alignments.model.get("random_weights")),
    }
    return ScoreTable(
        name,
        videos,
        labels,
        logits.astype(np.float64),
        dict(alignments.failed),
        {video.video_id: video.label for video in alignments.plan if video.label},
        frozenset(run.trained_on()),
        tuple(run.train_labels),
        about,
    )
