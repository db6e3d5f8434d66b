"""``cascade study``: experiments over many models, resumable."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from workflows.cli.failures import Commands, fail

app = typer.Typer(cls=Commands, help="Experiments over many models.", no_args_is_help=True)


@app.callback()
def _root() -> None:
    """Experiments over many models."""


@app.command()
def sia(
    out: Annotated[Path, typer.Option(help="Folder; what it holds already is not run again.")] = Path(
        "studies/sia"
    ),
    seeds: Annotated[int, typer.Option(help="Models of each architecture.")] = 3,
    data: Annotated[str, typer.Option(help="Dataset to train on.")] = "cwru",
    steps: Annotated[int, typer.Option(help="Of dense training.")] = 400,
    recovery: Annotated[int, typer.Option(help="Steps after a cut.")] = 30,
    workers: Annotated[int, typer.Option(help="One-core tasks at a time.")] = 2,
    address: Annotated[str | None, typer.Option(help="A Ray cluster. [default: one started here]")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="The figures as JSON on stdout.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Only errors and data.")] = False,
) -> None:
    """Does SIA, measured before, tell what pruning costs? Sixteen architectures, each cut in nine ways."""
    from cascade_ops.errors import UsageError
    from workflows.console import Output
    from workflows.study.cell import StudyOptions
    from workflows.study.job import PAGE, run_study

    for name, value in (("seeds", seeds), ("steps", steps), ("workers", workers)):
        if value < 1:
            raise UsageError(f"--{name}: must be ≥ 1, got {value}")
    output = Output(as_json=as_json, quiet=quiet)
    options = StudyOptions(data=data, steps=steps, recovery=recovery)
    try:
        with output.working() as progress:
            found = run_study(
                out, options, seeds=range(seeds), workers=workers, address=address, progress=progress
            )
    except KeyboardInterrupt:
        fail(f"interrupted; the same command goes on with the cells that {out} lacks", 1)
    if as_json:
        output.document({"schema": "cascade.study/1", **found})
    elif not quiet:
        output.text((out / PAGE).read_text(encoding="utf-8"))
