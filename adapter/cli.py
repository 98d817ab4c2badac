"""The ``adapter`` command; every command makes a config and calls one function."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from adapter import __version__
from adapter.cli_ablate import ablate_cli
from adapter.cli_protocols import app as protocol_app
from adapter.config import AdapterError, combine, help_of, make_settings, parse_assignments, read_config
from adapter.options import Commands, friendly

app = typer.Typer(
    name="adapter",
    cls=Commands,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)

Alignments = Annotated[Path, typer.Option(help="Alignments folder, from `aligner run`.")]
LabelSet = Annotated[Path, typer.Option(help="Label set folder, from `corpus-builder labels`.")]
RunFolder = Annotated[Path, typer.Argument(help="Run folder, from `adapter train`.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
Blend = Annotated[
    float, typer.Option(help="Share of zero-shot CLIP's log-probabilities mixed in late, 0 to 1.")
]


def _version(asked: bool) -> bool:
    if asked:
        typer.echo(f"adapter {__version__}")
        raise typer.Exit
    return asked


@app.callback()
def main(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Train and evaluate a video adapter on cached alignments: entities ask, the video answers.

    Needs an alignments folder (`aligner run`) and a label set (`corpus-builder labels`) of one
    vision-language model; no CLIP is loaded here.
    """


def _knob(name: str) -> Any:
    """An optional command-line option for a config field, described by the field's own sentence."""
    return typer.Option(None, help=help_of(name), show_default=False)


