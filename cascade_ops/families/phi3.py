"""Phi-3: the Llama group with Q|K|V and gate|up fused; attention reads its number of heads from the config."""

from __future__ import annotations

from dataclasses import replace

from cascade_ops.families.llama import LLAMA
from cascade_ops.families.spec import Attribute, Projection, attribute, family
from cascade_ops.families.view import LayerConfig

family(
    replace(
        LLAMA,
        name="phi3",
        model_types=("phi3",),
        attention_inputs=(Projection(path="self_attn.qkv_proj", holds=("q", "k", "v")),),
        mlp_inputs=(Projection(path="mlp.gate_up_proj", holds=("gate", "up")),),
        attributes=(
            *attribute(
                "self_attn",
                num_key_value_groups=lambda layer: layer.n_rep,
                num_key_value_heads=lambda layer: layer.kv_heads,
            ),
            Attribute(
                path="self_attn",
                name="config",
                value=lambda config, layer: LayerConfig(config, num_attention_heads=layer.heads),
            ),
        ),
    )
)
