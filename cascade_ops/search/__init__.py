"""The space of schedules: what SIA allows, what the parameter count asks for, and how a schedule is drawn."""

from cascade_ops.search.bounds import Bound, bounds_of
from cascade_ops.search.drawing import Preferred, Suggest, draw
from cascade_ops.search.reach import Reach, check_reach, reach_of
from cascade_ops.search.space import Space, Unreachable

__all__ = [
    "Bound",
    "Preferred",
    "Reach",
    "Space",
    "Suggest",
    "Unreachable",
    "bounds_of",
    "check_reach",
    "draw",
    "reach_of",
]
