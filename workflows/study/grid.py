"""Sixteen architectures that differ in attention and feed-forward kind alone, with the same number of parameters."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

HIDDEN, LAYERS, HEADS, HEAD_DIM, CHANNELS = 64, 4, 8, 8, 256
ATTENTION = {"MHA": HEADS, "GQA-2": HEADS // 2, "GQA-4": HEADS // 4, "MQA": 1}
"""K/V heads; in GQA-n, n query heads share each."""
MLP = {
    "GELU": ("arcee", "gelu"),
    "ReLU": ("arcee", "relu"),
    "SwiGLU": ("llama", "silu"),
    "GeGLU": ("llama", "gelu"),
}
"""Model type and activation. Arcee is Llama without the gate."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Architecture:
    """One cell of the grid."""

    attention: str
    mlp: str

    @property
    def name(self) -> str:
        return f"{self.attention}+{self.mlp}"

    @property
    def shared(self) -> bool:
        """Query heads share K/V."""
        return self.attention != "MHA"

    @property
    def gated(self) -> bool:
        return MLP[self.mlp][0] == "llama"

    def config(self, tokens: int) -> dict[str, Any]:
        """Fields of the backbone's config. What sharing or a gate takes or frees, the channels make up for."""
        kv_heads, (model_type, activation) = ATTENTION[self.attention], MLP[self.mlp]
        attention = 2 * HIDDEN * HEAD_DIM * (HEADS + kv_heads)
        block = 4 * HIDDEN * HEADS * HEAD_DIM + 2 * HIDDEN * CHANNELS
        return {
            "model_type": model_type,
            "hidden_size": HIDDEN,
            "num_hidden_layers": LAYERS,
            "num_attention_heads": HEADS,
            "num_key_value_heads": kv_heads,
            "head_dim": HEAD_DIM,
            "intermediate_size": (block - attention) // (HIDDEN * (3 if self.gated else 2)),
            "hidden_act": activation,
            "max_position_embeddings": tokens,
            "vocab_size": 1,
            "bos_token_id": None,
            "eos_token_id": None,
        }


GRID = tuple(Architecture(attention=attention, mlp=mlp) for attention in ATTENTION for mlp in MLP)
