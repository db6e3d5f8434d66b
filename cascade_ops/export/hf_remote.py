"""transformers with ``trust_remote_code``: any plan, one self-contained modelling file, this package not needed."""

from __future__ import annotations

import inspect
import json
import os
import subprocess
import sys
import tempfile
from functools import partial
from importlib.resources import files
from pathlib import Path
from typing import Any

from huggingface_hub import save_torch_state_dict
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from cascade_ops import attention
from cascade_ops.anatomy import base_of, blocks_of, family_of, found
from cascade_ops.batches import Batch
from cascade_ops.engines.base import Engine
from cascade_ops.errors import ExportError
from cascade_ops.export.auto import auto_name_of
from cascade_ops.export.base import TARGETS, Job, Target
from cascade_ops.families import FamilySpec
from cascade_ops.families.view import LayerConfig
from cascade_ops.linear import in_features, linear, out_features
from cascade_ops.models import classifier

MODULE = "modeling_cascade"
RECORD = "cascade_shapes"
"""Where config.json keeps what ``reshape`` does; its ``native`` is the stock model's type and classes."""
PREFIX = "cascade_"

HEADER = '''"""{title}, layer by layer of another shape: written by cascade-ops, and independent of it.

config.json records the shape of every block under {record!r}; what a block computes is transformers' own.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from transformers import {imports}
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, sdpa_mask
from transformers.modeling_outputs import SequenceClassifierOutput
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

ConfigError = ValueError
RAGGED = {ragged!r}
'''
FOOTER = """
ALL_ATTENTION_FUNCTIONS.register(RAGGED, ragged_attention)
ALL_MASK_ATTENTION_FUNCTIONS.register(RAGGED, sdpa_mask)


class CascadeConfig({config}):
    model_type = {model_type!r}
{init}

class CascadeModel({model}):
    config_class = CascadeConfig

    def __init__(self, config, *args, **kwargs):
        super().__init__(config, *args, **kwargs)
        reshape(self, config.{record})
"""
INIT = """
    def __init__(self, **kwargs):  # transformers would make one that knows annotated fields alone
        super().__init__(**kwargs)
"""
ALONE = """
import json, sys
sys.modules["cascade_ops"] = None  # an import of it would fail
import torch, transformers
from safetensors.torch import load_file, save_file
transformers.utils.logging.disable_progress_bar()
folder, auto, given, answered = sys.argv[1:]
model = getattr(transformers, auto).from_pretrained(folder, trust_remote_code=True, local_files_only=True).eval()
with torch.inference_mode():
    logits = model(**load_file(given)).logits
save_file({"logits": logits.float().contiguous()}, answered)
"""


def write(model: PreTrainedModel, folder: Path, job: Job) -> tuple[str, ...]:
    """Weights as they are; config.json with the shapes; the modelling file."""
    native_config, native_model = type(model.config), type(model)
    own = native_model is classifier.SignalClassifier
    document = json.loads(model.config.to_json_string(use_diff=False))
    auto = "AutoModel" if own else auto_name_of(native_model.__name__)
    document |= {
        "model_type": PREFIX + native_config.model_type,
        "architectures": ["CascadeModel"],
        "auto_map": {"AutoConfig": f"{MODULE}.CascadeConfig", auto: f"{MODULE}.CascadeModel"},
        "dtype": str(model.dtype).removeprefix("torch."),
        RECORD: _record(model)
        | {"native": {"model_type": native_config.model_type, "architectures": [native_model.__name__]}},
    }
    (folder / "config.json").write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    (folder / f"{MODULE}.py").write_text(_source(native_config, native_model, own), encoding="utf-8")
    if getattr(model, "generation_config", None) is not None:
        model.generation_config.save_pretrained(folder)
    tied = list(getattr(model, "all_tied_weights_keys", None) or ())
    save_torch_state_dict(model.state_dict(), folder, shared_tensors_to_discard=tied)
    return ()


def open_folder(folder: Path) -> Engine:
    """By a process of its own for each batch, in which this package cannot be imported."""
    return partial(answer, folder)


