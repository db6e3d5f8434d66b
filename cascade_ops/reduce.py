"""Sums over the rows of tall matrices, in float64, a few rows at a time: they stay in the cache."""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

ROWS = 32
TALL = 2048


def column_sums(
    x: Float[Tensor, "rows columns"], terms: Callable[[Tensor], tuple[Tensor, ...]]
) -> tuple[Float[Tensor, " columns"], ...]:
    """Sums over rows of each of the matrices that ``terms`` makes of ``x`` in float64."""
    if x.dim() == 2 and x.stride(0) < x.stride(1):  # a transposed view: whole columns lie together
        parts = [tuple(term.sum(dim=1) for term in terms(columns.double())) for columns in x.T.split(ROWS)]
        return tuple(torch.cat(sums) for sums in zip(*parts, strict=True))
    chunks = [tuple(term.sum(dim=0) for term in terms(rows.double())) for rows in x.split(ROWS)]
    return tuple(torch.stack(sums).sum(dim=0) for sums in zip(*chunks, strict=True))


def column_dot(
    x: Float[Tensor, "tokens columns"], y: Float[Tensor, "tokens columns"]
) -> Float[Tensor, " columns"]:
    """``Σ_t x_tj y_tj`` of each column j, in float64 from products in float32 (or wider)."""
    pairs = zip(x.split(ROWS), y.split(ROWS), strict=True)
    return torch.stack([wide(one).mul(other).sum(dim=0) for one, other in pairs]).double().sum(dim=0)


def gram(x: Float[Tensor, "tokens columns"]) -> Float[Tensor, "columns columns"]:
    """``Σ_t x_t x_tᵀ``, in float64, at most ``TALL`` rows at a time.

    In float32 its rounding, relative to the squared mean, exceeds the variance of columns that hardly move.
    """
    total = x.new_zeros(x.shape[1], x.shape[1], dtype=torch.float64)
    for rows in x.split(TALL):
        tall = rows.double()
        total += tall.T @ tall
    return total


def row_cosines(
    x: Float[Tensor, "tokens hidden"], y: Float[Tensor, "tokens hidden"]
) -> Float[Tensor, " tokens"]:
    """The cosine of each token's two vectors, in float64."""
    pairs = zip(x.split(ROWS), y.split(ROWS), strict=True)
    return torch.cat([torch.cosine_similarity(one.double(), other.double(), dim=-1) for one, other in pairs])


def wide(x: Tensor) -> Tensor:
    """At least float32, so that products of half-precision numbers are not rounded before they are summed."""
    return x.to(torch.promote_types(x.dtype, torch.float32))
