"""What an SIA check found: plain, JSON-able records."""

from __future__ import annotations

from dataclasses import dataclass

from cascade_ops.sia.units import Kind

SCHEMA = "cascade.sia/1"


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """A figure, its 95 % bootstrap interval and the number of samples (or units) behind it."""

    value: float
    low: float
    high: float
    n: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Curve:
    """How far losses are from adding up when units go in one order.

    Attributes:
        order: a criterion's name (lowest first, the same share of every layer) or ``random``.
        ratios: r, the shares of units removed.
        loss: ΔL(S_r), the rise of the loss in nats.
        gap: A(r).
        safe: r*, the largest ratio up to which A ≤ τ (between grid points by interpolation).
    """

    order: str
    ratios: tuple[float, ...]
    loss: tuple[Estimate, ...]
    gap: tuple[Estimate, ...]
    safe: Estimate


@dataclass(frozen=True, slots=True, kw_only=True)
class Fidelity:
    """Spearman's ρ between a criterion's scores and the measured ΔL({i}) of sampled units."""

    criterion: str
    rho: Estimate


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """One unit set.

    Attributes:
        kappa: the most units that share one weight; pi: rows, ranked apart, that meet in a product.
        structural: κ = 1 and π = 1.
        holds: structurally, and losses add up at least as far as the grid's first ratio.
        stability: share of the next units to go that stay the same once the lowest are gone (overlap@k).
        certain: the interval of r* is narrow, or on one side of the grid's first ratio.
        words: the verdict in a sentence.
    """

    kind: Kind
    units: int
    kappa: int
    pi: int
    structural: bool
    holds: bool
    certain: bool
    curves: tuple[Curve, ...]
    fidelity: tuple[Fidelity, ...]
    stability: Estimate | None
    words: str

    @property
    def safe(self) -> Estimate | None:
        """r* in the criterion's order."""
        return self.curves[0].safe if self.curves else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Interactions:
    """Second derivatives of the loss by pairs of gates, H_ij, between some units of one kind.

    ``units`` are their positions among all of the kind.
    """

    kind: Kind
    units: tuple[int, ...]
    labels: tuple[str, ...]
    matrix: tuple[tuple[float, ...], ...]
    samples: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Depth:
    """Usable information about the label after each block: ``H(Y) − CE`` of a probe, in nats."""

    entropy: float
    probe: str
    information: tuple[float, ...]
    samples: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SIACheck:
    """The whole check. ``tolerance`` is ε in nats; ``ablations`` of ``per_ablation`` samples each were spent."""

    criterion: str
    tau: float
    tolerance: float
    dense_loss: float
    verdicts: tuple[Verdict, ...]
    interactions: tuple[Interactions, ...]
    depth: Depth | None
    budget: int
    ablations: int
    per_ablation: int
    samples: int
    seed: int
    seconds: float
    schema: str = SCHEMA

    def __getitem__(self, kind: Kind | str) -> Verdict:
        return next(one for one in self.verdicts if one.kind == kind)
