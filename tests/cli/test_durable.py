"""Killed, damaged, out of disk, or on another machine: the same command ends with the same weights."""

from __future__ import annotations

import errno
import json
import os
import random
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any
from uuid import uuid4

import fsspec
import pytest
import yaml
from fsspec.implementations.memory import MemoryFileSystem

from workflows import config, job
from workflows.status import STATUS

ROOT = Path(__file__).resolve().parents[2]
STEPS = ["00-dense", "01-layer", "02-head", "03-channel"]


def weights(run: Path) -> dict[str, bytes]:
    return {str(path.relative_to(run)): path.read_bytes() for path in sorted(run.rglob("*.safetensors"))}


@pytest.fixture
def copy(finished: Path, tmp_path: Path) -> Path:
    """A complete run that may be spoilt."""
    return Path(shutil.copytree(finished, tmp_path / "run"))


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-5] ^= 16
    path.write_bytes(data)


DAMAGE = {
    "flipped bit": (lambda s: flip(s / "model/model.safetensors"), "model/model.safetensors is damaged (checksum)"),
    "truncated": (lambda s: os.truncate(s / "model/config.json", 99), "model/config.json is damaged (99 bytes"),
    "missing file": (lambda s: (s / "model/config.json").unlink(), "model/config.json is missing"),
    "unreadable result": (lambda s: (s / "result.json").write_text("{"), "result.json is damaged"),
    "no manifest": (lambda s: (s / "manifest.json").unlink(), "manifest.json is missing"),
}  # fmt: skip


@pytest.mark.parametrize("kind", DAMAGE)
@pytest.mark.parametrize("step", ["00-dense", "02-head"])
def test_a_damaged_step_is_done_again_and_no_other(
    kind: str, step: str, copy: Path, tiny: Path, finished: Path, cascade
) -> None:
    damage, message = DAMAGE[kind]
    damage(copy / "steps" / step)
    result = cascade("compress", tiny, "--out", copy)
    assert result.exit_code == 0, result.output
    lines = result.stderr.splitlines()
    said = [line for line in lines if line.startswith(f"{step}: {message}")]
    assert len(said) == 1
    assert said[0].endswith("; done again")
    assert [line for line in lines if line.endswith(": done before")] == [
        f"{name}: done before" for name in STEPS if name != step
    ]
    assert weights(copy) == weights(finished)


def test_a_damaged_result_is_built_from_the_last_step(copy: Path, finished: Path, cascade) -> None:
    flip(copy / "model" / "model.safetensors")
    result = cascade("compress", "--resume", copy)
    assert result.exit_code == 0, result.output
    assert "model: model.safetensors is damaged (checksum); done again" in result.stderr
    assert "03-channel: done before" in result.stderr
    assert weights(copy) == weights(finished)


def test_the_same_command_says_that_all_is_done(tiny: Path, finished: Path, cascade) -> None:
    before = {path: path.stat().st_mtime_ns for path in finished.rglob("*")}
    result = cascade("compress", tiny, "--out", finished)
    assert result.exit_code == 0, result.output
    assert "is complete already" in result.stderr
    assert {path: path.stat().st_mtime_ns for path in finished.rglob("*")} == before


def test_a_configuration_edited_behind_our_back_takes_no_stale_step(copy: Path, cascade) -> None:
    document = yaml.safe_load((copy / "config.yaml").read_text())
    document["schedule"]["stages"][1]["ratio"] = 0.75
    (copy / "config.yaml").write_text(yaml.safe_dump(document))
    result = cascade("compress", "--resume", copy)
    assert result.exit_code == 0, result.output
    assert "01-layer: done before" in result.stderr
    assert "02-head: was made from something else (stage.ratio); done again" in result.stderr
    assert "03-channel: was made from something else (previous); done again" in result.stderr


def test_other_weights_at_the_same_path_are_refused(
    tiny: Path, finished: Path, tmp_path: Path, cascade
) -> None:
    source = Path(shutil.copytree(finished / "steps" / "00-dense" / "model", tmp_path / "source"))
    command = ["compress", tiny, "--out", tmp_path / "run", "--model", source, "--set", "train.steps=0"]
    assert cascade(*command).exit_code == 0
    assert "is complete already" in cascade(*command).stderr
    flip(source / "model.safetensors")
    result = cascade(*command)
    assert result.exit_code == 2
    assert "was started on other weights" in result.stderr


