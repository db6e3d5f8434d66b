"""The anatomy of a model: what can be removed from it, and what each unit costs in parameters."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from cascade_ops.errors import UnsupportedFamilyError
from cascade_ops.families import FAMILIES, FamilySpec, PerHead, Projection
from cascade_ops.granularity import Granularity
from cascade_ops.layer import LayerAnatomy
from cascade_ops.linear import bias_of, in_features, linear, out_features
from cascade_ops.plan import PruningPlan

CONFIG_KEY = "cascade"
"""Where a pruned model's config keeps the shapes that the family's own fields cannot express."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelAnatomy:
    """A whole model.

    Attributes:
        family: name of its FamilySpec.
        model_type: the config's ``model_type``.
        hidden_size: width of the residual stream.
        layers: its blocks.
        params_other: parameters outside the blocks (embeddings, final norm, head), ties counted once.
        gated: the feed-forward network multiplies a gate and an up projection.
        refused: granularities that the family does not let be cut, each with the reason.
    """

    family: str
    model_type: str
    hidden_size: int
    layers: tuple[LayerAnatomy, ...]
    params_other: int
    gated: bool
    refused: tuple[tuple[Granularity, str], ...] = ()

    def units(self, granularity: Granularity) -> tuple[int, ...]:
        """How many units there are: one number per layer, for LAYER a single number."""
        match granularity:
            case Granularity.LAYER:
                return (len(self.layers),)
            case Granularity.HEAD:
                return tuple(layer.heads for layer in self.layers)
            case Granularity.KV_GROUP:
                return tuple(layer.kv_heads for layer in self.layers)
            case Granularity.CHANNEL:
                return tuple(layer.channels for layer in self.layers)

    @property
    def backbone_params(self) -> int:
        """Parameters of all blocks."""
        return sum(layer.params for layer in self.layers)

    @property
    def total_params(self) -> int:
        return self.backbone_params + self.params_other

    def params(self, plan: PruningPlan) -> int:
        """Backbone parameters after ``plan``."""
        return self.after(plan).backbone_params

    def after(self, plan: PruningPlan) -> ModelAnatomy:
        """The anatomy that ``plan`` leaves. Raises PlanError, UnsupportedFamilyError."""
        plan.validate(self)
        for granularity, reason in self.refused:
            if granularity is plan.granularity:
                raise UnsupportedFamilyError(
                    f"{self.family}: {granularity} pruning is not possible: {reason}"
                )
        if plan.granularity is Granularity.LAYER:
            return replace(self, layers=tuple(self.layers[i] for i in plan.keep[0]))
        rows = zip(self.layers, plan.keep, strict=True)
        return replace(self, layers=tuple(_cut(layer, plan.granularity, kept) for layer, kept in rows))

    def lora_targets(self) -> tuple[str, ...]:
        """Paths, inside a block, of every linear map that a low-rank update may adapt."""
        spec = FAMILIES[self.model_type]
        inputs = (projection.path for projection in (*spec.attention_inputs, *spec.mlp_inputs))
        return (*inputs, spec.attention_output, spec.mlp_output)


def _cut(layer: LayerAnatomy, granularity: Granularity, kept: tuple[int, ...]) -> LayerAnatomy:
    if granularity is Granularity.CHANNEL:
        return replace(layer, channels=len(kept))
    return layer.keep_heads(kept if granularity is Granularity.HEAD else layer.heads_of(kept))


def base_of(model: nn.Module) -> PreTrainedModel:
    """The backbone without its head: the module that holds the blocks."""
    base = getattr(model, "base_model", None)
    if not isinstance(base, PreTrainedModel):
        raise UnsupportedFamilyError(
            f"expected a transformers model, found {type(model).__name__}. Unwrap it "
            "(merge_and_unload for PEFT, .module for data-parallel wrappers) and try again."
        )
    return base


def blocks_of(model: nn.Module) -> nn.ModuleList:
    """The list of transformer blocks. Raises UnsupportedFamilyError."""
    base = base_of(model)
    blocks = base.get_submodule(family_of(base.config).blocks)
    assert isinstance(blocks, nn.ModuleList)
    return blocks


