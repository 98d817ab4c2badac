"""``alt report``: the report of an evaluated run, drawn again or for the first time, whichever way the run was made."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pipelines.config import ReportSection
from pipelines.errors import PipelineError, did_you_mean
from pipelines.predict import Source, find_source
from pipelines.workflow import Say

if TYPE_CHECKING:
    from pipelines.stages import Drawn


@dataclass(frozen=True)
class ByHand:
    """Where things are that a run made stage by stage does not know itself."""

    alignments: Path
    labels: Path
    videos_root: Path


def report_run(
    run: Path,
    evaluation: str | None = None,
    videos: int = 24,
    max_mb: float = 20.0,
    out: Path | None = None,
    by_hand: ByHand | None = None,
    device: str = "auto",
    say: Say = lambda line: None,
) -> Path:
    """Write the report of one evaluation of a run and return its path.

    ``run`` is the folder of an ``alt run`` or one of its ``runs/NAME``; or, with ``by_hand``, any run of the adapter.
    ``evaluation`` defaults to that of the config's report, else to the first that was made. ``out`` defaults to
    ``report.html`` in the folder.

    Raises:
        PipelineError: no such run or evaluation.
    """
    from pipelines import stages

    run = run.resolve()
    if by_hand is not None:
        out = (out or run / "report.html").resolve()
        name = _made(run, evaluation)
        drawn = _drawn_by_hand(run, name, by_hand, out)
        say(f"report: {stages.draw_report(drawn, f'{run.name} on {name}', [], videos, max_mb, device)}")
        return out
    source = find_source(run)
    config, layout = source.config, source.layout
    section = _section(source, evaluation, videos, max_mb)
    tables = stages.score_tables(config, layout)
    say(f"report: {stages.report(config, layout, tables, section, out and out.resolve())}")
    return out or layout.report


def _drawn_by_hand(run: Path, evaluation: str, given: ByHand, out: Path) -> "Drawn":
    from adapter.artifact import predictions_name
    from pipelines import stages

    options = f"--alignments {given.alignments} --labels {given.labels} --videos-root {given.videos_root}"
    return stages.Drawn(
        given.alignments,
        run,
        given.labels,
        run / predictions_name(evaluation),
        given.videos_root.resolve(),
        out,
        f"alt report {run.name} --evaluation {evaluation} {options}",
    )


def _section(source: Source, evaluation: str | None, videos: int, max_mb: float) -> ReportSection:
    """The report section of a run's config with what was asked for in place of what it says."""
    config, run = source.config, source.layout.run(source.adapter)
    wanted = evaluation or (config.report.evaluation if config.report else None)
    there = [item.name for item in config.evaluations if _is_made(run, item.name)]
    if wanted is None or (evaluation is None and wanted not in there):
        wanted = there[0] if there else None
    if wanted not in there:
        raise PipelineError(_no_evaluation(run, evaluation, there))
    return ReportSection(adapter=source.adapter, evaluation=wanted, videos=videos, max_mb=max_mb)


def _made(run: Path, evaluation: str | None) -> str:
    """The evaluation of that name, or the only one that a run has."""
    there = sorted(path.stem.removeprefix("eval-") for path in run.glob("eval-*.json"))
    there = [name for name in there if _is_made(run, name)]
    if evaluation is None and len(there) == 1:
        return there[0]
    if evaluation not in there:
        raise PipelineError(_no_evaluation(run, evaluation, there))
    return evaluation


def _is_made(run: Path, evaluation: str) -> bool:
    from adapter.artifact import predictions_name

    return (run / predictions_name(evaluation)).is_file()


def _no_evaluation(run: Path, asked: str | None, there: list[str]) -> str:
    if not there:
        return f"run {run.name} has no evaluation to report; make one with `alt run` or `adapter eval {run}`"
    hint = did_you_mean(asked, there) if asked else ""
    given = f"--evaluation {asked} is none of them{hint}" if asked else "give --evaluation"
    return f"run {run.name} was evaluated as {', '.join(there)}; {given}"
