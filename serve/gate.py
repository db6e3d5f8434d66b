"""Who may join the next batch."""

from __future__ import annotations

import asyncio
from collections import deque
from types import TracebackType


class Gate:
    """Lets at most ``size`` in at a time, and nobody while those inside are being worked on.

    Ray Serve's batcher closes a batch when its wait is over, also while another batch is computed, so that without
    a wait batches stay small and with one every answer is late. Held back here until the model is free, requests
    enter the batcher together, and no clock is needed.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self._inside = 0
        self._working = False
        self._waiting: deque[asyncio.Future[None]] = deque()

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    def close(self) -> None:
        """Those inside are a batch now; it opens when the last of them has left."""
        self._working = True

    async def __aenter__(self) -> None:
        if not (self._working or self._waiting or self._inside >= self._size):
            self._inside += 1
            return
        turn = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():  # let in and gone in the same moment
                self._leave()
            elif turn in self._waiting:
                self._waiting.remove(turn)
            raise

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._leave()

    def _leave(self) -> None:
        self._inside -= 1
        if self._inside:
            return
        self._working = False
        while self._waiting and self._inside < self._size:
            turn = self._waiting.popleft()
            if not turn.cancelled():
                turn.set_result(None)
                self._inside += 1
