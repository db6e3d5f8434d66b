"""From scores to plans.

Every allocation is a total order in which units would be removed; a plan is a prefix of it. The last
unit of a layer is never in the order, so no plan can empty a layer.
"""

from __future__ import annotations

import bisect

import torch
from jaxtyping import Float
from torch import Tensor

from cascade_ops.anatomy import ModelAnatomy
from cascade_ops.criteria import CRITERIA
from cascade_ops.errors import PlanError
from cascade_ops.plan import PruningPlan
from cascade_ops.schedule import Allocation
from cascade_ops.scoring import ImportanceScores

Unit = tuple[int, int]
"""(layer, unit); for granularity LAYER (0, layer)."""


def removal_order(scores: ImportanceScores, allocation: Allocation = "uniform") -> tuple[Unit, ...]:
    """The order in which units go, least important first.

    ``uniform``: by rank within the layer divided by the layer's number of units, so that every prefix
    takes about the same fraction of each layer. ``global``: by score, made comparable between layers
    as the criterion declares. Ties go to the lower layer and the lower unit.
    """
    keyed: list[tuple[float, int, int, int]] = []
    for layer, row in enumerate(scores.per_layer):
        ranked = torch.argsort(row, stable=True).tolist()
        if allocation == "uniform":
            keys = [(rank + 0.5) / len(ranked) for rank in range(len(ranked))]
        else:
            keys = _comparable(row, scores.criterion)[ranked].tolist()
        # The rank decides where rounding in the keys has made two scores of a layer equal.
        places = zip(keys[:-1], range(len(ranked) - 1), ranked[:-1], strict=True)
        keyed.extend((key, layer, rank, unit) for key, rank, unit in places)
    return tuple((layer, unit) for _, layer, _, unit in sorted(keyed))


def _comparable(row: Float[Tensor, " units"], criterion: str) -> Float[Tensor, " units"]:
    match CRITERIA[criterion].scale:
        case "absolute":
            return row
        case "layer_mean":
            return row / row.mean().clamp(min=torch.finfo(row.dtype).tiny)
        case "layer_zscore":
            return (row - row.mean()) / row.std(correction=0).clamp(min=torch.finfo(row.dtype).tiny)


def plan_ratio(scores: ImportanceScores, ratio: float, *, allocation: Allocation = "uniform") -> PruningPlan:
    """Remove ``round(ratio·n)`` units, of each layer if uniform, of all together if global.

    At least one unit stays in each layer.

    Raises:
        PlanError: ratio outside (0, 1), or nothing would be removed.
    """
    if not 0 < ratio < 1:
        raise PlanError(f"ratio: must be in (0, 1), got {ratio:g}")
    order = removal_order(scores, allocation)
    units = [len(row) for row in scores.per_layer]
    if allocation == "uniform":
        quota = {layer: round(ratio * n) for layer, n in enumerate(units)}
        removed = []
        for layer, unit in order:
            if quota[layer] > 0:
                quota[layer] -= 1
                removed.append((layer, unit))
    else:
        removed = list(order[: round(ratio * sum(units))])
    if not order:
        raise PlanError(
            f"{scores.granularity} ratio {ratio:g}: one unit per layer is left, and that one must stay; "
            "prune another granularity or whole layers"
        )
    if not removed:
        competing = max(units) if allocation == "uniform" else sum(units)
        raise PlanError(
            f"{scores.granularity} ratio {ratio:g} of {competing} units rounds to none: "
            f"give a ratio above {0.5 / competing:.3g}"
        )
    return _without(scores, removed)


def plan_target(
    scores: ImportanceScores, anatomy: ModelAnatomy, params: int, *, allocation: Allocation = "uniform"
) -> PruningPlan:
    """Remove as few units as bring the backbone to at most ``params`` parameters.

    The result is below the target by less than one unit.

    Raises:
        PlanError: even one unit per layer is too many, or the target is not below the present size.
    """
    if params >= anatomy.backbone_params:
        raise PlanError(
            f"{scores.granularity} target of {params:,} backbone parameters: the model has "
            f"{anatomy.backbone_params:,} already; lower the target or drop this stage"
        )
    order = removal_order(scores, allocation)

    def left(length: int) -> int:
        return anatomy.params(_without(scores, list(order[:length])))

    least = left(len(order))
    if least > params:
        raise PlanError(
            f"a target of {params:,} backbone parameters cannot be met by {scores.granularity} pruning: one unit "
            f"per layer leaves {least:,} of {anatomy.backbone_params:,}, so this stage reaches "
            f"{anatomy.backbone_params / least:.3g}× at most. Prune more in an earlier stage, or lower the target."
        )
    length = bisect.bisect_left(range(len(order) + 1), True, key=lambda n: left(n) <= params)
    return _without(scores, list(order[:length]))


def _without(scores: ImportanceScores, removed: list[Unit]) -> PruningPlan:
    gone: dict[int, set[int]] = {}
    for layer, unit in removed:
        gone.setdefault(layer, set()).add(unit)
    keep = (
        [unit for unit in range(len(row)) if unit not in gone.get(layer, ())]
        for layer, row in enumerate(scores.per_layer)
    )
    return PruningPlan.from_keep(scores.granularity, keep)
