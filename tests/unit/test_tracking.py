"""Loss curves reach the trackers."""

from __future__ import annotations

import sys
from pathlib import Path
from unittest.mock import MagicMock

import pytest

from cascade_ops.errors import ConfigError, UnknownNameError
from cascade_ops.progress import silent
from workflows.tracking import tracking


def test_tensorboard_keeps_each_fit_apart(tmp_path: Path) -> None:
    from tensorboardX.proto.event_pb2 import Event

    with tracking(["tensorboard"], tmp_path, "a run", silent) as progress:
        progress("score", 0, 1)
        for first in (0.5, 0.25):
            progress("recover", 1, 2, loss=first)
            progress("recover", 2, 2, loss=first / 2)
    (path,) = (tmp_path / "tensorboard").iterdir()
    data, found = path.read_bytes(), []
    while data:  # length (8 bytes), its CRC (4), the event, its CRC (4)
        size = int.from_bytes(data[:8], "little")
        event = Event.FromString(data[12 : 12 + size])
        found += [(value.tag, event.step, value.simple_value) for value in event.summary.value]
        data = data[16 + size :]
    assert found == [
        ("recover/1/loss", 1, 0.5),
        ("recover/1/loss", 2, 0.25),
        ("recover/2/loss", 1, 0.25),
        ("recover/2/loss", 2, 0.125),
    ]


def test_unknown_name_says_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(UnknownNameError, match="Did you mean 'tensorboard'"):
        tracking(["tensorbord"], tmp_path, "a run", silent)


@pytest.mark.parametrize("name", ["mlflow", "wandb"])
def test_absent_package_is_said_before_anything_runs(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ConfigError, match=f"pip install {name}"):
        tracking(["tensorboard", name], tmp_path, "a run", silent)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["mlflow", "wandb"])
def test_calls(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = MagicMock()
    monkeypatch.setitem(sys.modules, name, fake)
    with tracking([name], tmp_path, "a run", silent) as progress:
        progress("recover", 1, 2, loss=0.5)
    if name == "mlflow":
        fake.start_run.assert_called_once_with(run_name="a run")
        fake.log_metric.assert_called_once_with("recover/1/loss", 0.5, step=1)
        return
    fake.init.assert_called_once_with(name="a run", dir=str(tmp_path))
    logged = fake.init.return_value.__enter__.return_value
    logged.log.assert_called_once_with({"recover/1/loss": 0.5, "recover/1/step": 1})
