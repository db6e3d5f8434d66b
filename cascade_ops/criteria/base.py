"""Importance criteria: what they may look at, and how one is registered.

A criterion maps what is known of one layer to a score per unit; higher = keep. Width criteria score
the *input columns* of the attention output projection and of the down projection; a head's score is
the sum over its slice, a KV group's the sum over its heads (contiguous), a layer's the sum over both.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from cascade_ops.families import FamilySpec
from cascade_ops.granularity import Granularity
from cascade_ops.layer import LayerAnatomy
from cascade_ops.linear import linear, weight_of
from cascade_ops.registry import Registry
from cascade_ops.statistics import Need, Statistics

Scale = Literal["absolute", "layer_mean", "layer_zscore"]


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerView:
    """Everything a criterion may use to score the units of one layer.

    ``index`` is the layer's position in what was swept (a shard, or the whole model).
    """

    granularity: Granularity
    index: int
    layer: LayerAnatomy
    block: nn.Module
    spec: FamilySpec
    statistics: Statistics
    seed: int

    def sum_of(self, name: str, granularity: Granularity | None = None) -> Float[Tensor, " units"]:
        """An accumulated statistic of this layer."""
        return self.statistics.sums[name, granularity or self.granularity, self.index]


@dataclass(frozen=True, slots=True, kw_only=True)
class Columns:
    """The input columns of one output projection, and the statistics of what flows into them.

    ``weight`` is float64; ``x`` and ``x2`` are sums over ``tokens`` tokens, one for each column (empty when not
    needed).
    """

    weight: Float[Tensor, "out columns"]
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
    path = view.spec.attention_output if part is Granularity.HEAD else view.spec.mlp_output
    sums, empty = view.statistics.sums, torch.empty(0, dtype=torch.float64)
    return Columns(
        weight=weight_of(linear(view.block, path)).detach().double(),
        x=sums.get(("x", part, view.index), empty),
        x2=sums.get(("x2", part, view.index), empty),
        tokens=view.statistics.tokens,
    )
