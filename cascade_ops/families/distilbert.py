"""DistilBERT: BERT with half the layers and other names."""

from __future__ import annotations

from cascade_ops.families.spec import FamilySpec, Projection, Sizes, attribute, family, separate

family(
    FamilySpec(
        name="distilbert",
        model_types=("distilbert",),
        blocks="transformer.layer",
        attention="attention",
        attention_inputs=separate("attention.q_lin", "attention.k_lin", "attention.v_lin"),
        attention_output="attention.out_lin",
        mlp_inputs=(Projection(path="ffn.lin1", holds=("up",)),),
        mlp_output="ffn.lin2",
        tail=(),
        sizes=Sizes(kv_heads=None, head_dim=None, channels="hidden_dim"),
        head_dim="attention_head_size",
        attributes=attribute("attention", n_heads=lambda layer: layer.heads),
    )
)
