from __future__ import annotations

import contextlib
import io
import json
import signal
import sys

import pytest

from workflows.console import Lines, Output


def test_lines_come_now_and_then() -> None:
    stream = io.StringIO()
    often, never = Lines(stream, every=0), Lines(io.StringIO(), every=3600)
    for step in range(3):
        often("recover", step + 1, 3, loss=0.5)
        never("recover", step + 1, 3)
    assert stream.getvalue().splitlines()[-1] == "  recover: 3/3, loss 0.5"
    assert len(stream.getvalue().splitlines()) == 3


def test_stray_output_does_not_reach_the_document(capsys: pytest.CaptureFixture[str]) -> None:
    output = Output(as_json=True)
    with output.working() as progress:
        progress("recover", 1, 1)
        sys.stdout.write("a library says hello")
        output.say("log line")
    output.document({"schema": "x/1"})
    captured = capsys.readouterr()
    assert json.loads(captured.out) == {"schema": "x/1"}
    assert "hello" in captured.err
    assert "log line" in captured.err


def test_quiet(capsys: pytest.CaptureFixture[str]) -> None:
    output = Output(quiet=True)
    with output.working() as progress:
        output.say("log line")
        progress("recover", 1, 1)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("quiet", [True, False])
def test_an_interrupt_that_was_swallowed_is_raised_at_the_next_step(quiet: bool) -> None:
    before = signal.getsignal(signal.SIGINT)
    with Output(quiet=quiet).working() as progress:
        progress("recover", 1, 3)
        with contextlib.suppress(KeyboardInterrupt):  # as a finalizer does
            signal.raise_signal(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            progress("recover", 2, 3)
    assert signal.getsignal(signal.SIGINT) is before


def test_table(capsys: pytest.CaptureFixture[str]) -> None:
    Output().table(("name", "count", "share"), [("a", 1234, 0.123456), ("b", 5, None)])
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert lines == [["name", "count", "share"], ["a", "1,234", "0.1235"], ["b", "5"]]
