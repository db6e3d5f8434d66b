"""``cascade data``: fetch datasets, and say what is here."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from cascade_ops.data.fetch import Progress
    from cascade_ops.data.locate import DatasetStatus

SCHEMA = "cascade.data-ls/1"

app = typer.Typer(help="Vibration data: fetch it, and see what is here.", no_args_is_help=True)


@app.command()
def fetch(
    name: Annotated[str, typer.Argument(help="Dataset: cwru or uestc.")],
    path: Annotated[
        Path | None, typer.Option(help="Data root to write into. [default: the user's cache]")
    ] = None,
    mirror: Annotated[str | None, typer.Option(help="Base URL with the same file names.")] = None,
) -> None:
    """Download a dataset from its publisher, resuming and verifying; prints its folder."""
    from cascade_ops.data.fetch import fetch as download

    with _progress(name) as progress:
        folder = download(name, root=path, base_url=mirror, progress=progress)
    typer.echo(str(folder))


@contextlib.contextmanager
def _progress(name: str) -> Iterator[Progress | None]:
    """A bar on stderr for the file under way; none where stderr is not a terminal."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(name, total=None)

        def report(file: str, done: int, total: int | None) -> None:
            bar.update(task, description=f"{name}: {file}", completed=done, total=total)

        yield report


@app.command("ls")
def list_datasets(
    path: Annotated[Path | None, typer.Option(help="Look only below this data root.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")] = False,
) -> None:
    """Say which datasets are here, where, and under which licence."""
    from cascade_ops.data.locate import available, roots

    rows = available(path=path)
    if as_json:
        import dataclasses

        document = {
            "schema": SCHEMA,
            "roots": [str(root) for root in roots(path)],
            "datasets": [dataclasses.asdict(row) for row in rows],
        }
        typer.echo(json.dumps(document, indent=2, ensure_ascii=False))
        return
    for row in rows:
        typer.echo(f"{row.name:<10} {_state(row):<28} {row.title}")
        typer.echo(f"{'':<10} {row.folder or f'from: {row.obtain}'}")
        typer.echo(f"{'':<10} {row.licence}")


def _state(row: DatasetStatus) -> str:
    if row.name == "simulated":
        return "always here"
    if not row.folder:
        return "not here"
    count = f"{row.files} of {row.expected} files" if row.expected else f"{row.files} files"
    return f"{count}, {row.bytes / 2**20:.0f} MiB"
