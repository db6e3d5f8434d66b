"""What a family declares: where its projections live and what else must follow a cut.

Surgery, gates, LoRA targets, parameter counts and sharding derive from these few lines; no code
elsewhere knows a family by name.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from cascade_ops.granularity import Granularity
from cascade_ops.layer import LayerAnatomy
from cascade_ops.registry import Registry

Part = Literal["q", "k", "v", "up", "gate"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Projection:
    """An input projection and what its output rows hold.

    Attributes:
        path: module path inside the block.
        holds: the logical matrices stacked along the output rows, in order.
        interleaved: the stack repeats for every KV group (GPT-NeoX: q₀k₀v₀q₁k₁v₁…) instead of
            once (GPT-2: Q K V).
    """

    path: str
    holds: tuple[Part, ...]
    interleaved: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Attribute:
    """A plain attribute of a block's submodule that must follow a cut (``num_heads``, …).

    ``value`` computes it from the model's config and the layer after the cut.
    """

    path: str
    name: str
    value: Callable[[Any, LayerAnatomy], object]


@dataclass(frozen=True, slots=True, kw_only=True)
class PerHead:
    """Parameters beside the projections with one row, or a module list with one entry, for every head.

    Attributes:
        path: inside the block; configs without it are skipped.
        part: ``q`` follows the query heads, ``k`` and ``v`` the KV heads.
    """

    path: str
    part: Literal["q", "k", "v"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """The config fields that hold a plain model's shape; None where the config has no such field.

    Without ``kv_heads`` there are as many as query heads; without ``head_dim`` it is hidden_size ÷ heads.
    """

    heads: str = "num_attention_heads"
    kv_heads: str | None = "num_key_value_heads"
    head_dim: str | None = "head_dim"
    channels: str | None = "intermediate_size"


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """A granularity that cannot be cut, and why; ``when`` limits it to some configs."""

    granularity: Granularity
    reason: str
    when: Callable[[Any], bool] = lambda config: True


@dataclass(frozen=True, slots=True, kw_only=True)
class FamilySpec:
    """An architecture family as data.

    Attributes:
        name: the family's name here.
        model_types: values of ``config.model_type`` that it describes.
        blocks: path of the block list in the base model (the one without a head).
        attention: path of the attention module inside a block.
        attention_inputs, attention_output: its projections.
        tail: modules of the base model that run after the blocks (the final norm).
        mlp_inputs, mlp_output: the feed-forward projections; a ``gate`` part makes it gated.
        head_dim: attribute of the attention module with the width of one head.
        sizes: where a plain config says how many there are.
        attributes: what else follows a cut.
        per_head: weights of single heads beside the projections.
        layer_index: attribute by which a module knows its layer (its place in the cache).
        per_layer_config: config lists with one entry per layer.
        derived_config: config fields that follow from those lists.
        unsupported: where removing a unit is not the same as gating it.
    """

    name: str
    model_types: tuple[str, ...]
    blocks: str
    attention: str
    attention_inputs: tuple[Projection, ...]
    attention_output: str
    mlp_inputs: tuple[Projection, ...]
    mlp_output: str
    tail: tuple[str, ...]
    head_dim: str = "head_dim"
    sizes: Sizes = Sizes()
    attributes: tuple[Attribute, ...] = ()
    per_head: tuple[PerHead, ...] = ()
    layer_index: str = "layer_idx"
    per_layer_config: tuple[str, ...] = ("layer_types",)
    derived_config: tuple[tuple[str, Callable[[Any], object]], ...] = ()
    unsupported: tuple[Refusal, ...] = ()

    def refused(self, config: Any) -> tuple[tuple[Granularity, str], ...]:
        """What may not be cut in a model of this config, and why."""
        return tuple((one.granularity, one.reason) for one in self.unsupported if one.when(config))

    @property
    def gated(self) -> bool:
        """Two input projections meet in a product inside one unit (SwiGLU, GeGLU)."""
        return any("gate" in projection.holds for projection in self.mlp_inputs)


def separate(*paths: str) -> tuple[Projection, ...]:
    """Q, K and V as three projections: their paths in this order."""
    parts: tuple[Part, ...] = ("q", "k", "v")
    return tuple(Projection(path=path, holds=(part,)) for path, part in zip(paths, parts, strict=True))


def attribute(path: str, **values: Callable[[LayerAnatomy], object]) -> tuple[Attribute, ...]:
    """Attributes of one submodule that the layer alone determines."""

    def given(of: Callable[[LayerAnatomy], object]) -> Callable[[Any, LayerAnatomy], object]:
        return lambda config, layer: of(layer)

    return tuple(Attribute(path=path, name=name, value=given(of)) for name, of in values.items())


FAMILIES: Registry[FamilySpec] = Registry("model family")


def family(spec: FamilySpec) -> FamilySpec:
    """Register a family under each of its model types."""
    for model_type in spec.model_types:
        FAMILIES.add(model_type, spec)
    return spec