def family_of(config: PreTrainedConfig) -> FamilySpec:
    """The FamilySpec of a backbone's config. Raises UnsupportedFamilyError."""
    if config.model_type not in FAMILIES:
        raise UnsupportedFamilyError(
            f"model type {config.model_type!r} is not described. Known: {', '.join(sorted(FAMILIES))}. "
            "Add a file to cascade_ops/families with its FamilySpec (module paths, projection layout, "
            "attributes that follow a cut); the contract tests then say whether it is right."
        )
    return FAMILIES[config.model_type]


def anatomy_of(model: nn.Module | PreTrainedConfig) -> ModelAnatomy:
    """Read the anatomy of a live model, or of a config alone (built on the meta device: no weights).

    Raises:
        UnsupportedFamilyError: no FamilySpec describes it, or a projection is not a plain linear map.
    """
    if isinstance(model, PreTrainedConfig):
        from cascade_ops.surgery import meta_model  # a cycle otherwise

        model = meta_model(model)
    base = base_of(model)
    spec = family_of(base.config)
    record = getattr(base.config, CONFIG_KEY, None)
    layers = tuple(
        layer_anatomy(spec, block, index, record["layers"][index] if record else None)
        for index, block in enumerate(blocks_of(model))
    )
    total = sum(parameter.numel() for parameter in model.parameters())
    backbone = sum(parameter.numel() for parameter in blocks_of(model).parameters())
    return ModelAnatomy(
        family=spec.name,
        model_type=base.config.model_type,
        hidden_size=base.config.hidden_size,
        layers=layers,
        params_other=total - backbone,
        gated=spec.gated,
        refused=spec.refused(base.config),
    )


def layer_anatomy(
    spec: FamilySpec, block: nn.Module, index: int, record: dict[str, Any] | None
) -> LayerAnatomy:
    """Measure one live block. ``record`` is its entry in a pruned model's config, None for a dense one."""
    head_dim = int(getattr(block.get_submodule(spec.attention), spec.head_dim))
    output, down = linear(block, spec.attention_output), linear(block, spec.mlp_output)
    heads, channels = in_features(output) // head_dim, in_features(down)
    inputs = (*spec.attention_inputs, *spec.mlp_inputs)
    rows = {part: _row_params(block, projection) for projection in inputs for part in projection.holds}
    if record is not None:
        heads_per_kv = tuple(record["heads_per_kv"])
    else:
        q_rows = heads * head_dim
        kv_rows = sum(out_features(linear(block, p.path)) for p in spec.attention_inputs) - q_rows
        kv_heads = kv_rows // (2 * head_dim)
        heads_per_kv = (heads // kv_heads,) * kv_heads
    beside = dict.fromkeys(("q", "k", "v"), 0)
    for one in spec.per_head:
        beside[one.part] += head_params(block, one, heads if one.part == "q" else len(heads_per_kv))
    params_head = head_dim * (rows["q"] + out_features(output)) + beside["q"]
    params_kv = head_dim * (rows["k"] + rows["v"]) + beside["k"] + beside["v"]
    params_channel = rows["up"] + rows.get("gate", 0) + out_features(down)
    units = heads * params_head + len(heads_per_kv) * params_kv + channels * params_channel
    return LayerAnatomy(
        source=record["source"] if record is not None else index,
        heads_per_kv=heads_per_kv,
        head_dim=head_dim,
        channels=channels,
        params_fixed=sum(parameter.numel() for parameter in block.parameters()) - units,
        params_head=params_head,
        params_kv=params_kv,
        params_channel=params_channel,
    )


def head_params(block: nn.Module, declared: PerHead, heads: int) -> int:
    """Parameters that each head has at this place; 0 where the config has none."""
    held = found(block, declared.path)
    if held is None:
        return 0
    tensors = held.parameters() if isinstance(held, nn.Module) else [held]
    return sum(tensor.numel() for tensor in tensors) // heads


def found(block: nn.Module, path: str) -> nn.Module | nn.Parameter | None:
    """What a dotted path leads to, None where it leads nowhere."""
    held: Any = block
    for name in path.split("."):
        held = getattr(held, name, None)
    assert held is None or isinstance(held, nn.Module | nn.Parameter)
    return held


def _row_params(block: nn.Module, projection: Projection) -> int:
    """Parameters of one output row of a projection."""
    module = linear(block, projection.path)
    return in_features(module) + (bias_of(module) is not None)
