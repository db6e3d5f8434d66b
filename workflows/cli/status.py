"""``cascade status``: what a run is doing, and how to go on with it."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from workflows.status import Status


def status(
    run: Annotated[Path, typer.Argument(help="Run directory.")],
    as_json: Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")] = False,
) -> None:
    """Show which step of a run is under way, what is done, and about how long is left."""
    from cascade_ops.errors import CheckpointError
    from cascade_ops.serde import to_jsonable
    from workflows.console import Output
    from workflows.rundir import open_run
    from workflows.status import SCHEMA, read_status

    output = Output(as_json=as_json)
    found = read_status(open_run(run).path)
    if found is None:
        raise CheckpointError(
            f"{run}: has no status.json that can be read; an older version may have made it. "
            f"Go on with it: cascade compress --resume {run}"
        )
    hint = None if found.state in ("running", "complete") else f"cascade compress --resume {run}"
    if as_json:
        output.document({"schema": SCHEMA, "run": str(run), **to_jsonable(found), "resume": hint})
        return
    output.text(f"{run}: {_headline(found)}")
    output.table(("step", "state", "seconds"), [(s.name, s.state, s.seconds) for s in found.steps])
    if hint:
        output.text(f"resume with: {hint}")


def _headline(found: Status) -> str:
    parts: list[str] = [found.state]
    if found.step is not None:
        parts.append(found.step)
    if found.phase is not None:
        parts.append(f"{found.phase} {found.done}/{found.total}")
    if found.state == "running":
        left = "unknown how much" if found.left is None else f"about {duration(found.left)}"
        parts += [f"{left} left", f"process {found.pid} on {found.host}"]
    if found.error is not None:
        parts.append(found.error)
    return f"{', '.join(parts)} (updated {duration(time.time() - found.updated)} ago)"


def duration(seconds: float) -> str:
    """In the largest unit that leaves a number worth reading."""
    if seconds < 100:
        return f"{max(0, round(seconds))} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def columns(run: Path, *, complete: bool) -> dict[str, Any]:
    """State and step as ``cascade ls runs`` shows them; runs of older versions have no status."""
    from workflows.status import read_status

    found = read_status(run)
    if found is None or (found.state == "complete") != complete:
        return {"state": "complete" if complete else "unfinished", "step": None}
    return {"state": found.state, "step": found.step}
