"""Whoever comes while the model is busy is let in together, as many as fit a batch, and nobody is forgotten."""

from __future__ import annotations

import asyncio

from hypothesis import given, settings
from hypothesis import strategies as st

from serve.gate import Gate


@settings(deadline=None, max_examples=60)
@given(
    size=st.integers(1, 5),
    arrivals=st.lists(
        st.tuples(st.integers(0, 12), st.sampled_from([None, None, None, 0, 1, 3])), max_size=25
    ),
)
def test_batches_fill_and_everyone_is_served(size: int, arrivals: list[tuple[int, int | None]]) -> None:
    """Arrivals at a step each, some giving up after so many steps; a batch takes three steps."""

    async def run() -> tuple[list[int], int]:
        gate = Gate(size)
        batches: list[int] = []
        inside: list[asyncio.Future[None]] = []

        async def batcher() -> None:
            while True:
                await asyncio.sleep(0)
                waiting = [one for one in inside if not one.done()]
                if waiting:
                    inside.clear()
                    gate.close()
                    batches.append(len(waiting))
                    for _ in range(3):
                        await asyncio.sleep(0)
                    for one in waiting:
                        if not one.done():
                            one.set_result(None)

        async def request(step: int) -> None:
            for _ in range(step):
                await asyncio.sleep(0)
            async with gate:
                turn = asyncio.get_running_loop().create_future()
                inside.append(turn)
                await turn

        working = asyncio.create_task(batcher())
        tasks = [asyncio.create_task(request(step)) for step, _ in arrivals]

        async def quit_after(task: asyncio.Task[None], steps: int) -> None:
            for _ in range(steps):
                await asyncio.sleep(0)
            task.cancel()

        quitters = [
            asyncio.create_task(quit_after(task, step + patience))
            for task, (step, patience) in zip(tasks, arrivals, strict=True)
            if patience is not None
        ]
        async with asyncio.timeout(5):  # a forgotten request would wait for ever
            results = await asyncio.gather(*tasks, *quitters, return_exceptions=True)
        working.cancel()
        assert all(isinstance(one, asyncio.CancelledError) or one is None for one in results)
        return batches, gate.waiting

    batches, waiting = asyncio.run(run())
    assert all(0 < batch <= size for batch in batches)
    assert waiting == 0


def test_those_who_wait_are_one_batch() -> None:
    async def run() -> list[str]:
        gate, log = Gate(8), []
        release = asyncio.Event()

        async def first() -> None:
            async with gate:
                gate.close()
                await release.wait()
                log.append("first done")

        async def other(number: int) -> None:
            async with gate:
                log.append(f"{number} in")

        tasks = [asyncio.create_task(first())]
        await asyncio.sleep(0)
        tasks += [asyncio.create_task(other(number)) for number in range(5)]
        await asyncio.sleep(0)
        assert gate.waiting == 5
        release.set()
        await asyncio.gather(*tasks)
        return log

    assert asyncio.run(run()) == ["first done", *(f"{number} in" for number in range(5))]
