"""Ways to cut the same share of every matrix's rows, right and wrong.

| arm | heads | channels |
|---|---|---|
| ``regrouped`` | whole KV groups | gate–up–down triples |
| ``apart`` | Q/O slices and K/V slices, each ranked by itself | gate rows and up rows, each ranked by itself |
| ``error`` | KV groups by misplaced scores | gate and up each keep their own best rows |

The errors are found in the wild: scores of a group summed over the query heads h ≡ g (modulo the number of groups)
instead of the group's own, as LLM-Pruner's release does; and rows kept by each projection's own ranking, so that a
gate's row meets another channel's up row.

What is ranked apart is dead once any of its parts is gone, and is removed whole. Where nothing is shared or gated the
arms are the same.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import PreTrainedModel

from cascade_ops.anatomy import ModelAnatomy, anatomy_of, base_of, blocks_of, family_of
from cascade_ops.batches import Batch, sequential
from cascade_ops.granularity import Granularity
from cascade_ops.linear import linear, weight_of
from cascade_ops.plan import PruningPlan
from cascade_ops.scoring import Scores, score
from cascade_ops.sia.apart import Rows, apart_scores, row_taylor
from cascade_ops.sia.units import Kind, UnitSet, unit_set
from cascade_ops.surgery import prune

Arm = Literal["regrouped", "apart", "error"]
Part = Literal["heads", "channels"]
ARMS: tuple[Arm, ...] = ("regrouped", "apart", "error")
BATCH = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    """A dense model and how its units rank."""

    model: PreTrainedModel
    anatomy: ModelAnatomy
    scores: Scores
    rows: Rows

    @property
    def shared(self) -> bool:
        return any(max(layer.heads_per_kv) > 1 for layer in self.anatomy.layers)

    def of(self, granularity: Granularity) -> tuple[Float[Tensor, " _units"], ...]:
        return self.scores["taylor", granularity].per_layer


def judged(model: PreTrainedModel, calibration: Batch) -> Judged:
    """Score the model's units, together and apart."""
    return Judged(
        model=model,
        anatomy=anatomy_of(model),
        scores=score(model, sequential(calibration, BATCH), ("taylor",)),
        rows=row_taylor(model, sequential(calibration, BATCH)),
    )


def kind_of(one: Judged, arm: Arm, part: Part) -> Kind:
    """The unit set that an arm ranks."""
    if part == "channels":
        return Kind.CHANNEL_APART if arm != "regrouped" and one.anatomy.gated else Kind.CHANNEL
    if not one.shared:
        return Kind.HEAD
    return Kind.HEAD_APART if arm == "apart" else Kind.KV_GROUP


def cut(one: Judged, arm: Arm, parts: tuple[Part, ...], ratio: float) -> PreTrainedModel:
    """A copy without ``ratio`` of each part's units, ranked by Taylor on the dense model."""
    model = copy.deepcopy(one.model)
    if "heads" in parts:
        prune(model, _heads(one, arm, ratio))
    if "channels" in parts:
        _channels(model, one, arm, ratio)
    return model


def _heads(one: Judged, arm: Arm, ratio: float) -> PruningPlan:
    layers = one.anatomy.layers
    if arm == "apart" and one.shared:
        return PruningPlan.from_keep(Granularity.HEAD, _alive(one, Kind.HEAD_APART, ratio))
    granularity = Granularity.KV_GROUP if one.shared else Granularity.HEAD
    rows = one.of(granularity)
    if arm == "error" and one.shared:
        heads = one.of(Granularity.HEAD)
        rows = tuple(
            row.view(-1, layer.kv_heads).sum(dim=0) for row, layer in zip(heads, layers, strict=True)
        )
    return PruningPlan.from_keep(granularity, [_best(row, ratio).tolist() for row in rows])


def _channels(model: PreTrainedModel, one: Judged, arm: Arm, ratio: float) -> None:
    if arm == "regrouped" or not one.anatomy.gated:
        kept = [_best(row, ratio).tolist() for row in one.of(Granularity.CHANNEL)]
        prune(model, PruningPlan.from_keep(Granularity.CHANNEL, kept))
        return
    if arm == "apart":
        prune(model, PruningPlan.from_keep(Granularity.CHANNEL, _alive(one, Kind.CHANNEL_APART, ratio)))
        return
    depth = range(len(one.anatomy.layers))
    gate = [_best(one.rows["gate", index], ratio) for index in depth]
    up = [_best(one.rows["up", index], ratio) for index in depth]
    prune(model, PruningPlan.from_keep(Granularity.CHANNEL, [keep.tolist() for keep in up]))
    spec = family_of(base_of(model).config)
    path = next(p.path for p in spec.mlp_inputs if p.holds == ("gate",))
    for block, dense, keep in zip(blocks_of(model), blocks_of(one.model), gate, strict=True):
        with torch.no_grad():
            weight_of(linear(block, path)).copy_(weight_of(linear(dense, path))[keep])


def _best(row: Float[Tensor, " units"], ratio: float) -> Int[Tensor, " kept"]:
    """All but the lowest ``ratio``, at least one, in order."""
    count = max(1, len(row) - round(ratio * len(row)))
    return row.argsort(descending=True, stable=True)[:count].sort().values


def _alive(one: Judged, kind: Kind, ratio: float) -> list[list[int]]:
    """Gates that no removed unit shuts, per layer; where none would be left, the last one to go stays."""
    units: UnitSet = unit_set(one.anatomy, kind)
    scores = apart_scores(one.rows, one.anatomy.layers, one.of(Granularity.HEAD), kind)
    gone = []
    for number in units.group.unique():
        own = (units.group == number).nonzero().flatten()
        gone.append(own[scores[own].argsort(stable=True)[: min(len(own) - 1, round(ratio * len(own)))]])
    shut = units.shut(torch.cat(gone)).split(list(units.gates))
    whole = one.of(Granularity.CHANNEL if kind is Kind.CHANNEL_APART else Granularity.HEAD)
    return [
        (~row).nonzero().flatten().tolist() or [int(best.argmax())]
        for row, best in zip(shut, whole, strict=True)
    ]
