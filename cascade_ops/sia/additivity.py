"""Do the losses of single units add up to the loss of their set?

Units go in one order; S_1 ⊂ S_2 ⊂ … are the first r·n of them at each ratio r of a grid, and P_0, P_1, … what each step
adds (the first step in two halves). With ΔL(S) the rise of the loss when S is shut,

    gap(r) = (ΔL(S_r) − Σ_i ΔL(P_i)) / c_r,        A(r) = |E gap(r)| / max(|E ΔL(S_r)|, ε).

To second order ΔL(S_r) − Σ ΔL({i}) is the sum of H_ij over pairs in S_r; parts miss the pairs inside a part, and c_r,
the share of pairs that lie in different parts, makes up for them. So the cost is one ablation for each part and each
set, however many units there are. Below ε nothing is lost, and how it adds up does not matter.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import torch
from jaxtyping import Float, Int
from torch import Tensor

from cascade_ops.sia.results import Curve, Estimate

GRID = (0.1, 0.3, 0.6, 0.9)
SPARSE = (0.3, 0.6)
"""For the random order, which is there for comparison."""
RESAMPLES = 400


@dataclass(frozen=True, slots=True, kw_only=True)
class Chain:
    """Nested sets of units in one order, and the parts by which they grow."""

    order: str
    units: int
    parts: tuple[Int[Tensor, " _part"], ...]
    sets: tuple[Int[Tensor, " _set"], ...]

    @property
    def rows(self) -> tuple[Int[Tensor, " _row"], ...]:
        """All that must be measured."""
        return (*self.parts, *self.sets)

    @property
    def ratios(self) -> tuple[float, ...]:
        return tuple(len(one) / self.units for one in self.sets)

    @property
    def crossing(self) -> Float[Tensor, " sets"]:
        """c_r: the share of a set's pairs that lie in different parts."""
        inside, shares = 0, []
        for number, (part, whole) in enumerate(zip(self.parts[1:], self.sets, strict=True)):
            inside += len(part) * (len(part) - 1)
            if number == 0:
                inside += len(self.parts[0]) * (len(self.parts[0]) - 1)
            shares.append(1 - inside / (len(whole) * (len(whole) - 1)))
        return torch.tensor(shares, dtype=torch.float64)


def chain(name: str, order: Int[Tensor, " units"], grid: tuple[float, ...] = GRID) -> Chain | None:
    """The sets of ``order`` at the grid's ratios; None where there are fewer than three units."""
    units = len(order)
    cuts = sorted({max(2, round(ratio * units)) for ratio in grid})
    cuts = [cut for cut in cuts if cut < units]
    if not cuts:
        return None
    first = order[: cuts[0]]
    steps = [order[a:b] for a, b in pairwise(cuts)]
    return Chain(
        order=name,
        units=units,
        parts=(first[::2], first[1::2], *steps),
        sets=tuple(order[:cut] for cut in cuts),
    )


def curve(
    one: Chain, rises: Float[Tensor, "rows samples"], *, tau: float, tolerance: float, seed: int
) -> Curve:
    """A(r), r* and their intervals by bootstrap over samples.

    Args:
        rises: ΔL of each of ``one.rows``, sample by sample, in nats.
        tau: the largest A that still counts as adding up.
        tolerance: ε in nats.
    """
    samples = rises.shape[1]
    generator = torch.Generator().manual_seed(seed)
    draws = torch.randint(0, samples, (RESAMPLES, samples), generator=generator)
    means = torch.cat([rises.mean(dim=1)[:, None], rises[:, draws].mean(dim=2)], dim=1)  # rows × (1 + draws)
    parts, sets = means.split([len(one.parts), len(one.sets)])
    added = parts.cumsum(dim=0)[1:]
    gaps = (sets - added).abs() / one.crossing[:, None] / sets.abs().clamp(min=tolerance)
    safe = safe_ratio(one.ratios, gaps, tau)
    return Curve(
        order=one.order,
        ratios=one.ratios,
        loss=tuple(estimate(row, samples) for row in sets),
        gap=tuple(estimate(row, samples) for row in gaps),
        safe=estimate(safe, samples),
    )


def safe_ratio(
    ratios: tuple[float, ...], gaps: Float[Tensor, "steps draws"], tau: float
) -> Float[Tensor, " draws"]:
    """Where A first exceeds τ, between grid points by interpolation (A(0) = 0); the last ratio if it never does."""
    xs = torch.tensor((0.0, *ratios), dtype=torch.float64)
    ys = torch.cat([gaps.new_zeros(1, gaps.shape[1]), gaps]).double()
    over = gaps > tau
    first = over.int().argmax(dim=0)
    below, beyond = (ys.gather(0, step[None])[0] for step in (first, first + 1))
    crossing = xs[first] + (xs[first + 1] - xs[first]) * (tau - below) / (beyond - below)
    return torch.where(over.any(dim=0), crossing, xs[-1])


def estimate(values: Float[Tensor, " draws"], n: int) -> Estimate:
    """The first value is the estimate; the others are bootstrap draws."""
    low, high = torch.quantile(
        values[1:].double(), torch.tensor([0.025, 0.975], dtype=torch.float64)
    ).tolist()
    value = float(values[0])
    return Estimate(value=value, low=min(low, value), high=max(high, value), n=n)
