"""How much one round may remove, from an SIA check of the dense model."""

from __future__ import annotations

from dataclasses import dataclass

from cascade_ops.anatomy import ModelAnatomy
from cascade_ops.granularity import Granularity
from cascade_ops.sia.check import GRANULARITY, TOLERANCE
from cascade_ops.sia.results import Curve, SIACheck

LOSS = 0.25
"""Share of the usable information ``H(Y) − L`` that shutting one round's units may cost."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Bound:
    """The most that one round may take of a granularity's units.

    Attributes:
        safe: r*, up to which losses add up, so that scores of single units can be trusted.
        loss: the ratio up to which shutting the units costs no more than the loss that is allowed. It foretells the
            loss after a cut better than r* does (docs/sia.md).
        ratio: what a round obeys: the smaller one. 1 where too few units could be measured.
    """

    safe: float | None = None
    loss: float | None = None

    @property
    def ratio(self) -> float:
        return min(self.safe if self.safe is not None else 1.0, self.loss if self.loss is not None else 1.0)


FREE = Bound()
"""No bound."""


def heads_unit(anatomy: ModelAnatomy) -> Granularity:
    """The unit in which attention can be cut without sharing: whole KV groups where query heads share K/V."""
    shared = any(max(layer.heads_per_kv) > 1 for layer in anatomy.layers)
    return Granularity.KV_GROUP if shared else Granularity.HEAD


def bounds_of(check: SIACheck, *, loss: float = LOSS) -> dict[Granularity, Bound]:
    """The bound of every granularity that was checked.

    Args:
        loss: the share of the usable information that a round may cost.
    """
    allowed = loss * check.tolerance / TOLERANCE
    found = {}
    for verdict in check.verdicts:
        if verdict.kind in GRANULARITY:
            curve = verdict.curves[0] if verdict.curves and verdict.curves[0].order != "random" else None
            found[GRANULARITY[verdict.kind]] = (
                FREE if curve is None else Bound(safe=curve.safe.value, loss=_last_within(curve, allowed))
            )
    return found


def _last_within(curve: Curve, allowed: float) -> float:
    """The ratio at which ΔL(S_r) first exceeds ``allowed``, between grid points by interpolation."""
    before = (0.0, 0.0)
    for ratio, rise in zip(curve.ratios, curve.loss, strict=True):
        if rise.value > allowed:
            share = (allowed - before[1]) / (rise.value - before[1])
            return before[0] + share * (ratio - before[0])
        before = (ratio, max(0.0, rise.value))
    return 1.0
