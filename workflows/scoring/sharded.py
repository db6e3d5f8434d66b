"""The sweep on a Ray cluster: shards on actors, boundaries in the object store, whoever may die."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass, field, replace
from typing import Any

import ray
import torch
from ray.exceptions import (
    NodeDiedError,
    ObjectLostError,
    OutOfDiskError,
    OutOfMemoryError,
    RayActorError,
    RayError,
    RayTaskError,
    WorkerCrashedError,
)

from cascade_ops.scoring import Scores
from cascade_ops.shards import Shard
from workflows.scoring.cluster import (
    START_TIMEOUT,
    Crew,
    Worker,
    WorkersLostError,
    connected,
    first_line,
    with_device_memory,
)
from workflows.scoring.driver import (
    Clock,
    Ledger,
    Request,
    ShardedScores,
    Watch,
    WorkerView,
    finished,
    unwatched,
)
from workflows.scoring.plan import GRADIENT, HIDDEN, Boundary, Item, Phase, Sweep, shards_of
from workflows.scoring.record import WorkerRecord
from workflows.scoring.sizing import (
    INTERPRETER,
    ClusterTooSmallError,
    Sizing,
    Wish,
    fitting_threads,
    memory_needed,
    size_up,
)

QUEUE = 2
"""Items given to a worker at once: the next one's inputs travel while it works on the first."""
PATIENCE = 3
"""Workers that may die at one item before it is held responsible."""
TICK = 0.5
"""Seconds between looks at the cluster."""
STORE_SHARE = 1.25
MOST_STORE = 2**30
"""A cluster started here gets no larger object store: what does not fit spills to disk."""
GONE = (RayActorError, OutOfMemoryError, WorkerCrashedError, NodeDiedError)


def score_sharded(
    request: Request, wish: Wish, *, address: str | None = None, watch: Watch = unwatched
) -> ShardedScores:
    """Scores from a cluster: the one at ``address``, or one started here for the purpose.

    The result does not depend on the number of shards and workers beyond rounding, and not at all on which of them
    died on the way.

    Raises:
        ClusterTooSmallError: no node can hold a shard; nothing was started.
        WorkersLostError: workers cannot start, or die faster than they can be replaced.
        DataError: activations that are not finite, with shard and layer.
        CheckpointError: the model's files cannot be read on a node.
    """
    boundaries = request.tokens * request.layout.anatomy.hidden_size * request.orders.dtype.itemsize
    store = min(MOST_STORE, int(boundaries * len(request.layout.blocks) * STORE_SHARE))
    with connected(address, object_store=store) as nodes:
        threads = wish.threads or fitting_threads(nodes)
        wish = replace(wish, threads=threads)
        request = replace(request, orders=replace(request.orders, threads=threads))
        room = with_device_memory(nodes) if wish.gpu else nodes
        sizing = size_up(request.layout, room, wish, lambda shard: _need(request, shard))
        return _Sweeping(request=request, sizing=sizing, wish=wish, watch=watch).run()


def _need(request: Request, shard: Shard) -> int:
    return memory_needed(
        request.layout,
        shard,
        tokens=request.largest if request.micros else 0,
        dtype=request.orders.dtype,
        gradients=request.gradients,
    )


