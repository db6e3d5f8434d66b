"""A cluster of several nodes on this machine, whose death is soon noticed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import ray
from ray.cluster_utils import Cluster

from workflows.scoring.sizing import GIB

STORE = 80 * 2**20
FAST = {
    "health_check_initial_delay_ms": 0,
    "health_check_period_ms": 500,
    "health_check_timeout_ms": 500,
    "health_check_failure_threshold": 2,
}


@contextmanager
def nodes_of_one_core(count: int) -> Iterator[Cluster]:
    """A head that takes no workers, and ``count`` nodes with room for one each; joined by this process."""
    head = {
        "num_cpus": 0,
        "object_store_memory": STORE,
        "_system_config": FAST,
        "include_dashboard": False,
        "dashboard_port": None,  # its default is one port for every cluster, and Ray leaks a socket where it is taken
    }
    cluster = Cluster(initialize_head=True, head_node_args=head)
    try:
        for _ in range(count):
            cluster.add_node(num_cpus=1, memory=2 * GIB, object_store_memory=STORE)
        ray.init(address=cluster.address, log_to_driver=False)
        yield cluster
    finally:
        ray.shutdown()
        cluster.shutdown()
