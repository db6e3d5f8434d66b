"""FLAP's weighted input feature variance."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from cascade_ops.criteria.base import Columns, column_criterion


@column_criterion(
    "flap",
    needs=("moments",),
    scale="layer_zscore",
    reference="An et al. 2024, arXiv 2312.11983, eq. 5 (WIFV)",
)
def flap(columns: Columns) -> Float[Tensor, " columns"]:
    """``s_j = Var(X_j) · ‖W_{:,j}‖₂²``: how much of the output is lost if column j is replaced by its mean.

    Standardised within each layer before layers compete.
    """
    mean = columns.x / columns.tokens
    variance = (columns.x2 / columns.tokens - mean.square()).clamp(min=0)
    return variance * columns.squares
