"""AMP's projection scores."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from cascade_ops.criteria.base import LayerView, criterion
from cascade_ops.granularity import Granularity
from cascade_ops.statistics import ABS_X, PROJECTED


@criterion(
    "amp",
    needs=("projection",),
    granularities=(Granularity.HEAD, Granularity.KV_GROUP, Granularity.CHANNEL),
    scale="layer_mean",
    reference="Mugnaini et al. 2025, arXiv 2504.21174 (AMP), head and neuron projections",
)
def amp(view: LayerView) -> Float[Tensor, " units"]:
    """Head h: ``mean_t Σ_o |Σ_{d∈h} x_d W_od|``, what it adds to the residual stream; channel j: ``mean_t |x_j|``.

    A KV group's score is the sum over its heads. Layers have no such score.
    """
    tokens = view.statistics.tokens
    if view.granularity is Granularity.CHANNEL:
        return view.sum_of(ABS_X) / tokens
    heads = view.sum_of(PROJECTED, Granularity.HEAD) / tokens
    if view.granularity is Granularity.HEAD:
        return heads
    groups = torch.zeros(view.layer.kv_heads, dtype=heads.dtype, device=heads.device)
    return groups.index_add(0, torch.tensor(view.layer.kv_owner, device=heads.device), heads)
