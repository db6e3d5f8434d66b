"""The application on a real Ray: served is off-line, and too much is refused."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import aiohttp
import numpy as np
import pytest
import torch

from serve.launch import Server
from tests.ray.asking import ask, body, offline, probabilities, served, unseen_windows

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def server(finished: Path) -> Iterator[Server]:
    limits = {"ongoing": 40, "queued": 0}
    with Server.local(served(finished, bitwise=True, limits=limits)) as running:
        yield running


@pytest.fixture(scope="module")
def windows() -> np.ndarray:
    return unseen_windows(1000)


@pytest.mark.parametrize("model", ["small", "dense"])
def test_served_is_offline_to_the_last_bit(
    server: Server, finished: Path, windows: np.ndarray, model: str
) -> None:
    answers = asyncio.run(ask(server.url, [body(window, model) for window in windows], 32))
    folder = finished / ("model" if model == "small" else "steps/00-dense/model")
    assert torch.equal(probabilities(answers), offline(folder, windows))
    assert max(found["batch"] for _, found in answers) > 4, "requests were not batched"


def test_one_at_a_time_is_the_same(server: Server, finished: Path, windows: np.ndarray) -> None:
    answers = asyncio.run(ask(server.url, [body(window) for window in windows[:50]], 1))
    assert torch.equal(probabilities(answers), offline(finished / "model", windows)[:50])
    assert {found["batch"] for _, found in answers} == {1}


def test_too_much_is_refused_and_it_recovers(server: Server, windows: np.ndarray) -> None:
    bodies = [body(window) for window in windows]
    answers = asyncio.run(ask(server.url, bodies, 120))
    statuses = Counter(status for status, _ in answers)
    assert set(statuses) == {200, 503}, [found for status, found in answers if status == 0][:3]
    assert statuses[503] > 0
    refused = next(found for status, found in answers if status == 503)
    assert refused["error"]["type"] == "overloaded"
    assert 'status="503"' in asyncio.run(metrics(server.url))
    again = asyncio.run(ask(server.url, bodies[:64], 8))
    assert Counter(status for status, _ in again) == {200: 64}


async def metrics(url: str) -> str:
    async with aiohttp.ClientSession() as session, session.get(f"{url}/metrics") as response:
        return await response.text()


def test_counts_are_told(server: Server, windows: np.ndarray) -> None:
    asyncio.run(ask(server.url, [body(window) for window in windows[:8]], 4))
    text = asyncio.run(metrics(server.url))
    for name in (
        "requests_total",
        "request_seconds_bucket",
        "batch_size_bucket",
        "queue_depth",
        "resident_bytes",
    ):
        assert f"cascade_{name}{{" in text
    assert "cascade_replicas 1.0" in text