def test_runs_share_their_first_stages(tiny: Path, finished: Path, tmp_path: Path, cascade) -> None:
    store = f"memory://{uuid4().hex}"
    first = cascade("compress", tiny, "--out", tmp_path / "one", "--store", store)
    assert first.exit_code == 0, first.output
    other = ["--set", "schedule.stages.2.target=3"]
    second = cascade("compress", tiny, "--out", tmp_path / "two", "--store", store, *other)
    assert second.exit_code == 0, second.output
    taken = [line for line in second.stderr.splitlines() if line.endswith(": taken from the store")]
    assert taken == [f"{name}: taken from the store" for name in STEPS[:3]]
    # The machine is lost: all of it comes back.
    shutil.rmtree(tmp_path / "one")
    again = cascade("compress", tiny, "--out", tmp_path / "one", "--store", store)
    assert again.stderr.count("taken from the store") == 4
    assert weights(tmp_path / "one") == weights(finished)
    # Where steps are kept is not part of what a run is.
    assert "is complete already" in cascade("compress", tiny, "--out", tmp_path / "one").stderr


class FullStore(MemoryFileSystem):
    protocol = "fullstore"

    def put_file(self, *args: Any, **kwargs: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")


def test_a_store_that_fails_does_not_end_the_run(tiny: Path, finished: Path, tmp_path: Path, cascade) -> None:
    fsspec.register_implementation("fullstore", FullStore, clobber=True)
    result = cascade("compress", tiny, "--out", tmp_path / "run", "--store", "fullstore://x")
    assert result.exit_code == 0, result.output
    assert result.stderr.count("did not take it ([Errno 28] No space left on device)") == 4
    assert weights(tmp_path / "run") == weights(finished)


def test_disk_full_in_the_middle(tiny: Path, finished: Path, tmp_path: Path, cascade) -> None:
    """A limit on file size stands in for a full disk, from the second stage on."""
    out, before = tmp_path / "run", resource.getrlimit(resource.RLIMIT_FSIZE)
    recoveries = 0

    def fill_up(phase: str, done: int, total: int, **figures: float) -> None:
        nonlocal recoveries
        recoveries += phase == "score" and done == 0
        if recoveries == 2:
            resource.setrlimit(resource.RLIMIT_FSIZE, (12_000, before[1]))

    try:
        with pytest.raises(OSError, match=r".") as failure:
            job.start(config.resolve(config.read_document(tiny)), out, progress=fill_up)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    from workflows.cli.failures import explain

    message, code = explain(failure.value)
    assert (message.count("\n"), code) == (0, 1)
    assert "the disk is full" in message
    assert sorted(path.name for path in (out / "steps").iterdir()) == STEPS[:2]
    assert json.loads((out / STATUS).read_text())["state"] == "failed"
    result = cascade("compress", tiny, "--out", out)
    assert result.exit_code == 0, result.output
    assert weights(out) == weights(finished)


def test_status(finished: Path, copy: Path, cascade) -> None:
    document = json.loads(cascade("status", finished, "--json").stdout)
    assert (document["schema"], document["state"], document["left"]) == ("cascade.status/1", "complete", 0)
    assert [step["state"] for step in document["steps"]] == ["done"] * 4
    status = json.loads((copy / STATUS).read_text())
    (copy / "report.json").unlink()
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    (copy / STATUS).write_text(
        json.dumps({**status, "state": "running", "pid": child.pid, "step": "02-head"})
    )
    shown = cascade("status", copy).stdout
    assert shown.startswith(f"{copy}: interrupted, 02-head")
    assert f"resume with: cascade compress --resume {copy}" in shown
    rows = json.loads(cascade("ls", "--root", copy.parent, "--json").stdout)["rows"]
    assert [(row["state"], row["step"]) for row in rows] == [("interrupted", "02-head")]
    (copy / STATUS).unlink()  # as in runs of older versions
    rows = json.loads(cascade("ls", "--root", copy.parent, "--json").stdout)["rows"]
    assert [(row["state"], row["step"]) for row in rows] == [("unfinished", None)]
    assert "has no status.json" in cascade("status", copy).stderr


@pytest.mark.slow
@pytest.mark.parametrize("trial", range(3))
def test_sigkill_at_any_moment(trial: int, tiny: Path, tmp_path: Path, cascade) -> None:
    """``benchmarks/faults.py`` does it more often. Two kills each, once the run has begun."""
    more = ["--set", "train.steps=200", "--set", "schedule.recovery.steps=200"]
    out, pick = tmp_path / "run", random.Random(trial)
    command = [
        sys.executable,
        "-m",
        "workflows.cli",
        "compress",
        str(tiny),
        "--out",
        str(out),
        "--quiet",
        *more,
    ]
    for _ in range(2):
        with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL) as process:
            while process.poll() is None and not (out / STATUS).exists():
                time.sleep(0.01)
            try:
                process.wait(pick.uniform(0, 6))
            except subprocess.TimeoutExpired:
                process.kill()
    assert cascade("compress", tiny, "--out", out, *more).exit_code == 0
    assert not list(out.rglob(".*"))
    assert cascade("compress", tiny, "--out", tmp_path / "whole", *more).exit_code == 0
    assert weights(out) == weights(tmp_path / "whole")