def answer(folder: Path, batch: Batch) -> Tensor:
    """Raises ExportError where the process fails."""
    auto = next(
        name for name in json.loads((folder / "config.json").read_text())["auto_map"] if name != "AutoConfig"
    )
    with tempfile.TemporaryDirectory(prefix="cascade-remote-") as scratch:
        given, answered = Path(scratch) / "given.safetensors", Path(scratch) / "answered.safetensors"
        save_file({name: tensor.contiguous() for name, tensor in batch.items()}, given)
        done = subprocess.run(
            [sys.executable, "-c", ALONE, str(folder.resolve()), auto, str(given), str(answered)],
            env=os.environ | {"HF_MODULES_CACHE": scratch, "HF_HUB_OFFLINE": "1"},
            cwd=scratch,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise ExportError((done.stderr.strip().splitlines() or ["it ended without a word"])[-1])
        return load_file(answered)["logits"]


def _source(native_config: type[PreTrainedConfig], native_model: type, own: bool) -> str:
    """The modelling file."""
    base = "SignalClassifier" if own else native_model.__name__
    config = "SignalClassifierConfig" if own else native_config.__name__
    imports = (
        "AutoConfig, AutoModel, PreTrainedConfig, PreTrainedModel, initialization"
        if own
        else f"{config}, {base}"
    )
    pieces: list[Any] = [attention.ragged_attention, attention._soft_capped, LayerConfig]
    if own:
        pieces += [classifier.SignalClassifierConfig, classifier.PatchFrontEnd, classifier.SignalClassifier]
    constants = f"FRONT_ENDS = {classifier.FRONT_ENDS!r}\n" if own else ""
    reshape = (files("cascade_ops.export") / "reshape.py.in").read_text(encoding="utf-8")
    return "\n\n".join(
        [
            HEADER.format(title=base, record=RECORD, imports=imports, ragged=attention.RAGGED) + constants,
            *(inspect.getsource(piece) for piece in pieces),
            reshape
            + FOOTER.format(
                config=config,
                model=base,
                record=RECORD,
                model_type=PREFIX + native_config.model_type,
                init=INIT if own else "",
            ),
        ]
    )


def _record(model: PreTrainedModel) -> dict[str, Any]:
    base, blocks = base_of(model), blocks_of(model)
    spec = family_of(base.config)
    path = next(name for name, module in model.named_modules() if module is blocks)
    return {
        "blocks": path,
        "attention": spec.attention,
        "layers": [_block(spec, block) for block in blocks],
    }


def _block(spec: FamilySpec, block: nn.Module) -> dict[str, Any]:
    """What ``reshape`` needs to know of one block: sizes, and attributes as they are now."""
    projections = (*spec.attention_inputs, *spec.mlp_inputs)
    paths = (*(one.path for one in projections), spec.attention_output, spec.mlp_output)
    attributes: dict[str, dict[str, Any]] = {}
    config: dict[str, dict[str, Any]] = {}
    for one in spec.attributes:
        value = getattr(block.get_submodule(one.path), one.name)
        if isinstance(value, LayerConfig):
            config[one.path] = value.own
        elif not isinstance(value, PreTrainedConfig):  # the model's own, until the first cut
            attributes.setdefault(one.path, {})[one.name] = value
    held = {one.path: found(block, one.path) for one in spec.per_head}
    return {
        "linear": {
            path: [out_features(linear(block, path)), in_features(linear(block, path))] for path in paths
        },
        "per_head": {
            path: len(one) for path, one in held.items() if isinstance(one, nn.ModuleList | nn.Parameter)
        },
        "attributes": attributes,
        "config": config,
        "kv_owner": getattr(block.get_submodule(spec.attention), "kv_owner", None),
    }


TARGETS.add(
    "hf-remote",
    Target(
        title="transformers with trust_remote_code, without this package",
        refuses=lambda anatomy: (),
        kinds=("lm", "diagnosis", "encoder", "image"),
        precisions={"as stored": 1e-4},
        write=write,
        open=open_folder,
        how='from transformers import {auto}\n\nmodel = {auto}.from_pretrained(".", trust_remote_code=True)',
    ),
)
