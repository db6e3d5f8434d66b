"""Compensation at the cut: what remains takes over, by least squares, what is removed. No training.

An output projection y = W x + b (of attention or of the feed-forward layer) loses the columns r of what is removed
and keeps the columns k. With C = E[x xᵀ] over calibration tokens, the W' that best gives the dense y from x_k is

    W' = W_k + W_r C_rk (C_kk + λI)⁻¹,    λ = ridge · mean(diag C_kk).

Where there is a bias, C is the covariance and the mean of what neither gives nor keeps goes into it:
b' = b + W_r μ_r + (W_k − W') μ_k. (Ridge regression on the dense output; as in He et al. 2017, arXiv 1707.06168, and
Frantar & Alistarh 2023, arXiv 2301.00774, for whole columns.)

C takes columns² numbers, so only one is in memory: the calibration batches go through the model block by block,
by a sweep of their own once the plan is known.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import cast

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import PreTrainedModel

from cascade_ops.anatomy import anatomy_of, base_of, blocks_of, family_of
from cascade_ops.batches import Batch, on_device
from cascade_ops.granularity import Granularity
from cascade_ops.layer import LayerAnatomy
from cascade_ops.linear import Linear, bias_of, linear, weight_of
from cascade_ops.plan import PruningPlan
from cascade_ops.progress import Progress, silent
from cascade_ops.scoring import check_statistics
from cascade_ops.shards import Piece, blocks_alone
from cascade_ops.statistics import XX, Need, Statistics, X
from cascade_ops.sweep import forward

ROUNDING = 1e-10
"""Variance below this part of the second moment is rounding."""


@torch.no_grad()
def compensate(
    model: nn.Module,
    plan: PruningPlan,
    batches: Iterable[Batch],
    *,
    ridge: float,
    progress: Progress = silent,
) -> None:
    """Refit, in place, the columns that ``plan`` keeps; to be called before ``prune(model, plan)``.

    Every C is that of the dense model. Layers that lose nothing stay as they are, and so does the whole model
    when layers are removed. In memory at a time: one C (float64), and each batch's hidden states at one boundary.

    Args:
        batches: calibration batches, gone through once.
        ridge: λ relative to the mean second moment of the kept columns (about their mean where there is a
            bias), > 0.
        progress: told about each block.

    Raises:
        PlanError: the plan does not fit; nothing was changed.
        DataError: there is no batch (nothing was changed), or activations are not finite in some layer (those
            before it have been refitted).
    """
    anatomy = anatomy_of(model)
    anatomy.after(plan)
    if plan.granularity is Granularity.LAYER:
        return
    spec = family_of(base_of(model).config)
    channels = plan.granularity is Granularity.CHANNEL
    part = Granularity.CHANNEL if channels else Granularity.HEAD
    columns = [
        _columns(layer, plan.granularity, kept) for layer, kept in zip(anatomy.layers, plan.keep, strict=True)
    ]
    losing = [len(kept) < _width(layer, part) for kept, layer in zip(columns, anatomy.layers, strict=True)]
    flow = _Flow(batches=[on_device(batch, model) for batch in batches])
    pieces = zip(blocks_of(model), blocks_alone(cast(PreTrainedModel, model)), columns, losing, strict=True)
    for index, (block, piece, kept, loses) in enumerate(pieces):
        if not any(losing[index:]):
            break
        progress("compensate", index, len(losing))
        found = flow.through(piece, part if loses else None)
        if loses:
            second, mean = (found.sums[name, part, 0] / found.tokens for name in (XX, X))
            _refit(
                linear(block, spec.mlp_output if channels else spec.attention_output),
                kept,
                second,
                mean,
                ridge,
            )
    progress("compensate", len(losing), len(losing))


@dataclass(slots=True)
class _Flow:
    """Calibration batches on their way up, and their hidden states at the boundary they have reached."""

    batches: list[Batch]
    hidden: list[Tensor | None] = field(init=False)

    def __post_init__(self) -> None:
        self.hidden = [None] * len(self.batches)

    def through(self, piece: Piece, part: Granularity | None) -> Statistics:
        """Second moments of ``part``, if any, on the way through the next block. Raises DataError."""
        needs: frozenset[Need] = frozenset()
        if part is not None:
            needs = frozenset({"channel_covariance" if part is Granularity.CHANNEL else "head_covariance"})
        total = Statistics.zero()
        for number, (batch, below) in enumerate(zip(self.batches, self.hidden, strict=True)):
            found, self.hidden[number] = forward(piece, batch, needs, below)
            total = total + found
        check_statistics(total, piece.anatomy, needs)
        return total


def _width(layer: LayerAnatomy, part: Granularity) -> int:
    return layer.channels if part is Granularity.CHANNEL else layer.heads * layer.head_dim


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
