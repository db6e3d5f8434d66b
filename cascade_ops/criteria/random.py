"""The floor that every criterion must beat."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from cascade_ops.criteria.base import LayerView, criterion
from cascade_ops.granularity import Granularity


@criterion("random", reference="uniform, seeded")
def random(view: LayerView) -> Float[Tensor, " units"]:
    """Uniform in [0, 1), a function of the seed, the granularity and the layer (as numbered in the
    dense model)."""
    place = list(Granularity).index(view.granularity)
    generator = torch.Generator().manual_seed((view.seed * 1009 + place) * 100_003 + view.layer.source)
    units = {
        Granularity.LAYER: 1,
        Granularity.HEAD: view.layer.heads,
        Granularity.KV_GROUP: view.layer.kv_heads,
        Granularity.CHANNEL: view.layer.channels,
    }
    return torch.rand(units[view.granularity], generator=generator, dtype=torch.float64)
