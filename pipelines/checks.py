"""Whether a config can work: names that refer to nothing, inputs that are not there, settings that a stage refuses.

Everything that can be known before the first hour of work is asked here, and told in the config's own words.
"""

import re
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines.errors import USER_ERRORS, did_you_mean

if TYPE_CHECKING:
    from pipelines.config import AlignmentsSection, PipelineConfig

# Keys of the config at its top level, by which the stages' options of that name are meant.
TOP = ("model", "pretrained", "device", "out", "nltk_data", "lists")
_FLAG = re.compile(r"--([a-z][a-z-]*[a-z])")


def in_config_words(text: str, keys: Iterable[str]) -> str:
    """A stage's message with the config's keys in place of its options; commands in backticks stay as they are."""
    known = {*keys, *TOP}

    def key(flag: re.Match[str]) -> str:
        name = flag[1].replace("-", "_")
        return (
            name if name in known else name[3:] if name[3:] in known and name.startswith("no_") else flag[0]
        )

    parts = text.split("`")
    return "`".join(part if place % 2 else _FLAG.sub(key, part) for place, part in enumerate(parts))


def contradictions(config: "PipelineConfig") -> list[str]:
    """What a config says that cannot be, whatever lies on disk."""
    problems = _dangling(config) + _protocol_problems(config)
    problems += adapter_problems(config.adapters, config.alignments.store)
    return problems


# ------------------------------------------------------------------ names


def _dangling(config: "PipelineConfig") -> list[str]:
    """Names that refer to a label set, an adapter, alignments or an evaluation that is not there."""
    problems = [
        f"{where}: there is no '{name}'{did_you_mean(name, known) or '; there are ' + (', '.join(known) or 'none')}"
        for where, name, known in _references(config)
        if name not in known
    ]
    results = [item.name for item in config.evaluations], [item.name for item in config.protocols]
    names = (*config.labels, *config.adapters, *config.test_alignments, *results[0], *results[1])
    problems += [f"'{name}' cannot name a folder" for name in names if not _plain(name)]
    for what, listed in zip(("evaluations", "protocols"), results, strict=True):
        twice = dict.fromkeys(name for name in listed if listed.count(name) > 1)
        problems += [f"{what}: two are named '{name}'" for name in twice]
    return problems


def _references(config: "PipelineConfig") -> Iterator[tuple[str, str, list[str]]]:
    """Where a name stands, the name, and what it may be."""
    sets, adapters, tests = list(config.labels), list(config.adapters), list(config.test_alignments)
    evaluations = [item.name for item in config.evaluations]
    for name, adapter in config.adapters.items():
        yield f"adapters.{name}.labels", adapter.labels, sets
    for item in config.evaluations:
        yield f"evaluations.{item.name}.labels", item.labels, sets
        yield from ((f"evaluations.{item.name}.adapters", name, adapters) for name in item.adapters or ())
        if item.alignments is not None:
            yield f"evaluations.{item.name}.alignments", item.alignments, tests
    for protocol in config.protocols:
        yield f"protocols.{protocol.name}.labels", protocol.labels, sets
        yield from ((f"protocols.{protocol.name}.runs", name, adapters) for name in protocol.runs)
        if protocol.alignments is not None:
            yield f"protocols.{protocol.name}.alignments", protocol.alignments, tests
    if config.ablation:
        yield "ablation.labels", config.ablation.labels, sets
        if config.ablation.unseen is not None:
            yield "ablation.unseen", config.ablation.unseen, sets
    if config.report:
        yield "report.adapter", config.report.adapter, adapters
        yield "report.evaluation", config.report.evaluation, evaluations
        shown = next((item for item in config.evaluations if item.name == config.report.evaluation), None)
        if shown and shown.adapters is not None:
            yield "report.adapter (in its evaluation)", config.report.adapter, shown.adapters


def _plain(name: str) -> bool:
    return bool(name) and not name.startswith(".") and not set(name) & set("/\\")


def _protocol_problems(config: "PipelineConfig") -> list[str]:
    """Protocols that do not exist, lack their lists, or have another number of runs than they name."""
    from adapter.config import AdapterError
    from adapter.recipes import find

    problems = []
    named = [(f"protocols.{item.name}", item.published, item.runs) for item in config.protocols]
    named += [
        (f"{where}.protocols", name, []) for where, part in alignments_of(config) for name in part.protocols
    ]
    for where, name, runs in named:
        try:
            recipe = find(name)
        except AdapterError as error:
            problems.append(f"{where}: {error}")
            continue
        wanted = () if recipe.probe else recipe.runs
        if runs and wanted and len(runs) != len(wanted):
            problems.append(
                f"{where}.runs: {name} needs {len(wanted)} adapters, {', '.join(wanted)}; got {', '.join(runs)}"
            )
    if named and config.lists is None:
        problems.append("lists: missing; protocols need the folder of official lists")
    return problems


