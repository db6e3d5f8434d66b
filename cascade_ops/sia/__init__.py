"""The Structural Independence Assumption (SIA): may the units of an architecture be judged one by one?"""

from __future__ import annotations

from cascade_ops.results import SIAVerdict
from cascade_ops.sia.check import check
from cascade_ops.sia.depth import information_by_depth
from cascade_ops.sia.interactions import interactions
from cascade_ops.sia.results import SIACheck, Verdict
from cascade_ops.sia.structural import SIAReport, check_sia
from cascade_ops.sia.units import Kind, UnitSet, kinds_of, unit_set

__all__ = [
    "Kind",
    "SIACheck",
    "SIAReport",
    "SIAVerdict",
    "UnitSet",
    "Verdict",
    "check",
    "check_sia",
    "information_by_depth",
    "interactions",
    "kinds_of",
    "unit_set",
]
