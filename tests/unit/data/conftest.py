"""Real recordings where this machine has them, a small simulated dataset always."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from cascade_ops.data import Dataset, find_dataset, open_dataset, simulate_dataset

os.environ.setdefault("OMP_NUM_THREADS", "1")


def _real(name: str) -> Dataset:
    if find_dataset(name) is None:
        pytest.skip(f"no {name} recordings here (`cascade data fetch {name}`, or CASCADE_DATA_DIR)")
    return open_dataset(name)


@pytest.fixture(scope="session")
def cwru() -> Dataset:
    return _real("cwru")


@pytest.fixture(scope="session")
def uestc() -> Dataset:
    return _real("uestc")


@pytest.fixture(scope="session")
def simulated() -> Dataset:
    return simulate_dataset(seconds=2.0)


@pytest.fixture
def nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory from which no data is found; returns the user's (empty) cache."""
    work = tmp_path / "deep" / "work"
    work.mkdir(parents=True)
    monkeypatch.chdir(work)
    monkeypatch.delenv("CASCADE_DATA_DIR", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "cascade-ops" / "data"
