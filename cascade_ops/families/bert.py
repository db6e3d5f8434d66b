"""BERT and RoBERTa: encoder, multi-head attention, GELU, post-norm residuals."""

from __future__ import annotations

from cascade_ops.families.spec import Attribute, FamilySpec, Projection, Sizes, family

family(
    FamilySpec(
        name="bert",
        model_types=("bert", "roberta"),
        blocks="encoder.layer",
        attention="attention.self",
        attention_inputs=(
            Projection(path="attention.self.query", holds=("q",)),
            Projection(path="attention.self.key", holds=("k",)),
            Projection(path="attention.self.value", holds=("v",)),
        ),
        attention_output="attention.output.dense",
        mlp_inputs=(Projection(path="intermediate.dense", holds=("up",)),),
        mlp_output="output.dense",
        tail=("pooler",),
        sizes=Sizes(kv_heads=None, head_dim=None),
        head_dim="attention_head_size",
        attributes=(
            Attribute(
                path="attention.self", name="num_attention_heads", value=lambda config, layer: layer.heads
            ),
            Attribute(
                path="attention.self",
                name="all_head_size",
                value=lambda config, layer: layer.heads * layer.head_dim,
            ),
        ),
    )
)
