"""Scores of the rows of each input projection by themselves, as per-component criteria rank them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from cascade_ops.anatomy import anatomy_of, base_of, blocks_of, family_of
from cascade_ops.batches import Batch, length_of, on_device
from cascade_ops.errors import UnsupportedFamilyError
from cascade_ops.families.spec import Part, Projection
from cascade_ops.layer import LayerAnatomy
from cascade_ops.linear import linear
from cascade_ops.loss import per_sample_loss
from cascade_ops.sia.units import Kind

Rows = dict[tuple[Part, int], Float[Tensor, " _rows"]]


def row_taylor(model: nn.Module, batches: Iterable[Batch]) -> Rows:
    """``Σₙ |Σ_t a_t ∂ℓₙ/∂a_t| / N`` of each row of Q, K, V, gate and up, with a the row's output.

    Up to the bias that is ``|Σ_d w_d ∂ℓₙ/∂w_d|``, first-order Taylor of the row's weights.

    Raises:
        UnsupportedFamilyError: parts are interleaved in one projection.
    """
    anatomy = anatomy_of(model)
    sums: Rows = {}
    samples = 0
    for batch in batches:
        batch = on_device(batch, model)
        samples += length_of(batch)
        with _outputs_kept(model) as outputs, torch.enable_grad():
            loss = per_sample_loss(model, batch).sum()
        slopes = torch.autograd.grad(loss, [output for _, _, output in outputs])
        for (projection, index, output), slope in zip(outputs, slopes, strict=True):
            by_sample = (output * slope).detach().view(length_of(batch), -1, output.shape[-1]).sum(dim=1)
            found = by_sample.double().abs().sum(dim=0).cpu()
            for part, rows in _parts(projection, found, anatomy.layers[index]).items():
                sums[part, index] = sums[part, index] + rows if (part, index) in sums else rows
    return {key: value / samples for key, value in sums.items()}


@contextmanager
def _outputs_kept(model: nn.Module) -> Iterator[list[tuple[Projection, int, Tensor]]]:
    """Filled with what each input projection of each block gives."""
    spec = family_of(base_of(model).config)
    found: list[tuple[Projection, int, Tensor]] = []
    with ExitStack() as stack:
        for index, block in enumerate(blocks_of(model)):
            for projection in (*spec.attention_inputs, *spec.mlp_inputs):

                def keep(
                    module: nn.Module,
                    args: Any,
                    output: Tensor,
                    own: Projection = projection,
                    at: int = index,
                ) -> None:
                    found.append((own, at, output))

                stack.callback(linear(block, projection.path).register_forward_hook(keep).remove)
        yield found


def _parts(
    projection: Projection, rows: Float[Tensor, " rows"], layer: LayerAnatomy
) -> dict[Part, Float[Tensor, " _rows"]]:
    if projection.interleaved and len(projection.holds) > 1:
        raise UnsupportedFamilyError(f"{projection.path}: parts that are interleaved cannot be ranked apart")
    width = {
        "q": layer.heads * layer.head_dim,
        "k": layer.kv_heads * layer.head_dim,
        "v": layer.kv_heads * layer.head_dim,
        "up": layer.channels,
        "gate": layer.channels,
    }
    pieces = rows.split([width[part] for part in projection.holds])
    return dict(zip(projection.holds, pieces, strict=True))


def apart_scores(
    rows: Rows, layers: tuple[LayerAnatomy, ...], heads: tuple[Float[Tensor, " _heads"], ...], kind: Kind
) -> Float[Tensor, " units"]:
    """Scores of the units of a set taken apart, in its order.

    Args:
        heads: of the query heads, per layer: what their O slices are ranked by.
    """
    found = []
    for index, layer in enumerate(layers):
        if kind is Kind.CHANNEL_APART:
            found += [rows["gate", index], rows["up", index]]
        else:
            shared = rows["k", index] + rows["v", index]
            found += [heads[index].double(), shared.view(layer.kv_heads, layer.head_dim).sum(dim=1)]
    return torch.cat(found)
