"""torch.export: the graph as PyTorch's own ``.pt2``, run by torch alone."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedModel

from cascade_ops.batches import Batch
from cascade_ops.engines.base import Engine
from cascade_ops.export.base import TARGETS, Job, Target
from cascade_ops.graphs import graph_of, quietly

FILE = "model.pt2"


def write(model: PreTrainedModel, folder: Path, job: Job) -> tuple[str, ...]:
    """``model.pt2``."""
    module, inputs, shapes = graph_of(model, job.probes)
    with quietly():
        torch.export.save(torch.export.export(module, inputs, dynamic_shapes=shapes), folder / FILE)
    return ()


def open_folder(folder: Path) -> Engine:
    """By torch, from the graph."""
    module = torch.export.load(folder / FILE).module()

    @torch.inference_mode()
    def run(batch: Batch) -> Tensor:
        logits: Tensor = module(*batch.values())
        return logits

    return run


TARGETS.add(
    "torch.export",
    Target(
        title="PyTorch, without the model's Python code",
        refuses=lambda anatomy: (),
        kinds=("lm", "diagnosis", "encoder", "image"),
        precisions={"as stored": 1e-4},
        write=write,
        open=open_folder,
        how='import torch\n\nmodel = torch.export.load("model.pt2").module()\nlogits = model({input})',
    ),
)
