"""A run that was stopped ends with the same weights as one that was not."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from cascade_ops.errors import RunExistsError
from workflows import config, job
from workflows.rundir import RunDir

ROOT = Path(__file__).resolve().parents[2]


def weights(run: Path) -> bytes:
    return (run / "model" / "model.safetensors").read_bytes()


class Bomb:
    """A Progress that stops the run at the n-th report."""

    def __init__(self, reports: int) -> None:
        self.left = reports

    def __call__(self, phase: str, done: int, total: int, **figures: float) -> None:
        self.left -= 1
        if self.left == 0:
            raise KeyboardInterrupt


# 20 reports of the dense training, then for each stage 2 of scoring and its recovery steps (5, 5, 10), 2 of latency
@pytest.mark.parametrize("reports", [7, 21, 24, 30, 45, 47])
def test_stopped_anywhere(reports: int, tiny: Path, finished: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        job.start(config.resolve(config.read_document(tiny)), out, progress=Bomb(reports))
    assert not RunDir(path=out).complete
    assert not list(out.rglob(".*")), "a temporary folder was left"
    job.resume(out)
    assert RunDir(path=out).complete
    assert weights(out) == weights(finished)


def test_ctrl_c_and_resume(tiny: Path, tmp_path: Path, cascade) -> None:
    out = tmp_path / "run"
    settings = ["--set", "schedule.recovery.steps=400"]
    process = subprocess.Popen(
        [sys.executable, "-m", "workflows.cli", "compress", str(tiny), "--out", str(out), *settings],
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ,
    )  # fmt: skip
    deadline = time.monotonic() + 60
    while not (out / "steps" / "00-dense").exists():
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    stdout, stderr = process.communicate(timeout=30)
    assert process.returncode == 1
    assert stdout == ""
    assert (
        stderr.splitlines()[-1]
        == f"cascade: error: interrupted; resume with: cascade compress --resume {out}"
    )
    assert "Traceback" not in stderr
    assert (out / "config.yaml").is_file()
    assert not list(out.rglob(".*"))
    assert not (out / "report.json").exists()
    assert cascade("compress", "--resume", out).exit_code == 0
    undisturbed = tmp_path / "undisturbed"
    assert cascade("compress", tiny, "--out", undisturbed, *settings).exit_code == 0
    assert weights(out) == weights(undisturbed)


def test_a_killed_process_leaves_nothing_for_long(finished: Path, tmp_path: Path) -> None:
    """SIGKILL runs no clean-up: the temporary folder of the step under way stays until the run is resumed."""
    out = tmp_path / "run"
    shutil.copytree(finished, out)
    shutil.rmtree(out / "model")
    (out / "report.json").unlink()
    (out / "steps" / "03-channel").rename(out / "steps" / ".03-channel.k2x9")
    (out / "steps" / ".03-channel.k2x9" / "result.json").unlink()
    (out / ".report.html.abc").write_text("half a pa")
    job.resume(out)
    assert not list(out.rglob(".*"))
    assert weights(out) == weights(finished)


def test_changed_configuration_is_refused(finished: Path, cascade) -> None:
    result = cascade("compress", "--resume", finished, "--seed", "5", "--set", "train.steps=21")
    assert result.exit_code == 2
    assert "seed: 0 → 5; train.steps: 20 → 21" in result.stderr


def test_same_configuration_is_accepted(tiny: Path, finished: Path, cascade) -> None:
    result = cascade("compress", tiny, "--resume", finished)
    assert result.exit_code == 0, result.output
    assert "complete already" in result.stderr


def test_changed_data_is_refused(tiny: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        job.start(config.resolve(config.read_document(tiny)), out, progress=Bomb(3))
    document = yaml.safe_load((out / "config.yaml").read_text())
    document["data"]["options"]["seconds"] = 1.5
    (out / "config.yaml").write_text(yaml.safe_dump(document))
    with pytest.raises(Exception, match="was started on other data"):
        job.resume(out)


def test_one_process_at_a_time(tiny: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    document = config.resolve(config.read_document(tiny))
    with pytest.raises(KeyboardInterrupt):
        job.start(document, run, progress=Bomb(7))
    with (
        RunDir(path=run).held(),
        pytest.raises(RunExistsError, match="another process is working on this run"),
    ):
        job.resume(run)
    assert job.resume(run).complete
