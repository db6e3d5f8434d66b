"""torchao W8A8: int8 weights, activations quantised as they come, in every linear layer.

Only ``nn.Linear`` is quantised; GPT-2's ``Conv1D`` becomes the linear layer that it is, transposed.
"""

from __future__ import annotations

import logging

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from cascade_ops.batches import Batch
from cascade_ops.engines import eager
from cascade_ops.engines.base import ENGINES, Engine, EngineEntry


def build(model: PreTrainedModel, example: Batch) -> Engine:
    """``model``, quantised in place."""
    # it warns of every CUDA extension that a CPU build cannot load
    logging.getLogger("torchao").setLevel(logging.ERROR)
    from torchao.quantization import Int8DynamicActivationInt8WeightConfig, quantize_

    linear_layers(model)
    quantize_(model, Int8DynamicActivationInt8WeightConfig())
    return eager.build(model, example)


def linear_layers(model: nn.Module) -> None:
    """Every ``Conv1D`` as an ``nn.Linear`` of the same values, in place."""
    for module in list(model.modules()):
        for name, child in module.named_children():
            if isinstance(child, Conv1D):
                setattr(module, name, _linear(child))


def _linear(layer: Conv1D) -> nn.Linear:
    inputs, outputs = layer.weight.shape
    linear = nn.Linear(inputs, outputs, device="meta")
    linear.weight = nn.Parameter(layer.weight.detach().t().contiguous(), requires_grad=False)
    linear.bias = nn.Parameter(torch.clone(layer.bias.detach()), requires_grad=False)
    return linear


ENGINES.add(
    "int8",
    EngineEntry(
        build=build,
        title="torchao int8 weights and activations",
        tolerances={"diagnosis": 0.1, "lm": 0.25},
        packages=("torchao",),
    ),
)
