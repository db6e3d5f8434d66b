"""Importance criteria: what they may look at, and how one is registered.

A criterion maps what is known of one layer to a score per unit; higher = keep. Width criteria score
the *input columns* of the attention output projection and of the down projection; a head's score is
the sum over its slice, a KV group's the sum over its heads (contiguous), a layer's the sum over both.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from cascade_ops.families import FamilySpec
from cascade_ops.granularity import Granularity
from cascade_ops.layer import LayerAnatomy
from cascade_ops.linear import linear, weight_of
from cascade_ops.reduce import column_sums
from cascade_ops.registry import Registry
from cascade_ops.statistics import X_SQUARED, Need, Statistics, X

Scale = Literal["absolute", "layer_mean", "layer_zscore"]


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerView:
    """Everything a criterion may use to score the units of one layer.

    ``index`` is the layer's position in what was swept (a shard, or the whole model); ``columns`` are worked
    out once for all criteria.
    """

    granularity: Granularity
    index: int
    layer: LayerAnatomy
    block: nn.Module
    spec: FamilySpec
    statistics: Statistics
    seed: int
    columns: dict[Granularity, Columns] = field(default_factory=dict)

    def sum_of(self, name: str, granularity: Granularity | None = None) -> Float[Tensor, " units"]:
        """An accumulated statistic of this layer."""
        return self.statistics.sums[name, granularity or self.granularity, self.index]


@dataclass(frozen=True, slots=True, kw_only=True)
class Columns:
    """The input columns of one output projection W, and the statistics of what flows into them.

    Attributes:
        rows: outputs of the projection.
        absolute, squares: ``Σ_i |W_ij|`` and ``Σ_i W_ij²`` of each column j, in float64.
        x, x2: sums over ``tokens`` tokens, one for each column (empty when not needed).
    """

    rows: int
    absolute: Float[Tensor, " columns"]
    squares: Float[Tensor, " columns"]
    x: Float[Tensor, " _columns"]
    x2: Float[Tensor, " _columns"]
    tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Criterion:
    """A registered criterion.

    Attributes:
        name: what users call it.
        score: layer view → one score per unit, higher = keep.
        needs: the statistics to collect.
        granularities: what it can score.
        scale: how scores of different layers are made comparable for global allocation.
        reference: where it comes from.
    """

    name: str
    score: Callable[[LayerView], Float[Tensor, " units"]]
    needs: frozenset[Need]
    granularities: frozenset[Granularity]
    scale: Scale
    reference: str


CRITERIA: Registry[Criterion] = Registry("criterion")

UnitScore = Callable[[LayerView], Float[Tensor, " units"]]
ColumnScore = Callable[[Columns], Float[Tensor, " columns"]]


def criterion(
    name: str,
    *,
    needs: tuple[Need, ...] = (),
    granularities: tuple[Granularity, ...] = tuple(Granularity),
    scale: Scale = "absolute",
    reference: str,
) -> Callable[[UnitScore], UnitScore]:
    """Register a function that scores units directly."""

    def register(score: UnitScore) -> UnitScore:
        CRITERIA.add(
            name,
            Criterion(
                name=name,
                score=score,
                needs=frozenset(needs),
                granularities=frozenset(granularities),
                scale=scale,
                reference=reference,
            ),
        )
        return score

    return register


def column_criterion(
    name: str, *, needs: tuple[Need, ...] = (), scale: Scale = "layer_mean", reference: str
) -> Callable[[ColumnScore], ColumnScore]:
    """Register a function that scores columns; heads, groups and layers follow by summation."""

    def register(score: ColumnScore) -> ColumnScore:
        def score_units(view: LayerView) -> Float[Tensor, " units"]:
            match view.granularity:
                case Granularity.CHANNEL:
                    return score(_columns(view, Granularity.CHANNEL))
                case Granularity.LAYER:
                    both = [
                        score(_columns(view, part)).sum() for part in (Granularity.HEAD, Granularity.CHANNEL)
                    ]
                    return torch.stack(both).sum()[None]
            heads = (
                score(_columns(view, Granularity.HEAD)).view(view.layer.heads, view.layer.head_dim).sum(dim=1)
            )
            if view.granularity is Granularity.HEAD:
                return heads
            groups = torch.zeros(view.layer.kv_heads, dtype=heads.dtype, device=heads.device)
            return groups.index_add(0, torch.tensor(view.layer.kv_owner, device=heads.device), heads)

        criterion(name, needs=needs, scale=scale, reference=reference)(score_units)
        return score

    return register


def _columns(view: LayerView, part: Granularity) -> Columns:
    if part not in view.columns:
        path = view.spec.attention_output if part is Granularity.HEAD else view.spec.mlp_output
        weight = weight_of(linear(view.block, path)).detach()
        absolute, squares = column_sums(weight, lambda rows: (rows.abs(), rows.square()))
        sums, empty = view.statistics.sums, torch.empty(0, dtype=torch.float64)
        view.columns[part] = Columns(
            rows=weight.shape[0],
            absolute=absolute,
            squares=squares,
            x=sums.get((X, part, view.index), empty).to(weight.device),
            x2=sums.get((X_SQUARED, part, view.index), empty).to(weight.device),
            tokens=view.statistics.tokens,
        )
    return view.columns[part]
