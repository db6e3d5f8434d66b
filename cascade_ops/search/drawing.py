"""From choices to a schedule: every schedule drawn obeys the bounds and lands on the target.

With a target the channels are solved from the parameter count: by the last stage itself where they come last, and
otherwise by rehearsal, with a trim of less than one channel per layer at the end.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, runtime_checkable

from cascade_ops.criteria import CRITERIA
from cascade_ops.granularity import Granularity
from cascade_ops.schedule import CascadeSchedule, Stage
from cascade_ops.search.space import (
    WITHIN,
    Order,
    Pair,
    Space,
    Unreachable,
    countdown,
    most_removed,
    rounds_needed,
)

PARTS = 32
"""A free channel stage keeps a multiple of so many parts of the channels."""
GLOBALS = ("order", "compensation", "rank", "last_share")
"""Choices that every stage depends on."""


@runtime_checkable
class Suggest(Protocol):
    """Who chooses: an Optuna trial, or a schedule that is known already."""

    def integer(self, name: str, low: int, high: int) -> int:
        """A number from ``low`` to ``high``, both included."""
        ...

    def choice(self, name: str, options: Sequence[Any]) -> Any:
        """One of several options."""
        ...


@dataclass(slots=True)
class Preferred:
    """A Suggest that follows ``wishes`` as far as the space allows, and records what it chose."""

    wishes: Mapping[str, Any]
    chosen: dict[str, Any] = field(default_factory=dict)

    def integer(self, name: str, low: int, high: int) -> int:
        self.chosen[name] = min(max(int(self.wishes.get(name, low)), low), high)
        return int(self.chosen[name])

    def choice(self, name: str, options: Sequence[Any]) -> Any:
        wish = self.wishes.get(name)
        self.chosen[name] = wish if wish in options else options[0]
        return self.chosen[name]


def draw(space: Space, suggest: Suggest) -> CascadeSchedule:
    """One schedule of the space.

    Raises:
        Unreachable: the space is empty, or what was drawn removes nothing.
    """
    pairs = space.pairs()
    names = {" ".join(order): order for order in space.orders}
    order = names[_one_of(suggest, "order", tuple(names))]
    recovery = replace(
        space.recovery,
        compensation=_one_of(suggest, "compensation", space.compensation),
        rank=_one_of(suggest, "rank", space.ranks),
    )
    share = _one_of(suggest, "last_share", space.shares) if len(order) > 1 else 1.0
    kept = _kept(space, suggest, order, pairs)
    cuts = [
        _rounds(space, suggest, granularity, kept[granularity], order[place + 1 :])
        for place, granularity in enumerate(order)
        if kept[granularity] < space.count(granularity)
    ]
    stages = _landing(space, _with_shares(cuts, share), kept)
    if not stages:
        raise Unreachable("the schedule that was drawn removes nothing")
    return CascadeSchedule(stages=stages, recovery=recovery)


def _one_of(suggest: Suggest, name: str, options: Sequence[Any]) -> Any:
    """No question where there is no choice."""
    return options[0] if len(options) == 1 else suggest.choice(name, options)


def _kept(space: Space, suggest: Suggest, order: Order, pairs: tuple[Pair, ...]) -> dict[Granularity, int]:
    """Units that stay: layers and heads drawn in the cascade's order, channels drawn or solved."""
    kept: dict[Granularity, int] = {}
    for granularity in order:
        if granularity is Granularity.CHANNEL:
            continue
        axis = 0 if granularity is Granularity.LAYER else 1
        values = sorted({pair[axis] for pair in pairs})
        wished = values[0]
        if len(values) > 1:
            name = "layers" if axis == 0 else "heads"
            wished = suggest.integer(name, values[0], values[-1])
        kept[granularity] = min(values, key=lambda value: abs(value - wished))
        pairs = tuple(pair for pair in pairs if pair[axis] == kept[granularity])
    if Granularity.CHANNEL in order:
        untouched = all(kept[one] == space.count(one) for one in kept)
        exact = None if space.target is None else space.channels_for(*pairs[-1])
        if exact is None:
            kept[Granularity.CHANNEL] = _free_channels(space, suggest, PARTS - 1 if untouched else PARTS)
        else:
            later = order[order.index(Granularity.CHANNEL) + 1 :]
            is_last = all(kept[one] == space.count(one) for one in later)
            whole = round if space.uniform else math.floor if is_last else math.ceil
            kept[Granularity.CHANNEL] = max(
                space.least(Granularity.CHANNEL), whole(exact + (1e-9 if is_last else -1e-9))
            )
    return kept


