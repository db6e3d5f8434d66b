"""A server under load: every variant under every load, interleaved round by round."""

from __future__ import annotations

import asyncio
import gc
import math
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

import aiohttp

from cascade_ops.errors import CascadeError
from cascade_ops.loadtest.figures import capacity
from cascade_ops.loadtest.records import Mode, Request, Segment
from cascade_ops.loadtest.results import Load, ModelFacts, Online, ServerMemory
from cascade_ops.loadtest.summary import summarise
from cascade_ops.progress import Progress, silent
from serve.bench.energy import Meter
from serve.bench.generator import Bounds, Shot, closed_loop, open_loop, poster, session_for
from serve.bench.target import Scrape, models_of, scrape
from serve.bench.workload import Workload, bodies, route, workload_for

SHARES = (0.5, 0.8, 1.2)
"""Default rates, as shares of each variant's capacity."""
ALIKE = 1.15
"""Default rates closer than this factor are one."""
NOT_UNDERSTOOD = (400, 413, 415, 422)
MOST_WORDS = 300


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadPlan:
    """``rates`` None: shares of the capacity that the closed loop finds."""

    concurrency: tuple[int, ...]
    rates: tuple[float, ...] | None
    rounds: int
    bounds: Bounds
    objective_ms: float
    detail: str
    seed: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Loaded:
    """What came of it: the figures, and every request."""

    online: Online
    models: tuple[ModelFacts, ...]
    workload: Workload
    requests: tuple[Request, ...]


def measure_online(
    url: str,
    plan: LoadPlan,
    *,
    token: str | None = None,
    own: bool = False,
    workload: Workload | None = None,
    meter: Meter | None = None,
    progress: Progress = silent,
) -> Loaded:
    """Load the server at ``url``. ``own``: it was started for this; ``meter``: of the machine it runs on.

    Raises:
        CascadeError: it does not answer, or answered not one request.
        UsageError: its models take different inputs, or it asks for a token.
    """
    gc.collect()
    gc.freeze()  # what is there already need not be looked through again between segments
    try:
        return asyncio.run(_measure(url, plan, token, own, workload, meter, progress))
    finally:
        gc.unfreeze()


async def _measure(
    url: str,
    plan: LoadPlan,
    token: str | None,
    own: bool,
    given: Workload | None,
    meter: Meter | None,
    progress: Progress,
) -> Loaded:
    async with session_for(token) as session:
        models = await models_of(session, url)
        workload = workload_for(models, given)
        runner = _Runner(session, url, plan, models, workload, meter, progress)
        await runner.understood()
        before = await scrape(session, url)
        segments = await runner.run("closed", plan.concurrency)
        closed = loads_of(segments, plan.objective_ms)
        rates = default_rates(closed) if plan.rates is None else plan.rates
        segments += await runner.run("open", rates)
        after = await scrape(session, url)
    loads = loads_of(segments, plan.objective_ms)
    requests = tuple(request for segment in segments for request in segment.requests)
    if not any(load.whole.answered for load in loads):
        outcomes = sorted({request.outcome for request in requests})
        raise CascadeError(f"{url}: answered no request with 200; found {', '.join(outcomes) or 'none sent'}")
    online = Online(url=url, own=own, loads=loads, memory=_memory(before, after))
    return Loaded(online=online, models=models, workload=workload, requests=requests)


