"""Physical removal of units: slice the tensors whose gates are 0.

The oracle is masking: a model after ``prune(model, plan)`` gives the logits of the dense model with
those gates at 0 (``cascade_ops.gates.masked``).
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
import transformers
from accelerate import init_empty_weights
from jaxtyping import Int
from torch import Tensor, nn
from transformers import AutoModel, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from cascade_ops.anatomy import (
    CONFIG_KEY,
    ModelAnatomy,
    anatomy_of,
    base_of,
    blocks_of,
    family_of,
    found,
    layer_anatomy,
)
from cascade_ops.attention import RAGGED
from cascade_ops.errors import CheckpointError, UnsupportedFamilyError
from cascade_ops.families import FamilySpec, PerHead, Projection
from cascade_ops.granularity import Granularity
from cascade_ops.layer import LayerAnatomy
from cascade_ops.linear import keep_columns, keep_rows, linear, replace_parameter
from cascade_ops.plan import PruningPlan

_BEFORE = "attention_before_ragged"
"""Where a model remembers its attention implementation while it has another."""


def prune(model: nn.Module, plan: PruningPlan) -> ModelAnatomy:
    """Remove, in place, every unit that ``plan`` does not keep.

    Returns:
        The new anatomy; its parameter count is the model's.

    Raises:
        PlanError: the plan does not fit; nothing was changed.
        UnsupportedFamilyError: the family declares that removing such a unit differs from gating it.
    """
    before = anatomy_of(model)
    after = before.after(plan)
    base = base_of(model)
    spec = family_of(base.config)
    if plan.granularity is Granularity.LAYER:
        _keep_blocks(base, spec, plan.keep[0])
    else:
        for block, layer, kept in zip(blocks_of(model), before.layers, plan.keep, strict=True):
            if plan.granularity is Granularity.CHANNEL:
                _keep_channels(spec, block, layer, kept)
            else:
                _keep_heads(
                    spec, block, layer, kept if plan.granularity is Granularity.HEAD else layer.heads_of(kept)
                )
    _settle(base, spec, after)
    return after


def meta_model(config: PreTrainedConfig) -> PreTrainedModel:
    """A model of the config's shapes, pruned ones included, without weights (meta device).

    Non-persistent buffers (rotary frequencies) are real, so that weights can be assigned to it.
    """
    config = copy.deepcopy(config)
    with _unfilled(), init_empty_weights(include_buffers=False):
        model: PreTrainedModel = _model_class(config)(config)
    model.tie_weights()  # building on meta separates tied parameters
    base = base_of(model)
    record = getattr(base.config, CONFIG_KEY, None)
    if record is not None:
        _shape_like(model, record)
    model.eval()
    return model


@contextmanager
def _unfilled() -> Iterator[None]:
    """Parameters are allocated for a moment before they become empty; deterministic mode would fill each of them."""
    flags: Any = torch.utils.deterministic  # a module whose attributes are properties
    before = flags.fill_uninitialized_memory
    flags.fill_uninitialized_memory = False
    try:
        yield
    finally:
        flags.fill_uninitialized_memory = before


def _model_class(config: PreTrainedConfig) -> type[PreTrainedModel]:
    from cascade_ops.models import classifier  # noqa: F401  (registers SignalClassifier; a cycle at module level)

    for name in config.architectures or ():
        named = getattr(transformers, name, None)
        if named is not None:
            return named  # type: ignore[no-any-return]
    for auto in (AutoModelForCausalLM, AutoModel):
        if type(config) in auto._model_mapping:
            found = auto._model_mapping[type(config)]
            return cast(type[PreTrainedModel], found[0] if isinstance(found, tuple) else found)
    raise UnsupportedFamilyError(f"transformers has no model class for {type(config).__name__}")


def _shape_like(model: PreTrainedModel, record: Any) -> None:
    """Give a dense meta model the shapes in a pruned model's config record. Raises CheckpointError."""
    base, blocks = base_of(model), blocks_of(model)
    spec = family_of(base.config)
    if not (isinstance(record, dict) and isinstance(record.get("layers"), list)):
        raise CheckpointError(
            f"config: {CONFIG_KEY!r} should hold the layers of a cut, got {record!r}; config.json was edited"
        )
    if len(record["layers"]) != len(blocks):
        raise CheckpointError(
            f"config: the record of the cut describes {len(record['layers'])} layers, the model has "
            f"{len(blocks)}; config.json was edited or is from another run"
        )
    for index, (block, target) in enumerate(zip(blocks, record["layers"], strict=True)):
        dense = layer_anatomy(spec, block, index, None)
        if not _fits(target, dense):
            raise CheckpointError(
                f"config: layer {index} of the cut should have a source, 1 to {dense.heads_per_kv[0]} query heads in "
                f"each of up to {dense.kv_heads} KV groups and 1 to {dense.channels} channels, got {target!r}; "
                "config.json was edited or is from another run"
            )
        n_rep = dense.heads_per_kv[0]
        kept = [group * n_rep + i for group, n in enumerate(target["heads_per_kv"]) for i in range(n)]
        _keep_heads(spec, block, dense, tuple(kept))
        _keep_channels(spec, block, dense, tuple(range(target["channels"])))
    _settle(base, spec, anatomy_of(model))


