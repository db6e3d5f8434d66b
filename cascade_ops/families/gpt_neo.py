"""GPT-Neo: multi-head attention, GELU, layers of global and of local attention in turn."""

from __future__ import annotations

from cascade_ops.families.spec import FamilySpec, Projection, Sizes, attribute, family, separate

ATTENTION = "attn.attention"

family(
    FamilySpec(
        name="gpt_neo",
        model_types=("gpt_neo",),
        blocks="h",
        attention=ATTENTION,
        attention_inputs=separate(*(f"{ATTENTION}.{part}_proj" for part in "qkv")),
        attention_output=f"{ATTENTION}.out_proj",
        mlp_inputs=(Projection(path="mlp.c_fc", holds=("up",)),),
        mlp_output="mlp.c_proj",
        tail=("ln_f",),
        sizes=Sizes(kv_heads=None, head_dim=None),
        attributes=attribute(ATTENTION, num_heads=lambda layer: layer.heads),
        layer_index="layer_id",
        per_layer_config=("attention_layers",),
        derived_config=(
            ("attention_types", lambda config: [[[kind], 1] for kind in config.attention_layers]),
        ),
    )
)
