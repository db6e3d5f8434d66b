"""Which piece of work comes next: micro-batches through shards, forward and back. Knows nothing of Ray.

    forward(0, m) → forward(1, m) → … → backward(S−1, m) → … → backward(0, m)      for every micro-batch m
    score(s)                                                  once shard s has seen them all

The last shard's forward is part of its backward where gradients are needed. A worker keeps to its own shards,
and to the one it has loaded while there is work for it, so that weights are read once in each direction. Finished
work can be taken back (its result was lost with a node); what it needs and is gone is then done again as well.
"""

from __future__ import annotations

import enum
from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field


class Phase(enum.IntEnum):
    """In the order of preference: what is nearer to its end first, so that little is under way at once."""

    SCORE = 0
    BACKWARD = 1
    FORWARD = 2


@dataclass(frozen=True, slots=True, order=True)
class Item:
    """One call to one worker. ``micro`` is −1 for SCORE."""

    phase: Phase
    shard: int
    micro: int = -1


@dataclass(frozen=True, slots=True, order=True)
class Boundary:
    """Hidden states (or the gradient of the loss in them) at the lower end of a shard."""

    kind: str
    shard: int
    micro: int


HIDDEN, GRADIENT = "hidden", "gradient"


@dataclass(slots=True, kw_only=True)
class Sweep:
    """The state of one sweep.

    Args:
        shards, micros: how many there are; no micro-batches where no criterion needs data.
        gradients: go back as well.
        in_flight: micro-batches between their first and their last item at once.
    """

    shards: int
    micros: int
    gradients: bool
    in_flight: int
    done: set[Item] = field(default_factory=set)
    running: set[Item] = field(default_factory=set)
    held: set[Boundary] = field(default_factory=set)
    left_of_micro: Counter[int] = field(init=False)
    left_of_shard: Counter[int] = field(init=False)

    def __post_init__(self) -> None:
        chains = [item for micro in range(self.micros) for item in self._chain(micro)]
        self.left_of_micro = Counter(item.micro for item in chains)
        self.left_of_shard = Counter(item.shard for item in chains)

    def items(self) -> Iterator[Item]:
        """Everything there is to do."""
        for micro in range(self.micros):
            yield from self._chain(micro)
        yield from (Item(Phase.SCORE, shard) for shard in range(self.shards))

    def _chain(self, micro: int) -> Iterator[Item]:
        up = self.shards - 1 if self.gradients else self.shards
        yield from (Item(Phase.FORWARD, shard, micro) for shard in range(up))
        if self.gradients:
            yield from (Item(Phase.BACKWARD, shard, micro) for shard in reversed(range(self.shards)))

    @property
    def complete(self) -> bool:
        return all(Item(Phase.SCORE, shard) in self.done for shard in range(self.shards))

    def inputs(self, item: Item) -> tuple[Boundary, ...]:
        """What an item consumes."""
        found = []
        if item.phase is not Phase.SCORE and item.shard > 0:
            found.append(Boundary(HIDDEN, item.shard, item.micro))
        if item.phase is Phase.BACKWARD and item.shard < self.shards - 1:
            found.append(Boundary(GRADIENT, item.shard, item.micro))
        return tuple(found)

    def output(self, item: Item) -> Boundary | None:
        """What an item leaves for others."""
        if item.phase is Phase.FORWARD and item.shard < self.shards - 1:
            return Boundary(HIDDEN, item.shard + 1, item.micro)
        if item.phase is Phase.BACKWARD and item.shard > 0:
            return Boundary(GRADIENT, item.shard - 1, item.micro)
        return None

    def producer(self, boundary: Boundary) -> Item:
        """The item whose output this is."""
        if boundary.kind == HIDDEN:
            return Item(Phase.FORWARD, boundary.shard - 1, boundary.micro)
        return Item(Phase.BACKWARD, boundary.shard + 1, boundary.micro)

    def _consumers(self, boundary: Boundary) -> Iterator[Item]:
        for phase in (Phase.FORWARD, Phase.BACKWARD):
            item = Item(phase, boundary.shard, boundary.micro)
            if boundary in self.inputs(item) and self._exists(item):
                yield item

    def _exists(self, item: Item) -> bool:
        if item.phase is Phase.BACKWARD:
            return self.gradients
        return not (self.gradients and item.shard == self.shards - 1)

    def ready(self, shards: Collection[int]) -> list[Item]:
        """Items of these shards that could start now."""
        found = []
        for micro in self._admitted():
            for shard in shards:
                both = (Item(Phase.BACKWARD, shard, micro), Item(Phase.FORWARD, shard, micro))
                found += [item for item in both if self._can_start(item)]
        for shard in shards:
            item = Item(Phase.SCORE, shard)
            if self._open(item) and not self.left_of_shard[shard]:
                found.append(item)
        return found

    def _can_start(self, item: Item) -> bool:
        return self._exists(item) and self._open(item) and all(b in self.held for b in self.inputs(item))

    def _open(self, item: Item) -> bool:
        return item not in self.done and item not in self.running

    def _admitted(self) -> list[int]:
        """The first micro-batches that are not through yet."""
        unfinished = (micro for micro in range(self.micros) if self.left_of_micro[micro])
        return [micro for micro, _ in zip(unfinished, range(self.in_flight), strict=False)]

    def _count(self, item: Item, change: int) -> None:
        if item.phase is not Phase.SCORE:
            self.left_of_micro[item.micro] += change
            self.left_of_shard[item.shard] += change

    def next_for(self, shards: Collection[int], current: int | None) -> Item | None:
        """What a worker with these shards does next, and mark it as running.

        Args:
            current: the shard it has loaded (or will have, when what it was given before is done).
        """
        here = self.ready({current} & set(shards)) if current is not None else []
        ready = here or self.ready(shards)
        if not ready:
            return None
        item = min(
            ready, key=lambda item: (item.shard != current, item.phase, self._distance(item), item.micro)
        )
        self.running.add(item)
        return item

    def _distance(self, item: Item) -> int:
        """Forward from the lowest shard up, back from the highest down."""
        return item.shard if item.phase is Phase.FORWARD else -item.shard

    def finish(self, item: Item) -> list[Boundary]:
        """An item is done and its output held. Returns the boundaries that nobody needs any more."""
        self.running.discard(item)
        self.done.add(item)
        self._count(item, -1)
        output = self.output(item)
        if output is not None:
            self.held.add(output)
        spent = [b for b in self._around(item) if b in self.held and self._is_spent(b)]
        self.held.difference_update(spent)
        return spent

    def _around(self, item: Item) -> list[Boundary]:
        """A repeated item's output may have served its purpose already."""
        output = self.output(item)
        return [*self.inputs(item), *([output] if output is not None else [])]

    def _is_spent(self, boundary: Boundary) -> bool:
        return all(item in self.done for item in self._consumers(boundary))

    def put_back(self, item: Item) -> list[Item]:
        """An item did not finish: it can be given out again, once what it needs is there again.

        Returns:
            The items taken back for its sake.
        """
        self.running.discard(item)
        return [
            taken for needed in self.inputs(item) if needed not in self.held for taken in self.lose(needed)
        ]

    def lose(self, boundary: Boundary) -> list[Item]:
        """A boundary's data is gone: what made it must be done again if anybody needs it, and so on down to what
        is still held. An item that is running has its inputs.

        Returns:
            The items taken back.
        """
        self.held.discard(boundary)
        producer = self.producer(boundary)
        if producer not in self.done or not any(self._open(item) for item in self._consumers(boundary)):
            return []
        self.done.discard(producer)
        self._count(producer, +1)
        taken = [producer]
        for needed in self.inputs(producer):
            if needed not in self.held:
                taken += self.lose(needed)
        return taken


def shards_of(rank: int, workers: int, shards: int) -> frozenset[int]:
    """The shards that worker ``rank`` of ``workers`` works on: every one has a worker, as evenly as can be."""
    if workers >= shards:
        return frozenset({rank % shards})
    return frozenset(range(rank, shards, workers))
