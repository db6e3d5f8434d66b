"""This package's own format: every plan, and nothing to convert."""

from __future__ import annotations

from pathlib import Path

from transformers import PreTrainedModel

from cascade_ops.checkpoint import load_pruned, save_pruned
from cascade_ops.engines import eager
from cascade_ops.engines.base import Engine
from cascade_ops.export.base import TARGETS, Job, Target


def write(model: PreTrainedModel, folder: Path, job: Job) -> tuple[str, ...]:
    """As every run keeps its models."""
    save_pruned(model, folder / "model")
    for file in (folder / "model").iterdir():
        file.rename(folder / file.name)
    (folder / "model").rmdir()
    return ()


def open_folder(folder: Path) -> Engine:
    """By ``load_pruned``."""
    return eager.build(load_pruned(folder), {})


TARGETS.add(
    "cascade",
    Target(
        title="cascade-ops itself",
        refuses=lambda anatomy: (),
        kinds=("lm", "diagnosis", "encoder", "image"),
        precisions={"as stored": 1e-4},
        write=write,
        open=open_folder,
        how='from cascade_ops.checkpoint import load_pruned\n\nmodel = load_pruned(".")',
    ),
)
