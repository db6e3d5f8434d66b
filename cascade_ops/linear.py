"""Linear modules seen one way: weight (out × in), whatever the module stores."""

from __future__ import annotations

from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from cascade_ops.errors import UnsupportedFamilyError

Linear = nn.Linear | Conv1D


def linear(block: nn.Module, path: str) -> Linear:
    """The linear module at ``path`` inside ``block``. Raises UnsupportedFamilyError."""
    module = block.get_submodule(path)
    if not isinstance(module, nn.Linear | Conv1D):
        raise UnsupportedFamilyError(
            f"{path}: expected nn.Linear or Conv1D, found {type(module).__name__}. "
            "Quantised or adapted projections cannot be cut: merge or de-quantise them first."
        )
    return module


def weight_of(module: Linear) -> Float[Tensor, "out in"]:
    """The weight as out × in (a view)."""
    return module.weight.T if isinstance(module, Conv1D) else module.weight


def out_features(module: Linear) -> int:
    return weight_of(module).shape[0]


def in_features(module: Linear) -> int:
    return weight_of(module).shape[1]


def bias_of(module: Linear) -> Float[Tensor, " out"] | None:
    return module.bias


def keep_rows(module: Linear, rows: Int[Tensor, " kept"]) -> None:
    """Keep these outputs of the module, in place."""
    axis = 1 if isinstance(module, Conv1D) else 0
    replace_parameter(
        module, "weight", module.weight.detach().index_select(axis, rows.to(module.weight.device))
    )
    if module.bias is not None:
        replace_parameter(module, "bias", module.bias.detach().index_select(0, rows.to(module.bias.device)))
    if isinstance(module, Conv1D):
        module.nf = len(rows)
    else:
        module.out_features = len(rows)


def keep_columns(module: Linear, columns: Int[Tensor, " kept"]) -> None:
    """Keep these inputs of the module, in place."""
    axis = 0 if isinstance(module, Conv1D) else 1
    replace_parameter(
        module, "weight", module.weight.detach().index_select(axis, columns.to(module.weight.device))
    )
    if isinstance(module, Conv1D):
        module.nx = len(columns)
    else:
        module.in_features = len(columns)


def replace_parameter(module: nn.Module, name: str, value: Tensor) -> None:
    """Put another tensor in a parameter's place."""
    old = getattr(module, name)
    setattr(module, name, nn.Parameter(value.contiguous(), requires_grad=old.requires_grad))
