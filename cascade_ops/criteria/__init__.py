"""Importance criteria. A new one is a file with one decorated function, imported here."""

from __future__ import annotations

from cascade_ops.criteria.base import CRITERIA, Columns, Criterion, LayerView, column_criterion, criterion

# Each import registers its criteria.
from cascade_ops.criteria import amp, block_influence, flap, gradient, magnitude, random, wanda  # isort: skip

__all__ = [
    "CRITERIA",
    "Columns",
    "Criterion",
    "LayerView",
    "amp",
    "block_influence",
    "column_criterion",
    "criterion",
    "flap",
    "gradient",
    "magnitude",
    "random",
    "wanda",
]
