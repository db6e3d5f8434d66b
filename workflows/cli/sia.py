"""``cascade sia``: may an architecture's units be judged one by one, and up to which ratio?"""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from workflows.cli.failures import fail

if TYPE_CHECKING:
    from workflows.console import Output
    from workflows.sia.record import SIARecord


def sia(
    model: Annotated[
        str,
        typer.Argument(
            help="Run directory, model folder or hub name; for --structural a config alone will do."
        ),
    ],
    structural: Annotated[
        bool, typer.Option("--structural", help="From the config alone: no weights, no data, at once.")
    ] = False,
    data: Annotated[
        str | None, typer.Option(help="Dataset, text file, or random. [default: the run's own]")
    ] = None,
    data_path: Annotated[
        str | None, typer.Option(help="The dataset's folder, if not in a usual place.")
    ] = None,
    split: Annotated[str | None, typer.Option(help="time, load:3, speed:1200 or bearing:….")] = None,
    samples: Annotated[int, typer.Option(help="Calibration samples.")] = 256,
    length: Annotated[int, typer.Option(help="Tokens of each (texts).")] = 128,
    criterion: Annotated[str, typer.Option(help="Orders the units, lowest first.")] = "taylor",
    budget: Annotated[int, typer.Option(help="Ablations in all.")] = 200,
    tau: Annotated[float, typer.Option(help="The largest gap A at which losses still add up.")] = 0.5,
    workers: Annotated[int, typer.Option(help="Ray actors for the ablations; 0: this process alone.")] = 0,
    threads: Annotated[int | None, typer.Option(help="Of each worker, and here.")] = None,
    address: Annotated[str | None, typer.Option(help="A Ray cluster. [default: one started here]")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    seed: Annotated[int, typer.Option(help="Of the choice of samples and sets.")] = 0,
    out: Annotated[Path | None, typer.Option(help="New folder. [default: runs/sia-<time>]")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="The whole result as JSON on stdout.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Only errors and data.")] = False,
) -> None:
    """Check the Structural Independence Assumption: structurally, and by shutting units and sets of units.

    Writes sia.json and report.html.
    """
    from workflows.console import Output
    from workflows.sia.job import SIAOptions, has_data, run_sia
    from workflows.sia.job import structural as of_config

    output = Output(as_json=as_json, quiet=quiet)
    if structural or not has_data(model, data):
        with output.working():
            record = of_config(model)
        _tell(record, output, None)
        if not structural:
            output.say("from the config alone. To measure, give calibration data: --data FILE (a text)")
        return
    options = SIAOptions(
        data=data,
        data_path=data_path,
        split=split,
        samples=samples,
        length=length,
        criterion=criterion,
        budget=budget,
        tau=tau,
        workers=workers,
        threads=threads,
        address=address,
        device=device,
        seed=seed,
    )
    path = out or Path("runs") / time.strftime("sia-%Y%m%d-%H%M%S")
    try:
        with output.working() as progress:
            record = run_sia(model, options, path, progress=progress, told=output.say)
    except KeyboardInterrupt:
        fail("interrupted; nothing was written, the same command starts again", 1)
    _tell(record, output, path)


def _tell(record: SIARecord, output: Output, path: Path | None) -> None:
    from workflows.sia.record import machine_view

    if output.as_json:
        output.document(machine_view(record))
    elif not output.quiet:
        output.text(summary(record))
        if path is not None:
            output.text(f"report: {path / 'report.html'}")


def summary(record: SIARecord) -> str:
    """The verdicts in words, a line each."""
    head = f"{record.model}: {record.family} ({record.model_type}), {record.params:,} parameters"
    found = record.check
    if found is None:
        lines = [f"  {one.granularity.value}: {one.reason}" for one in record.structural]
        return "\n".join([head, *lines])
    lines = [f"  {one.kind.value}: {one.words}" for one in found.verdicts]
    cost = (
        f"{found.ablations} ablations of {found.per_ablation} samples, {found.seconds:.1f} s; a loss below "
        f"{found.tolerance:.3g} nats does not count"
    )
    return "\n".join([head, *lines, cost])
