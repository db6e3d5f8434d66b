"""Attention for KV groups with unequal numbers of query heads.

Removing query heads one by one under grouped-query attention leaves groups of different sizes,
which no stock implementation repeats right. Registered with transformers' attention interface.
"""

from __future__ import annotations

from typing import Any

from jaxtyping import Float
from torch import Tensor, nn
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, sdpa_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

RAGGED = "cascade_ragged"


def ragged_attention(
    module: nn.Module,
    query: Float[Tensor, "batch heads query_length head_dim"],
    key: Float[Tensor, "batch kv_heads length head_dim"],
    value: Float[Tensor, "batch kv_heads length head_dim"],
    attention_mask: Tensor | None,
    **kwargs: Any,
) -> tuple[Float[Tensor, "batch query_length heads head_dim"], None]:
    """Scaled dot-product attention after giving each query head its own K/V (``module.kv_owner``)."""
    owner = getattr(module, "kv_owner", None)
    if owner is not None:
        key, value = key[:, owner], value[:, owner]
    return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)


ALL_ATTENTION_FUNCTIONS.register(RAGGED, ragged_attention)
ALL_MASK_ATTENTION_FUNCTIONS.register(RAGGED, sdpa_mask)
