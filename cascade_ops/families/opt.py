"""OPT: multi-head attention, ReLU, feed-forward projections directly in the block."""

from __future__ import annotations

from cascade_ops.families.spec import Attribute, FamilySpec, Projection, Sizes, family

family(
    FamilySpec(
        name="opt",
        model_types=("opt",),
        blocks="decoder.layers",
        attention="self_attn",
        attention_inputs=(
            Projection(path="self_attn.q_proj", holds=("q",)),
            Projection(path="self_attn.k_proj", holds=("k",)),
            Projection(path="self_attn.v_proj", holds=("v",)),
        ),
        attention_output="self_attn.out_proj",
        mlp_inputs=(Projection(path="fc1", holds=("up",)),),
        mlp_output="fc2",
        tail=("decoder.final_layer_norm", "decoder.project_out"),
        sizes=Sizes(kv_heads=None, head_dim=None, channels="ffn_dim"),
        attributes=(Attribute(path="self_attn", name="num_heads", value=lambda config, layer: layer.heads),),
    )
)
