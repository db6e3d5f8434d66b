"""GPT-BigCode (SantaCoder, StarCoder): multi-query or multi-head attention, GELU, Q/K/V fused per KV group."""

from __future__ import annotations

from cascade_ops.families.spec import FamilySpec, Projection, Sizes, attribute, family

family(
    FamilySpec(
        name="gpt_bigcode",
        model_types=("gpt_bigcode",),
        blocks="h",
        attention="attn",
        attention_inputs=(Projection(path="attn.c_attn", holds=("q", "k", "v"), interleaved=True),),
        attention_output="attn.c_proj",
        mlp_inputs=(Projection(path="mlp.c_fc", holds=("up",)),),
        mlp_output="mlp.c_proj",
        tail=("ln_f",),
        sizes=Sizes(kv_heads=None, head_dim=None, channels="n_inner"),
        attributes=attribute(
            "attn",
            num_heads=lambda layer: layer.heads,
            embed_dim=lambda layer: layer.heads * layer.head_dim,
            split_size=lambda layer: layer.heads * layer.head_dim,
            kv_heads=lambda layer: layer.kv_heads,
            kv_dim=lambda layer: layer.kv_heads * layer.head_dim,
            num_key_value_groups=lambda layer: layer.n_rep,
        ),
    )
)
