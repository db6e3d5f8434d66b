"""The Llama group: rotary positions, grouped-query attention, SwiGLU, separate projections.

Llama, Mistral, Qwen2 (with Q/K/V biases) and Qwen3 (with a norm per head, shared by all heads)
differ in nothing that a cut has to know.
"""

from __future__ import annotations

from cascade_ops.families.spec import Attribute, FamilySpec, Projection, family

family(
    FamilySpec(
        name="llama",
        model_types=("llama", "mistral", "qwen2", "qwen3"),
        blocks="layers",
        attention="self_attn",
        attention_inputs=(
            Projection(path="self_attn.q_proj", holds=("q",)),
            Projection(path="self_attn.k_proj", holds=("k",)),
            Projection(path="self_attn.v_proj", holds=("v",)),
        ),
        attention_output="self_attn.o_proj",
        mlp_inputs=(
            Projection(path="mlp.gate_proj", holds=("gate",)),
            Projection(path="mlp.up_proj", holds=("up",)),
        ),
        mlp_output="mlp.down_proj",
        tail=("norm",),
        attributes=(
            Attribute(path="self_attn", name="num_key_value_groups", value=lambda config, layer: layer.n_rep),
        ),
    )
)
