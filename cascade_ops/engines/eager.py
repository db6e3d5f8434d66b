"""Plain PyTorch: the reference that the other engines are compared with."""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import PreTrainedModel

from cascade_ops.batches import Batch, on_device
from cascade_ops.engines.base import ENGINES, Engine, EngineEntry


def build(model: PreTrainedModel, example: Batch) -> Engine:
    """The model itself."""
    del example

    @torch.inference_mode()
    def run(batch: Batch) -> Tensor:
        logits: Tensor = model(**on_device(batch, model)).logits
        return logits.float().cpu()

    return run


# a batch of one takes other kernels than a batch of many: the last bits differ
ENGINES.add(
    "eager", EngineEntry(build=build, title="plain PyTorch", tolerances={"diagnosis": 1e-5, "lm": 1e-5})
)
