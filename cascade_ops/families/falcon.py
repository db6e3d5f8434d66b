"""Falcon: multi-query, grouped-query or multi-head attention, GELU, Q/K/V fused per KV group."""

from __future__ import annotations

from cascade_ops.families.bloom import SLOPES
from cascade_ops.families.spec import FamilySpec, Projection, Refusal, Sizes, attribute, family
from cascade_ops.granularity import Granularity

family(
    FamilySpec(
        name="falcon",
        model_types=("falcon",),
        blocks="h",
        attention="self_attention",
        attention_inputs=(
            Projection(path="self_attention.query_key_value", holds=("q", "k", "v"), interleaved=True),
        ),
        attention_output="self_attention.dense",
        mlp_inputs=(Projection(path="mlp.dense_h_to_4h", holds=("up",)),),
        mlp_output="mlp.dense_4h_to_h",
        tail=("ln_f",),
        sizes=Sizes(kv_heads="num_kv_heads", head_dim=None, channels="ffn_hidden_size"),
        attributes=attribute(
            "self_attention",
            num_heads=lambda layer: layer.heads,
            num_kv_heads=lambda layer: layer.kv_heads,
            split_size=lambda layer: layer.heads * layer.head_dim,
        ),
        unsupported=(
            Refusal(granularity=Granularity.HEAD, reason=SLOPES, when=lambda config: config.alibi),
            Refusal(granularity=Granularity.KV_GROUP, reason=SLOPES, when=lambda config: config.alibi),
            Refusal(
                granularity=Granularity.HEAD,
                reason="its attention takes the same number of query heads in each KV group; cut KV groups",
                when=lambda config: config.new_decoder_architecture,
            ),
        ),
    )
)
