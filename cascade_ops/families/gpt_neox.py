"""GPT-NeoX (Pythia): multi-head attention, GELU, Q/K/V interleaved per head, parallel residual."""

from __future__ import annotations

from cascade_ops.families.spec import FamilySpec, Projection, Sizes, family

family(
    FamilySpec(
        name="gpt_neox",
        model_types=("gpt_neox",),
        blocks="layers",
        attention="attention",
        attention_inputs=(
            Projection(path="attention.query_key_value", holds=("q", "k", "v"), interleaved=True),
        ),
        attention_output="attention.dense",
        mlp_inputs=(Projection(path="mlp.dense_h_to_4h", holds=("up",)),),
        mlp_output="mlp.dense_4h_to_h",
        tail=("final_layer_norm",),
        sizes=Sizes(kv_heads=None, head_dim=None),
        head_dim="head_size",
    )
)
