"""Compensation at the cut: what remains takes over, by least squares, what is removed. No training.

An output projection y = W x + b (of attention or of the feed-forward layer) loses the columns r of what is removed
and keeps the columns k. With C = E[x xᵀ] over calibration tokens, the W' that best gives the dense y from x_k is

    W' = W_k + W_r C_rk (C_kk + λI)⁻¹,    λ = ridge · mean(diag C_kk).

Where there is a bias, C is the covariance and the mean of what neither gives nor keeps goes into it:
b' = b + W_r μ_r + (W_k − W') μ_k. (Ridge regression on the dense output; as in He et al. 2017, arXiv 1707.06168, and
Frantar & Alistarh 2023, arXiv 2301.00774, for whole columns.)
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from cascade_ops.anatomy import ModelAnatomy, anatomy_of, base_of, blocks_of, family_of
from cascade_ops.errors import DataError
from cascade_ops.granularity import Granularity
from cascade_ops.layer import LayerAnatomy
from cascade_ops.linear import Linear, bias_of, linear, weight_of
from cascade_ops.plan import PruningPlan
from cascade_ops.statistics import XX, Statistics, X

ROUNDING = 1e-10
"""Variance below this part of the second moment is rounding."""


@torch.no_grad()
def compensate(model: nn.Module, plan: PruningPlan, statistics: Statistics, *, ridge: float) -> None:
    """Refit, in place, the columns that ``plan`` keeps; to be called before ``prune(model, plan)``.

    Layers that lose nothing stay as they are, and so does the whole model when layers are removed.

    Args:
        statistics: of the model as it is, with ``covariance``.
        ridge: λ relative to the mean second moment of the kept columns, > 0.

    Raises:
        PlanError: the plan does not fit; nothing was changed.
        DataError: the statistics hold no second moments of this granularity, or of another model; nothing was
            changed.
    """
    anatomy = anatomy_of(model)
    anatomy.after(plan)
    if plan.granularity is Granularity.LAYER:
        return
    spec = family_of(base_of(model).config)
    channels = plan.granularity is Granularity.CHANNEL
    part = Granularity.CHANNEL if channels else Granularity.HEAD
    _check(statistics, anatomy, part)
    pairs = zip(blocks_of(model), anatomy.layers, plan.keep, strict=True)
    for index, (block, layer, kept) in enumerate(pairs):
        columns = _columns(layer, plan.granularity, kept)
        second = statistics.sums[XX, part, index] / statistics.tokens
        mean = statistics.sums[X, part, index] / statistics.tokens
        if len(columns) < len(mean):
            projection = linear(block, spec.mlp_output if channels else spec.attention_output)
            _refit(projection, columns, second, mean, ridge)


def _check(statistics: Statistics, anatomy: ModelAnatomy, part: Granularity) -> None:
    """Raises DataError where second moments are missing, or of another model."""
    for index, layer in enumerate(anatomy.layers):
        wanted = layer.channels if part is Granularity.CHANNEL else layer.heads * layer.head_dim
        found = statistics.sums.get((XX, part, index))
        if found is None or len(found) != wanted:
            have = "none" if found is None else f"those of {len(found)}"
            raise DataError(
                f"compensation: expected second moments of {wanted} columns ({part}) in layer {index}, found {have}; "
                "gather them with 'covariance' on the model as it is"
            )


def _columns(layer: LayerAnatomy, granularity: Granularity, kept: tuple[int, ...]) -> Int[Tensor, " kept"]:
    """Input columns of the output projection that belong to the kept units."""
    if granularity is Granularity.CHANNEL:
        return torch.tensor(kept)
    heads = layer.heads_of(kept) if granularity is Granularity.KV_GROUP else kept
    return torch.arange(layer.heads * layer.head_dim).view(layer.heads, layer.head_dim)[list(heads)].flatten()


def _refit(
    projection: Linear,
    keep: Int[Tensor, " kept"],
    second: Float[Tensor, "columns columns"],
    mean: Float[Tensor, " columns"],
    ridge: float,
) -> None:
    weight, bias = weight_of(projection), bias_of(projection)
    keep = keep.to(second.device)
    removed = torch.ones(len(mean), dtype=torch.bool, device=second.device)
    removed[keep] = False
    noise = ROUNDING * second.diagonal()[keep].mean()
    if bias is not None:
        second = second - torch.outer(mean, mean)
    kept_moments = second[keep][:, keep]
    damping = ridge * kept_moments.diagonal().mean()
    dense = weight.double()
    change = torch.zeros_like(dense[:, keep])
    if damping > ridge * noise:  # otherwise what is kept never moves, and cannot take over anything
        kept_moments.diagonal().add_(damping)
        factor = torch.linalg.cholesky(kept_moments)
        change = torch.cholesky_solve(second[keep][:, removed] @ dense[:, removed].T, factor).T
    weight[:, keep] = (dense[:, keep] + change).to(weight.dtype)
    if bias is not None:
        bias += (dense[:, removed] @ mean[removed] - change @ mean[keep]).to(bias.dtype)
