"""``cascade export``: from a run to a folder that says what it is, how to run it and how good it is."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from tests.jobs import TINY
from workflows.cli import app


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("export")
    (folder / "tiny.yaml").write_text(yaml.safe_dump(TINY))
    result = CliRunner().invoke(app, ["compress", str(folder / "tiny.yaml"), "--out", str(folder / "run")])
    assert result.exit_code == 0, result.output
    return folder / "run"


def test_every_target_scores_as_the_run_did(finished: Path, tmp_path: Path, cascade) -> None:
    report = json.loads((finished / "report.json").read_text())
    for target in ("cascade", "onnx", "torch.export"):
        out = tmp_path / target
        result = cascade("export", finished, "--to", target, "--out", out, "--json")
        assert result.exit_code == 0, result.output
        (found,) = json.loads(result.stdout)["exports"]
        assert found["evaluation"]["metric"]["value"] == report["metric"]["final"]
        assert found["stage"]["metric_before"] == report["metric"]["final"]
        manifest = json.loads((out / "export.json").read_text())
        assert manifest["parity"] == found["parity"]
        assert manifest["parity"]["difference"] <= manifest["parity"]["tolerance"]
        assert manifest["run"]["provenance"]["commit"] == report["provenance"]["commit"]


def test_the_lines_on_the_card_run(finished: Path, tmp_path: Path, cascade) -> None:
    """Each card's code, pasted into Python with the inputs that the card describes."""
    given = {
        "onnx": "import numpy as n; values = n.zeros((3, 256), n.float32)\n",
        "torch.export": "import torch; signal = torch.zeros(3, 256)\n",
    }
    for target, before in given.items():
        assert (
            cascade("export", finished, "--to", target, "--out", tmp_path / target, "--no-evaluate").exit_code
            == 0
        )
        card = (tmp_path / target / "README.md").read_text()
        (code,) = re.findall(r"```python\n(.*?)```", card, flags=re.DOTALL)
        assert "| `signal` | float32 (batch, 256) |" in card
        done = subprocess.run(
            [sys.executable, "-c", f"{before}{code}\nassert logits.shape == (3, 3)"],
            cwd=tmp_path / target, capture_output=True, text=True, env=os.environ,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr


def test_several_at_once_land_in_the_run(finished: Path, cascade) -> None:
    result = cascade("export", finished, "--to", "cascade, onnx", "--no-evaluate")
    assert result.exit_code == 0, result.output
    assert {path.name for path in (finished / "export").iterdir()} == {"cascade", "onnx"}
    again = cascade("export", finished, "--to", "onnx")
    assert again.exit_code == 2
    assert "exists already" in again.stderr


def test_a_folder_outside_any_run(finished: Path, tmp_path: Path, cascade) -> None:
    (finished / "model").rename(tmp_path / "model")
    try:
        result = cascade("export", tmp_path / "model", "--to", "onnx", "--out", tmp_path / "out")
    finally:
        (tmp_path / "model").rename(finished / "model")
    assert result.exit_code == 0, result.output
    assert "outside any run" in (tmp_path / "out" / "README.md").read_text()
    assert json.loads((tmp_path / "out" / "export.json").read_text())["evaluation"] is None


@pytest.mark.parametrize(
    ("arguments", "message", "code"),
    [
        (("--to", "onxx"), "unknown export target 'onxx'. Did you mean 'onnx'?", 2),
        (("--to", "hf"), "expected a model of the kind", 1),
        (("--to", ","), "--to: expected a target", 2),
        (("--to", "onnx", "--precision", "int3"), "precision: onnx has fp32, int8", 2),
        (("--to", "onnx,cascade", "--out", "x"), "--out: is the folder of one target", 2),
    ],
)
def test_mistakes(
    arguments: tuple[str, ...], message: str, code: int, finished: Path, tmp_path: Path, cascade, monkeypatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = cascade("export", finished, *arguments)
    assert result.exit_code == code, result.output
    assert message in result.stderr
    assert result.stdout == ""
    assert list(tmp_path.iterdir()) == []


def test_inspect_tells_from_a_config_alone_what_targets_can_express(
    finished: Path, tmp_path: Path, cascade
) -> None:
    (tmp_path / "config.json").write_text((finished / "model" / "config.json").read_text())
    result = cascade("inspect", tmp_path, "--json")
    assert result.exit_code == 0, result.output
    rows = {row["target"]: row for row in json.loads(result.stdout)["targets"]}
    assert rows["onnx"]["expresses"]
    assert not rows["hf"]["expresses"]
    assert rows["hf"]["reasons"]
    assert cascade("ls", "targets").exit_code == 0
