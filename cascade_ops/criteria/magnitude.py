"""Structured magnitude."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from cascade_ops.criteria.base import Columns, column_criterion


@column_criterion("magnitude", reference="Han et al. 2015, arXiv 1506.02626, structured form")
def magnitude(columns: Columns) -> Float[Tensor, " columns"]:
    """``s_j = ‖W_{:,j}‖₂``. Data-free."""
    return columns.squares.sqrt()
