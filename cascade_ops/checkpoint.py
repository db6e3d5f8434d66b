"""Save and load pruned models: safetensors and JSON, strict, written whole or not at all.

The folder is a plain transformers folder whose ``config.json`` also records the shapes that the cut
left (``cascade``: query heads of each KV group and channels, layer by layer).
"""

from __future__ import annotations

import copy
import errno
import json
import re
from pathlib import Path

import torch
from huggingface_hub import save_torch_state_dict
from safetensors import SafetensorError
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel

from cascade_ops.errors import CheckpointError
from cascade_ops.files import written_whole
from cascade_ops.surgery import meta_model
from cascade_ops.weights import FLOATS, StoredTensor, read_tensors, stored_tensors

RECOMPUTED = r"rotary_emb\.inv_freq|(^|\.)position_ids$|\.masked_bias$"
"""Buffers that older checkpoints store and models now compute."""


def save_pruned(model: PreTrainedModel, path: str | Path) -> None:
    """Write ``model`` to the folder ``path``, replacing it.

    Raises:
        OSError: the disk is full or not writable; ``path`` is then as it was.
    """
    config = copy.deepcopy(model.config)
    config.architectures = [type(model).__name__]
    config.dtype = str(model.dtype).removeprefix("torch.")
    tied = list(getattr(model, "all_tied_weights_keys", None) or ())
    with written_whole(Path(path)) as scratch:
        config.save_pretrained(scratch)
        if getattr(model, "generation_config", None) is not None:
            model.generation_config.save_pretrained(scratch)
        try:
            save_torch_state_dict(model.state_dict(), scratch, shared_tensors_to_discard=tied)
        except SafetensorError as error:
            raise OSError(errno.ENOSPC, f"weights could not be written ({error})", str(path)) from error


def load_pruned(path: str | Path) -> PreTrainedModel:
    """Load a model that ``save_pruned`` wrote (a plain transformers folder works too), in evaluation mode.

    Built on the meta device in its final shapes; weights are assigned strictly, so nothing is ever
    initialised at random.

    Raises:
        CheckpointError: a file is missing, truncated, or does not fit the config.
        UnsupportedFamilyError: no FamilySpec describes the model.
    """
    path = Path(path)
    model = meta_model(read_config(path))
    stored = stored_as(model, stored_tensors(path), path)
    model.load_state_dict(read_tensors(stored, stored), strict=True, assign=True)
    model.tie_weights()
    model.eval()
    return model


def stored_as(model: PreTrainedModel, stored: dict[str, StoredTensor], path: Path) -> dict[str, StoredTensor]:
    """The stored tensors under the names of ``model``'s state, tied ones under each of theirs.

    A folder saved from the backbone alone (or with its prefix) is understood, as transformers does.

    Raises:
        CheckpointError: one is missing, unexpected, of another shape, or not of a floating-point type.
    """
    expected, prefix = model.state_dict(), f"{model.base_model_prefix}."
    ignored = [*(model._keys_to_ignore_on_load_unexpected or ()), RECOMPUTED]
    named: dict[str, StoredTensor] = {}
    unexpected = []
    for name, tensor in stored.items():
        known = next((n for n in (name, prefix + name, name.removeprefix(prefix)) if n in expected), None)
        if known is not None:
            named[known] = tensor
        elif not any(re.search(pattern, name) for pattern in ignored):
            unexpected.append(name)
    for target, source in (getattr(model, "all_tied_weights_keys", None) or {}).items():
        tied = named.get(target) or named.get(source)
        if tied is not None:
            named.setdefault(target, tied)
            named.setdefault(source, tied)
    missing = [name for name in expected if name not in named]
    if missing or unexpected:
        raise CheckpointError(
            f"{path}: the weights do not fit the config: missing {missing[:3] or 'none'}, "
            f"unexpected {unexpected[:3] or 'none'}. Was the folder edited?"
        )
    wrong = [name for name, tensor in named.items() if tensor.shape != tuple(expected[name].shape)]
    if wrong:
        name = wrong[0]
        raise CheckpointError(
            f"{path}: {len(wrong)} tensors do not have the shape that config.json says; {name}: expected "
            f"{tuple(expected[name].shape)}, found {named[name].shape}. Config and weights are from different runs."
        )
    quantised = [n for n, t in named.items() if expected[n].is_floating_point() and t.kind not in FLOATS]
    if quantised:
        name = quantised[0]
        raise CheckpointError(
            f"{path}: {name} has type {named[name].kind}; expected one of {', '.join(FLOATS)}. "
            "De-quantise the model first."
        )
    return named


def read_config(path: Path) -> PreTrainedConfig:
    """The config of a model folder. Raises CheckpointError."""
    from cascade_ops.models import classifier  # noqa: F401  (registers its config with AutoConfig)

    if not (path / "config.json").is_file():
        raise CheckpointError(
            f"{path}: expected a model folder with config.json and safetensors, found no config.json"
        )
    try:
        native = _native(path)
        if native is not None:
            return native
        config: PreTrainedConfig = AutoConfig.from_pretrained(path)
        return config
    except (OSError, ValueError, KeyError) as error:
        # transformers' own messages have several lines of advice
        reason = str(error).strip().split("\n")[0]
        raise CheckpointError(f"{path}/config.json cannot be read: {reason}") from error


def _native(path: Path) -> PreTrainedConfig | None:
    """The config of a folder that brings its own modelling file, as the stock model type that it is based on."""
    document = json.loads((path / "config.json").read_text(encoding="utf-8"))
    shapes = document.pop("cascade_shapes", None) if isinstance(document, dict) else None
    if not isinstance(shapes, dict):
        return None
    document.pop("auto_map", None)
    config: PreTrainedConfig = AutoConfig.for_model(**{**document, **shapes["native"]})
    return config


def weights_size(model: PreTrainedModel) -> int:
    """Bytes of the weights on disk (ties counted once)."""
    return sum(parameter.numel() * parameter.element_size() for parameter in model.parameters()) + sum(
        buffer.numel() * buffer.element_size()
        for name, buffer in model.named_buffers()
        if name in model.state_dict() and isinstance(buffer, torch.Tensor)
    )
