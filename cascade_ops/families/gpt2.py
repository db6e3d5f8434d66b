"""GPT-2: multi-head attention, GELU, fused Q|K|V in Conv1D (weight is in × out)."""

from __future__ import annotations

from typing import Any

from cascade_ops.families.spec import Attribute, FamilySpec, Projection, Sizes, family
from cascade_ops.layer import LayerAnatomy


def _scaling(config: Any, layer: LayerAnatomy) -> float:
    scale = layer.head_dim**-0.5 if config.scale_attn_weights else 1.0
    # The dense model's depth counts, not the position that the layer has after a cut.
    return scale / (layer.source + 1) if config.scale_attn_by_inverse_layer_idx else scale


family(
    FamilySpec(
        name="gpt2",
        model_types=("gpt2",),
        blocks="h",
        attention="attn",
        attention_inputs=(Projection(path="attn.c_attn", holds=("q", "k", "v")),),
        attention_output="attn.c_proj",
        mlp_inputs=(Projection(path="mlp.c_fc", holds=("up",)),),
        mlp_output="mlp.c_proj",
        tail=("ln_f",),
        sizes=Sizes(kv_heads=None, head_dim=None, channels="n_inner"),
        attributes=(
            Attribute(path="attn", name="num_heads", value=lambda config, layer: layer.heads),
            Attribute(
                path="attn", name="split_size", value=lambda config, layer: layer.heads * layer.head_dim
            ),
            Attribute(path="attn", name="scaling", value=_scaling),
        ),
    )
)
