"""Where a fit's first worker says how far it is, and the job looks."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from cascade_ops.progress import Progress

EVERY = 0.5
"""Seconds between two looks, and between two messages."""

State = tuple[str, int, int, dict[str, float]]


class Board:
    """Made into a Ray actor; the last message counts."""

    def __init__(self) -> None:
        self._state: State | None = None

    def write(self, state: State) -> None:
        self._state = state

    def read(self) -> State | None:
        return self._state


class Messages:
    """The worker's Progress: sends at most one message in ``EVERY`` seconds, and the last."""

    def __init__(self, board: Any) -> None:
        self._board, self._sent = board, 0.0

    def __call__(self, phase: str, done: int, total: int, **figures: float) -> None:
        now = time.monotonic()
        if done == total or now - self._sent >= EVERY:
            self._sent = now
            self._board.write.remote((phase, done, total, figures))


@contextmanager
def shown(progress: Progress) -> Iterator[Any]:
    """A board whose messages ``progress`` is told while the context lasts."""
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    board: Any = ray.remote(Board).options(num_cpus=0, scheduling_strategy=here).remote()
    over = threading.Event()

    def look() -> None:
        last: State | None = None
        while not over.wait(EVERY):
            try:
                state = ray.get(board.read.remote(), timeout=10)
            except RayError:
                return
            if state is not None and state != last:
                phase, done, total, figures = last = state
                progress(phase, done, total, **figures)

    watcher = threading.Thread(target=look, daemon=True)
    watcher.start()
    try:
        yield board
    finally:
        over.set()
        watcher.join()
        ray.kill(board)
