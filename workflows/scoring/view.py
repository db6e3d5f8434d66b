"""A sweep as one watches it: shards × micro-batches, workers, rate and time left."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from workflows.console import Lines, Output
from workflows.scoring.driver import Snapshot, Watch, unwatched

CELLS = 32
"""Width of a shard's row."""
ROWS = 24
"""Rows at most: neighbouring shards share one."""
GIB = 2**30


@contextmanager
def watching(output: Output) -> Iterator[Watch]:
    """A picture on a terminal, a line now and then elsewhere, nothing if quiet."""
    with output.drawing() as canvas:
        if canvas is None:
            yield unwatched
        elif isinstance(canvas, Lines):
            yield lambda snapshot: _line(canvas, snapshot)
        else:
            yield lambda snapshot: canvas(picture(snapshot))


def _line(lines: Lines, snapshot: Snapshot) -> None:
    largest = max((worker.memory for worker in snapshot.workers), default=0)
    done = sum(snapshot.forward) + sum(snapshot.backward)
    lines(
        f"score {100 * snapshot.share:.0f} %, micro-batches × shards",
        done,
        items_in(snapshot),
        workers=len(snapshot.workers),
        tokens_per_s=snapshot.tokens_per_second,
        largest_worker_GiB=largest / GIB,
        s_left=snapshot.seconds_left,
    )


def items_in(snapshot: Snapshot) -> int:
    """Micro-batches × shards, both ways."""
    shards = len(snapshot.forward)
    ways = 2 * shards - 1 if snapshot.gradients else shards
    return ways * snapshot.micros


def picture(snapshot: Snapshot) -> RenderableType:
    """Shards as rows (█ both ways, ▒ forward only, · to come), workers below."""
    grid = Table.grid(padding=(0, 1))
    per_row = -(-len(snapshot.forward) // ROWS)
    for first in range(0, len(snapshot.forward), per_row):
        rows = range(first, min(first + per_row, len(snapshot.forward)))
        name = f"shard {rows[0]}" if per_row == 1 else f"shards {rows[0]}–{rows[-1]}"
        at_work = " ".join(
            worker.name for worker in snapshot.workers if worker.shard is not None and worker.shard in rows
        )
        grid.add_row(Text(name, justify="right"), _bar(snapshot, rows), at_work)
    return Group(grid, Text(_headline(snapshot)), Text(_workers(snapshot)))


def _bar(snapshot: Snapshot, rows: range) -> Text:
    total = max(1, snapshot.micros * len(rows))
    back = sum(snapshot.backward[row] for row in rows)
    ahead = max(back, sum(snapshot.forward[row] for row in rows))
    done = back if snapshot.gradients else ahead
    full, half = CELLS * done // total, CELLS * ahead // total
    bar = Text("█" * full, style="green")
    bar.append("▒" * (half - full), style="cyan")
    bar.append("·" * (CELLS - half), style="dim")
    return bar


def _headline(snapshot: Snapshot) -> str:
    left = snapshot.seconds_left
    time = "" if math.isnan(left) else f", {int(left) // 60}:{int(left) % 60:02d} left"
    return f"{100 * snapshot.share:5.1f} %  {snapshot.tokens_per_second:,.0f} tokens/s{time}"


def _workers(snapshot: Snapshot) -> str:
    return "  ".join(f"{worker.name} {worker.memory / GIB:.2f} GiB" for worker in snapshot.workers)