class _Runner:
    """One segment after the other, on one session."""

    def __init__(
        self,
        session: aiohttp.ClientSession,
        url: str,
        plan: LoadPlan,
        models: Sequence[ModelFacts],
        workload: Workload,
        meter: Meter | None,
        progress: Progress,
    ) -> None:
        self._session, self._url, self._plan = session, url, plan
        self._meter, self._progress = meter, progress
        self._address = url + route(models[0].task)
        self._post = poster(session, self._address)
        self._bodies = {model.name: bodies(workload, model.name, plan.detail) for model in models}

    async def understood(self) -> None:
        """Raises CascadeError with the server's own words where a model refuses what it would be sent."""
        for name, (body, *_) in self._bodies.items():
            with suppress(aiohttp.ClientError):  # the load will count it
                async with self._session.post(self._address, data=body, allow_redirects=False) as answer:
                    words = (await answer.text(errors="replace"))[:MOST_WORDS]
                if answer.status in NOT_UNDERSTOOD:
                    raise CascadeError(
                        f"{self._url}: {name} refuses what it would be sent ({answer.status}): {words}"
                    )

    async def run(self, mode: Mode, levels: Sequence[float]) -> list[Segment]:
        """Levels within rounds, and variants within levels, in an order that alternates."""
        found: list[Segment] = []
        names = list(self._bodies)
        total = self._plan.rounds * len(levels) * len(names)
        for number in range(self._plan.rounds):
            for place, level in enumerate(map(float, levels)):
                for name in names if (number + place) % 2 == 0 else names[::-1]:
                    self._progress(f"{mode} loop", len(found), total)
                    found.append(await self._segment(number, name, mode, level))
        self._progress(f"{mode} loop", total, total)
        return found

    async def _segment(self, number: int, name: str, mode: Mode, level: float) -> Segment:
        # variants of a round meet the same arrivals
        seed = hash((self._plan.seed, number, level)) % 2**32
        shot = Shot(round=number, variant=name, mode=mode, level=level, bodies=self._bodies[name], seed=seed)
        before = await scrape(self._session, self._url)
        joules = self._meter.read() if self._meter else {}
        cpu, wall = time.process_time(), time.perf_counter()
        gc.collect()
        gc.disable()  # its pauses would be the server's
        try:
            sent = await (closed_loop if mode == "closed" else open_loop)(self._post, shot, self._plan.bounds)
        finally:
            gc.enable()
        busy = (time.process_time() - cpu) / (time.perf_counter() - wall)
        spent = self._meter.since(joules) if self._meter else None
        computed, batches = _batches(before, await scrape(self._session, self._url), name)
        return Segment(
            round=number,
            variant=name,
            mode=mode,
            level=level,
            requests=tuple(sent.requests),
            seconds=sent.seconds,
            held=sent.held,
            generator_cpu=busy,
            computed=computed,
            batches=batches,
            joules=spent,
        )


def _batches(before: Scrape | None, after: Scrape | None, name: str) -> tuple[int | None, int | None]:
    """Requests computed for the model meanwhile, and in how many batches."""
    if before is None or after is None or name not in after.batches:
        return None, None
    old, new = before.batches.get(name, (0.0, 0.0)), after.batches[name]
    return round(new[1] - old[1]), round(new[0] - old[0])


def loads_of(segments: Sequence[Segment], objective_ms: float) -> tuple[Load, ...]:
    """Segments of one variant under one load, put together."""
    keys = dict.fromkeys((one.mode, one.level, one.variant) for one in segments)
    return tuple(
        _load([one for one in segments if (one.mode, one.level, one.variant) == key], objective_ms)
        for key in keys
    )


def _load(segments: Sequence[Segment], objective_ms: float) -> Load:
    everything = [request for segment in segments for request in segment.requests]
    computed = [segment.computed for segment in segments if segment.computed is not None]
    batches = sum(segment.batches or 0 for segment in segments)
    joules = [segment.joules for segment in segments if segment.joules is not None]
    # the counters ran while warming up, too
    answered = sum(request.status == 200 for request in everything)
    first = segments[0]
    return Load(
        variant=first.variant,
        mode=first.mode,
        level=first.level,
        whole=summarise(everything, seconds=sum(one.seconds for one in segments), objective_ms=objective_ms),
        rounds=tuple(
            summarise(one.requests, seconds=one.seconds, objective_ms=objective_ms) for one in segments
        ),
        held=sum(segment.held for segment in segments),
        generator_cpu=max(segment.generator_cpu for segment in segments),
        mean_batch=sum(computed) / batches if computed and batches else None,
        joules_per_answer=sum(joules) / answered if len(joules) == len(segments) and answered else None,
    )


def default_rates(loads: Sequence[Load]) -> tuple[float, ...]:
    """Shares of every variant's capacity, to two digits, ascending; rates nearly alike are asked for once."""
    best = [capacity(loads, name) for name in dict.fromkeys(load.variant for load in loads)]
    wanted = sorted(_two_digits(share * one.whole.throughput) for one in best if one for share in SHARES)
    kept: list[float] = []
    for rate in wanted:
        if not kept or rate > ALIKE * kept[-1]:
            kept.append(rate)
    return tuple(kept)


def _two_digits(value: float) -> float:
    return float(f"{value:.1e}") if math.isfinite(value) and value > 0 else 1.0


def _memory(before: Scrape | None, after: Scrape | None) -> ServerMemory | None:
    if before is None or after is None:
        return None
    return ServerMemory(
        resident_before=before.resident_bytes,
        resident_after=after.resident_bytes,
        peak_before=before.peak_bytes,
        peak_after=after.peak_bytes,
        cuda_after=after.cuda_bytes,
        replicas=after.replicas,
    )
