"""The Structural Independence Assumption, its structural part: from the anatomy alone.

SIA holds for a granularity iff its units share no weight (disjointness κ = 1) and no two of a
unit's inputs meet in a product (single path π = 1). Where it fails, per-unit importance need not add
up to the importance of a set.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn
from transformers import PreTrainedConfig

from cascade_ops.anatomy import ModelAnatomy, anatomy_of
from cascade_ops.granularity import Granularity


@dataclass(frozen=True, slots=True, kw_only=True)
class SIAVerdict:
    """One granularity.

    Attributes:
        kappa: the most units that share one weight element.
        pi: input projections that meet multiplicatively inside a unit.
        holds: κ = 1 and π = 1.
        reason: in words, with what to do where it fails.
    """

    granularity: Granularity
    kappa: int
    pi: int
    holds: bool
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SIAReport:
    """The structural verdicts of a model."""

    verdicts: tuple[SIAVerdict, ...]

    def __getitem__(self, granularity: Granularity) -> SIAVerdict:
        return next(verdict for verdict in self.verdicts if verdict.granularity is granularity)


def check_sia(model: nn.Module | PreTrainedConfig | ModelAnatomy) -> SIAReport:
    """Structural SIA of a model, a config or an anatomy; no weights, no data.

    Raises:
        UnsupportedFamilyError: no FamilySpec describes the model.
    """
    anatomy = model if isinstance(model, ModelAnatomy) else anatomy_of(model)
    shared = max(max(layer.heads_per_kv) for layer in anatomy.layers)
    head = (
        "holds: each query head has K and V of its own"
        if shared == 1
        else f"violated (κ={shared}): {shared} query heads share each K/V. Use kv_group: it holds"
    )
    channel = (
        "violated per projection (π=2): gate and up meet in a product. Score and cut the gate–up–down triple "
        "as one unit, as channel gates do"
        if anatomy.gated
        else "holds: one input projection, summed by a linear map"
    )
    return SIAReport(
        verdicts=(
            _verdict(Granularity.LAYER, 1, 1, "holds: blocks share no weight and add to the residual stream"),
            _verdict(Granularity.HEAD, shared, 1, head),
            _verdict(Granularity.KV_GROUP, 1, 1, "holds: a group owns its K, V and query heads"),
            _verdict(Granularity.CHANNEL, 1, 2 if anatomy.gated else 1, channel),
        )
    )


def _verdict(granularity: Granularity, kappa: int, pi: int, reason: str) -> SIAVerdict:
    return SIAVerdict(
        granularity=granularity, kappa=kappa, pi=pi, holds=kappa == 1 and pi == 1, reason=reason
    )
