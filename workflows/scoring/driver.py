"""What every way of driving a sweep shares: the request, sums in order, and the sweep in one process."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch

from cascade_ops.batches import Batch, length_of
from cascade_ops.errors import DataError, UsageError
from cascade_ops.scoring import Scores, joined
from cascade_ops.shards import Layout, Shard, partition
from cascade_ops.statistics import Statistics
from cascade_ops.sweep import GRADIENT
from workflows.scoring.plan import Boundary, Item, Phase, Sweep
from workflows.scoring.record import ShardRecord, WorkerRecord
from workflows.scoring.worker import Orders, Packed, Receipt, ShardWorker

WEIGHT = {Phase.FORWARD: 1.0, Phase.BACKWARD: 2.0, Phase.SCORE: 0.0}
"""Relative cost, for the time left: back is recomputation and one more product."""
LOOK_EVERY = 0.2
"""Seconds between snapshots."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What to score, on what. ``batches`` are the micro-batches."""

    layout: Layout
    batches: tuple[Batch, ...]
    orders: Orders

    @property
    def gradients(self) -> bool:
        return GRADIENT in self.orders.needs

    @property
    def micros(self) -> int:
        """Micro-batches to go through: none where no criterion looks at data."""
        return len(self.batches) if self.orders.needs else 0

    @property
    def largest(self) -> int:
        """Positions of the largest micro-batch, padding included."""
        return max((length_of(batch) * positions_of(batch, self.layout) for batch in self.batches), default=0)

    @property
    def tokens(self) -> int:
        """Tokens of all micro-batches, without padding."""
        return sum(_tokens_of(batch, self.layout) for batch in self.batches)


def positions_of(batch: Batch, layout: Layout) -> int:
    """Positions of each sample in the backbone: tokens, or patches of a signal."""
    if "input_ids" in batch:
        return int(batch["input_ids"].shape[1])
    return int(batch["signal"].shape[1]) // int(getattr(layout.config, "patch", 1))


def _tokens_of(batch: Batch, layout: Layout) -> int:
    mask = batch.get("attention_mask")
    return int(mask.sum()) if mask is not None else positions_of(batch, layout) * length_of(batch)


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardedScores:
    """The scores, and how they came about."""

    scores: Scores
    samples: int
    tokens: int
    shards: tuple[ShardRecord, ...]
    workers: tuple[WorkerRecord, ...]
    threads: int
    seconds: float
    object_store_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerView:
    """A worker as it is now. ``shard`` is the one it works on."""

    name: str
    node: str
    shard: int | None
    memory: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """How far a sweep is.

    Attributes:
        forward, backward: of each shard, micro-batches done.
        micros: micro-batches in all; ``gradients``: whether there is a way back.
        tokens_per_second: calibration tokens, once through everything.
        seconds_left: NaN until something is known.
    """

    forward: tuple[int, ...]
    backward: tuple[int, ...]
    micros: int
    gradients: bool
    workers: tuple[WorkerView, ...]
    share: float
    tokens_per_second: float
    seconds_left: float


Watch = Callable[[Snapshot], None]


def unwatched(snapshot: Snapshot) -> None:
    """A Watch that looks away."""


def make_request(
    layout: Layout,
    batches: Sequence[Batch],
    criteria: Sequence[str],
    *,
    dtype: torch.dtype | None = None,
    device: str = "cpu",
    threads: int = 1,
    seed: int = 0,
) -> Request:
    """Check what can be checked before anything starts.

    Raises:
        UnknownNameError: no such criterion.
        DataError: no calibration data, or samples longer than the model's positions.
        UsageError: float16 on a CPU.
    """
    dtype = dtype or layout.dtype
    if device == "cpu" and dtype == torch.float16:
        raise UsageError(
            "float16 is slow and inexact on a CPU: choose --dtype float32 or bfloat16, or --device cuda"
        )
    orders = Orders(criteria=tuple(criteria), dtype=dtype, device=device, threads=threads, seed=seed)
    if orders.needs:
        if not batches:
            raise DataError("scoring needs calibration data, got no batch")
        for batch in batches:
            length_of(batch)
        _check_positions(layout, batches)
    return Request(layout=layout, batches=tuple(batches), orders=orders)


def _check_positions(layout: Layout, batches: Sequence[Batch]) -> None:
    backbone = getattr(layout.config, "backbone_config", layout.config)
    limit = getattr(backbone, "max_position_embeddings", None)
    longest = max(positions_of(batch, layout) for batch in batches)
    if isinstance(limit, int) and longest > limit:
        raise DataError(
            f"calibration samples have {longest} tokens, the model has {limit} positions: give --length {limit} or less"
        )


@dataclass(slots=True)
class Ledger:
    """Statistics of each shard, added up in the order of the micro-batches whatever order they arrive in.

    Floating-point sums depend on their order: so the result does not depend on which worker was faster, or died.
    """

    totals: dict[tuple[int, Phase], Statistics] = field(default_factory=dict)
    waiting: dict[tuple[int, Phase], dict[int, Statistics]] = field(default_factory=dict)
    counted: dict[tuple[int, Phase], int] = field(default_factory=dict)
    seconds: dict[int, float] = field(default_factory=dict)

    def add(self, item: Item, receipt: Receipt) -> None:
        """A repeated item counts once."""
        key = (item.shard, item.phase)
        self.seconds[item.shard] = self.seconds.get(item.shard, 0.0) + receipt.seconds
        if item.phase is Phase.SCORE or item.micro < self.counted.get(key, 0):
            return
        waiting = self.waiting.setdefault(key, {})
        waiting[item.micro] = receipt.found
        while (following := self.counted.get(key, 0)) in waiting:
            self.totals[key] = self.totals.get(key, Statistics.zero()) + waiting.pop(following)
            self.counted[key] = following + 1

    def of_shard(self, shard: int) -> Statistics:
        """Everything known of a shard."""
        both = [self.totals[shard, p] for p in (Phase.FORWARD, Phase.BACKWARD) if (shard, p) in self.totals]
        if len(both) == 2:
            return both[0].beside(both[1])
        return both[0] if both else Statistics.zero()

    def shard_records(self, layout: Layout, shards: Sequence[Shard]) -> tuple[ShardRecord, ...]:
        return tuple(
            ShardRecord(
                first=shard.first,
                stop=shard.stop,
                bytes=layout.nbytes(shard),
                seconds=self.seconds.get(index, 0.0),
            )
            for index, shard in enumerate(shards)
        )


