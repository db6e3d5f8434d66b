"""Arcee: the Llama group's attention and norms, with a feed-forward network that has no gate."""

from __future__ import annotations

from cascade_ops.families.spec import Attribute, FamilySpec, Projection, family

family(
    FamilySpec(
        name="arcee",
        model_types=("arcee",),
        blocks="layers",
        attention="self_attn",
        attention_inputs=(
            Projection(path="self_attn.q_proj", holds=("q",)),
            Projection(path="self_attn.k_proj", holds=("k",)),
            Projection(path="self_attn.v_proj", holds=("v",)),
        ),
        attention_output="self_attn.o_proj",
        mlp_inputs=(Projection(path="mlp.up_proj", holds=("up",)),),
        mlp_output="mlp.down_proj",
        tail=("norm",),
        attributes=(
            Attribute(path="self_attn", name="num_key_value_groups", value=lambda config, layer: layer.n_rep),
        ),
    )
)
