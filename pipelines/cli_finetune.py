"""``alt finetune``: options only; the work is in finetune.py."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from adapter.config import parse_assignments
from aligner.config import EXIT_REQUEUE
from pipelines.options import EXIT_DONE, AsJson, Quiet, errors, say
from pipelines.tuning_config import TuneConfig

_D = TuneConfig()


def finetune_cli(
    run: Annotated[
        Path, typer.Argument(help="Out folder of `alt run` or `alt demo`, or one of its runs/NAME.")
    ],
    out: Annotated[
        Path, typer.Option(help="Folder for the tuned model and its adapter; a stopped tuning goes on.")
    ],
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Start with a new adapter, not with that of the run.")
    ] = False,
    labels: Annotated[
        str | None, typer.Option(help="Label set of the run to train on; default: the adapter's.")
    ] = None,
    last_blocks: Annotated[
        int | None, typer.Option(help="Only the last N blocks of the image tower learn.")
    ] = None,
    prompts: Annotated[
        int,
        typer.Option(help="Learn N tokens in every block of the image tower, and leave the tower frozen."),
    ] = _D.prompts,
    text_prompts: Annotated[
        int, typer.Option(help="Learn N tokens in every block of the text tower, for class names.")
    ] = _D.text_prompts,
    cache_tokens: Annotated[
        str,
        typer.Option(
            help="fp16 or fp32: with --last-blocks, keep the tokens before these blocks and train from them."
        ),
    ] = _D.cache_tokens,
    cache_draws: Annotated[
        int, typer.Option(help="Augmented draws of each video to keep the tokens of.")
    ] = _D.cache_draws,
    cache_folder: Annotated[
        Path | None,
        typer.Option(help="Folder for these tokens, to be used again; default: in --out, until the end."),
    ] = None,
    cache_gb: Annotated[float, typer.Option(help="GB that these tokens may take.")] = _D.cache_gb,
    lr_encoder: Annotated[float, typer.Option(help="Peak learning rate of the image tower.")] = _D.lr_encoder,
    lr_adapter: Annotated[
        float, typer.Option(help="Peak learning rate of adapter and prompts.")
    ] = _D.lr_adapter,
    epochs: Annotated[int, typer.Option(help="Passes over the training videos.")] = _D.epochs,
    warmup: Annotated[float, typer.Option(help="Epochs of linear warm-up.")] = _D.warmup,
    batch_size: Annotated[int, typer.Option(help="Videos a step of the optimiser.")] = _D.batch_size,
    micro_batch: Annotated[
        int, typer.Option(help="Videos in memory at once; gradients add up.")
    ] = _D.micro_batch,
    shots: Annotated[int, typer.Option(help="Videos a class to train on; 0 = all.")] = _D.shots,
    augment: Annotated[str, typer.Option(help="xclip = crops, colours, mixup, cutmix; none.")] = _D.augment,
    flip: Annotated[
        bool,
        typer.Option(
            "--flip/--no-flip", help="Mirror half of the clips; not where left and right are classes."
        ),
    ] = _D.flip,
    mixup: Annotated[float, typer.Option(help="Alpha of mixup; 0 = off.")] = _D.mixup,
    cutmix: Annotated[float, typer.Option(help="Alpha of cutmix; 0 = off.")] = _D.cutmix,
    label_smoothing: Annotated[float, typer.Option(help="Label smoothing.")] = _D.label_smoothing,
    proportional_attention: Annotated[
        bool,
        typer.Option(
            "--proportional-attention/--no-proportional-attention",
            help="Merged tokens count by their size, in training and in what is made with the model afterwards.",
        ),
    ] = _D.proportional_attention,
    precision: Annotated[
        str, typer.Option(help="auto (bf16 on a GPU, fp32 on a CPU), fp32, bf16 or fp16.")
    ] = _D.precision,
    checkpointing: Annotated[
        bool,
        typer.Option("--checkpointing", help="Less memory: compute activations again in the backward pass."),
    ] = False,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", help="NAME=VALUE: any other option of the adapter. Repeatable."),
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of order, pictures, noise and new weights.")] = _D.seed,
    save_steps: Annotated[
        int, typer.Option("--save-every", help="Steps between two saved states.")
    ] = _D.save_steps,
    decode_workers: Annotated[int, typer.Option(help="Processes that decode ahead.")] = _D.decode_workers,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = _D.device,
    force: Annotated[bool, typer.Option("--force", help="Begin anew what is in --out.")] = False,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Tune the image tower and the adapter of a run together, from its videos.

    The same command goes on with a tuning that was stopped. Exit codes: 0 done, 75 stopped by a signal, 1 not done.
    """
    with errors():
        config = TuneConfig(
            last_blocks=last_blocks,
            prompts=prompts,
            text_prompts=text_prompts,
            cache_tokens=cache_tokens,
            cache_draws=cache_draws,
            cache_folder=cache_folder,
            cache_gb=cache_gb,
            lr_encoder=lr_encoder,
            lr_adapter=lr_adapter,
            epochs=epochs,
            warmup=warmup,
            batch_size=batch_size,
            micro_batch=micro_batch,
            shots=shots,
            augment=augment,
            flip=flip,
            mixup=mixup,
            cutmix=cutmix,
            label_smoothing=label_smoothing,
            proportional_attention=proportional_attention,
            precision=precision,
            checkpointing=checkpointing,
            seed=seed,
            save_steps=save_steps,
            decode_workers=decode_workers,
            device=device,
        )
        from pipelines.finetune import finetune, inputs_of

        inputs = inputs_of(run, fresh, labels)
        report = finetune(inputs, config, out, parse_assignments(settings or []), force, say(quiet))
    if as_json:
        typer.echo(json.dumps(asdict(report), default=str, sort_keys=True))
    else:
        typer.echo(f"stopped; run again to go on with {out}" if report.stopped else f"wrote {out}")
    raise typer.Exit(EXIT_REQUEUE if report.stopped else EXIT_DONE)
