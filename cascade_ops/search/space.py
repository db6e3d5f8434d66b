"""The space of schedules: which numbers of layers, heads and channels the bounds and the target allow.

A granularity goes from all of its units to the *kept* ones in rounds, each of which may remove the share that its
bound allows. With a target, layers and heads are chosen among the pairs for which the channels can do the rest.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache

from cascade_ops.anatomy import ModelAnatomy
from cascade_ops.errors import PlanError
from cascade_ops.granularity import Granularity
from cascade_ops.schedule import Allocation, Recovery
from cascade_ops.search.bounds import Bound, heads_unit

ROUNDS = 3
WITHIN = 0.01
"""How far from the target's parameters a schedule may end."""
Order = tuple[Granularity, ...]
Pair = tuple[int, int]
"""Layers kept, and heads kept in each."""


class Unreachable(PlanError):
    """No schedule within the bounds reaches the target."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Space:
    """What may be drawn.

    Attributes:
        anatomy: of the dense model.
        recovery: the whole budget; its ``compensation`` and ``rank`` are replaced by what is drawn.
        target: backbone compression; None: the channels are drawn too.
        bounds: the share of its units that a round of each granularity may remove.
        rounds: of one granularity, at most.
        orders: of the granularities; one of them may be missing from all.
        criteria: names; a granularity chooses among those that score it.
        compensation, ranks, shares: choices; a share is the part of the recovery budget that goes to the last
            granularity, while the others divide the rest equally.
        uniform: the same number of units in every layer, as plain runtimes want.
    """

    anatomy: ModelAnatomy
    recovery: Recovery
    target: float | None
    orders: tuple[Order, ...]
    bounds: Mapping[Granularity, Bound] = field(default_factory=dict)
    rounds: int = ROUNDS
    criteria: tuple[str, ...] = ("taylor", "fisher", "magnitude")
    allocations: tuple[Allocation, ...] = ("uniform", "global")
    compensation: tuple[bool, ...] = (True, False)
    ranks: tuple[int, ...] = (4, 8, 16)
    shares: tuple[float, ...] = (0.4, 0.6, 0.75, 0.9)
    uniform: bool = False

    @property
    def heads(self) -> Granularity:
        """The attention unit of the orders, or the one that shares nothing."""
        units = {one for order in self.orders for one in order} & {Granularity.HEAD, Granularity.KV_GROUP}
        return units.pop() if units else heads_unit(self.anatomy)

    def bound(self, granularity: Granularity) -> float:
        """The share of the units present that one round may remove."""
        one = self.bounds.get(granularity)
        return 1.0 if one is None else one.ratio

    def count(self, granularity: Granularity) -> int:
        """Layers, or units of one layer (of the smallest one)."""
        return min(self.anatomy.units(granularity))

    def least(self, granularity: Granularity) -> int:
        """What all rounds leave at the least."""
        searched = any(granularity in order for order in self.orders)
        return least_left(self.count(granularity), self.rounds if searched else 0, self.bound(granularity))

    def params(self, layers: int, heads: int, channels: int) -> float:
        """Backbone parameters with so many layers, and so many heads and channels in each of them.

        Exact where the dense model's layers are alike and heads share no K/V; else an estimate, with K and V of
        shared heads there as long as enough heads are to read them all.
        """
        rows = self.anatomy.layers
        head = heads / self.count(self.heads)
        pairs = [(row.heads * head, row.kv_heads * head) for row in rows]
        if self.heads is Granularity.HEAD:
            pairs = [(kept, min(kept, row.kv_heads)) for row, (kept, _) in zip(rows, pairs, strict=True)]
        attention = sum(
            kept * row.params_head + kv * row.params_kv for row, (kept, kv) in zip(rows, pairs, strict=True)
        )
        mlp = sum(row.channels * row.params_channel for row in rows) * channels
        fixed = sum(row.params_fixed for row in rows)
        return layers / len(rows) * (fixed + attention + mlp / self.count(Granularity.CHANNEL))

    def channels_for(self, layers: int, heads: int) -> float:
        """Channels per layer with which the target is met exactly: maybe negative, or more than there are."""
        assert self.target is not None
        wanted = self.anatomy.backbone_params / self.target
        none, one = self.params(layers, heads, 0), self.params(layers, heads, 1)
        return (wanted - none) / (one - none)

    def pairs(self) -> tuple[Pair, ...]:
        """All pairs with which the target can be met.

        Raises:
            Unreachable: there are none.
        """
        found = _pairs(
            self.least(Granularity.LAYER),
            len(self.anatomy.layers),
            self.least(self.heads),
            self.count(self.heads),
        )
        if self.target is not None:
            low, high = self.least(Granularity.CHANNEL), self.count(Granularity.CHANNEL)
            found = tuple(pair for pair in found if low <= self.channels_for(*pair) < high)
        if not found:
            raise Unreachable(f"no schedule within the bounds reaches {self.target:g}×")
        return found


@cache
def _pairs(fewest: int, layers: int, least: int, heads: int) -> tuple[Pair, ...]:
    return tuple((n, h) for n in range(fewest, layers + 1) for h in range(least, heads + 1))


def most_removed(count: int, bound: float) -> int:
    """Units that one round may remove of ``count``: at least one stays."""
    return min(math.floor(bound * count + 1e-9), count - 1)


def countdown(count: int, kept: int, rounds: int, bound: float) -> tuple[int, ...]:
    """What is left after each round, in ratios as equal as whole units and the bound allow.

    Takes more rounds than asked for where the bound demands it, and fewer where there are not so many units to go.

    Raises:
        Unreachable: the bound lets no round remove a unit.
    """
    left: list[int] = []
    now = count
    while now > kept:
        most = most_removed(now, bound)
        if most < 1:
            raise Unreachable(f"{bound:.0%} of {now} units is less than one")
        later = max(0, rounds - len(left) - 1)
        wished = max(now - most, min(round(now * (kept / now) ** (1 / (later + 1))), now - 1))
        while wished > max(kept, now - most) and least_left(wished, later, bound) > kept:
            wished -= 1  # rounding must not leave the later rounds more than they can do
        now = max(kept, wished)
        left.append(now)
    return tuple(left)


def least_left(count: int, rounds: int, bound: float) -> int:
    """What is left of ``count`` units when every round removes all it may."""
    for _ in range(rounds):
        count -= most_removed(count, bound)
    return count


def rounds_needed(count: int, kept: int, bound: float) -> int:
    """The fewest rounds that lead from ``count`` to ``kept``. Raises as ``countdown``."""
    return len(countdown(count, kept, 1, bound))
