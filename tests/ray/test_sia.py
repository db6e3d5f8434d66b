"""Ablations on Ray are those of one process, whoever does them and whoever dies."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import ray
import torch

from cascade_ops.checkpoint import load_pruned, save_pruned
from cascade_ops.granularity import Granularity
from cascade_ops.serde import to_jsonable
from cascade_ops.sia import check
from cascade_ops.sia.ablation import Cut, here
from cascade_ops.training import deterministic
from tests.factories import batch_for, llama_like
from tests.ray.conftest import living
from workflows.sia.cluster import ablating

pytestmark = pytest.mark.slow


@pytest.fixture
def started() -> Iterator[None]:
    ray.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    yield
    assert not living(), "actors are left"
    ray.shutdown()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_pruned(llama_like(), tmp_path / "model")
    return tmp_path / "model"


@pytest.mark.usefixtures("started")
def test_workers_and_their_deaths_change_no_bit(folder: Path, pids: Callable[[], list[int]]) -> None:
    deterministic(1)
    model = load_pruned(folder)
    batch = batch_for(model, samples=8, tokens=12)
    generator = torch.Generator().manual_seed(0)
    cuts = [
        Cut(granularity=Granularity.CHANNEL, shut=torch.rand(2000, 3 * 18, generator=generator) < 0.3),
        Cut(granularity=Granularity.HEAD, shut=torch.rand(7, 3 * 6, generator=generator) < 0.3),
    ]
    expected = here(model)(batch, cuts)
    with ablating(folder, workers=2, threads=1, device="cpu", address=None) as ablate:
        first = ablate(batch, cuts)
        victim = pids()[0]
        timer = threading.Timer(0.3, os.kill, (victim, signal.SIGKILL))
        timer.start()
        again = ablate(batch, cuts)
        timer.join()
        last = ablate(batch, cuts)
        assert victim not in pids(), "nobody was killed, nothing was tested"
    for found in (first, again, last):
        for one, other in zip(found, expected, strict=True):
            assert torch.equal(one, other)


@pytest.mark.usefixtures("started")
def test_a_check_on_two_workers_is_the_check(folder: Path) -> None:
    deterministic(1)
    model = load_pruned(folder)
    data = batch_for(model, samples=24, tokens=12)
    alone = check(model, data, seed=1)
    with ablating(folder, workers=2, threads=1, device="cpu", address=None) as ablate:
        spread = check(model, data, seed=1, ablate=ablate)
    assert to_jsonable(spread) | {"seconds": 0} == to_jsonable(alone) | {"seconds": 0}
