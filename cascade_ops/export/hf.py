"""Plain transformers: one number of heads, KV heads and channels for all layers, and no trace of a cut."""

from __future__ import annotations

from pathlib import Path

from huggingface_hub import save_torch_state_dict
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel

from cascade_ops.anatomy import ModelAnatomy
from cascade_ops.engines import eager
from cascade_ops.engines.base import Engine
from cascade_ops.errors import ExportError
from cascade_ops.export.auto import auto_class_of
from cascade_ops.export.base import TARGETS, Job, Target
from cascade_ops.export.plain import Refusals, displaced, plain_config, uneven, unnamed


def refuses(anatomy: ModelAnatomy) -> Refusals:
    """Layers that differ, and sizes that the family's config has no field for."""
    return (*uneven(anatomy, "hf"), *unnamed(anatomy))


def refuses_config(config: PreTrainedConfig, anatomy: ModelAnatomy) -> Refusals:
    """Layers that know their place, and what transformers itself refuses."""
    found = displaced(config, anatomy)
    if found:
        return found
    try:
        plain_config(config, anatomy)
    except ExportError as error:
        return (str(error),)
    return ()


def write(model: PreTrainedModel, folder: Path, job: Job) -> tuple[str, ...]:
    """Config and weights as ``save_pretrained`` of an unpruned model would."""
    config = plain_config(job.config, job.anatomy)
    config.dtype = str(model.dtype).removeprefix("torch.")
    config.save_pretrained(folder)
    if getattr(model, "generation_config", None) is not None:
        model.generation_config.save_pretrained(folder)
    tied = list(getattr(model, "all_tied_weights_keys", None) or ())
    save_torch_state_dict(model.state_dict(), folder, shared_tensors_to_discard=tied)
    if config.model_type == job.config.model_type:
        return ()
    return (
        f"written as {config.model_type}: {job.config.model_type}'s own config refuses this number of heads",
    )


def open_folder(folder: Path) -> Engine:
    """By transformers alone."""
    config = AutoConfig.from_pretrained(folder, local_files_only=True)
    model = auto_class_of(config.architectures[0]).from_pretrained(folder, local_files_only=True)
    return eager.build(model.eval(), {})


TARGETS.add(
    "hf",
    Target(
        title="plain transformers",
        refuses=refuses,
        refuses_config=refuses_config,
        kinds=("lm", "encoder", "image"),
        precisions={"as stored": 1e-4},
        write=write,
        open=open_folder,
        how='from transformers import {auto}\n\nmodel = {auto}.from_pretrained(".")',
    ),
)
