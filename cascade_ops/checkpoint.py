"""Save and load pruned models: safetensors and JSON, strict, written whole or not at all.

The folder is a plain transformers folder whose ``config.json`` also records the shapes that the cut
left (``cascade``: query heads of each KV group and channels, layer by layer).
"""

from __future__ import annotations

import copy
import errno
import json
from pathlib import Path

import torch
from huggingface_hub import save_torch_state_dict
from safetensors import SafetensorError, safe_open
from torch import Tensor
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel

from cascade_ops.errors import CheckpointError
from cascade_ops.files import written_whole
from cascade_ops.surgery import meta_model

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"


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
    config = read_config(path)
    weights = _read_weights(path)
    model = meta_model(config)
    expected = model.state_dict()
    wrong = {
        name: (tuple(value.shape), tuple(expected[name].shape))
        for name, value in weights.items()
        if name in expected and value.shape != expected[name].shape
    }
    if wrong:
        name, (found, wanted) = next(iter(wrong.items()))
        raise CheckpointError(
            f"{path}: {len(wrong)} tensors do not have the shape that config.json says; {name}: expected "
            f"{wanted}, found {found}. Config and weights are from different runs."
        )
    tied = set(getattr(model, "all_tied_weights_keys", None) or ())
    result = model.load_state_dict(weights, strict=False, assign=True)
    missing = [name for name in result.missing_keys if name not in tied]
    if missing or result.unexpected_keys:
        raise CheckpointError(
            f"{path}: the weights do not fit the config: missing {missing[:3] or 'none'}, "
            f"unexpected {result.unexpected_keys[:3] or 'none'}. Was the folder edited?"
        )
    model.tie_weights()
    model.eval()
    return model


def read_config(path: Path) -> PreTrainedConfig:
    """The config of a model folder. Raises CheckpointError."""
    from cascade_ops.models import classifier  # noqa: F401  (registers its config with AutoConfig)

    if not (path / "config.json").is_file():
        raise CheckpointError(
            f"{path}: expected a model folder with config.json and safetensors, found no config.json"
        )
    try:
        config: PreTrainedConfig = AutoConfig.from_pretrained(path)
        return config
    except (OSError, ValueError, KeyError) as error:
        # transformers' own messages have several lines of advice
        reason = str(error).strip().split("\n")[0]
        raise CheckpointError(f"{path}/config.json cannot be read: {reason}") from error


def _read_weights(path: Path) -> dict[str, Tensor]:
    files = _weight_files(path)
    weights: dict[str, Tensor] = {}
    for file in files:
        try:
            with safe_open(file, framework="pt") as shard:
                for name in shard.keys():  # noqa: SIM118  (safe_open is not a mapping)
                    weights[name] = shard.get_tensor(name)
        except (SafetensorError, OSError) as error:
            raise CheckpointError(
                f"{file}: not a complete safetensors file ({error}); copy or train it again"
            ) from error
    return weights


def _weight_files(path: Path) -> list[Path]:
    if (path / SINGLE).is_file():
        return [path / SINGLE]
    if not (path / INDEX).is_file():
        raise CheckpointError(
            f"{path}: expected {SINGLE} or {INDEX}, found neither (pickled weights are not loaded)"
        )
    try:
        names = sorted(set(json.loads((path / INDEX).read_text())["weight_map"].values()))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{path / INDEX}: not a safetensors index ({error})") from error
    absent = [name for name in names if not (path / name).is_file()]
    if absent:
        raise CheckpointError(
            f"{path}: the index names {absent[0]}, which is not there ({len(absent)} absent)"
        )
    return [path / name for name in names]


def weights_size(model: PreTrainedModel) -> int:
    """Bytes of the weights on disk (ties counted once)."""
    return sum(parameter.numel() * parameter.element_size() for parameter in model.parameters()) + sum(
        buffer.numel() * buffer.element_size()
        for name, buffer in model.named_buffers()
        if name in model.state_dict() and isinstance(buffer, torch.Tensor)
    )
