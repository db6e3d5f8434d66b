"""What a person sees: progress and logs on stderr, data on stdout."""

from __future__ import annotations

import json
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from types import FrameType
from typing import Any, TextIO

from rich.console import Console, RenderableType
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from cascade_ops.progress import Progress as Told
from cascade_ops.progress import silent

LINE_EVERY = 10.0
"""Seconds between progress lines where stderr is not a terminal."""
WIDE = 160
"""Columns of a table that is not for a terminal: wrapped cells are hard to search."""


class Lines:
    """Progress as plain lines: the start and end of a phase, and one now and then in between."""

    def __init__(self, stream: TextIO, *, every: float = LINE_EVERY) -> None:
        self._stream, self._every = stream, every
        self._last = time.monotonic()

    def __call__(self, phase: str, done: int, total: int, **figures: float) -> None:
        now = time.monotonic()
        if now - self._last < self._every:
            return
        self._last = now
        values = "".join(f", {name} {value:.4g}" for name, value in figures.items())
        print(f"  {phase}: {done}/{total}{values}", file=self._stream, flush=True)


class Bar:
    """Progress as a bar on a terminal."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._phase = ""
        self._task = progress.add_task("", total=None, visible=False, figures="")

    def __call__(self, phase: str, done: int, total: int, **figures: float) -> None:
        if phase != self._phase:
            self._phase = phase
            self._progress.reset(self._task, visible=True)
        values = " ".join(f"{name} {value:.4g}" for name, value in figures.items())
        self._progress.update(self._task, description=phase, completed=done, total=total, figures=values)


class Output:
    """The two streams of one command.

    Args:
        as_json: data is one JSON document.
        quiet: say nothing but errors and data.
    """

    def __init__(self, *, as_json: bool = False, quiet: bool = False) -> None:
        self.as_json, self.quiet = as_json, quiet
        self._stdout, self._stderr = sys.stdout, sys.stderr
        self._above: Console | None = None  # where a bar is being drawn: lines go above it

    def say(self, message: str) -> None:
        """A log line."""
        if self.quiet:
            return
        if self._above is None:
            print(message, file=self._stderr, flush=True)
        else:
            self._above.print(message, highlight=False, markup=False, soft_wrap=True)

    def document(self, document: Any) -> None:
        """The JSON document of the command."""
        print(json.dumps(document, indent=2, ensure_ascii=False), file=self._stdout, flush=True)

    def text(self, text: str) -> None:
        print(text, file=self._stdout, flush=True)

    def table(
        self, columns: Sequence[str], rows: Sequence[Sequence[Any]], *, title: str | None = None
    ) -> None:
        """Rows as a table; columns of numbers to the right."""
        table = Table(title=title, title_justify="left", box=None, header_style="bold", pad_edge=False)
        for index, column in enumerate(columns):
            numeric = bool(rows) and all(isinstance(row[index], (int, float)) for row in rows)
            table.add_column(column, justify="right" if numeric else "left", overflow="fold")
        for row in rows:
            table.add_row(*(_shown(value) for value in row))
        width = None if self._stdout.isatty() else WIDE
        Console(file=self._stdout, highlight=False, width=width).print(table)

    @contextmanager
    def working(self) -> Iterator[Told]:
        """A Progress for the body, silent if quiet. What libraries print to stdout goes to stderr meanwhile."""
        with redirect_stdout(self._stderr), _interrupts() as look:
            if self.quiet:
                yield _looking(look, silent)
            elif not self._stderr.isatty():
                yield _looking(look, Lines(self._stderr))
            else:
                columns = (
                    TextColumn("{task.description:>16}"),
                    BarColumn(),
                    MofNCompleteColumn(),
                    TimeRemainingColumn(),
                    TextColumn("{task.fields[figures]}"),
                )
                self._above = Console(file=self._stderr)
                try:
                    with Progress(*columns, console=self._above, transient=True) as progress:
                        yield _looking(look, Bar(progress))
                finally:
                    self._above = None

    @contextmanager
    def drawing(self) -> Iterator[Callable[[RenderableType], None] | Lines | None]:
        """Like ``working``, for pictures that change: where to put the newest, Lines where stderr is no terminal."""
        with redirect_stdout(self._stderr):
            if self.quiet:
                yield None
            elif not self._stderr.isatty():
                yield Lines(self._stderr)
            else:
                self._above = Console(file=self._stderr)
                try:
                    with Live(console=self._above, refresh_per_second=4, transient=True) as live:
                        yield live.update
                finally:
                    self._above = None


@contextmanager
def _interrupts() -> Iterator[Callable[[], None]]:
    """Something to call now and then: raises KeyboardInterrupt if a Ctrl-C has come and was swallowed.

    Python raises it wherever the program happens to be, which may be a finalizer, or a library's check whether
    another library can be imported: both go on as if nothing had happened.
    """
    if threading.current_thread() is not threading.main_thread():
        yield lambda: None
        return
    seen = False

    def handler(number: int, frame: FrameType | None) -> None:
        nonlocal seen
        seen = True
        raise KeyboardInterrupt

    def look() -> None:
        if seen:
            raise KeyboardInterrupt

    before = signal.signal(signal.SIGINT, handler)
    try:
        yield look
    finally:
        signal.signal(signal.SIGINT, before)


def _looking(look: Callable[[], None], progress: Told) -> Told:
    def told(phase: str, done: int, total: int, **figures: float) -> None:
        look()
        progress(phase, done, total, **figures)

    return told


def _shown(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:.4g}"
    return "" if value is None else str(value)