def _free_channels(space: Space, suggest: Suggest, most: int) -> int:
    count, least = space.count(Granularity.CHANNEL), space.least(Granularity.CHANNEL)
    parts = suggest.integer("channel_parts", min(most, math.ceil(PARTS * least / count)), most)
    return max(least, round(parts * count / PARTS))


def _rounds(
    space: Space, suggest: Suggest, granularity: Granularity, kept: int, later: Order
) -> tuple[Stage, ...]:
    """The stages that lead to ``kept``."""
    part = granularity.value
    count, bound = space.count(granularity), space.bound(granularity)
    rounds = suggest.integer(f"{part}_rounds", 1, space.rounds) if space.rounds > 1 else 1
    scoring = [name for name in space.criteria if scores(name, granularity)]
    criterion = _one_of(suggest, f"{part}_criterion", scoring)
    allocations = space.allocations
    # Once layers differ, how many parameters go with one depends on which one it is.
    counted = space.target is not None and Granularity.LAYER in later
    if granularity is Granularity.LAYER or space.uniform or counted:
        allocations = ("uniform",)
    allocation = _one_of(suggest, f"{part}_allocation", allocations)
    left = countdown(count, kept, max(rounds, rounds_needed(count, kept, bound)), bound)
    before = (count, *left[:-1])
    return tuple(
        Stage(granularity=granularity, ratio=1 - now / was, criterion=criterion, allocation=allocation)
        for was, now in zip(before, left, strict=True)
    )


def _with_shares(cuts: Sequence[tuple[Stage, ...]], last: float) -> tuple[Stage, ...]:
    """The last granularity gets ``last`` of the recovery, the others divide the rest, and so do the rounds of each."""
    last = last if len(cuts) > 1 else 1.0
    shared: list[Stage] = []
    for place, stages in enumerate(cuts):
        part = last if place == len(cuts) - 1 else (1 - last) / (len(cuts) - 1)
        shared += [replace(stage, share=part / len(stages)) for stage in stages]
    return tuple(shared)


def _landing(space: Space, stages: tuple[Stage, ...], kept: Mapping[Granularity, int]) -> tuple[Stage, ...]:
    """The last channel cut meets the target; where something else comes last, a trim without recovery follows."""
    if space.target is None or space.uniform or not stages:
        return stages
    last = stages[-1]
    if last.granularity is Granularity.CHANNEL:
        return (*stages[:-1], replace(last, ratio=None, target=space.target))
    channels = kept[Granularity.CHANNEL]
    layers = kept.get(Granularity.LAYER, space.count(Granularity.LAYER))
    left = space.params(layers, kept.get(space.heads, space.count(space.heads)), channels)
    excess = left * space.target / space.anatomy.backbone_params - 1
    if excess <= WITHIN / 2 or most_removed(channels, space.bound(Granularity.CHANNEL)) < 1:
        return stages
    cuts = [stage.criterion for stage in stages if stage.granularity is Granularity.CHANNEL]
    criterion = next(iter(cuts), next(n for n in space.criteria if scores(n, Granularity.CHANNEL)))
    trim = Stage(granularity=Granularity.CHANNEL, target=space.target, criterion=criterion, share=0.0)
    return (*stages, trim)


def prefix(space: Space, order: Order, length: int) -> tuple[str, ...]:
    """The names of all choices that the stages of the first ``length`` granularities depend on.

    Of the later ones, too, where the channels among the first are solved from what the later ones leave.
    """
    first, names = order[:length], list(GLOBALS)
    solved = space.target is not None and Granularity.CHANNEL in first
    for granularity in order:
        if granularity in first:
            names += [f"{granularity.value}_{what}" for what in ("rounds", "criterion", "allocation")]
        if granularity in first or solved:
            names.append(_KEPT.get(granularity, "heads"))
    return tuple(names)


_KEPT = {Granularity.LAYER: "layers", Granularity.CHANNEL: "channel_parts"}


def scores(criterion: str, granularity: Granularity) -> bool:
    """Whether a criterion can score a granularity. Raises UnknownNameError."""
    return granularity in CRITERIA[criterion].granularities