def _fits(target: Any, dense: LayerAnatomy) -> bool:
    """A layer's record in a config describes a part of the dense layer."""

    def within(value: Any, most: int) -> bool:
        return isinstance(value, int) and 1 <= value <= most

    if not isinstance(target, dict) or not isinstance(target.get("source"), int):
        return False
    groups = target.get("heads_per_kv")
    return (
        within(target.get("channels"), dense.channels)
        and isinstance(groups, list)
        and within(len(groups), dense.kv_heads)
        and all(within(n, dense.heads_per_kv[0]) for n in groups)
    )


def _keep_blocks(base: PreTrainedModel, spec: FamilySpec, kept: tuple[int, ...]) -> None:
    blocks = base.get_submodule(spec.blocks)
    parent, _, name = spec.blocks.rpartition(".")
    setattr(base.get_submodule(parent), name, nn.ModuleList(blocks[i] for i in kept))  # type: ignore[index]
    for field in spec.per_layer_config:
        values = getattr(base.config, field, None)
        if values is not None:
            setattr(base.config, field, [values[i] for i in kept])
    for field, value in spec.derived_config:
        setattr(base.config, field, value(base.config))
    base.config.num_hidden_layers = len(kept)


def _keep_heads(spec: FamilySpec, block: nn.Module, layer: LayerAnatomy, heads: tuple[int, ...]) -> None:
    groups = tuple(sorted({layer.kv_owner[head] for head in heads}))
    kept = {"q": heads, "k": groups, "v": groups}
    for projection in spec.attention_inputs:
        keep_rows(linear(block, projection.path), _rows(projection, layer, kept))
    columns = torch.arange(layer.heads * layer.head_dim).view(layer.heads, layer.head_dim)
    keep_columns(linear(block, spec.attention_output), columns[list(heads)].flatten())
    for one in spec.per_head:
        _keep_per_head(block, one, kept[one.part])


def _keep_per_head(block: nn.Module, declared: PerHead, kept: tuple[int, ...]) -> None:
    held = found(block, declared.path)
    parent, _, name = declared.path.rpartition(".")
    if isinstance(held, nn.ModuleList):
        setattr(block.get_submodule(parent), name, nn.ModuleList(held[i] for i in kept))
    elif isinstance(held, nn.Parameter):
        replace_parameter(block.get_submodule(parent), name, held.detach()[list(kept)])


def _keep_channels(
    spec: FamilySpec, block: nn.Module, layer: LayerAnatomy, channels: tuple[int, ...]
) -> None:
    kept = {"up": channels, "gate": channels}
    for projection in spec.mlp_inputs:
        keep_rows(linear(block, projection.path), _rows(projection, layer, kept))
    keep_columns(linear(block, spec.mlp_output), torch.tensor(channels))


def _rows(
    projection: Projection, layer: LayerAnatomy, kept: dict[str, tuple[int, ...]]
) -> Int[Tensor, " rows"]:
    """Output rows of an input projection that hold the kept units, in the order they are stored."""
    wanted = {part: frozenset(units) for part, units in kept.items()}
    rows, start = [], 0
    for part, unit in _row_order(projection, layer):
        width = layer.head_dim if part in ("q", "k", "v") else 1
        if unit in wanted[part]:
            rows.append(torch.arange(start, start + width))
        start += width
    return torch.cat(rows)


def _row_order(projection: Projection, layer: LayerAnatomy) -> Iterator[tuple[str, int]]:
    """(part, unit) in the order of the stored rows."""
    if projection.interleaved:
        for group in range(layer.kv_heads):
            for part in projection.holds:
                for unit in layer.heads_of((group,)) if part == "q" else (group,):
                    yield part, unit
        return
    count = {
        "q": layer.heads,
        "k": layer.kv_heads,
        "v": layer.kv_heads,
        "up": layer.channels,
        "gate": layer.channels,
    }
    for part in projection.holds:
        for unit in range(count[part]):
            yield part, unit


def _choose_attention(base: PreTrainedModel, ragged: bool) -> None:
    """Ragged attention while there are unequal KV groups; what the model had before once there are none."""
    now = base.config._attn_implementation
    if ragged and now != RAGGED:
        setattr(base, _BEFORE, now)
        base.set_attn_implementation(RAGGED)
    elif not ragged and now == RAGGED:
        base.set_attn_implementation(getattr(base, _BEFORE, "sdpa"))


def _settle(base: PreTrainedModel, spec: FamilySpec, anatomy: ModelAnatomy) -> None:
    """Bring everything beside the weights in line with the new shapes: attributes, numbering, config."""
    for index, (block, layer) in enumerate(zip(blocks_of(base), anatomy.layers, strict=True)):
        for module in block.modules():
            if hasattr(module, spec.layer_index):
                setattr(module, spec.layer_index, index)
        for attribute in spec.attributes:
            setattr(block.get_submodule(attribute.path), attribute.name, attribute.value(base.config, layer))
        owner = list(layer.kv_owner) if layer.ragged else None
        setattr(block.get_submodule(spec.attention), "kv_owner", owner)  # noqa: B010
    _choose_attention(base, any(layer.ragged for layer in anatomy.layers))
    record = [
        {"source": layer.source, "heads_per_kv": list(layer.heads_per_kv), "channels": layer.channels}
        for layer in anatomy.layers
    ]
    setattr(base.config, CONFIG_KEY, {"layers": record})
