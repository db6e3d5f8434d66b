"""Which units cannot be judged alone: second derivatives of the loss by pairs of gates."""

from __future__ import annotations

from dataclasses import replace

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from cascade_ops.anatomy import anatomy_of
from cascade_ops.batches import Batch, length_of, on_device
from cascade_ops.gates import Gates, gated
from cascade_ops.granularity import Granularity
from cascade_ops.loss import per_sample_loss
from cascade_ops.progress import Progress, silent
from cascade_ops.sia.results import Interactions
from cascade_ops.sia.units import NONE, Kind, UnitSet, unit_set

MOST = 32
"""Units in one matrix: a backward pass each."""


def interactions(
    model: nn.Module,
    batch: Batch,
    kind: Kind,
    *,
    units: Int[Tensor, " chosen"] | None = None,
    progress: Progress = silent,
) -> Interactions:
    """``H_ij = ∂²L/∂g_i ∂g_j`` at open gates, a Hessian–vector product for each unit.

    L is the mean loss over ``batch`` in nats. Shutting i and j together costs about H_ij more than shutting each alone.

    Args:
        kind: a disjoint unit set.
        units: at most ``MOST`` of them by default, evenly spread.
    """
    every = unit_set(anatomy_of(model), kind)
    if units is None:
        count = min(MOST, len(every))
        units = torch.linspace(0, len(every) - 1, count).round().long()
    flags = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    for parameter, _ in flags:
        parameter.requires_grad_(False)
    try:
        matrix = _hessian(model, on_device(batch, model), every, units, progress)
    finally:
        for parameter, flag in flags:
            parameter.requires_grad_(flag)
    return Interactions(
        kind=kind,
        units=tuple(units.tolist()),
        labels=tuple(every.label(unit) for unit in units.tolist()),
        matrix=tuple(tuple(row) for row in matrix.tolist()),
        samples=length_of(batch),
    )


def _hessian(
    model: nn.Module, batch: Batch, every: UnitSet, units: Int[Tensor, " chosen"], progress: Progress
) -> Float[Tensor, "chosen chosen"]:
    parameter = next(model.parameters())
    values = torch.ones(len(units), dtype=parameter.dtype, device=parameter.device, requires_grad=True)
    with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):  # the fused kernels have no second derivative
        with gated(model, _opened(model, every, units, values)):
            loss = per_sample_loss(model, batch).mean()
        (slope,) = torch.autograd.grad(loss, values, create_graph=True)
        rows = []
        for number in range(len(units)):
            progress("interactions", number + 1, len(units))
            (row,) = torch.autograd.grad(slope[number], values, retain_graph=True)
            rows.append(row.double().cpu())
    return torch.stack(rows)


def _opened(
    model: nn.Module, every: UnitSet, units: Int[Tensor, " chosen"], values: Float[Tensor, " chosen"]
) -> Gates:
    """Gates that are the chosen units' values."""
    anatomy = anatomy_of(model)
    opened = Gates.ones(anatomy, dtype=values.dtype, device=values.device)
    flat = values.new_ones(sum(every.gates))
    for column in every.shuts[units].T:
        real = column != NONE
        flat = flat.index_put((column[real].to(flat.device),), values[real.to(values.device)])
    if every.kind is Kind.LAYER:
        return replace(opened, layer=flat[None])
    parts = tuple(part[None] for part in flat.split(list(every.gates)))
    if every.kind.gates is Granularity.CHANNEL:
        return replace(opened, channel=parts)
    return replace(opened, head=parts)
