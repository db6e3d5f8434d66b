"""Users as coroutines: a closed loop, in which each asks again once answered, and an open loop, in which they come.

In the open loop arrivals are drawn in advance and latencies count from them, so a server that stalls cannot slow down
its own examination.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import aiohttp

from cascade_ops.loadtest.arrivals import poisson_arrivals
from cascade_ops.loadtest.records import CONNECTION, TIMEOUT, UNSENT, Mode, Request

COARSE_S = 0.002
"""An event loop wakes up to a millisecond late; the last stretch is slept on a thread, which is exact."""
TINY_S = 1e-9

Post = Callable[[bytes], Awaitable[tuple[int, str | None]]]
"""Sends a body; gives the status, or 0 and why there is none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    """Of one segment.

    Attributes:
        seconds: in which requests are sent, after ``warmup_s`` whose requests do not count.
        requests: at most so many that count, and so many that do not.
        patience_s: after which a user gives up.
        ceiling: requests that may be outstanding in the open loop; later arrivals wait, and that counts as theirs.
    """

    seconds: float
    requests: int
    warmup_s: float
    patience_s: float = 30.0
    ceiling: int = 512


@dataclass(frozen=True, slots=True, kw_only=True)
class Shot:
    """What a segment's requests have in common, and the bodies they send in turn."""

    round: int
    variant: str
    mode: Mode
    level: float
    bodies: Sequence[bytes]
    seed: int = 0


@dataclass(slots=True)
class Sent:
    """What came of a segment; ``seconds`` and ``held`` as in ``Segment``."""

    requests: list[Request] = field(default_factory=list)
    seconds: float = 0.0
    held: int = 0


async def closed_loop(post: Post, shot: Shot, bounds: Bounds) -> Sent:
    """``shot.level`` users until time or requests are used up."""
    return await _Closed(post, shot, bounds).run()


class _Closed:
    def __init__(self, post: Post, shot: Shot, bounds: Bounds) -> None:
        self._post, self._shot, self._bounds = post, shot, bounds
        self._sent = Sent()
        self._begins = bounds.warmup_s  # sooner where warming up has used up its requests
        self._ends = math.inf
        self._warm = self._counted = 0

    async def run(self) -> Sent:
        self._start = time.perf_counter()
        async with asyncio.TaskGroup() as users:
            for _ in range(int(self._shot.level)):
                users.create_task(self._user())
        # until the first user found nothing left to do: a straggler's wait is not the others' doing
        self._sent.seconds = max(0.0, self._ends - self._begins)
        return self._sent

    async def _user(self) -> None:
        try:
            await self._ask_again_and_again()
        finally:
            self._ends = min(self._ends, time.perf_counter() - self._start)

    async def _ask_again_and_again(self) -> None:
        while (now := time.perf_counter() - self._start) < self._begins + self._bounds.seconds:
            counted = now >= self._begins
            if not counted and self._warm >= self._bounds.requests:
                self._begins, counted = now, True
            if counted and self._counted >= self._bounds.requests:
                return
            number = self._warm + self._counted
            self._counted, self._warm = self._counted + counted, self._warm + (not counted)
            body = self._shot.bodies[number % len(self._shot.bodies)]
            status, error = await _patiently(self._post, body, self._bounds.patience_s)
            ended = time.perf_counter() - self._start
            self._sent.requests.append(_request(self._shot, now, now, ended, status, error, counted))


async def open_loop(post: Post, shot: Shot, bounds: Bounds) -> Sent:
    """Poisson arrivals at ``shot.level`` per second."""
    with ThreadPoolExecutor(1, "arrivals") as sleeper:
        return await _Open(post, shot, bounds, sleeper).run()