@dataclass(slots=True, kw_only=True)
class _Sweeping:
    """One sweep under way."""

    request: Request
    sizing: Sizing
    wish: Wish
    watch: Watch
    sweep: Sweep = field(init=False)
    crew: Crew = field(init=False)
    ledger: Ledger = field(default_factory=Ledger)
    parts: dict[int, Scores] = field(default_factory=dict)
    boundaries: dict[Boundary, Any] = field(default_factory=dict)
    running: dict[Any, tuple[Worker, Item, Any]] = field(default_factory=dict)
    deaths: Counter[Item] = field(default_factory=Counter)
    refetched: Counter[Item] = field(default_factory=Counter)
    largest: int = 0

    def __post_init__(self) -> None:
        request, sizing = self.request, self.sizing
        self.sweep = Sweep(
            shards=len(sizing.shards),
            micros=request.micros,
            gradients=request.gradients,
            in_flight=sizing.in_flight,
        )
        resources = {"num_cpus": request.orders.threads, "memory": sizing.need}
        if self.wish.gpu:  # what the sizing needs is on the device; weights pass through the node's memory
            weights = max(map(request.layout.nbytes, sizing.shards))
            resources |= {"num_gpus": 1, "memory": INTERPRETER + weights}
        shared = tuple(map(ray.put, (request.layout, sizing.shards, request.orders)))
        self.crew = Crew(arguments=shared, resources=resources, most_lost=3 * sizing.workers + 3)

    def run(self) -> ShardedScores:
        try:
            self.crew.start(self.sizing.workers)
            return self._sweep()
        finally:
            self.crew.dismiss()

    def _sweep(self) -> ShardedScores:
        batches = [ray.put(dict(batch)) for batch in self.request.batches]
        clock = Clock(sweep=self.sweep, tokens=self.request.tokens)
        alone_since: float | None = None
        while not self.sweep.complete:
            self._give_out(batches)
            starting = {worker.starting: worker for worker in self.crew.expected}
            # Somebody is always at work or on the way, or it could never end.
            ready, _ = ray.wait([*self.running, *starting], timeout=TICK)
            for reference in ready:
                if reference in starting:
                    self._welcome(starting[reference])
                elif reference in self.running:
                    self._take_in(reference)
            alone_since = None if self.crew.live else alone_since or time.monotonic()
            if alone_since is not None and time.monotonic() - alone_since > START_TIMEOUT:
                raise self.crew.no_one_in(START_TIMEOUT)
            if clock.due():
                self.watch(clock.snapshot(self._views()))
        seconds = time.perf_counter() - clock.began
        return finished(
            self.request,
            self.sizing.shards,
            self.parts,
            self.ledger,
            self._records(),
            seconds,
            self.largest,
        )

    def _give_out(self, batches: list[Any]) -> None:
        """Fill the queues, every worker's first place before anybody's second."""
        live = self.crew.live
        for length in range(QUEUE):
            for rank, worker in enumerate(live):
                if len(worker.queue) > length:
                    continue
                mine = shards_of(rank, len(live), self.sweep.shards)
                # Looking ahead to another shard would put it between this one's last micro-batch and its scores.
                offered = mine & {worker.current} if worker.queue else mine
                item = self.sweep.next_for(offered, worker.current)
                if item is not None:
                    self._send(worker, item, batches, mine)

    def _send(self, worker: Worker, item: Item, batches: list[Any], mine: frozenset[int]) -> None:
        actor, found = worker.actor, {b.kind: self.boundaries[b] for b in self.sweep.inputs(item)}
        if item.phase is Phase.SCORE:
            reference, above = actor.score.remote(item.shard, self.ledger.of_shard(item.shard)), None
        else:
            inputs: list[Any] = [item.shard, _following(item, mine), batches[item.micro], found.get(HIDDEN)]
            if item.phase is Phase.BACKWARD:
                inputs.append(found.get(GRADIENT))
            method = actor.forward if item.phase is Phase.FORWARD else actor.backward
            reference, above = method.options(num_returns=2).remote(*inputs)
        worker.queue.append(item)
        worker.remember(item)
        self.running[reference] = worker, item, above

    def _take_in(self, reference: Any) -> None:
        worker, item, above = self.running.pop(reference)
        try:
            receipt = ray.get(reference)
        except GONE as error:
            self._lose(worker, error)
            return
        except ObjectLostError:
            self._recompute(worker, item)
            return
        except RayTaskError as error:
            if isinstance(error.cause, ObjectLostError):
                self._recompute(worker, item)
                return
            raise self._explained(error) from None
        except OutOfDiskError:
            raise WorkersLostError(
                "a node's disk is full: boundary activations that the object store cannot hold spill there. Make room, "
                "or give fewer --samples, fewer --shards or more --workers."
            ) from None
        except RayError as error:
            raise WorkersLostError(f"the cluster failed: {first_line(error)}") from None
        worker.queue.remove(item)
        worker.items, worker.busy = worker.items + 1, worker.busy + receipt.seconds
        worker.memory, worker.peak = receipt.memory, receipt.peak
        self.ledger.add(item, receipt)
        if item.phase is Phase.SCORE:
            self.parts[item.shard] = receipt.found
        self._keep(item, above)

    def _explained(self, error: RayTaskError) -> Exception:
        """What a worker raised, with advice where its GPU was too small."""
        cause = error.cause
        if isinstance(cause, torch.OutOfMemoryError):
            return ClusterTooSmallError(
                f"a GPU ran out of memory ({first_line(cause)}): give more --shards or a smaller --batch"
            )
        return cause if isinstance(cause, Exception) else error

    def _keep(self, item: Item, above: Any) -> None:
        output = self.sweep.output(item)
        if output is not None:
            self.boundaries[output] = above
        size = self.request.largest * self.request.layout.anatomy.hidden_size
        self.largest = max(self.largest, len(self.boundaries) * size * self.request.orders.dtype.itemsize)
        for spent in self.sweep.finish(item):
            del self.boundaries[spent]

    def _welcome(self, worker: Worker) -> None:
        try:
            worker.card = ray.get(worker.starting)
        except GONE as error:
            self._lose(worker, error)

    def _lose(self, worker: Worker, error: Exception) -> None:
        """A worker died: what it had been given is given to others. What it was doing may have killed it."""
        orphaned = self.crew.lose(worker, error)
        if orphaned:
            suspect = orphaned[0]
            self.deaths[suspect] += 1
            if self.deaths[suspect] >= PATIENCE:
                raise WorkersLostError(
                    f"shard {suspect.shard} has killed {PATIENCE} workers, the last with: {first_line(error)}. "
                    "If memory ran out, give more --shards, a smaller --batch or fewer --workers."
                )
        for item in orphaned:
            self.sweep.put_back(item)
        self.running = {ref: entry for ref, entry in self.running.items() if entry[0] is not worker}

    def _recompute(self, worker: Worker, item: Item) -> None:
        """An item's inputs went with their node: make them again."""
        worker.queue.remove(item)
        self.refetched[item] += 1
        if self.refetched[item] > self.crew.most_lost:
            raise WorkersLostError(
                f"the inputs of shard {item.shard} cannot be fetched: the nodes do not reach each other's object "
                "stores. Open their ports to one another."
            )
        self.sweep.put_back(item)
        for boundary in self.sweep.inputs(item):
            self.sweep.lose(boundary)
            self.boundaries.pop(boundary, None)

    def _views(self) -> tuple[WorkerView, ...]:
        return tuple(
            WorkerView(
                name=worker.name,
                node=worker.card.node if worker.card else "",
                shard=worker.current,
                memory=worker.memory,
            )
            for worker in self.crew.live
        )

    def _records(self) -> tuple[WorkerRecord, ...]:
        return tuple(
            WorkerRecord(
                name=worker.name,
                node=worker.card.node if worker.card else "",
                items=worker.items,
                busy_seconds=worker.busy,
                peak_bytes=worker.peak,
                lost=worker.lost,
            )
            for worker in self.crew.members
        )


def _following(item: Item, mine: frozenset[int]) -> int | None:
    """The shard that the worker will need after this one, to be fetched meanwhile."""
    if item.phase is Phase.FORWARD:
        return min((shard for shard in mine if shard > item.shard), default=None)
    return max((shard for shard in mine if shard < item.shard), default=None)
