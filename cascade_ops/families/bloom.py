"""BLOOM: multi-head attention with ALiBi positions, GELU, Q/K/V interleaved per head."""

from __future__ import annotations

from cascade_ops.families.spec import FamilySpec, Projection, Refusal, Sizes, family
from cascade_ops.granularity import Granularity

SLOPES = "ALiBi gives each head a slope by its place among all heads, and every layer the same slopes"

family(
    FamilySpec(
        name="bloom",
        model_types=("bloom",),
        blocks="h",
        attention="self_attention",
        attention_inputs=(
            Projection(path="self_attention.query_key_value", holds=("q", "k", "v"), interleaved=True),
        ),
        attention_output="self_attention.dense",
        mlp_inputs=(Projection(path="mlp.dense_h_to_4h", holds=("up",)),),
        mlp_output="mlp.dense_4h_to_h",
        tail=("ln_f",),
        sizes=Sizes(kv_heads=None, head_dim=None, channels=None),
        unsupported=(
            Refusal(granularity=Granularity.HEAD, reason=SLOPES),
            Refusal(granularity=Granularity.KV_GROUP, reason=SLOPES),
        ),
    )
)
