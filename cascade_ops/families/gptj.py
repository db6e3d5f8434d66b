"""GPT-J: multi-head attention, GELU, rotary positions in part of each head, parallel residual."""

from __future__ import annotations

from cascade_ops.families.spec import FamilySpec, Projection, Sizes, attribute, family, separate

family(
    FamilySpec(
        name="gptj",
        model_types=("gptj",),
        blocks="h",
        attention="attn",
        attention_inputs=separate("attn.q_proj", "attn.k_proj", "attn.v_proj"),
        attention_output="attn.out_proj",
        mlp_inputs=(Projection(path="mlp.fc_in", holds=("up",)),),
        mlp_output="mlp.fc_out",
        tail=("ln_f",),
        sizes=Sizes(kv_heads=None, head_dim=None, channels="n_inner"),
        attributes=attribute("attn", num_attention_heads=lambda layer: layer.heads),
    )
)
