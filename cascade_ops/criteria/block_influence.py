"""ShortGPT's block influence."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from cascade_ops.criteria.base import LayerView, criterion
from cascade_ops.granularity import Granularity
from cascade_ops.statistics import COSINE


@criterion(
    "block_influence",
    needs=("block_cosine",),
    granularities=(Granularity.LAYER,),
    reference="Men et al. 2024, arXiv 2403.03853, eq. 1",
)
def block_influence(view: LayerView) -> Float[Tensor, " units"]:
    """``1 − E_t cos(h_in, h_out)``: a block that hardly turns its input is hardly needed."""
    return 1 - view.sum_of(COSINE) / view.statistics.tokens
