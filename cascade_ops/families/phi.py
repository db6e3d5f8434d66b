"""Phi-1 and Phi-2: multi-head or grouped-query attention, GELU, parallel attention and feed-forward."""

from __future__ import annotations

from cascade_ops.families.spec import FamilySpec, Projection, attribute, family, separate

family(
    FamilySpec(
        name="phi",
        model_types=("phi",),
        blocks="layers",
        attention="self_attn",
        attention_inputs=separate("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
        attention_output="self_attn.dense",
        mlp_inputs=(Projection(path="mlp.fc1", holds=("up",)),),
        mlp_output="mlp.fc2",
        tail=("final_layernorm",),
        attributes=attribute("self_attn", num_key_value_groups=lambda layer: layer.n_rep),
    )
)
