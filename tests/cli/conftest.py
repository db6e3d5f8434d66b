"""The command line, run in this process."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner, Result

from tests.jobs import TINY


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
