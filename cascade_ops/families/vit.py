"""ViT: a vision encoder, multi-head attention, GELU, pre-norm residuals."""

from __future__ import annotations

from cascade_ops.families.spec import FamilySpec, Projection, Sizes, attribute, family, separate

family(
    FamilySpec(
        name="vit",
        model_types=("vit",),
        blocks="layers",
        attention="attention",
        attention_inputs=separate("attention.q_proj", "attention.k_proj", "attention.v_proj"),
        attention_output="attention.o_proj",
        mlp_inputs=(Projection(path="mlp.fc1", holds=("up",)),),
        mlp_output="mlp.fc2",
        tail=("layernorm", "pooler"),
        sizes=Sizes(kv_heads=None),
        attributes=attribute("attention", num_attention_heads=lambda layer: layer.heads),
    )
)
