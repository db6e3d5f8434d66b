"""A job so small that all of it takes a second or two."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner, Result

TINY: dict[str, Any] = {
    "threads": 1,
    "data": {
        "name": "simulated",
        "split": "load:3",
        "length": 256,
        "stride": 128,
        "calibration": 32,
        "options": {"seconds": 1.0, "labels": ["N", "IR014", "OR014"], "loads": ["0", "3"]},
    },
    "model": {
        "patch": 32,
        "config": {
            "model_type": "gpt2",
            "n_embd": 16,
            "n_layer": 3,
            "n_head": 4,
            "n_inner": 32,
            "n_positions": 8,
            "vocab_size": 1,
            "bos_token_id": None,
            "eos_token_id": None,
        },
    },
    "train": {"steps": 20, "batch_size": 16},
    "schedule": {"target": 4, "recovery": {"steps": 20, "batch_size": 16}},
}


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    """The configuration file."""
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(TINY))
    return path


Cascade = Callable[..., Result]


@pytest.fixture
def cascade() -> Cascade:
    """Runs the CLI in this process."""
    from workflows.cli import app

    def run(*arguments: object) -> Result:
        return CliRunner().invoke(app, [str(argument) for argument in arguments])

    return run


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A complete run, shared: do not write into it."""
    from workflows import config, job

    out = tmp_path_factory.mktemp("finished") / "run"
    job.start(config.resolve(TINY), out)
    return out
