"""``cascade serve`` says what is wrong before anything is started."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "models: is required: name a run, as in `cascade serve runs/demo`"),
        (["no/such/run"], "no/such/run: expected a run directory or a model folder"),
        (["RUN", "RUN"], "two are called 'run'"),
        (["RUN", "--engine", "tensorrt"], "unknown engine 'tensorrt'"),
        (["RUN", "--set", "batch.sise=3"], "batch.sise: unknown key. Did you mean 'size'?"),
        (["RUN", "--set", "nonsense"], "expected key=value"),
        (["RUN", "--port", "99999"], "port: must be less than or equal to 65535"),
        (["RUN", "--host", "192.0.2.200"], "192.0.2.200:8000: "),
        (["RUN", "--token-env", "NO_SUCH_TOKEN"], "NO_SUCH_TOKEN to hold at least 16"),
        (["RUN", "--baseline", "other"], "baseline: must be 'dense' or 'none'"),
        (["RUN", "--config", "none.yaml"], "none.yaml: expected a YAML file"),
    ],
)
def test_wrong_requests(arguments: list[str], message: str, finished: Path, cascade) -> None:
    result = cascade("serve", *(str(finished) if one == "RUN" else one for one in arguments))
    assert result.exit_code in (1, 2), result.output
    assert message in result.stderr
    assert "Traceback" not in result.stderr


def test_a_taken_port(finished: Path, cascade) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        result = cascade("serve", finished, "--port", taken.getsockname()[1])
    assert result.exit_code == 2
    assert "Choose another: --port 0 takes any" in result.stderr
