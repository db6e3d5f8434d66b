"""What runtimes can express: a target is a function from an anatomy to what it would refuse."""

from __future__ import annotations

from collections.abc import Callable

from cascade_ops.anatomy import ModelAnatomy
from cascade_ops.families import FAMILIES
from cascade_ops.registry import Registry

Refusals = tuple[str, ...]
"""What a target cannot express, a sentence each; empty: it can run the model."""

TARGETS: Registry[Callable[[ModelAnatomy], Refusals]] = Registry("export target")
DERIVED_HEAD_DIM = ("gpt2", "gpt_neox", "opt")
"""Families whose plain config has no head width: it is hidden_size ÷ heads."""


@TARGETS.register("cascade")
def _cascade(anatomy: ModelAnatomy) -> Refusals:
    """Our own loader takes every plan."""
    return ()


@TARGETS.register("hf")
def _plain_transformers(anatomy: ModelAnatomy) -> Refusals:
    """A plain transformers config: one number of heads, of KV heads and of channels for all layers."""
    first, found = anatomy.layers[0], []
    for layer in anatomy.layers[1:]:
        for what, here, there in (
            ("heads", layer.heads, first.heads),
            ("KV heads", layer.kv_heads, first.kv_heads),
            ("channels", layer.channels, first.channels),
        ):
            if here != there:
                found.append(
                    f"layer {layer.source}: {here} {what}, layer {first.source} has {there}: hf wants one number"
                )
    found += [
        f"layer {layer.source}: its KV heads serve different numbers of query heads"
        for layer in anatomy.layers
        if layer.ragged
    ]
    derived = anatomy.model_type in DERIVED_HEAD_DIM
    if derived and any(layer.heads * layer.head_dim != anatomy.hidden_size for layer in anatomy.layers):
        found.append(
            f"{FAMILIES[anatomy.model_type].name}: head_dim is hidden_size ÷ heads, so no head may go"
        )
    return tuple(found)


def refusals(anatomy: ModelAnatomy, target: str) -> Refusals:
    """What ``target`` cannot express of a model. Raises UnknownNameError."""
    return TARGETS[target](anatomy)
