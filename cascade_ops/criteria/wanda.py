"""Wanda, structured."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from cascade_ops.criteria.base import Columns, column_criterion


@column_criterion(
    "wanda", needs=("moments",), reference="Sun et al. 2024, arXiv 2306.11695, eq. 1, structured form"
)
def wanda(columns: Columns) -> Float[Tensor, " columns"]:
    """``s_j = meanᵢ |W_ij| · ‖X_j‖₂`` with the norm over calibration tokens (root mean square here:
    the number of tokens changes no ranking)."""
    return columns.absolute / columns.rows * (columns.x2 / columns.tokens).sqrt()