@dataclass(slots=True, kw_only=True)
class Clock:
    """Share of the work done, rate and time left."""

    sweep: Sweep
    tokens: int
    began: float = field(default_factory=time.perf_counter)
    looked: float = 0.0

    def due(self) -> bool:
        """Whether it is time for another look; the last one is never left out."""
        now = time.perf_counter()
        if now - self.looked < LOOK_EVERY and not self.sweep.complete:
            return False
        self.looked = now
        return True

    def snapshot(self, workers: tuple[WorkerView, ...]) -> Snapshot:
        sweep = self.sweep
        done = [[0] * sweep.shards for _ in Phase]
        for item in sweep.done:
            done[item.phase][item.shard] += 1
        up = sweep.shards - 1 if sweep.gradients else sweep.shards
        whole = sweep.micros * (
            up * WEIGHT[Phase.FORWARD] + sweep.gradients * sweep.shards * WEIGHT[Phase.BACKWARD]
        )
        weight = sum(WEIGHT[phase] * sum(done[phase]) for phase in Phase)
        share = weight / whole if whole else sum(done[Phase.SCORE]) / sweep.shards
        elapsed = time.perf_counter() - self.began
        return Snapshot(
            forward=tuple(done[Phase.FORWARD]),
            backward=tuple(done[Phase.BACKWARD]),
            micros=sweep.micros,
            gradients=sweep.gradients,
            workers=workers,
            share=share,
            tokens_per_second=self.tokens * share / elapsed if elapsed else 0.0,
            seconds_left=elapsed * (1 - share) / share if share else math.nan,
        )


def score_here(request: Request, *, shards: int = 1, watch: Watch = unwatched) -> ShardedScores:
    """The sweep in this process, one shard in memory at a time: nothing else is needed, Ray neither.

    Raises:
        CascadeError: see ``make_request``; or activations that are not finite.
    """
    pieces = partition(request.layout, shards)
    worker = ShardWorker(request.layout, pieces, request.orders)
    sweep = Sweep(
        shards=len(pieces),
        micros=request.micros,
        gradients=request.gradients,
        in_flight=max(1, request.micros),
    )
    clock = Clock(sweep=sweep, tokens=request.tokens)
    ledger, parts, boundaries = Ledger(), {}, dict[Boundary, Packed | None]()
    current, largest, items, receipt = None, 0, 0, None
    while not sweep.complete:
        item = sweep.next_for(range(len(pieces)), current)
        assert item is not None  # one worker, nothing running: something is always ready
        current, items = item.shard, items + 1
        receipt, above = _carry_out(worker, item, request, ledger, sweep, boundaries)
        ledger.add(item, receipt)
        if item.phase is Phase.SCORE:
            parts[item.shard] = receipt.found
        output = sweep.output(item)
        if output is not None:
            boundaries[output] = above
        largest = max(largest, sum(packed[0].nbytes for packed in boundaries.values() if packed))
        for spent in sweep.finish(item):
            del boundaries[spent]
        if clock.due():
            watch(clock.snapshot((WorkerView(name="here", node="", shard=current, memory=receipt.memory),)))
    assert receipt is not None
    seconds = time.perf_counter() - clock.began
    record = WorkerRecord(
        name="here",
        node="",
        items=items,
        busy_seconds=sum(ledger.seconds.values()),
        peak_bytes=receipt.peak,
        lost=False,
    )
    return finished(request, pieces, parts, ledger, (record,), seconds, largest)


def _carry_out(
    worker: ShardWorker,
    item: Item,
    request: Request,
    ledger: Ledger,
    sweep: Sweep,
    boundaries: Mapping[Boundary, Packed | None],
) -> tuple[Receipt, Packed | None]:
    inputs = {boundary.kind: boundaries[boundary] for boundary in sweep.inputs(item)}
    match item.phase:
        case Phase.SCORE:
            return worker.score(item.shard, ledger.of_shard(item.shard)), None
        case Phase.FORWARD:
            return worker.forward(item.shard, None, request.batches[item.micro], inputs.get("hidden"))
    return worker.backward(
        item.shard, None, request.batches[item.micro], inputs.get("hidden"), inputs.get("gradient")
    )


def finished(
    request: Request,
    shards: Sequence[Shard],
    parts: Mapping[int, Scores],
    ledger: Ledger,
    workers: tuple[WorkerRecord, ...],
    seconds: float,
    object_store_bytes: int,
) -> ShardedScores:
    """The result of a complete sweep."""
    whole = ledger.of_shard(0)
    return ShardedScores(
        scores=joined([parts[index] for index in range(len(shards))]),
        samples=whole.samples,
        tokens=whole.tokens,
        shards=ledger.shard_records(request.layout, shards),
        workers=workers,
        threads=request.orders.threads,
        seconds=seconds,
        object_store_bytes=object_store_bytes,
    )
