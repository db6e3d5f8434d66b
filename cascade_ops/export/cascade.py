"""This package's own format: every plan, and nothing to convert."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedModel

from cascade_ops.batches import Batch
from cascade_ops.checkpoint import load_pruned, save_pruned
from cascade_ops.export.base import TARGETS, Job, Target


def write(model: PreTrainedModel, folder: Path, job: Job) -> tuple[str, ...]:
    """As every run keeps its models."""
    save_pruned(model, folder / "model")
    for file in (folder / "model").iterdir():
        file.rename(folder / file.name)
    (folder / "model").rmdir()
    return ()


@torch.inference_mode()
def run(folder: Path, batch: Batch) -> Tensor:
    """By ``load_pruned``."""
    logits: Tensor = load_pruned(folder)(**batch).logits
    return logits


TARGETS.add(
    "cascade",
    Target(
        title="this package's own format",
        refuses=lambda anatomy: (),
        kinds=("lm", "diagnosis", "encoder", "image"),
        precisions={"as stored": 1e-4},
        write=write,
        run=run,
        how='from cascade_ops.checkpoint import load_pruned\n\nmodel = load_pruned(".")',
    ),
)
