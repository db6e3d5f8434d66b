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
        attributes: what else follows a cut.
        per_layer_config: config lists with one entry per layer.
        unsupported: granularity → why removing a unit is not the same as gating it.
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
    attributes: tuple[Attribute, ...] = ()
    per_layer_config: tuple[str, ...] = ("layer_types",)
    unsupported: tuple[tuple[Granularity, str], ...] = ()

    @property
    def gated(self) -> bool:
        """Two input projections meet in a product inside one unit (SwiGLU, GeGLU)."""
        return any("gate" in projection.holds for projection in self.mlp_inputs)


FAMILIES: Registry[FamilySpec] = Registry("model family")


def family(spec: FamilySpec) -> FamilySpec:
    """Register a family under each of its model types."""
    for model_type in spec.model_types:
        FAMILIES.add(model_type, spec)
    return spec