@app.command("train")
@friendly
def train_cli(
    alignments: Alignments,
    labels: LabelSet,
    out: Annotated[Path, typer.Option(help="Folder of the new run.")],
    recipe: str | None = _knob("recipe"),
    variant: str | None = _knob("variant"),
    model: str | None = _knob("model"),
    queries: str | None = _knob("queries"),
    identities: str | None = _knob("identities"),
    context: str | None = _knob("context"),
    residual: str | None = _knob("residual"),
    noise: str | None = _knob("noise"),
    scale: float | None = _knob("scale"),
    blocks: int | None = _knob("blocks"),
    width: int | None = _knob("width"),
    whiten_labels: bool | None = _knob("whiten_labels"),
    epochs: int | None = _knob("epochs"),
    lr: float | None = _knob("lr"),
    batch_size: int | None = _knob("batch_size"),
    shots: int | None = _knob("shots"),
    views: str | None = _knob("views"),
    split: str | None = _knob("split"),
    val_split: str | None = _knob("val_split"),
    val_fraction: float | None = _knob("val_fraction"),
    cache_gb: float | None = _knob("cache_gb"),
    seed: int | None = _knob("seed"),
    device: str | None = _knob("device"),
    precision: str | None = _knob("precision"),
    accumulate: int | None = _knob("accumulate"),
    class_weights: str | None = _knob("class_weights"),
    ema: float | None = _knob("ema"),
    wise_alpha: float | None = _knob("wise_alpha"),
    save_every: int | None = _knob("save_every"),
    tracker: str | None = _knob("tracker"),
    config: Annotated[
        Path | None, typer.Option(help="TOML or JSON file of options, such as a run's config.json.")
    ] = None,
    assign: Annotated[
        list[str] | None, typer.Option("--set", help="Any other option, NAME=VALUE; repeatable.")
    ] = None,
    resume: Annotated[
        str,
        typer.Option(
            help="An unfinished training in --out: auto goes on where config and inputs are equal (else an error), "
            "never refuses, restart goes on or else replaces."
        ),
    ] = "auto",
    force: Annotated[
        bool, typer.Option("--force", help="Replace a run that is there already, finished or not.")
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress on stderr.")] = False,
    as_json: Json = False,
) -> None:
    """Train a model on cached alignments.

    Order of precedence: recipe, then variant, then --config, then --set, then the other options. The validation split
    chooses the epoch (part of the training split is held out without one); the test split is never read.
    """
    given = {k: v for k, v in locals().items() if k not in _NOT_SETTINGS and v is not None}
    options = {**parse_assignments(assign or []), **given}
    settings = make_settings(combine(read_config(config), options) if config else options)
    from adapter.ranks import leads
    from adapter.train import train

    report = train(
        alignments, labels, out, settings, force, None if quiet or as_json else _echo_epoch, resume
    )
    if leads():
        typer.echo(json.dumps(report.to_json(), sort_keys=True) if as_json else _train_words(report))


@app.command("eval")
@friendly
def eval_cli(
    run: RunFolder,
    alignments: Alignments,
    labels: LabelSet,
    split: Annotated[
        str | None,
        typer.Option(
            help="Split to score; 'all' takes every video. Default: test, or all where no video names a "
            "split (the result then says how many of them were trained on)."
        ),
    ] = None,
    name: Annotated[str | None, typer.Option(help="Name of the result's files; default: the split.")] = None,
    candidates: Annotated[str, typer.Option(help="all, seen or unseen labels (and their videos).")] = "all",
    reverse_time: Annotated[
        bool, typer.Option("--reverse-time", help="Play the videos backwards: does order matter?")
    ] = False,
    blend: Blend = 0.0,
    head: Annotated[
        str,
        typer.Option(
            help="What z is scored by: text, or videos that the run was trained on: probe (logistic regression), knn, "
            "tip (Tip-Adapter's cache). With --model mean_pool these are the baselines without training."
        ),
    ] = "text",
    sensitivity: Annotated[
        bool,
        typer.Option(
            "--sensitivity",
            help="Score again with frames reversed and shuffled, and aligned to scenes or objects alone.",
        ),
    ] = False,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Score a run on a split: top-1, top-5, per class, confusions, calibration, seen and unseen labels, cost.

    The label set need not be the one trained on: labels never seen make it zero-shot, a mixture generalised
    zero-shot with the harmonic mean. Every video counts once; failed and unlabelled ones are reported.
    """
    from adapter.evaluate import evaluate
    from adapter.ranks import leads

    result = evaluate(
        run, alignments, labels, split, name, candidates, reverse_time, blend, device, head, sensitivity
    )
    if leads():
        typer.echo(json.dumps(result, sort_keys=True) if as_json else _eval_words(result))


@app.command("predict")
@friendly
def predict_cli(
    run: RunFolder,
    alignments: Alignments,
    labels: LabelSet,
    out: Annotated[Path, typer.Option(help="File to write: .parquet, .csv or .json.")],
    topk: Annotated[int, typer.Option("--top", help="Labels to list for each video.")] = 5,
    blend: Blend = 0.0,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Predict every aligned video, labelled or not."""
    from adapter.evaluate import predict
    from adapter.ranks import leads

    counts = predict(run, alignments, labels, out, topk, blend, device)
    if leads():
        words = (
            f"{out}: {counts['predicted']} of {counts['planned']} videos predicted, {counts['failed']} failed"
        )
        typer.echo(json.dumps(counts | {"out": str(out)}, sort_keys=True) if as_json else words)


@app.command("explain")
@friendly
def explain_cli(
    run: RunFolder,
    alignments: Alignments,
    labels: LabelSet,
    out: Annotated[Path, typer.Option(help="File to write: .json.")],
    video: Annotated[
        list[str] | None, typer.Option(help="Video id to explain; repeatable. Default: all.")
    ] = None,
    max_videos: Annotated[int, typer.Option(help="At most so many videos; 0 = all.")] = 0,
    max_entities: Annotated[int, typer.Option(help="Leave out at most so many entities a video.")] = 24,
    attention: Annotated[
        bool, typer.Option("--attention", help="Add the cross-attention on each frame's tokens.")
    ] = False,
    split: Annotated[str | None, typer.Option(help="Only videos of this split. Default: all.")] = None,
    regions: Annotated[
        bool,
        typer.Option("--regions", help="Leave out every region on its own, too (slow for many regions)."),
    ] = False,
    deletion: Annotated[
        bool,
        typer.Option(
            "--deletion",
            help="Instead, test the attributions: leave out the k parts that each ranks first, and k random ones.",
        ),
    ] = False,
    device: Device = "auto",
) -> None:
    """Say which entities, frames and regions carried each prediction, by leaving each out.

    The effect of a part is how far the predicted class's logit falls without it. --attention adds where the
    model looked, which need not be what mattered; --deletion measures how far either can be trusted.
    """
    from adapter.deletion import deletion_test
    from adapter.explain import explain, explain_to_file, write_explanation

    if deletion:
        test = deletion_test(run, alignments, labels, video, split, max_videos, device).to_json()
        write_explanation(out, test)
        typer.echo(_deletion_words(test))
        return
    explanations = explain(
        run, alignments, labels, video, max_videos, max_entities, attention, device, split, regions
    )
    explain_to_file(out, explanations)
    for explanation in explanations[:_SHOWN]:
        typer.echo(_explanation_words(explanation))
    typer.echo(f"{out}: {len(explanations)} videos explained")


@app.command("describe")
@friendly
def describe_cli(
    run: Annotated[
        Path | None, typer.Argument(help="Run folder; without one, the form that the options name.")
    ] = None,
    alignments: Annotated[
        Path | None,
        typer.Option(help="Alignments folder: takes frames, regions, merging and entities from it."),
    ] = None,
    variant: str | None = _knob("variant"),
    blocks: int | None = _knob("blocks"),
    assign: Annotated[
        list[str] | None, typer.Option("--set", help="Any other option of the model, NAME=VALUE; repeatable.")
    ] = None,
    tower: Annotated[
        str | None, typer.Option(help="Encoder: ViT-B-16, ViT-L-14 ... or WIDTH,LAYERS,PATCH,IMAGE,DIM.")
    ] = None,
    frames: Annotated[int | None, typer.Option(help="Frames of a view; default 8.")] = None,
    merge: Annotated[int | None, typer.Option(help="Token pairs merged in every block; default 8.")] = None,
    entities: Annotated[
        int | None, typer.Option(help="Entities that a token is compared with; default 10,000.")
    ] = None,
    classes: Annotated[
        int | None, typer.Option(help="Classes scored, which cost with readout=labels alone; default 400.")
    ] = None,
    views: Annotated[int, typer.Option(help="Views of a video: clips times crops.")] = 1,
    as_json: Json = False,
) -> None:
    """Print the parameters of a model by part, and GMACs per view (the papers' "GFLOPs") times views.

    The cost is that of the whole method on a video: encoder with merging, alignment, adapter. On cached
    alignments only the adapter's share is paid again.
    """
    form = {"variant": variant, "blocks": blocks, **parse_assignments(assign or [])}
    chosen = {name: value for name, value in form.items() if value is not None}
    if run and chosen:
        raise AdapterError(f"{run.name} has its own form; leave out RUN, or {', '.join(chosen)}")
    config = None if run else make_settings(chosen).model
    from adapter.describe import describe

    given = {"tower": tower, "frames": frames, "merge": merge, "entities": entities, "classes": classes}
    described = describe(config, run, alignments, views, given)
    typer.echo(
        json.dumps(described.to_json(), sort_keys=True) if as_json else _describe_words(described.to_json())
    )


@app.command("export")
@friendly
def export_cli(
    run: RunFolder,
    out: Annotated[Path, typer.Option(help="File to write: NAME.pt2 (torch) or NAME.onnx.")],
    form: Annotated[
        str | None, typer.Option("--format", help="torch or onnx; default: by the file's name.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Write the model's forward pass for other programs: torch.export, or ONNX (extra `onnx`).

    Inputs are a batch's tensors, the entities' and the labels' embeddings; outputs logits and z. The file is read back
    and compared with the run on a batch of other sizes before the command says that it is done.
    """
    from adapter.export import export

    done = export(run, out, form)
    if as_json:
        found = {
            "file": str(done.file),
            "format": done.form,
            "bytes": done.bytes,
            "difference": done.difference,
        }
        typer.echo(json.dumps({**found, **done.facts}, sort_keys=True))
        return
    for tensor in (*done.facts["inputs"], *done.facts["outputs"]):
        shape = ", ".join(map(str, tensor["shape"]))
        typer.echo(f"  {tensor['name']:<12}{tensor['dtype']:<8} ({shape}): {tensor['is']}")
    typer.echo(
        f"wrote {done.file} ({done.bytes / 1e6:.1f} MB); its cosines differ by at most {done.difference:.1e}"
    )


app.command("ablate")(ablate_cli)
app.add_typer(protocol_app, name="protocol")

_SHOWN = 20  # explanations printed; the file holds them all
_NOT_SETTINGS = ("alignments", "labels", "out", "config", "assign", "resume", "force", "quiet", "as_json")


def _echo_epoch(line: dict[str, Any]) -> None:
    val = f"  val {line['val_top1']:.1%}" if "val_top1" in line else ""
    typer.echo(
        f"epoch {line['epoch']:3d}  loss {line['loss']:.3f}  train {line['top1']:.1%}{val}"
        f"  {line['seconds']:.1f} s",
        err=True,
    )


def _train_words(report: Any) -> str:
    counts, val = report.counts, report.best_val_top1
    chosen = "no validation videos, last epoch kept" if val is None else f"validation top-1 {val:.1%}"
    lines = [
        f"{report.out}: {report.parameters / 1e6:.2f} M parameters, {report.seconds:.0f} s",
        f"  trained on {counts['train']['used']} of {counts['train']['planned']} videos, "
        f"{counts['classes']} classes",
        f"  best epoch {report.best_epoch} ({chosen}, n = {counts['val']['used']})",
    ]
    lines += [
        f"  {part} not used: {words}" for part in ("train", "val") if (words := _left_out(counts[part]))
    ]
    if counts["unknown_labels"]:
        lines.append(f"  labels that the set lacks: {', '.join(counts['unknown_labels'])}")
    return "\n".join(lines + _random_note(report.random_weights))


def _eval_words(result: dict[str, Any]) -> str:
    low, high = result["top1_interval"]
    lines = [
        f"{result['name']}: top-1 {result['top1']:.1%} [{low:.1%}, {high:.1%}], "
        f"top-{result['top5_k']} {result['top5']:.1%}, "
        f"mean class {result['mean_class_accuracy']:.1%} (n = {result['n']}, {result['classes']} classes)"
    ]
    for word in ("seen", "unseen"):
        if word in result and result[word]["n"] < result["n"]:
            part = result[word]
            lines.append(
                f"  {word} labels: {part['top1']:.1%}, "
                f"among themselves {part['top1_among_own']:.1%} (n = {part['n']})"
            )
    if "harmonic_mean" in result:
        lines.append(f"  harmonic mean {result['harmonic_mean']:.1%}")
    lines += _report_words(result)
    if words := _left_out(result["counts"]):
        lines.append(
            f"  not scored: {words} (failures counted as wrong: {result['top1_failures_wrong']:.1%})"
        )
    if result["n_trained_on"]:
        lines.append(
            f"  warning: {result['n_trained_on']} of these videos trained the model or chose its epoch"
        )
    return "\n".join(lines + _random_note(result["random_weights"]))


def _report_words(result: dict[str, Any]) -> list[str]:
    cost, views = result["cost"], result["cost"]["views"]
    encoder = (
        "" if cost["macs_per_view"]["encoder"] else " without the encoder, which is none of the known towers"
    )
    wrong = [f"{pair['label']} as {pair['predicted']} ({pair['n']})" for pair in result["confusions"][:3]]
    lines = [
        f"  calibration error {result['calibration']['ece']:.1%}; most confused: {', '.join(wrong) or 'none'}",
        f"  {cost['parameters']['total'] / 1e6:.2f} M parameters, {cost['macs_per_view']['total'] / 1e9:.2f} GMACs x "
        f"{views} view{'s' * (views != 1)}{encoder}",
    ]
    for name, found in result.get("sensitivity", {}).items():
        if isinstance(found, str):
            lines.append(f"  {name} alone: {found}")
        elif name != "as_is":
            lines.append(
                f"  {name}: {found['top1']:.1%} ({100 * found['change']:+.1f} points, p = {found['mcnemar_p']:.2g})"
            )
    return lines


def _explanation_words(found: Any) -> str:
    entities = ", ".join(f"{entity.name} {entity.effect:+.1f}" for entity in found.entities[:5])
    frames = sorted(enumerate(found.frame_effects), key=lambda pair: -pair[1])[:3]
    words = f"{found.video_id}: {found.predicted} ({found.probability:.0%}); {entities or 'no entities'}"
    return words + "".join(
        f"{'; frames ' if i == 0 else ', '}{f} {e:+.1f}" for i, (f, e) in enumerate(frames)
    )


def _deletion_words(test: dict[str, Any]) -> str:
    lines = [
        f"{test['videos']} videos; probability of the predicted class without the top k parts and without k random "
        f"ones (mean of {test['draws']} draws)",
        f"{'left out':<12}{'by':<15}{'n':>5}{'whole':>8}{'top':>8}{'random':>8}{'regions':>9}  more than random",
    ]
    for row in test["rows"]:
        low, high = row["interval"]
        alike = "" if row["same_size"] is None else f"{row['same_size']:.3f}"
        lines.append(
            f"{row['k']} {row['parts']:<10}{row['attribution']:<15}{row['n']:>5}{row['whole']:>8.3f}{row['top']:>8.3f}"
            f"{row['random']:>8.3f}{alike:>9}  {row['gain']:+.3f} [{low:+.3f}, {high:+.3f}]"
        )
    return "\n".join(lines + _random_note(test["random_weights"]))


def _describe_words(found: dict[str, Any]) -> str:
    at, parts, macs = found["setting"], found["parameters"], found["macs_per_view"]
    form = (
        f"{found['model']['model']}, variant {found['model']['variant']}, {found['model']['blocks']} blocks"
    )
    where = f"{at['tower'] or 'unknown tower'}, {at['frames']} frames of {at['tokens']} tokens"
    lines = [f"{form}; {where}, {at['entities']:,} entities", "parameters, M"]
    lines += [f"  {name.replace('_', ' '):<18}{n / 1e6:9.3f}" for name, n in parts.items()]
    lines.append("GMACs per view")
    lines += [
        f"  {name:<18}" + ("  unknown: --tower tells" if n is None else f"{n / 1e9:9.3f}")
        for name, n in macs.items()
    ]
    return "\n".join(
        [*lines, f"{macs['total'] / 1e9:.1f} x {at['views']} views = {found['macs'] / 1e9:.1f} GMACs"]
    )


def _left_out(counts: dict[str, int]) -> str:
    kept = ("planned", "ok", "used", "scored")
    return ", ".join(
        f"{n} {reason.replace('_', ' ')}" for reason, n in counts.items() if n and reason not in kept
    )


def _random_note(random_weights: bool) -> list[str]:
    return (
        ["  note: the vision-language model has random weights; these figures mean nothing"]
        if random_weights
        else []
    )
