"""Size and single-sample latency, dense and compressed measured in turn."""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedModel

from cascade_ops.anatomy import anatomy_of
from cascade_ops.batches import Batch, on_device, take
from cascade_ops.checkpoint import weights_size
from cascade_ops.results import Evaluation, Latency, ModelFigures


@torch.inference_mode()
def latency(
    models: Sequence[nn.Module], data: Batch, *, runs: int = 100, warmup: int = 10
) -> tuple[Latency, ...]:
    """Latency of one sample for each model, interleaved run by run so that drift hits all alike.

    On CUDA the device is synchronised before each reading.
    """
    sample = take({name: tensor for name, tensor in data.items() if name != "labels"}, slice(0, 1))
    inputs = [on_device(sample, model) for model in models]
    times = np.empty((len(models), runs))
    for run in range(-warmup, runs):
        for index, (model, batch) in enumerate(zip(models, inputs, strict=True)):
            model.eval()
            _synchronise(batch)
            began = time.perf_counter()
            model(**batch)
            _synchronise(batch)
            if run >= 0:
                times[index, run] = 1e3 * (time.perf_counter() - began)
    return tuple(
        Latency(
            median=float(np.median(row)),
            p5=float(np.percentile(row, 5)),
            p95=float(np.percentile(row, 95)),
            runs=runs,
            threads=torch.get_num_threads(),
        )
        for row in times
    )


def _synchronise(batch: Batch) -> None:
    if any(tensor.is_cuda for tensor in batch.values()):
        torch.cuda.synchronize()


def model_figures(model: PreTrainedModel, latency_ms: Latency, evaluation: Evaluation) -> ModelFigures:
    """Parameters, bytes, latency and quality of one model."""
    anatomy = anatomy_of(model)
    return ModelFigures(
        backbone_params=anatomy.backbone_params,
        total_params=anatomy.total_params,
        size_bytes=weights_size(model),
        latency_ms=latency_ms,
        evaluation=evaluation,
    )
