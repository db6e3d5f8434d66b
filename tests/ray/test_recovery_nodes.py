"""A node that goes in the middle of a recovery fit changes nothing in its result."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from ray.cluster_utils import Cluster

from cascade_ops.recovery import recover
from cascade_ops.schedule import Recovery
from tests.factories import batch_for, llama_like
from tests.ray.conftest import living
from tests.ray.nodes import nodes_of_one_core
from workflows.config import RecoveringConfig
from workflows.recovery.trainer import cluster_recoverer

pytestmark = pytest.mark.slow


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    with nodes_of_one_core(2) as cluster:
        yield cluster


def test_a_fit_that_loses_a_node_ends_with_the_same_weights(cluster: Cluster, tmp_path: Path) -> None:
    model = llama_like()
    twin, data = copy.deepcopy(model), batch_for(model, samples=32, tokens=12)
    recovery = Recovery(steps=150, batch_size=8, method="full", learning_rate=1e-4)
    removed: list[str] = []

    def remove(phase: str, done: int, total: int, **figures: float) -> None:
        if not removed and done < total:
            (worker,) = [actor for actor in living() if "Worker" in actor["ActorClassName"]]
            removed.append(worker["Address"]["NodeID"])
            (node,) = [node for node in cluster.worker_nodes if node.node_id == removed[0]]
            cluster.remove_node(node, allow_graceful=False)

    how = {"steps": recovery.steps, "seed": 3, "validation": None, "teacher": None, "augment": None}
    there = cluster_recoverer(RecoveringConfig(workers=1), tmp_path, device="cpu")(
        model, data, recovery, progress=remove, **how
    )
    here = recover(twin, data, recovery, **how)
    assert removed
    torch.testing.assert_close(there.losses, here.losses, rtol=0, atol=2e-6)
    torch.testing.assert_close(model.state_dict(), twin.state_dict(), rtol=0, atol=2e-6)
