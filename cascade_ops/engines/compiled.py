"""``torch.compile``: fused kernels, after a wait while they are made (a C++ compiler is needed).

Not for language models: a cache that grows by a token each time would have to be part of the graph.
"""

from __future__ import annotations

import types
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from cascade_ops.batches import Batch, on_device
from cascade_ops.engines.base import ENGINES, Engine, EngineEntry


def build(model: PreTrainedModel, example: Batch) -> Engine:
    """One graph for any batch, and one for a batch of one; both are made by the comparison with plain PyTorch."""
    del example
    compiled: Callable[[Batch], Tensor] = torch.compile(
        _separate(lambda inputs: model(**inputs).logits), dynamic=True
    )

    @torch.inference_mode()
    def run(batch: Batch) -> Tensor:
        logits: Tensor = compiled(on_device(batch, model))
        return logits.float().cpu()

    return run


def _separate(function: Any) -> Any:
    """``function`` with a code object of its own.

    torch counts graphs by code object and quietly stops compiling after eight; the fifth model would run as it is.
    """
    return types.FunctionType(function.__code__.replace(), function.__globals__, closure=function.__closure__)


ENGINES.add("compile", EngineEntry(build=build, title="torch.compile", tolerances={"diagnosis": 1e-4}))