def adapter_problems(sections: Any, store: str = "fp16") -> list[str]:
    """Unknown or impossible options of the adapters, in the stage's own words."""
    from adapter.config import AdapterError, make_settings, without_regions

    problems = []
    for name, section in sections.items() if isinstance(sections, dict) else ():
        given = section if isinstance(section, dict) else getattr(section, "model_extra", None) or {}
        try:
            model = make_settings({key: value for key, value in given.items() if key != "labels"}).model
        except AdapterError as error:
            problems.append(f"adapters.{name}: {error}")
            continue
        if store == "topk" and model.reads_regions:
            problems.append(f"adapters.{name}: {without_regions(model, 'alignments')}")
    return problems


# ------------------------------------------------------------------ inputs


def alignments_of(config: "PipelineConfig") -> list[tuple[str, "AlignmentsSection"]]:
    """The alignments section and those to test on, each with its key."""
    tests = [(f"test_alignments.{name}", section) for name, section in config.test_alignments.items()]
    return [("alignments", config.alignments), *tests]


def missing_inputs(config: "PipelineConfig") -> list[str]:
    """Inputs that are not there, and settings that their stages would refuse."""
    inputs: list[tuple[str, Path | None]] = [
        (f"corpus.{name}", path) for name, path in config.corpus.files().items()
    ]
    inputs += [(f"labels.{name}.file", section.file) for name, section in config.labels.items()]
    inputs += [(f"{where}.videos", section.videos) for where, section in alignments_of(config)]
    inputs += [("nltk_data", config.nltk_data), ("lists", config.lists)]
    problems = [
        f"{where}: there is no {path}" for where, path in inputs if path is not None and not path.exists()
    ]
    problems += _split_problems(config)
    if config.corpus.labels is None and config.corpus.captions is None:
        problems.append("corpus: nothing to mine; give labels, captions or both")
    problems += _refused("corpus", config.corpus, config.corpus.settings)
    for where, section in alignments_of(config):
        problems += _refused(
            where,
            section,
            partial(section.settings, config, Path(), Path(), section.videos, section.videos_root),
        )
    for name, labels in config.labels.items():
        problems += _refused(f"labels.{name}", labels, labels.prompts)
    return problems


def _refused(where: str, section: Any, make: Callable[[], Any]) -> list[str]:
    """What a stage says against its settings, if anything."""
    try:
        make()
    except USER_ERRORS as error:
        return [f"{where}: {in_config_words(str(error), type(section).model_fields)}"]
    return []


def _split_problems(config: "PipelineConfig") -> list[str]:
    """Splits that no video has: better known before the work than after it."""
    problems: list[str] = []
    there: dict[str | None, set[str] | None] = {}
    for where, section in alignments_of(config):
        name = where.partition(".")[2] or None
        try:
            there[name] = _splits(config, section) if section.videos.exists() else None
        except USER_ERRORS as error:
            there[name] = None
            problems.append(f"{where}.videos: {in_config_words(str(error), type(section).model_fields)}")
    asked = [(f"evaluations.{item.name}.split", item.split, item.alignments) for item in config.evaluations]
    # Where no video names a split all of them are trained on, whatever split is asked for.
    if there[None]:
        asked += [
            (f"adapters.{name}.split", item.options().get("split", "train"), None)
            for name, item in config.adapters.items()
        ]
    for where, split, name in asked:
        known = there[name]
        if known is not None and split not in (None, "all", *known):
            listed = ", ".join(sorted(known)) or "none"
            problems.append(
                f"{where}: no video has split '{split}' (there are: {listed}); "
                "leave split out, or give all for every video"
            )
    return problems


def _splits(config: "PipelineConfig", section: "AlignmentsSection") -> set[str] | None:
    """The splits that the videos of a section are in; None where that cannot be told yet."""
    from adapter.config import AdapterError
    from adapter.recipes import find

    if section.protocols:
        try:
            found = {name for protocol in section.protocols for name in find(protocol).lists()}
        except AdapterError:
            return None
    else:
        from aligner.plan import make_plan

        plan = make_plan(section.videos, section.videos_per_shard, section.videos_root)
        found = {name for item in plan.items for name in item.splits if name}
    return found if section.splits is None else found & {*section.splits}
