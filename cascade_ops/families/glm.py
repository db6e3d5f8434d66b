"""GLM-4 (both shapes of its blocks): the Llama group's attention, gate and up fused in one projection."""

from __future__ import annotations

from dataclasses import replace

from cascade_ops.families.llama import LLAMA
from cascade_ops.families.spec import Projection, family

family(
    replace(
        LLAMA,
        name="glm",
        model_types=("glm", "glm4"),
        mlp_inputs=(Projection(path="mlp.gate_up_proj", holds=("gate", "up")),),
    )
)
