"""The structural part of the Structural Independence Assumption: from the anatomy alone.

SIA holds for a unit set iff its units share no weight (disjointness κ = 1) and no two parts that are ranked apart meet
in a product (single path π = 1). Where it fails, per-unit importance need not add up to the importance of a set.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn
from transformers import PreTrainedConfig

from cascade_ops.anatomy import ModelAnatomy, anatomy_of
from cascade_ops.granularity import Granularity
from cascade_ops.results import SIAVerdict
from cascade_ops.sia.units import Kind

NUMBERS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


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
    kinds = {
        Granularity.LAYER: Kind.LAYER,
        Granularity.HEAD: Kind.HEAD,
        Granularity.KV_GROUP: Kind.KV_GROUP,
        Granularity.CHANNEL: Kind.CHANNEL_APART if anatomy.gated else Kind.CHANNEL,
    }
    return SIAReport(
        verdicts=tuple(
            _verdict(
                granularity, kappa_of(anatomy, kind), pi_of(anatomy, kind), structural_words(anatomy, kind)
            )
            for granularity, kind in kinds.items()
        )
    )


def kappa_of(anatomy: ModelAnatomy, kind: Kind) -> int:
    """κ: the most units of ``kind`` that share one weight element."""
    if kind in (Kind.HEAD, Kind.HEAD_APART):
        return max(max(layer.heads_per_kv) for layer in anatomy.layers)
    return 1


def pi_of(anatomy: ModelAnatomy, kind: Kind) -> int:
    """π: input projections, ranked apart, that meet in a product. A triple is ranked as one."""
    return 2 if kind is Kind.CHANNEL_APART and anatomy.gated else 1


def structural_words(anatomy: ModelAnatomy, kind: Kind) -> str:
    """The structural verdict in a sentence, with what to do where it fails."""
    shared = kappa_of(anatomy, Kind.HEAD)
    number = NUMBERS[shared] if shared < len(NUMBERS) else str(shared)
    match kind:
        case Kind.LAYER:
            return "holds: blocks share no weight and add to the residual stream."
        case Kind.HEAD | Kind.HEAD_APART if shared > 1:
            return f"violated (κ={shared}): {number} query heads share each K/V. Use kv_group: it holds."
        case Kind.HEAD | Kind.HEAD_APART:
            return "holds: each query head has K and V of its own."
        case Kind.KV_GROUP:
            return "holds: a group owns its K, V and query heads."
        case Kind.CHANNEL_APART:
            return (
                "violated per projection (π=2): gate and up meet in a product. Score and cut the gate–up–down triple "
                "as one unit, as channel gates do."
            )
        case _:
            triple = "a gate–up–down triple is one unit" if anatomy.gated else "one input projection"
            return f"holds: {triple}, summed by a linear map."


def _verdict(granularity: Granularity, kappa: int, pi: int, reason: str) -> SIAVerdict:
    return SIAVerdict(
        granularity=granularity, kappa=kappa, pi=pi, holds=kappa == 1 and pi == 1, reason=reason
    )
