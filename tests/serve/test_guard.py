"""Who is let in, who is put off and what is counted, on a real web server."""

from __future__ import annotations

import asyncio
import json
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import requests

from cascade_ops.data.simulate import simulate_recording
from serve.config import ServeConfig
from serve.guard import Guard
from tests.serve.conftest import Served, serving

PLACES = 3
BODY_S = 0.6


@pytest.fixture(scope="module")
def narrow(config: ServeConfig, finished: Path) -> Iterator[Served]:
    """Takes three requests at a time, whose bodies must come soon."""
    limits = config.limits.model_copy(update={"ongoing": PLACES, "queued": 0, "body_s": BODY_S})
    yield from serving(config.model_copy(update={"limits": limits}), finished)


@pytest.fixture(scope="module")
def good() -> bytes:
    signal = simulate_recording("OR014", rpm=1750.0, seconds=0.5).signal
    return json.dumps({"signal": signal.tolist(), "fs_hz": 12000.0}).encode()


def ask(served: Served, body: bytes, path: str = "/v1/diagnose") -> requests.Response:
    return requests.post(served.url + path, data=body, headers={"content-type": "application/json"})


def idle(served: Served, sent: bytes = b'{"signal": [') -> socket.socket:
    """A request whose body stops short."""
    host, port = served.url.removeprefix("http://").split(":")
    connection = socket.create_connection((host, int(port)))
    head = f"POST /v1/diagnose HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: {len(sent) + 9}"
    connection.sendall(head.encode() + b"\r\n\r\n" + sent)
    return connection


def counted(served: Served, status: int, route: str = "/v1/diagnose") -> float:
    text = requests.get(f"{served.url}/metrics").text
    lines = [line for line in text.splitlines() if line.startswith("cascade_requests_total{")]
    return sum(
        float(line.rsplit(" ", 1)[1])
        for line in lines
        if f'status="{status}"' in line and f'route="{route}"' in line
    )


def until(ready: Any, patience: float = 5.0) -> None:
    deadline = time.monotonic() + patience
    while not ready():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_bodies_that_do_not_come_give_their_places_back(narrow: Served, good: bytes) -> None:
    holding = [idle(narrow) for _ in range(PLACES)]
    until(lambda: narrow.service.held() == PLACES)
    refused = ask(narrow, good)
    assert refused.status_code == 503
    assert refused.headers["retry-after"] == "1"
    assert requests.get(f"{narrow.url}/healthz").status_code == 200, "what computes nothing is let in"
    for connection in holding:
        connection.settimeout(5)
        assert connection.recv(4096).startswith(b"HTTP/1.1 408")
        connection.close()
    assert ask(narrow, good).status_code == 200


def test_the_refused_hold_no_place_while_they_dawdle(narrow: Served, good: bytes) -> None:
    holding = [idle(narrow) for _ in range(PLACES)]
    until(lambda: narrow.service.held() == PLACES)
    dawdling = [idle(narrow) for _ in range(20)]
    time.sleep(0.1)  # they are being refused, which takes twice as long
    for connection in holding:
        connection.close()
    until(lambda: narrow.service.held() == 0, patience=BODY_S / 2)
    assert ask(narrow, good).status_code == 200
    for connection in dawdling:
        connection.close()


def test_a_client_that_leaves_is_no_failure_of_the_servers(narrow: Served) -> None:
    before = counted(narrow, 499), counted(narrow, 500)
    idle(narrow).close()
    until(lambda: counted(narrow, 499) == before[0] + 1)
    assert counted(narrow, 500) == before[1]


def test_a_failure_is_answered_and_counted(
    narrow: Served, good: bytes, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def broken(*_: Any) -> None:
        raise RuntimeError("a secret path")

    monkeypatch.setattr(narrow.service, "diagnose", broken)
    before = counted(narrow, 500)
    found = ask(narrow, good)
    assert found.status_code == 500
    assert found.json()["error"]["type"] == "internal"
    assert "secret" not in found.text
    until(lambda: "a secret path" in caplog.text)
    assert counted(narrow, 500) == before + 1


def test_a_stream_that_breaks_off_is_counted_as_a_failure() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"half", "more_body": True})
        raise RuntimeError("the model has gone")

    with pytest.raises(RuntimeError, match="the model has gone"):
        assert call(app) == []
    assert STATUSES.pop() == 500


def test_refusals_are_spread_out() -> None:
    """At a millisecond each while they are few, after a quarter of a second at most when they are many."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await asyncio.sleep(1.0)

    async def many(count: int) -> list[float]:
        guard = guard_of(app, most_requests=0)
        began = time.perf_counter()

        async def one() -> float:
            await guard(SCOPE | {}, receive, _nothing)
            return time.perf_counter() - began

        return sorted(await asyncio.gather(*(one() for _ in range(count))))

    took = asyncio.run(many(100))
    assert took[0] < 0.05
    assert 0.09 < took[-1] < 0.5
    gaps = np.diff(took)
    assert float(np.median(gaps)) < 0.003
    assert 0.24 < asyncio.run(many(4000))[-1] < 3.0


SCOPE = {"type": "http", "method": "POST", "path": "/v1/diagnose", "headers": []}
STATUSES: list[int] = []


async def receive() -> Any:
    return {"type": "http.request", "body": b"{}", "more_body": False}


async def _nothing(message: Any) -> None:
    del message


def guard_of(app: Any, **settings: Any) -> Guard:
    def told(model: str, route: str, status: int, seconds: float) -> None:
        STATUSES.append(status)

    usual: dict[str, Any] = {"most_bytes": 100, "most_requests": 1, "body_s": 1.0}
    return Guard(app, told, token=None, routes=frozenset(), free=frozenset(), **(usual | settings))


def call(app: Any) -> list[Any]:
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    asyncio.run(guard_of(app)(dict(SCOPE), receive, send))
    return sent
