"""The Llama group: rotary positions, grouped-query attention, a gated feed-forward network, separate projections.

What tells its members apart (biases, norms before, after and inside, one norm for all heads, soft-capped
logits, sliding windows, tied embeddings, parallel blocks) is nothing that a cut has to know.
"""

from __future__ import annotations

from dataclasses import replace

from cascade_ops.families.spec import (
    FamilySpec,
    PerHead,
    Projection,
    Refusal,
    Sizes,
    attribute,
    family,
    separate,
)
from cascade_ops.granularity import Granularity

LLAMA = family(
    FamilySpec(
        name="llama",
        model_types=(
            "llama",
            "mistral",
            "qwen2",
            "qwen3",
            "gemma",
            "gemma2",
            "gemma3_text",
            "granite",
            "olmo",
            "smollm3",
            "cohere2",
        ),
        blocks="layers",
        attention="self_attn",
        attention_inputs=separate("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
        attention_output="self_attn.o_proj",
        mlp_inputs=(
            Projection(path="mlp.gate_proj", holds=("gate",)),
            Projection(path="mlp.up_proj", holds=("up",)),
        ),
        mlp_output="mlp.down_proj",
        tail=("norm",),
        attributes=attribute("self_attn", num_key_value_groups=lambda layer: layer.n_rep),
        per_layer_config=("layer_types", "no_rope_layers"),
    )
)

family(
    replace(
        LLAMA,
        name="cohere",
        model_types=("cohere",),
        per_head=(
            PerHead(path="self_attn.q_norm.weight", part="q"),
            PerHead(path="self_attn.k_norm.weight", part="k"),
        ),
    )
)

family(
    replace(
        LLAMA,
        name="stablelm",
        model_types=("stablelm",),
        sizes=Sizes(head_dim=None),
        attributes=attribute(
            "self_attn",
            num_heads=lambda layer: layer.heads,
            num_key_value_heads=lambda layer: layer.kv_heads,
            num_key_value_groups=lambda layer: layer.n_rep,
        ),
        per_head=(
            PerHead(path="self_attn.q_layernorm.norms", part="q"),
            PerHead(path="self_attn.k_layernorm.norms", part="k"),
        ),
    )
)

_JOINT = "one norm runs over all heads of a layer together, so the others change when a head goes"

family(
    replace(
        LLAMA,
        name="olmo2",
        model_types=("olmo2", "olmo3"),
        unsupported=(
            Refusal(granularity=Granularity.HEAD, reason=_JOINT),
            Refusal(granularity=Granularity.KV_GROUP, reason=_JOINT),
        ),
    )
)
