"""The ``cascade`` command. Heavy imports stay inside commands: ``cascade --help`` answers at once."""

from __future__ import annotations

from typing import Annotated

import typer

from workflows.cli import data, study
from workflows.cli.bench import bench
from workflows.cli.compress import compress
from workflows.cli.export import export
from workflows.cli.failures import Commands
from workflows.cli.listing import ls
from workflows.cli.models import evaluate_model, inspect
from workflows.cli.recover import recover
from workflows.cli.reporting import report
from workflows.cli.score import score
from workflows.cli.search import search
from workflows.cli.serve import serve
from workflows.cli.sia import sia
from workflows.cli.status import status

app = typer.Typer(
    name="cascade",
    cls=Commands,
    help="Compress transformers by cascaded structured pruning: layers, heads, feed-forward channels.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command()(compress)
app.command()(inspect)
app.command("eval")(evaluate_model)
app.command()(score)
app.command()(sia)
app.command()(search)
app.command()(recover)
app.command()(serve)
app.command()(bench)
app.command()(export)
app.command()(report)
app.command()(status)
app.command()(ls)
app.add_typer(data.app, name="data")
app.add_typer(study.app, name="study")


def _version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(f"cascade-ops {version('cascade-ops')}")
        raise typer.Exit


@app.callback()
def _root(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_version, is_eager=True)
    ] = False,
) -> None:
    """Options of every command; ``debug`` is read by Commands."""


def main() -> None:
    """Entry point."""
    app()
