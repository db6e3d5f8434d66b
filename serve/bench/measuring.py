"""Time and memory of this process. Standard library and numpy only: a process on an edge device has no more."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from serve.bench.energy import Meter
from serve.memory import memory

WARMUP = 10
FEWEST = 5
ENOUGH_FOR_P99 = 368
"""Samples with a two-sided 95 % interval for the 99th percentile; cascade_ops.loadtest.samples_needed says why."""


class Memory:
    """Counts from here on: what was resident before, and how much more it became."""

    def __init__(self) -> None:
        self.base, self._before = memory()
        with contextlib.suppress(OSError):  # else importing may have peaked higher than it left behind
            Path("/proc/self/clear_refs").write_text("5", encoding="ascii")

    def figures(self) -> dict[str, int]:
        now, peak = memory()
        return {
            "base_bytes": self.base,
            "peak_bytes": max(peak, self._before),
            "above_bytes": max(0, peak - self.base),
            "resident_bytes": now,
        }


def timed(call: Callable[[], object], *, runs: int, seconds: float, warmup: int = WARMUP) -> list[float]:
    """Seconds of each of ``runs`` calls, fewer where they take longer than ``seconds`` in all."""
    until = time.perf_counter() + seconds
    for _ in range(warmup):
        call()
        if time.perf_counter() > until:
            break
    until = time.perf_counter() + seconds
    took: list[float] = []
    while len(took) < runs and (len(took) < FEWEST or time.perf_counter() < until):
        began = time.perf_counter()
        call()
        took.append(time.perf_counter() - began)
    return took


def latency(took: list[float]) -> dict[str, Any]:
    """Milliseconds: median, 5th, 95th and, of enough runs, 99th percentile."""
    milliseconds = 1e3 * np.array(took)
    p5, p50, p95, p99 = (float(value) for value in np.percentile(milliseconds, (5, 50, 95, 99)))
    enough = len(took) >= ENOUGH_FOR_P99
    return {"runs": len(took), "p5_ms": p5, "p50_ms": p50, "p95_ms": p95, "p99_ms": p99 if enough else None}


def measured(
    call: Callable[[int], Callable[[], object]],
    *,
    batches: tuple[int, ...],
    runs: int,
    seconds: float,
    meter: Meter,
) -> dict[str, Any]:
    """Latency of one sample, samples per second by batch size, and joules per sample of the largest.

    ``call(size)`` makes a call that computes so many samples.
    """
    found = latency(timed(call(1), runs=runs, seconds=seconds))
    throughput: dict[str, float] = {}
    joules = None
    for size in batches:
        one = call(size)
        for _ in range(2):
            one()
        before = meter.read()
        took = timed(one, runs=runs, seconds=seconds / 2, warmup=0)
        spent = meter.since(before)
        throughput[str(size)] = size / float(np.median(took))
        joules = None if spent is None else spent / (size * len(took))
    return {**found, "throughput": throughput, "joules_per_sample": joules}


@contextlib.contextmanager
def answering() -> Iterator[Callable[[Any], None]]:
    """Gives what the process has to say as JSON; all that libraries print meanwhile goes to stderr."""
    sys.stdout.flush()
    kept = os.dup(1)
    os.dup2(2, 1)
    try:
        yield lambda document: _write(kept, document)
    finally:
        os.close(kept)


def _write(descriptor: int, document: Any) -> None:
    with os.fdopen(os.dup(descriptor), "w", encoding="utf-8") as stream:
        json.dump(document, stream)
