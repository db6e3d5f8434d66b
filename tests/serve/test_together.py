"""Whoever comes while the thread is busy is computed together, as many as fit, and nobody is forgotten."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serve.together import Together

Question = tuple[str, int]


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(1) as one:
        yield one


class Slow:
    """Answers when it is told to."""

    def __init__(self, pool: ThreadPoolExecutor, size: int) -> None:
        self.batches: list[list[Question]] = []
        self.go, self.began = threading.Semaphore(0), threading.Semaphore(0)
        self.together = Together(pool, size, lambda question: question[0], self.answer)

    def answer(self, questions: Sequence[Question]) -> list[int]:
        self.batches.append(list(questions))
        self.began.release()
        assert self.go.acquire(timeout=10)
        if questions[0][0] == "bad":
            raise ValueError("bad")
        return [10 * number for _, number in questions]

    async def started(self) -> None:
        """Until a batch is being computed."""
        assert await asyncio.to_thread(self.began.acquire, timeout=10)

    async def asked(self, *questions: Question) -> list[asyncio.Task[int]]:
        tasks = [asyncio.create_task(self.together.ask(question)) for question in questions]
        await asyncio.sleep(0)
        return tasks


def test_who_waits_is_computed_together(pool: ThreadPoolExecutor) -> None:
    slow = Slow(pool, size=3)

    async def run() -> list[int]:
        tasks = await slow.asked(("a", 0))
        await slow.started()
        tasks += await slow.asked(*(("a", number) for number in range(1, 6)))
        assert slow.together.waiting == 5
        slow.go.release(9)
        return await asyncio.gather(*tasks)

    assert asyncio.run(run()) == [0, 10, 20, 30, 40, 50]
    assert [[number for _, number in batch] for batch in slow.batches] == [[0], [1, 2, 3], [4, 5]]
    assert slow.together.waiting == 0


def test_models_do_not_mix_and_the_oldest_is_first(pool: ThreadPoolExecutor) -> None:
    slow = Slow(pool, size=8)

    async def run() -> None:
        tasks = await slow.asked(("a", 0))
        await slow.started()
        tasks += await slow.asked(("b", 1), ("a", 2), ("b", 3), ("c", 4))
        slow.go.release(9)
        await asyncio.gather(*tasks)

    asyncio.run(run())
    assert [[number for _, number in batch] for batch in slow.batches] == [[0], [1, 3], [2], [4]]


def test_what_fails_fails_for_its_own_only(pool: ThreadPoolExecutor) -> None:
    slow = Slow(pool, size=8)

    async def run() -> list[int | BaseException]:
        tasks = await slow.asked(("a", 0))
        await slow.started()
        tasks += await slow.asked(("bad", 1), ("a", 2), ("bad", 3))
        slow.go.release(9)
        return await asyncio.gather(*tasks, return_exceptions=True)

    first, one, right, other = asyncio.run(run())
    assert (first, right) == (0, 20)
    assert isinstance(one, ValueError)
    assert isinstance(other, ValueError)


def test_who_has_gone_is_not_computed(pool: ThreadPoolExecutor) -> None:
    slow = Slow(pool, size=8)

    async def run() -> list[int]:
        tasks = await slow.asked(("a", 0))
        await slow.started()
        gone, stays = await slow.asked(("a", 1), ("a", 2))
        gone.cancel()
        await asyncio.sleep(0)
        slow.go.release(9)
        return await asyncio.gather(*tasks, stays)

    assert asyncio.run(run()) == [0, 20]
    assert slow.batches == [[("a", 0)], [("a", 2)]]


def test_other_work_takes_turns_with_batches(pool: ThreadPoolExecutor) -> None:
    slow = Slow(pool, size=1)

    async def run() -> list[list[Question]]:
        tasks = await slow.asked(("a", 0))
        await slow.started()
        tasks += await slow.asked(("a", 1), ("a", 2))
        other = asyncio.get_running_loop().run_in_executor(pool, lambda: list(slow.batches))
        slow.go.release(9)
        await asyncio.gather(*tasks)
        return await other

    assert len(asyncio.run(run())) == 1, "it came after the batch that ran, before those that waited"


@settings(deadline=None, max_examples=40)
@given(
    size=st.integers(1, 4),
    arrivals=st.lists(st.tuples(st.sampled_from("ab"), st.integers(0, 8), st.booleans()), max_size=30),
)
def test_everyone_is_answered(size: int, arrivals: list[tuple[str, int, bool]]) -> None:
    """Arrivals of two kinds at a turn each; some give up at once."""
    batches: list[int] = []

    def answer(questions: Sequence[Question]) -> list[Question]:
        assert len({kind for kind, _ in questions}) == 1
        batches.append(len(questions))
        return list(questions)

    async def run(pool: ThreadPoolExecutor) -> None:
        together = Together(pool, size, lambda question: question[0], answer)

        async def ask(number: int, kind: str, turns: int, gone: bool) -> Question | None:
            for _ in range(turns):
                await asyncio.sleep(0)
            if not gone:
                return await together.ask((kind, number))
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0):
                    await together.ask((kind, number))
            return None

        asked = [ask(number, *arrival) for number, arrival in enumerate(arrivals)]
        found = await asyncio.wait_for(asyncio.gather(*asked), 10)
        for number, (kind, _, gone) in enumerate(arrivals):
            assert found[number] == (None if gone else (kind, number))

    with ThreadPoolExecutor(1) as pool:
        asyncio.run(run(pool))
    assert all(count <= size for count in batches)
    assert sum(batches) >= sum(not gone for _, _, gone in arrivals)
