"""``status.json``: whole at any moment, seldom written, honest about what is left."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from cascade_ops.progress import silent
from workflows import status as module
from workflows.status import STATUS, Status, StepStatus, Tracker, read_status, seconds_left, write_status

STEPS = (("00-dense", 100), ("01-layer", 10), ("02-head", 30))


@pytest.fixture
def tracker(tmp_path: Path) -> Tracker:
    return Tracker(tmp_path, STEPS, silent)


def test_a_run_from_start_to_end(tracker: Tracker, tmp_path: Path) -> None:
    with tracker.following():
        tracker.begin("00-dense")
        tracker.finish("00-dense", cached=True, seconds=3.0)
        tracker.begin("01-layer")
        found = read_status(tmp_path)
        assert found is not None
        assert (found.state, found.step, found.pid) == ("running", "01-layer", os.getpid())
        assert [step.state for step in found.steps] == ["cached", "running", "waiting"]
        assert found.steps[0].seconds == 3.0
    found = read_status(tmp_path)
    assert found is not None
    assert (found.state, found.step) == ("complete", None)
    assert json.loads((tmp_path / STATUS).read_text())["schema"] == "cascade.status/1"
    assert [path.name for path in tmp_path.iterdir()] == [STATUS]


@pytest.mark.parametrize(
    ("error", "state", "said"),
    [
        (KeyboardInterrupt(), "interrupted", None),
        (RuntimeError("it broke\nand more"), "failed", "it broke"),
        (ValueError(), "failed", "ValueError"),
    ],
)
def test_how_it_ended(
    error: BaseException, state: str, said: str | None, tracker: Tracker, tmp_path: Path
) -> None:
    def work() -> None:
        with tracker.following():
            tracker.begin("01-layer")
            raise error

    with pytest.raises(type(error)):
        work()
    found = read_status(tmp_path)
    assert found is not None
    assert (found.state, found.error, found.step) == (state, said, "01-layer")


def test_progress_is_passed_on_and_seldom_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told, written, clock = [], [], [0.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(module, "write_status", lambda folder, status: written.append(status.done))
    tracker = Tracker(tmp_path, STEPS, lambda phase, done, total, **figures: told.append((done, figures)))
    for done in range(100):
        clock[0] += 0.1
        tracker("recover", done, 100, loss=0.5)
    assert told == [(done, {"loss": 0.5}) for done in range(100)]
    assert 9 <= len(written) <= 11


def test_a_full_disk_is_no_reason_to_stop(tmp_path: Path) -> None:
    tracker = Tracker(tmp_path / "not there", STEPS, silent)
    tracker.begin("00-dense")


def test_gone_without_a_word(tmp_path: Path) -> None:
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    running = Status(
        state="running", pid=child.pid, host=socket.gethostname(), started=0, updated=0, steps=(), left=5.0
    )
    write_status(tmp_path, running)
    found = read_status(tmp_path)
    assert found is not None
    assert (found.state, found.left) == ("interrupted", None)
    write_status(tmp_path, replace(running, host="another-machine"))
    found = read_status(tmp_path)
    assert found is not None
    assert found.state == "running"


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"schema": "cascade.status/9"}', '{"schema": "cascade.status/1"}']
)
def test_what_cannot_be_read_is_no_status(text: str, tmp_path: Path) -> None:
    assert read_status(tmp_path) is None
    (tmp_path / STATUS).write_text(text)
    assert read_status(tmp_path) is None


def at(states: str, *, phase: str | None = None, done: int = 0, total: int = 0) -> Status:
    """``d`` done in a second per optimizer step, ``r`` running, ``w`` waiting."""
    names = {"d": "done", "r": "running", "w": "waiting"}
    steps = tuple(
        StepStatus(name=name, work=work, state=names[state], seconds=float(work) if state == "d" else None)
        for (name, work), state in zip(STEPS, states, strict=True)
    )
    return Status(
        state="running", pid=1, host="h", started=0, updated=0, steps=steps, phase=phase, done=done, total=total
    )  # fmt: skip


def test_seconds_left() -> None:
    def left(status: Status, in_step: float, in_phase: float) -> float | None:
        return seconds_left(status, in_step=in_step, in_phase=in_phase)

    # The dense training says nothing about stages.
    assert left(at("rww", phase="dense training", done=50, total=100), 10, 10) is None
    assert left(at("drw", phase="score", done=0, total=1), 1, 1) is None
    # The fit under way by its own pace, 2 s a step, and the stages after it too.
    assert left(at("drw", phase="recover", done=5, total=10), 12, 10) == 10 + 30 * 2
    # Finished stages give the pace of those to come: 1 s a step.
    assert left(at("ddr", phase="recover", done=10, total=30), 25, 20) == 40
    assert left(at("ddr", phase="score", done=0, total=1), 4, 4) == 26
    assert left(at("ddr"), 100, 100) == 0
    assert left(replace(at("ddd"), state="complete"), 0, 0) == 0
    assert left(replace(at("ddr"), state="failed"), 0, 0) is None
