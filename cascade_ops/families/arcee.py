"""Arcee: the Llama group's attention and norms, with a feed-forward network that has no gate."""

from __future__ import annotations

from dataclasses import replace

from cascade_ops.families.llama import LLAMA
from cascade_ops.families.spec import Projection, family

family(
    replace(
        LLAMA,
        name="arcee",
        model_types=("arcee",),
        mlp_inputs=(Projection(path="mlp.up_proj", holds=("up",)),),
    )
)
