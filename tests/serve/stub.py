"""A small web server of known behaviour: so many milliseconds, stalls, refusals; it counts what it saw."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from aiohttp import web

TOKEN = "a token of some length"


@dataclass
class Stub:
    """``fail(n)`` gives the status of the n-th request; ``stall``: seconds (from, for) since the first one."""

    service_s: dict[str, float] = field(default_factory=lambda: {"dense": 0.004, "small": 0.001})
    stall: tuple[float, float] | None = None
    refuse_every: int = 0
    drop_every: int = 0
    token: str | None = None
    fault: str | None = None
    models: tuple[str, ...] = ("dense", "small")
    seen: Counter[str] = field(default_factory=Counter)
    most_outstanding: int = 0
    url: str = ""
    _outstanding: int = 0
    _first: float | None = None

    async def diagnose(self, request: web.Request) -> web.StreamResponse:
        asked = json.loads(await request.read())
        self.seen[asked["model"]] += 1
        if self.fault:
            return web.json_response({"error": {"message": self.fault}}, status=422)
        number = sum(self.seen.values())
        self._first = self._first or time.monotonic()
        self._outstanding += 1
        self.most_outstanding = max(self.most_outstanding, self._outstanding)
        try:
            await self._wait(asked["model"])
        finally:
            self._outstanding -= 1
        if self.drop_every and number % self.drop_every == 0:
            assert request.transport is not None
            request.transport.close()
        if self.refuse_every and number % self.refuse_every == 0:
            return web.json_response({"error": {}}, status=503, headers={"Retry-After": "1"})
        return web.json_response({"diagnosis": "N"})

    async def _wait(self, model: str) -> None:
        await asyncio.sleep(self.service_s[model])
        if self.stall is not None and self._first is not None:
            since = time.monotonic() - self._first
            if self.stall[0] <= since < sum(self.stall):
                await asyncio.sleep(sum(self.stall) - since)

    async def list_models(self, request: web.Request) -> web.Response:
        if self.token and request.headers.get("Authorization") != f"Bearer {self.token}":
            return web.json_response({"error": {}}, status=401)
        common = {"task": "diagnosis", "window": 64, "rate_hz": 12000, "engine": "eager", "version": "0" * 12}
        data = [
            {"id": name, "baseline": name == "dense", "size_bytes": 1000, "metric": None, **common}
            for name in self.models
        ]
        return web.json_response({"object": "list", "data": data})

    async def metrics(self, request: web.Request) -> web.Response:
        lines = [
            'cascade_resident_bytes{replica="a"} 1.0e8',
            'cascade_resident_bytes{replica="b"} 2.0e8',
            'cascade_peak_resident_bytes{replica="a"} 4.0e8',
            "cascade_replicas 2.0",
            "# TYPE cascade_batch_size histogram",
        ]
        for name, count in self.seen.items():  # as if two were always computed together
            lines.append(f'cascade_batch_size_bucket{{model="{name}",le="+Inf"}} {count // 2}')
            lines.append(f'cascade_batch_size_count{{model="{name}"}} {count // 2}')
            lines.append(f'cascade_batch_size_sum{{model="{name}"}} {count}')
        return web.Response(text="\n".join(lines) + "\n")


@contextmanager
def serving(stub: Stub) -> Iterator[Stub]:
    """``stub`` behind a real socket, on a thread of its own."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()

    async def start() -> tuple[web.AppRunner, int]:
        app = web.Application()
        app.add_routes(
            [
                web.post("/v1/diagnose", stub.diagnose),
                web.get("/v1/models", stub.list_models),
                web.get("/metrics", stub.metrics),
            ]
        )
        runner = web.AppRunner(app, shutdown_timeout=0.1)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        return runner, runner.addresses[0][1]

    runner, port = asyncio.run_coroutine_threadsafe(start(), loop).result(10)
    stub.url = f"http://127.0.0.1:{port}"
    try:
        yield stub
    finally:
        asyncio.run_coroutine_threadsafe(runner.cleanup(), loop).result(10)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)
        loop.close()
