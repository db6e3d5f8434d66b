"""The cluster: joined or started here, what its nodes offer, and workers that may die."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayError, RayTaskError

from cascade_ops.errors import CascadeError, UsageError
from workflows.scoring.plan import Item
from workflows.scoring.sizing import Node
from workflows.scoring.worker import Card, ShardWorker

START_TIMEOUT = 120.0
"""Seconds in which a worker must have started."""
LEAST_STORE = 80 * 2**20
"""Ray asks for no less object store."""


class WorkersLostError(CascadeError):
    """Workers die faster than they can be replaced."""


@contextmanager
def connected(
    address: str | None, *, cpus: int | None = None, object_store: int = LEAST_STORE
) -> Iterator[tuple[Node, ...]]:
    """The nodes of the cluster at ``address``, or of one started here and stopped afterwards.

    A connection that is there already is used, and left.

    Raises:
        UsageError: no cluster answers at ``address``.
    """
    if ray.is_initialized():
        yield _nodes()
        return
    try:
        if address is None:
            store = max(LEAST_STORE, object_store)
            quiet: dict[str, Any] = {"include_dashboard": False, "log_to_driver": False}
            ray.init("local", num_cpus=cpus, object_store_memory=store, logging_level=logging.ERROR, **quiet)
        else:
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    except (ConnectionError, ValueError, RuntimeError, OSError, RayError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UsageError(f"{address or 'here'}: no Ray cluster answers: {reason}") from None
    try:
        yield _nodes()
    finally:
        ray.shutdown()


def _nodes() -> tuple[Node, ...]:
    return tuple(
        Node(
            name=node["NodeManagerAddress"],
            cpus=int(node["Resources"].get("CPU", 0)),
            gpus=int(node["Resources"].get("GPU", 0)),
            memory=int(node["Resources"].get("memory", 0)),
        )
        for node in ray.nodes()
        if node["Alive"]
    )


def with_device_memory(nodes: tuple[Node, ...]) -> tuple[Node, ...]:
    """The nodes that have GPUs, with their GPUs' free memory in the place of their own.

    Raises:
        WorkersLostError: a GPU cannot be asked.
    """
    probe = ray.remote(num_gpus=1, num_cpus=0, max_retries=0)(_free_device_memory)
    equipped = [node for node in nodes if node.gpus]
    try:
        if not equipped:
            return ()
        free = ray.get(probe.remote(), timeout=START_TIMEOUT)
    except (GetTimeoutError, RayError) as error:
        raise WorkersLostError(f"no GPU answers: {first_line(error)}") from None
    return tuple(replace(node, memory=free * node.gpus) for node in equipped)


def _free_device_memory() -> int:
    import torch

    free, _ = torch.cuda.mem_get_info()
    return int(free)


@dataclass(slots=True, kw_only=True, eq=False)
class Worker:
    """One actor as the driver sees it. ``queue`` are the items given to it, the first of which it works on."""

    name: str
    actor: Any
    starting: Any
    card: Card | None = None
    queue: list[Item] = field(default_factory=list)
    items: int = 0
    busy: float = 0.0
    memory: int = 0
    peak: int = 0
    lost: bool = False

    @property
    def current(self) -> int | None:
        """The shard it will have loaded when its queue is empty."""
        return self.queue[-1].shard if self.queue else self._last

    _last: int | None = None

    def remember(self, item: Item) -> None:
        self._last = item.shard


@dataclass(slots=True, kw_only=True)
class Crew:
    """The workers of one sweep, replacements included."""

    arguments: tuple[Any, ...]
    resources: dict[str, Any]
    most_lost: int
    members: list[Worker] = field(default_factory=list)

    def hire(self) -> Worker:
        """Ask for one more worker; it joins when it has started."""
        actor: Any = (
            ray.remote(ShardWorker)
            .options(max_restarts=0, max_task_retries=0, scheduling_strategy="SPREAD", **self.resources)
            .remote(*self.arguments)
        )
        worker = Worker(name=f"w{len(self.members)}", actor=actor, starting=actor.card.remote())
        self.members.append(worker)
        return worker

    @property
    def live(self) -> list[Worker]:
        return [worker for worker in self.members if worker.card is not None and not worker.lost]

    @property
    def expected(self) -> list[Worker]:
        return [worker for worker in self.members if worker.card is None and not worker.lost]

    def start(self, count: int) -> None:
        """Hire ``count`` workers and wait for them.

        Raises:
            WorkersLostError: one does not start, or not in time.
        """
        for worker in [self.hire() for _ in range(count)]:
            try:
                worker.card = ray.get(worker.starting, timeout=START_TIMEOUT)
            except GetTimeoutError:
                raise WorkersLostError(self._no_room(START_TIMEOUT)) from None
            except RayTaskError as error:
                raise error.cause if isinstance(error.cause, Exception) else error from None
            except RayError as error:
                raise WorkersLostError(f"a worker cannot start: {last_line(error)}") from None

    def _no_room(self, seconds: float) -> str:
        wanted = ", ".join(
            f"{value / 2**30:.2f} GiB" if name == "memory" else f"{value} {name.removeprefix('num_')}"
            for name, value in self.resources.items()
        )
        return (
            f"no worker could be placed within {seconds:.0f} s: each asks for {wanted}, and the cluster has none free. "
            "Stop what else runs there, or ask for fewer --workers."
        )

    def lose(self, worker: Worker, error: Exception) -> list[Item]:
        """A worker is gone: a replacement is asked for, and what it had to do comes back.

        Raises:
            WorkersLostError: too many are gone.
        """
        if worker.lost:
            return []
        worker.lost = True
        ray.kill(worker.actor)  # it may only be out of reach, and would keep its cores and memory
        orphaned, worker.queue = worker.queue, []
        lost = sum(member.lost for member in self.members)
        if lost > self.most_lost:
            raise WorkersLostError(
                f"{lost} workers died, the last with: {first_line(error)}. If the machine ran out of memory, give "
                "more --shards or fewer --workers."
            )
        self.hire()
        return orphaned

    def no_one_in(self, seconds: float) -> WorkersLostError:
        """Nobody is left and no replacement has started."""
        return WorkersLostError(self._no_room(seconds))

    def dismiss(self) -> None:
        """Kill every worker that is left."""
        for worker in self.members:
            ray.kill(worker.actor)


def first_line(error: Exception) -> str:
    """What a Ray error says, without its traceback."""
    return _lines(error)[0]


def last_line(error: Exception) -> str:
    """What an error inside a worker says, at the end of its traceback."""
    return _lines(error)[-1]


def _lines(error: Exception) -> list[str]:
    return [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
