"""Attention for KV groups with unequal numbers of query heads.

Removing query heads one by one under grouped-query attention leaves groups of different sizes,
which no stock implementation repeats right. Registered with transformers' attention interface.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Bool, Float
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
    if kwargs.get("softcap") is not None:
        n_rep = query.shape[1] // key.shape[1]
        key, value = key.repeat_interleave(n_rep, dim=1), value.repeat_interleave(n_rep, dim=1)
        return _soft_capped(module, query, key, value, attention_mask, **kwargs), None
    return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)


def _soft_capped(
    module: nn.Module,
    query: Float[Tensor, "batch heads query_length head_dim"],
    key: Float[Tensor, "batch heads length head_dim"],
    value: Float[Tensor, "batch heads length head_dim"],
    attention_mask: Bool[Tensor, "batch 1 query_length length"] | None,
    *,
    softcap: float,
    scaling: float,
    dropout: float = 0.0,
    **kwargs: Any,
) -> Float[Tensor, "batch query_length heads head_dim"]:
    """softmax(c·tanh(q·k·s/c)): Gemma-2's scores, which scaled dot-product attention does not know."""
    # Operation by operation as transformers' eager attention: the same bits with one layer ragged or none.
    scores = torch.tanh(query @ key.transpose(2, 3) * scaling / softcap) * softcap
    if attention_mask is None:  # left out where it would be causal and nothing else
        attention_mask = torch.ones_like(scores[:1, :1], dtype=torch.bool).tril(key.shape[2] - query.shape[2])
    hidden = torch.zeros_like(scores[:, :1]).masked_fill(~attention_mask, torch.finfo(scores.dtype).min)
    scores = scores + hidden
    weights = scores.softmax(dim=-1, dtype=torch.float32).to(query.dtype)
    weights = torch.nn.functional.dropout(weights, p=dropout, training=module.training)
    return (weights @ value).transpose(1, 2).contiguous()


ALL_ATTENTION_FUNCTIONS.register(RAGGED, ragged_attention)
ALL_MASK_ATTENTION_FUNCTIONS.register(RAGGED, sdpa_mask)
