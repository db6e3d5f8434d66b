"""Whether a target can be reached at all, proved from the anatomy before anything is tried."""

from __future__ import annotations

from dataclasses import dataclass, replace

from cascade_ops.granularity import Granularity
from cascade_ops.search.bounds import FREE
from cascade_ops.search.space import Space, Unreachable

MANY = 64
"""Rounds that are as good as any number."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reach:
    """The strongest backbone compression of a space.

    Attributes:
        compression: with every granularity at its least.
        relaxed: what it would be without one of the constraints, by the constraint's name.
    """

    compression: float
    relaxed: dict[str, float]

    @property
    def binding(self) -> str:
        """The constraint whose removal helps most."""
        return max(self.relaxed, key=lambda name: self.relaxed[name])


def reach_of(space: Space) -> Reach:
    """The reach, and which constraint holds it back."""
    relaxed = {"rounds": _strongest(replace(space, rounds=MANY))}
    for granularity in dict.fromkeys(one for order in space.orders for one in order):
        bounds = {**space.bounds, granularity: FREE}
        relaxed[f"the {granularity.value} bound"] = _strongest(replace(space, bounds=bounds))
    return Reach(compression=_strongest(space), relaxed=relaxed)


def _strongest(space: Space) -> float:
    least = (space.least(Granularity.LAYER), space.least(space.heads), space.least(Granularity.CHANNEL))
    return space.anatomy.backbone_params / space.params(*least)


def check_reach(space: Space) -> Reach:
    """The reach of a space that holds its target.

    Raises:
        Unreachable: it does not; the message shows the best that can be reached, and which constraint binds.
    """
    reach = reach_of(space)
    try:
        space.pairs()
    except Unreachable:
        raise Unreachable(_explained(space, reach)) from None
    return reach


def _explained(space: Space, reach: Reach) -> str:
    assert space.target is not None  # without one every space can be reached
    if space.target < reach.compression:
        return (
            f"target {space.target:g}×: coarse cuts step over it, and channels alone cannot land on it; "
            "allow other orders, or another target"
        )
    limits = "; ".join(
        f"{one.value} {space.count(one)} → {space.least(one)} ({space.bound(one):.0%} a round)"
        for one in dict.fromkeys(one for order in space.orders for one in order)
    )
    text = (
        f"target {space.target:g}×: the best that can be reached is {reach.compression:.4g}×, with at most "
        f"{space.rounds} rounds of each granularity and one unit always left: {limits}. "
    )
    best = reach.relaxed[reach.binding]
    if best <= reach.compression * 1.001:
        return text + "No bound holds it back: the model has no more to give. Lower the target."
    return (
        f"{text}What binds is {reach.binding} (without it {best:.4g}×). Lower the target, allow more "
        "search.rounds, or see what it costs to ignore the check: --ignore-sia."
    )
