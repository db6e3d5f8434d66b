"""A pruned model as an unpruned one of another size: the config without a record of the cut, where there is one."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import transformers
from huggingface_hub.errors import StrictDataclassError
from transformers import PreTrainedConfig

from cascade_ops.anatomy import CONFIG_KEY, ModelAnatomy
from cascade_ops.errors import ExportError
from cascade_ops.families import FAMILIES
from cascade_ops.families.view import LayerConfig

Refusals = tuple[str, ...]
"""What a target cannot express, a sentence each; empty: it can run the model."""

ALIASES = {"llama": "mistral"}
"""Model types with the same arithmetic and another config class. LlamaConfig wants hidden_size to be a multiple of the
number of heads even where head_dim is given; MistralConfig does not."""


def uneven(anatomy: ModelAnatomy, target: str) -> Refusals:
    """Where layers differ from the first, for targets that have one number for all."""
    first, found = anatomy.layers[0], []
    for layer in anatomy.layers[1:]:
        for what, here, there in (
            ("heads", layer.heads, first.heads),
            ("KV heads", layer.kv_heads, first.kv_heads),
            ("channels", layer.channels, first.channels),
        ):
            if here != there:
                found.append(
                    f"layer {layer.source}: {here} {what}, layer {first.source} has {there}: {target} wants one number"
                )
    return (*found, *ragged(anatomy))


def ragged(anatomy: ModelAnatomy) -> Refusals:
    """Layers whose KV heads serve different numbers of query heads: nobody but this package runs them."""
    return tuple(
        f"layer {layer.source}: its KV heads serve different numbers of query heads"
        for layer in anatomy.layers
        if layer.ragged
    )


def unnamed(anatomy: ModelAnatomy) -> Refusals:
    """Sizes that the family's config has no field for."""
    sizes, name = FAMILIES[anatomy.model_type].sizes, FAMILIES[anatomy.model_type].name
    hidden, found = anatomy.hidden_size, []
    if sizes.head_dim is None and any(layer.heads * layer.head_dim != hidden for layer in anatomy.layers):
        found.append(f"{name}: head_dim is hidden_size ÷ heads, so no head may go")
    if sizes.channels is None and any(layer.channels != 4 * hidden for layer in anatomy.layers):
        found.append(f"{name}: its feed-forward network is 4 × hidden_size wide, so no channel may go")
    return tuple(found)


def displaced(config: PreTrainedConfig, anatomy: ModelAnatomy) -> Refusals:
    """Layers whose arithmetic depends on the place that they had before the cut."""
    spec, found = FAMILIES[anatomy.model_type], []
    text = getattr(config, "backbone_config", config)
    for place, layer in enumerate(anatomy.layers):
        for one in spec.attributes:
            there, here = (_plain(one.value(text, at)) for at in (layer, replace(layer, source=place)))
            if there != here:
                found.append(
                    f"layer {layer.source}: its {one.name} is that of its place in the dense model, and it would be "
                    f"layer {place}: only the last layers may go"
                )
    return tuple(found)


def _plain(value: object) -> object:
    return value.own if isinstance(value, LayerConfig) else value


def plain_config(config: PreTrainedConfig, anatomy: ModelAnatomy) -> PreTrainedConfig:
    """The config of the same model without a record of the cut; every layer must be of one shape.

    Raises:
        ExportError: transformers refuses the config.
    """
    layer, sizes = anatomy.layers[0], FAMILIES[anatomy.model_type].sizes
    fields = copy.deepcopy(config).to_dict()
    fields.pop(CONFIG_KEY, None)
    changed = {
        sizes.heads: layer.heads,
        sizes.kv_heads: layer.kv_heads,
        sizes.head_dim: layer.head_dim,
        sizes.channels: layer.channels,
    }
    for name, value in changed.items():
        if name is not None:
            fields[type(config).attribute_map.get(name, name)] = value
    try:
        return _rebuilt(type(config), fields)
    except (ValueError, StrictDataclassError) as error:
        alias = ALIASES.get(config.model_type)
        if alias is None or config.architectures is None:
            raise ExportError(f"transformers refuses the config of this shape ({_first(error)})") from error
    return _as(alias, config, fields)


def _rebuilt(config_class: type[PreTrainedConfig], fields: dict[str, Any]) -> PreTrainedConfig:
    return config_class.from_dict(fields)


def _as(alias: str, config: PreTrainedConfig, fields: dict[str, Any]) -> PreTrainedConfig:
    """The same fields under another model type, whose classes are named alike. Raises ExportError."""
    if fields.get("attention_bias") or fields.get("mlp_bias"):
        raise ExportError(
            f"{type(config).__name__} refuses this shape, and {alias} has no biases: keep a number of heads that "
            "divides hidden_size"
        )
    own = type(transformers.AutoConfig.for_model(config.model_type)).__name__.removesuffix("Config")
    other = type(transformers.AutoConfig.for_model(alias)).__name__.removesuffix("Config")
    names = [name.replace(own, other) for name in config.architectures or ()]
    return _rebuilt(
        getattr(transformers, f"{other}Config"),
        {**fields, "model_type": alias, "architectures": names, "sliding_window": None},
    )


def _first(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[-1].strip()
