"""Whoever waits is computed together: the model, once free, takes all there are."""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import Executor
from typing import Generic, TypeVar

Q = TypeVar("Q")
A = TypeVar("A")


class Together(Generic[Q, A]):
    """Questions put one by one, answered many at a time on another thread.

    A batch is formed there, in the moment it is computed, of what has come meanwhile: nothing waits for a clock, and
    between batches the thread does not wait for the event loop, whose turns are long when it is busy refusing.

    Args:
        pool: of one thread; other work that it is given takes turns with the batches.
        size: questions of one batch at most.
        alike: questions are computed together where this is equal.
        answer: a batch to its answers, in order.
    """

    def __init__(
        self,
        pool: Executor,
        size: int,
        alike: Callable[[Q], Hashable],
        answer: Callable[[Sequence[Q]], Sequence[A]],
    ) -> None:
        self._pool, self._size, self._alike, self._answer = pool, size, alike, answer
        self._waiting: deque[tuple[Q, asyncio.Future[A]]] = deque()
        self._lock = threading.Lock()
        self._busy = False

    @property
    def waiting(self) -> int:
        """Questions that no batch has taken yet."""
        return len(self._waiting)

    async def ask(self, question: Q) -> A:
        """Its answer. Raises what ``answer`` raises."""
        future: asyncio.Future[A] = asyncio.get_running_loop().create_future()
        with self._lock:
            self._waiting.append((question, future))
            idle, self._busy = not self._busy, True
        if idle:
            self._pool.submit(self._next)
        return await future

    def _next(self) -> None:
        """One batch, on the pool's thread."""
        batch = self._taken()
        if batch:
            questions, futures = zip(*batch, strict=True)
            try:
                answers, error = self._answer(questions), None
            except Exception as problem:
                answers, error = (), problem
            futures[0].get_loop().call_soon_threadsafe(_deliver, futures, answers, error)
        with self._lock:
            self._busy = bool(self._waiting)
            again = self._busy
        if again:
            self._pool.submit(self._next)

    def _taken(self) -> list[tuple[Q, asyncio.Future[A]]]:
        """The oldest question and those like it; whoever has gone is dropped."""
        batch: list[tuple[Q, asyncio.Future[A]]] = []
        with self._lock:
            others: deque[tuple[Q, asyncio.Future[A]]] = deque()
            for question, future in self._waiting:
                if future.cancelled():
                    continue
                fits = not batch or self._alike(question) == self._alike(batch[0][0])
                (batch if fits and len(batch) < self._size else others).append((question, future))
            self._waiting = others
        return batch


def _deliver(futures: Sequence[asyncio.Future[A]], answers: Sequence[A], error: Exception | None) -> None:
    for place, future in enumerate(futures):
        if future.done():  # whoever asked has gone
            continue
        if error is not None:
            future.set_exception(error)
        else:
            future.set_result(answers[place])