class _Open:
    def __init__(self, post: Post, shot: Shot, bounds: Bounds, sleeper: ThreadPoolExecutor) -> None:
        self._post, self._shot, self._bounds, self._sleeper = post, shot, bounds, sleeper
        self._sent = Sent()
        self._slots = asyncio.Semaphore(bounds.ceiling)
        self._full_until = 0.0

    async def run(self) -> Sent:
        shot, bounds = self._shot, self._bounds
        # the past of a Poisson process says nothing of what follows: each part is drawn and bounded on its own
        first, then = (
            poisson_arrivals(shot.level, seconds=seconds, most=bounds.requests, seed=shot.seed + part)
            for part, seconds in enumerate((bounds.warmup_s or TINY_S, bounds.seconds))
        )
        warm = float(first[-1]) if len(first) == bounds.requests else bounds.warmup_s
        arrivals = [*((float(one), False) for one in first), *((warm + float(one), True) for one in then)]
        self._start = time.perf_counter()
        async with asyncio.TaskGroup() as users:
            for number, (intended, counted) in enumerate(arrivals):
                await self._until(intended)
                if await self._slot(intended):
                    body = shot.bodies[number % len(shot.bodies)]
                    users.create_task(self._user(body, intended, counted))
                else:
                    now = time.perf_counter() - self._start
                    self._sent.requests.append(_request(shot, intended, None, now, 0, UNSENT, counted))
        until = warm + (float(then[-1]) if len(then) == bounds.requests else bounds.seconds)
        ends = [request.finished for request in self._sent.requests if request.counted]
        self._sent.seconds = max([until, *ends]) - warm
        return self._sent

    async def _until(self, moment: float) -> None:
        left = moment - (time.perf_counter() - self._start)
        if left > COARSE_S:
            await asyncio.sleep(left - COARSE_S)
            left = moment - (time.perf_counter() - self._start)
        if left > 0:
            await asyncio.get_running_loop().run_in_executor(self._sleeper, time.sleep, left)

    async def _slot(self, intended: float) -> bool:
        """Waits for one; False once the user has given up."""
        full = self._slots.locked()
        self._sent.held += full or intended < self._full_until  # who came behind one that waits, waits too
        if not full:
            return await self._slots.acquire()
        try:
            left = intended + self._bounds.patience_s - (time.perf_counter() - self._start)
            async with asyncio.timeout(max(0.0, left)):
                return await self._slots.acquire()
        except TimeoutError:
            return False
        finally:
            self._full_until = time.perf_counter() - self._start

    async def _user(self, body: bytes, intended: float, counted: bool) -> None:
        sent = time.perf_counter() - self._start
        left = intended + self._bounds.patience_s - sent
        status, error = await _patiently(self._post, body, left)
        self._slots.release()
        ended = time.perf_counter() - self._start
        self._sent.requests.append(_request(self._shot, intended, sent, ended, status, error, counted))


def _request(
    shot: Shot,
    intended: float,
    sent: float | None,
    finished: float,
    status: int,
    error: str | None,
    counted: bool,
) -> Request:
    return Request(
        round=shot.round,
        variant=shot.variant,
        mode=shot.mode,
        level=shot.level,
        intended=intended,
        sent=sent,
        finished=finished,
        status=status,
        error=error,
        counted=counted,
    )


async def _patiently(post: Post, body: bytes, patience_s: float) -> tuple[int, str | None]:
    try:
        async with asyncio.timeout(patience_s):
            return await post(body)
    except TimeoutError:
        return 0, TIMEOUT


def poster(session: aiohttp.ClientSession, url: str) -> Post:
    """Posts JSON to ``url`` and reads the whole answer."""

    async def post(body: bytes) -> tuple[int, str | None]:
        try:
            async with session.post(url, data=body, allow_redirects=False) as answer:
                await answer.read()
                return answer.status, None
        except aiohttp.ClientError:
            return 0, CONNECTION

    return post


def session_for(token: str | None) -> aiohttp.ClientSession:
    """As many connections as there are users; no proxy, no cookies, no time limit of its own."""
    headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {token}"} if token else {})
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0),
        cookie_jar=aiohttp.DummyCookieJar(),
        timeout=aiohttp.ClientTimeout(total=None),
        headers=headers,
        trust_env=False,
    )
