"""What the tests on a real Ray share: models on disk, requests, and a look at who is still alive."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from ray._private import state
from transformers import PreTrainedModel

from cascade_ops.batches import sequential
from cascade_ops.checkpoint import save_pruned
from cascade_ops.criteria import CRITERIA
from cascade_ops.scoring import Scores
from cascade_ops.shards import layout_of
from tests.factories import batch_for
from workflows.scoring.driver import Request, make_request

Ask = Callable[..., Request]


@pytest.fixture
def ask(tmp_path: Path) -> Ask:
    """A model saved to disk, and the request to score it."""

    def request(model: PreTrainedModel, *, samples: int = 7, size: int = 2, tokens: int = 9) -> Request:
        save_pruned(model, tmp_path / "model")
        batches = list(sequential(batch_for(model, samples=samples, tokens=tokens), size))
        return make_request(layout_of(tmp_path / "model"), batches, tuple(CRITERIA))

    return request


def living() -> list[dict[str, Any]]:
    """Actors that are not dead, from the cluster's own table (the public listing needs a dashboard)."""
    return [actor for actor in state.actors().values() if actor["State"] != "DEAD"]


@pytest.fixture
def pids() -> Callable[[], list[int]]:
    """Process ids of the workers that have started."""
    return lambda: [actor["Pid"] for actor in living() if actor["State"] == "ALIVE"]


@pytest.fixture
def no_orphans() -> Iterator[None]:
    """Whatever happens in the test, no actor is left after it."""
    yield
    deadline = time.monotonic() + 10
    while left := living():
        assert time.monotonic() < deadline, f"{len(left)} actors are left: {left}"
        time.sleep(0.05)


@pytest.fixture
def same_bits() -> Callable[[Scores, Scores], None]:
    def check(one: Scores, other: Scores) -> None:
        assert one.keys() == other.keys()
        for key, scores in one.items():
            assert scores.samples == other[key].samples, key
            for row, again in zip(scores.per_layer, other[key].per_layer, strict=True):
                assert torch.equal(row, again), key

    return check
