"""What the measurements of a server share: a server in a process of its own, and users that ask it."""

from __future__ import annotations

import asyncio
import io
import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np
import psutil
import torch

from serve.bench.generator import Bounds, Sent, Shot, open_loop

WINDOWS = 1000
HEADERS = {"content-type": "application/json"}


@dataclass(frozen=True, kw_only=True)
class Asked:
    """One answered request; ``began`` and ``ended`` in seconds from the start of its load."""

    place: int
    status: int
    began: float
    ended: float
    answer: dict[str, Any]
    retry_after: str | None

    @property
    def ms(self) -> float:
        return 1e3 * (self.ended - self.began)


def real_windows(run: Path) -> tuple[np.ndarray, str]:
    """Of the run's own recordings: those it was tested on first."""
    from workflows.prepare import prepare_data
    from workflows.rundir import RunDir

    prepared = prepare_data(RunDir(path=run).config())
    found = torch.cat([prepared.data.test["signal"], prepared.data.validation["signal"]]).numpy()
    if len(found) < WINDOWS:
        sys.exit(f"{run}: its data hold {len(found)} windows for testing, {WINDOWS} are needed")
    return found[:WINDOWS], str(prepared.description["title"])


@contextmanager
def serving(run: Path, **settings: Any) -> Iterator[str]:
    """``cascade serve`` in a process of its own, on a free port."""
    flags = [
        part for key, value in settings.items() for part in ("--set", f"{key.replace('__', '.')}={value}")
    ]
    command = [
        sys.executable,
        "-m",
        "workflows.cli",
        "serve",
        f"model={run}",
        "--port",
        "0",
        "--json",
        "-q",
        *flags,
    ]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    try:
        assert process.stdout is not None
        text = ""
        while not text.rstrip().endswith("\n}"):
            line = process.stdout.readline()
            if not line:
                sys.exit(f"the server did not start: {' '.join(command)}")
            text += line
        yield json.loads(text)["url"]
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)


def body(window: np.ndarray, model: str = "model") -> bytes:
    asked = {
        "signal": window.tolist(),
        "fs_hz": 12000,
        "preprocessed": True,
        "model": model,
        "detail": "none",
    }
    return json.dumps(asked).encode()


async def one(session: aiohttp.ClientSession, url: str, content: bytes, place: int, start: float) -> Asked:
    began, retry, answer = time.perf_counter() - start, None, {}
    try:
        async with session.post(f"{url}/v1/diagnose", data=content, headers=HEADERS) as response:
            status, retry = response.status, response.headers.get("retry-after")
            answer = json.loads(await response.read())
    except (aiohttp.ClientError, json.JSONDecodeError):
        status = 0
    return Asked(
        place=place,
        status=status,
        began=began,
        ended=time.perf_counter() - start,
        answer=answer,
        retry_after=retry,
    )


def connect() -> aiohttp.ClientSession:
    return aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0))


async def closed(
    url: str, bodies: Sequence[bytes], users: int, *, seconds: float | None = None, count: int | None = None
) -> list[Asked]:
    """``users`` who ask again once answered, for ``seconds`` or until ``count`` bodies were sent once each."""
    found: list[Asked] = []
    places = iter(range(count if count is not None else 10**9))
    start = time.perf_counter()

    async with connect() as session:

        async def user() -> None:
            for place in places:
                if seconds is not None and time.perf_counter() - start > seconds:
                    return
                found.append(await one(session, url, bodies[place % len(bodies)], place, start))

        await asyncio.gather(*(user() for _ in range(users)))
    return found


async def opened(url: str, bodies: Sequence[bytes], rate: float, seconds: float) -> Sent:
    """Poisson arrivals; latency counts from when a request was due. Every refusal says when to come back."""
    async with connect() as session:

        async def post(content: bytes) -> tuple[int, str | None]:
            async with session.post(f"{url}/v1/diagnose", data=content, headers=HEADERS) as response:
                await response.read()
                assert response.status != 503 or response.headers["retry-after"] == "1"
                return response.status, None

        shot = Shot(round=0, variant="", mode="open", level=rate, bodies=bodies)
        return await open_loop(post, shot, Bounds(seconds=seconds, requests=10**6, warmup_s=0.0))


async def upload(session: aiohttp.ClientSession, url: str, rng: np.random.Generator) -> int:
    stream = io.BytesIO()
    np.save(stream, rng.normal(size=20_000))
    content = stream.getvalue()
    if rng.random() < 0.5:
        content = content[: int(rng.integers(1, len(content)))]
    form = aiohttp.FormData()
    form.add_field(
        "file", content, filename=str(rng.choice(["a.npy", "b.mat", "c.csv", "d.wav", "../x.npy"]))
    )
    form.add_field("fs_hz", "12000")
    try:
        async with session.post(f"{url}/v1/diagnose", data=form) as response:
            await response.read()
            return response.status
    except aiohttp.ClientError:
        return 0


def replicas() -> list[int]:
    """Processes of replicas, anywhere below this one."""
    below = psutil.Process().children(recursive=True)
    return [child.pid for child in below if "ServeReplica" in "".join(child.cmdline())]
