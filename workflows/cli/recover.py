"""``cascade recover``: mend a pruned model."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from workflows.cli.failures import fail

if TYPE_CHECKING:
    from workflows.recovery.job import RecoverOptions, RecoverReport


def recover(
    model: Annotated[str, typer.Argument(help="Run directory, model folder or hub name.")],
    data: Annotated[str | None, typer.Option(help="Dataset or text file. [default: the run's own]")] = None,
    data_path: Annotated[
        Path | None, typer.Option(help="The dataset's folder, if not in a usual place.")
    ] = None,
    split: Annotated[str | None, typer.Option(help="time, load:3, speed:1200 or bearing:….")] = None,
    test: Annotated[str | None, typer.Option(help="Text file to measure on (with a text file).")] = None,
    length: Annotated[int, typer.Option(help="Tokens of a sequence (texts).")] = 128,
    sequences: Annotated[int | None, typer.Option(help="At most so many of each side (texts).")] = None,
    steps: Annotated[int, typer.Option(help="Optimizer steps.")] = 300,
    teacher: Annotated[
        str | None, typer.Option(help="Learn from this model's outputs too: a run or model folder.")
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            help="recovery.rank=8, recovery.method=full, recovery.distillation.weight=0.9, … Repeatable.",
        ),
    ] = None,
    workers: Annotated[int, typer.Option(help="Processes that share a step by DeepSpeed; 0: this one.")] = 0,
    zero: Annotated[int, typer.Option(help="ZeRO stage: 0, 1, 2 or 3.")] = 2,
    offload: Annotated[
        bool, typer.Option("--offload", help="Optimizer states in the host's memory.")
    ] = False,
    dtype: Annotated[str, typer.Option(help="float32 or bfloat16.")] = "float32",
    accumulation: Annotated[int, typer.Option(help="Micro-batches of a worker in a step.")] = 1,
    checkpointing: Annotated[
        bool, typer.Option("--checkpointing", help="Recompute activations instead of keeping them.")
    ] = False,
    deepspeed: Annotated[Path | None, typer.Option(help="JSON file with further DeepSpeed settings.")] = None,
    threads: Annotated[int | None, typer.Option(help="Of this process, or of each worker.")] = None,
    address: Annotated[str | None, typer.Option(help="A Ray cluster. [default: one started here]")] = None,
    seed: Annotated[int, typer.Option(help="Same seed, same result.")] = 0,
    out: Annotated[Path | None, typer.Option(help="New folder. [default: runs/recover-<time>]")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="The record as JSON on stdout.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Only errors and data.")] = False,
) -> None:
    """Mend a pruned model: low-rank updates on its shapes, merged afterwards (or --set recovery.method=full)."""
    from workflows.console import Output
    from workflows.recovery.job import machine_view, run_recovery

    output = Output(as_json=as_json, quiet=quiet)
    sharing: dict[str, Any] = {"workers": workers, "address": address}
    if workers:
        sharing["threads"] = threads or 1
        sharing["zero"] = {
            "stage": zero,
            "offload": offload,
            "dtype": dtype,
            "accumulation": accumulation,
            "checkpointing": checkpointing,
            "config": None if deepspeed is None else str(deepspeed),
        }
    elif offload or checkpointing or deepspeed or dtype != "float32" or accumulation > 1:
        fail(
            "--offload, --checkpointing, --deepspeed, --dtype, --accumulation: concern DeepSpeed; give --workers",
            2,
        )
    options = _options(steps, teacher, settings or [], sharing)
    from dataclasses import replace

    options = replace(
        options,
        data=data,
        data_path=None if data_path is None else str(data_path),
        split=split,
        test=test,
        length=length,
        sequences=sequences,
        threads=threads,
        seed=seed,
    )
    path = out or Path("runs") / time.strftime("recover-%Y%m%d-%H%M%S")
    try:
        with output.working() as progress:
            report = run_recovery(model, options, path, progress=progress)
    except KeyboardInterrupt:
        fail("interrupted; nothing was written, the same command starts again", 1)
    if as_json:
        output.document(machine_view(report))
    elif not quiet:
        output.text(summary(report))
        output.text(f"model:  {path / 'model'}\nrecord: {path / 'recovery.json'}")


def _options(steps: int, teacher: str | None, settings: list[str], sharing: dict[str, Any]) -> RecoverOptions:
    """Checked by the same schema as ``schedule.recovery`` and ``recovering`` of a job. Raises ConfigError."""
    from workflows.config import recovery_options
    from workflows.recovery.job import RecoverOptions

    document: dict[str, Any] = {"recovery": {"steps": steps}, "recovering": sharing}
    if teacher is not None:
        document["recovery"]["distillation"] = {}
    recovery, recovering = recovery_options(document, settings)
    return RecoverOptions(recovery=recovery, recovering=recovering, teacher=teacher)


def summary(report: RecoverReport) -> str:
    """A recovery in two lines."""
    before, after, fit = report.before.metric, report.after.metric, report.recovery
    where = f"{fit.workers} workers" if fit.workers else "this process"
    return (
        f"{report.model}: {before.name} {before.value:.4g} → {after.value:.4g} "
        f"[{after.low:.4g}, {after.high:.4g}] on {after.samples:,} samples of {report.data.get('name', 'data')}\n"
        f"{len(fit.losses)} of {fit.steps} steps of {fit.batch_size} samples in {fit.seconds:.1f} s by {where}, "
        f"{fit.trainable_params:,} trainable parameters"
    )
