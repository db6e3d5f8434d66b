"""Searches on a real Ray: what comes out runs as it is, and what dies on the way costs no finished trial."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import yaml

from cascade_ops.serde import to_jsonable
from tests.cli.conftest import TINY
from workflows import job
from workflows.artifacts import read_manifest
from workflows.config import read_document, resolve
from workflows.search.job import request_of, reread, run_search
from workflows.search.record import SearchRecord, read_record

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.filterwarnings("ignore")  # Tune's and Optuna's own


def document(**search: Any) -> dict[str, Any]:
    section = {"trials": 6, "slots": 2, "budget": 60, "criteria": ["taylor"], "ranks": [4], "rounds": 2}
    return {**TINY, "search": {**section, **search}}


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, SearchRecord]:
    """A finished search, shared: do not write into it."""
    out = tmp_path_factory.mktemp("search") / "out"
    return out, run_search(request_of(document(), []), out)


def test_every_trial_is_kept(found: tuple[Path, SearchRecord]) -> None:
    out, record = found
    assert [trial.number for trial in record.trials] == list(range(6))
    assert {trial.state for trial in record.trials} <= {"complete", "pruned"}
    assert pq.read_table(out / "trials.parquet").num_rows == 6
    assert to_jsonable(read_record(out)) == to_jsonable(record)
    schedules = {
        json.dumps([to_jsonable(stage) for stage in trial.stages], default=str) for trial in record.trials
    }
    assert len({json.dumps(trial.params, sort_keys=True) for trial in record.trials}) == 6
    assert schedules
    for trial in record.trials:
        if trial.state == "complete":
            # 3 layers of 32 channels: a channel per layer is 1.4 % of what 4× leaves.
            assert trial.outcome["compression"] == pytest.approx(4, rel=0.02)
            assert not trial.beyond
            assert [name for name, _ in trial.rungs][-1] == "full recovery"
    assert list(out.glob("tune/*/*/events.out.tfevents.*"))
    assert "winner" in (out / "report.html").read_text().lower()


def test_stages_are_shared_and_times_add_up(found: tuple[Path, SearchRecord]) -> None:
    _, record = found
    assert 0 < record.computed < record.requested
    assert all(trial.seconds > 0 for trial in record.trials)
    assert 0 <= record.overhead < 1


def test_the_winner_runs_as_it_is_and_reproduces(found: tuple[Path, SearchRecord], tmp_path: Path) -> None:
    out, record = found
    config = resolve(read_document(out / "schedule.yaml"))
    run = job.start(config, tmp_path / "again")
    assert read_manifest(run.model).content == read_manifest(out / "winner" / "model").content
    report = json.loads((run.path / "report.json").read_text())
    assert record.winner is not None
    best = record.trial(record.winner)
    assert report["metric"]["final"] == best.outcome["test_accuracy"]
    assert best.values["loss"] == min(trial.values["loss"] for trial in record.trials if trial.values)


def test_a_finished_search_is_not_repeated(found: tuple[Path, SearchRecord]) -> None:
    out, record = found
    before = {path: path.stat().st_mtime_ns for path in (out / "trials").rglob("*") if path.is_file()}
    again = run_search(reread(out, []), out)
    assert to_jsonable(again.trials) == to_jsonable(record.trials)
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_three_objectives(tmp_path: Path) -> None:
    objectives = ["loss", "params", "latency"]
    free = document(objectives=objectives, trials=4, reference=False)
    free["schedule"] = {**TINY["schedule"], "stages": [{"granularity": "channel", "ratio": 0.5}]}
    del free["schedule"]["target"]
    record = run_search(request_of(free, []), tmp_path / "out")
    complete = [trial for trial in record.trials if trial.state == "complete"]
    assert len(complete) == 4
    for trial in complete:
        assert set(trial.values) == set(objectives)
        others = [other for other in complete if other is not trial]
        beaten = any(
            all(other.values[name] <= trial.values[name] for name in objectives)
            and any(other.values[name] < trial.values[name] for name in objectives)
            for other in others
        )
        assert (trial.number in record.front) == (not beaten)
    assert record.winner in record.front


def finished_in(out: Path) -> dict[int, str]:
    """Trials that the database calls finished, with what it holds of them."""
    try:
        with sqlite3.connect(f"file:{out / 'optuna.db'}?mode=ro", uri=True) as base:
            rows = base.execute(
                "select t.number, a.value_json from trials t join trial_user_attributes a using (trial_id) "
                "where t.state in ('COMPLETE', 'PRUNED', 'FAIL') and a.key = 'record'"
            )
            return dict(rows.fetchall())
    except sqlite3.Error:
        return {}


def until(condition: Callable[[], bool], process: subprocess.Popen[str], seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.stderr.read() if process.stderr else ""
        assert time.monotonic() < deadline
        time.sleep(0.05)


def trial_workers() -> list[int]:
    """Processes in which trials run, by the names that Ray gives them."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                name = (entry / "cmdline").read_bytes()
            except OSError:
                continue
            if name.startswith(b"ray::ImplicitFunc.train"):
                found.append(int(entry.name))
    return found


def test_driver_and_worker_killed(tmp_path: Path) -> None:
    """The driver dies after some trials and a worker after it has gone on: nothing finished is lost or repeated."""
    out, config = tmp_path / "out", tmp_path / "search.yaml"
    config.write_text(yaml.safe_dump(document(trials=7)))

    def start(*arguments: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "workflows.cli", "search", *arguments, "-q"],
            cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ,
        )  # fmt: skip

    first = start(str(config), "--out", str(out))
    until(lambda: len(finished_in(out)) >= 2, first)
    first.send_signal(signal.SIGKILL)
    first.wait()
    kept = finished_in(out)
    assert len(kept) < 7
    second = start("--resume", str(out))
    until(lambda: len(finished_in(out)) > len(kept) and bool(trial_workers()), second)
    os.kill(trial_workers()[0], signal.SIGKILL)
    _, errors = second.communicate(timeout=240)
    assert second.returncode == 0, errors
    everything = finished_in(out)
    assert sorted(everything) == list(range(7))
    assert {number: everything[number] for number in kept} == kept
    record = read_record(out)
    assert all(trial.state != "failed" for trial in record.trials)
    assert len({json.dumps(trial.params, sort_keys=True) for trial in record.trials}) == 7
