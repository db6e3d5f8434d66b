"""A replica is killed in the middle of the load: what it held is lost, nothing else, and no answer is wrong."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from pathlib import Path

import pytest
import requests
import torch

from serve.launch import Server
from tests.ray.asking import ask, body, offline, probabilities, served, unseen_windows

pytestmark = pytest.mark.slow


def test_a_killed_replica_costs_only_what_it_held(finished: Path) -> None:
    """Two replicas; one is killed in the middle of the load."""
    two = served(finished, replicas={"min": 2, "max": 2}, cpus=0.5)
    concurrency = 8
    windows = unseen_windows(1000)
    with Server.local(two) as server:
        bodies = [body(window) for window in windows]
        victim = replica_process()

        def kill(place: int) -> None:
            if place == len(bodies) // 3:
                os.kill(victim, signal.SIGKILL)

        answers = asyncio.run(ask(server.url, bodies, concurrency, kill))
        expected = offline(finished / "model", windows)
        failed = [status for status, _ in answers if status != 200]
        right = [place for place, (status, _) in enumerate(answers) if status == 200]
        assert len(failed) <= concurrency
        assert set(failed) <= {0, 500, 503}
        assert all(status == 200 for status, _ in answers[-len(bodies) // 3 :])
        found = probabilities([answers[place] for place in right])
        assert torch.allclose(found, expected[right], atol=1e-5)
        assert replicas_alive(server.url) == 2
        assert told(server.url, "cascade_replicas_lost_total", 1.0)


def told(url: str, name: str, value: float, patience: float = 30.0) -> bool:
    """Whether the metrics come to say so."""
    deadline = time.monotonic() + patience
    while f"{name} {value}" not in requests.get(f"{url}/metrics").text:
        if time.monotonic() > deadline:
            return False
        time.sleep(0.5)
    return True


def replica_process() -> int:
    """The process of some replica."""
    import psutil

    return next(
        child.pid
        for child in psutil.Process().children(recursive=True)
        if "ServeReplica" in " ".join(child.cmdline()) or "ServeReplica" in child.name()
    )


def replicas_alive(url: str, patience: float = 60.0) -> int:
    """Once there are two that answer, or after ``patience`` seconds."""
    from ray import serve

    deadline = time.monotonic() + patience
    while time.monotonic() < deadline:
        application = serve.status().applications["cascade"]
        running = application.deployments["cascade"].replica_states.get("RUNNING", 0)
        if running == 2 and application.status == "RUNNING":
            return 2
        time.sleep(0.5)
    return running
