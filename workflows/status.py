"""What a run is doing, for whoever asks: ``status.json`` in its folder, replaced whole, at most once a second."""

from __future__ import annotations

import json
import os
import socket
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from cascade_ops.progress import Progress
from cascade_ops.serde import from_jsonable, to_jsonable

STATUS = "status.json"
SCHEMA = "cascade.status/1"
EVERY = 1.0
"""Seconds from one writing to the next."""
FITS = ("dense training", "recover")
"""Phases that a step's time mostly goes to."""

State = Literal["running", "failed", "interrupted", "complete"]
StepState = Literal["waiting", "running", "done", "cached"]


@dataclass(frozen=True, slots=True, kw_only=True)
class StepStatus:
    """One step. ``work`` are its optimizer steps; ``cached`` is done before or taken from the store."""

    name: str
    work: int
    state: StepState = "waiting"
    seconds: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Status:
    """A whole run. Times are seconds since 1970; ``left`` is None where nothing is known yet."""

    state: State
    pid: int
    host: str
    started: float
    updated: float
    steps: tuple[StepStatus, ...]
    step: str | None = None
    phase: str | None = None
    done: int = 0
    total: int = 0
    left: float | None = None
    error: str | None = None


class Tracker:
    """A Progress that keeps ``status.json`` and passes everything on.

    Args:
        folder: the run's.
        steps: every step's name and optimizer steps, in order.
        forward: who else wants to know.
    """

    def __init__(self, folder: Path, steps: Sequence[tuple[str, int]], forward: Progress) -> None:
        now = time.time()
        self._folder, self._forward = folder, forward
        self._began = self._phase_began = now
        self._written = float("-inf")
        self._status = Status(
            state="running",
            pid=os.getpid(),
            host=socket.gethostname(),
            started=now,
            updated=now,
            steps=tuple(StepStatus(name=name, work=work) for name, work in steps),
        )

    def __call__(self, phase: str, done: int, total: int, **figures: float) -> None:
        """Told about progress within the step under way."""
        if phase != self._status.phase:
            self._phase_began = time.time()
        self._status = replace(self._status, phase=phase, done=done, total=total)
        self._write(now=False)
        self._forward(phase, done, total, **figures)

    def begin(self, name: str) -> None:
        """Step ``name`` is being worked on."""
        self._began = time.time()
        self._set(name, "running", None)
        self._status = replace(self._status, step=name, phase=None, done=0, total=0)
        self._write()

    def finish(self, name: str, *, cached: bool, seconds: float | None = None) -> None:
        """Step ``name`` is there; ``seconds`` it took, if not since ``begin``."""
        self._set(name, "cached" if cached else "done", seconds or time.time() - self._began)
        self._write()

    @contextmanager
    def following(self) -> Iterator[None]:
        """The last state is what the body ends with."""
        self._write()
        try:
            yield
        except BaseException as error:
            stopped = isinstance(error, KeyboardInterrupt | SystemExit)
            said = str(error).strip().split("\n")[0] or type(error).__name__
            self._status = replace(
                self._status,
                state="interrupted" if stopped else "failed",
                error=None if stopped else said,
            )
            self._write()
            raise
        self._status = replace(self._status, state="complete", step=None, phase=None, done=0, total=0)
        self._write()

    def _set(self, name: str, state: StepState, seconds: float | None) -> None:
        steps = tuple(
            replace(step, state=state, seconds=seconds) if step.name == name else step
            for step in self._status.steps
        )
        self._status = replace(self._status, steps=steps)

    def _write(self, *, now: bool = True) -> None:
        if not now and time.monotonic() - self._written < EVERY:
            return
        self._written = time.monotonic()
        moment = time.time()
        status = self._status
        left = seconds_left(status, in_step=moment - self._began, in_phase=moment - self._phase_began)
        self._status = replace(status, updated=moment, left=left)
        with suppress(OSError):  # a full disk stops the run where it matters, not here
            write_status(self._folder, self._status)


def seconds_left(status: Status, *, in_step: float, in_phase: float) -> float | None:
    """An estimate: the fit under way by its own pace, later steps by the seconds per optimizer step of the
    stages so far. None where nothing is known yet.

    The dense training says little about stages, which train another model in another way.
    """
    if status.state != "running":
        return 0.0 if status.state == "complete" else None
    fitting = status.phase in FITS and 0 < status.done <= status.total
    rest = in_phase / status.done * (status.total - status.done) if fitting else None
    stages = [step for step in status.steps if step.state in ("done", "cached") and step.work]
    stages = [step for step in stages if step.name != status.steps[0].name and step.seconds is not None]
    current = next((step for step in status.steps if step.state == "running"), None)
    waiting = [step for step in status.steps if step.state == "waiting"]
    pace = _pace(stages)
    if pace is None and fitting and current is not None and current != status.steps[0]:
        pace = in_phase / status.done
    if current is not None and rest is None:
        if pace is None or current == status.steps[0]:
            return None
        rest = max(0.0, pace * current.work - in_step)
    if waiting and pace is None and any(step.work for step in waiting):
        return None
    return (rest or 0.0) + sum((pace or 0.0) * step.work for step in waiting)


def _pace(stages: Sequence[StepStatus]) -> float | None:
    work = sum(step.work for step in stages)
    return sum(step.seconds or 0.0 for step in stages) / work if work else None


def write_status(folder: Path, status: Status) -> None:
    """Replace ``status.json``: a reader sees the old one or the new one. Raises OSError."""
    handle, scratch = tempfile.mkstemp(prefix=f".{STATUS}.", dir=folder)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as stream:
            json.dump({"schema": SCHEMA, **to_jsonable(status)}, stream, indent=1, ensure_ascii=False)
        os.chmod(scratch, 0o644)
        os.replace(scratch, folder / STATUS)
    except BaseException:
        Path(scratch).unlink(missing_ok=True)
        raise


def read_status(folder: Path) -> Status | None:
    """The run's status as it is now, None where there is none that can be read.

    A process that has gone without a word, on this machine, has been interrupted.
    """
    try:
        document: dict[str, Any] = json.loads((folder / STATUS).read_text(encoding="utf-8"))
        if document.pop("schema") != SCHEMA:
            return None
        status = from_jsonable(Status, document)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    if status.state == "running" and status.host == socket.gethostname() and not _alive(status.pid):
        return replace(status, state="interrupted", left=None)
    return status


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
