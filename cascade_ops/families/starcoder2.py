"""StarCoder2: the Llama group's attention with biases, GELU without a gate."""

from __future__ import annotations

from dataclasses import replace

from cascade_ops.families.llama import LLAMA
from cascade_ops.families.spec import Projection, family

family(
    replace(
        LLAMA,
        name="starcoder2",
        model_types=("starcoder2",),
        mlp_inputs=(Projection(path="mlp.c_fc", holds=("up",)),),
        mlp_output="mlp.c_proj",
    )
)
