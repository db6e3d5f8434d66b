"""Workers and nodes that go in the middle of a sweep change nothing in its result."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import pytest
from ray.cluster_utils import Cluster

from cascade_ops.scoring import Scores
from tests.factories import gpt2
from tests.ray.nodes import nodes_of_one_core
from workflows.scoring import driver
from workflows.scoring.driver import Request, Snapshot, score_here
from workflows.scoring.sharded import score_sharded
from workflows.scoring.sizing import Wish

pytestmark = [
    pytest.mark.slow,
    pytest.mark.usefixtures("no_orphans"),
]

WIDTH, TOKENS, SAMPLES = 64, 32, 16
"""Boundaries of 128 KiB: Ray keeps what is smaller than 100 KiB with the driver, where no node's death reaches it."""
MICROS = 8
SHARDS = 3
ITEMS = MICROS * (2 * SHARDS - 1) + SHARDS


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with nodes_of_one_core(3) as cluster:
        yield cluster


@pytest.fixture(autouse=True)
def _looked_at_often(monkeypatch: pytest.MonkeyPatch) -> None:
    """After every step: on a busy machine the sweep could otherwise be all but over when the strike falls."""
    monkeypatch.setattr(driver, "LOOK_EVERY", 0.0)


@pytest.fixture
def request_(ask: Callable[..., Request]) -> Request:
    model = gpt2(n_layer=5, n_embd=WIDTH, n_positions=TOKENS)
    return ask(model, samples=SAMPLES * MICROS, size=SAMPLES, tokens=TOKENS)


@dataclass(slots=True)
class Once:
    """A Watch that strikes when so much is done."""

    share: float
    strike: Callable[[Snapshot], None]
    struck: list[Snapshot] = field(default_factory=list)
    last: Snapshot | None = None

    def __call__(self, snapshot: Snapshot) -> None:
        self.last = snapshot
        if not self.struck and self.share <= snapshot.share < 1:
            self.struck.append(snapshot)
            self.strike(snapshot)


def test_a_worker_that_is_killed_changes_no_bit(
    cluster: Cluster,
    request_: Request,
    pids: Callable[[], list[int]],
    same_bits: Callable[[Scores, Scores], None],
) -> None:
    """A node is left for its replacement."""
    watch = Once(0.3, lambda snapshot: os.kill(pids()[-1], signal.SIGKILL))
    found = score_sharded(request_, Wish(shards=SHARDS, workers=2), watch=watch)
    assert watch.struck
    same_bits(score_here(request_, shards=SHARDS).scores, found.scores)
    assert [worker.lost for worker in found.workers].count(True) == 1
    assert len(found.workers) == 3


def remover(cluster: Cluster) -> Callable[[Snapshot], None]:
    """Take away the node of the first worker, without a warning."""

    def remove(snapshot: Snapshot) -> None:
        name = snapshot.workers[0].node
        (node,) = [node for node in cluster.worker_nodes if node.node_id == name]
        cluster.remove_node(node, allow_graceful=False)

    return remove


def test_boundaries_that_go_with_their_node_are_made_again(
    cluster: Cluster, request_: Request, same_bits: Callable[[Scores, Scores], None]
) -> None:
    """All of them: there was but one worker."""
    watch = Once(0.3, remover(cluster))
    found = score_sharded(request_, Wish(shards=SHARDS, workers=1), watch=watch)
    assert watch.struck
    same_bits(score_here(request_, shards=SHARDS).scores, found.scores)
    assert [worker.lost for worker in found.workers] == [True, False]
    assert found.workers[0].node != found.workers[1].node
    assert sum(worker.items for worker in found.workers) > ITEMS, "nothing was made again"


def test_the_others_take_over_where_there_is_no_room_for_a_replacement(
    cluster: Cluster, request_: Request, same_bits: Callable[[Scores, Scores], None]
) -> None:
    """Two nodes are left, then one."""
    watch = Once(0.2, remover(cluster))
    found = score_sharded(request_, Wish(shards=SHARDS, workers=2), watch=watch)
    assert watch.struck
    same_bits(score_here(request_, shards=SHARDS).scores, found.scores)
    assert [worker.lost for worker in found.workers] == [True, False, False]
    assert found.workers[1].items > ITEMS // 2
    assert found.workers[2].items == 0, "there was no room for it"
