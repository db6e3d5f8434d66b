"""The empirical check: how far losses add up, unit set by unit set, before anything is pruned."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Int
from scipy import stats
from torch import Tensor, nn

from cascade_ops.anatomy import ModelAnatomy, anatomy_of
from cascade_ops.batches import Batch, length_of, sequential, subset, take
from cascade_ops.criteria import CRITERIA
from cascade_ops.errors import DataError, UsageError
from cascade_ops.gates import gated
from cascade_ops.granularity import Granularity
from cascade_ops.progress import Progress, silent
from cascade_ops.scoring import Scorer, Scores, score
from cascade_ops.sia.ablation import Ablate, Cut, here
from cascade_ops.sia.additivity import GRID, RESAMPLES, SPARSE, Chain, chain, curve, estimate
from cascade_ops.sia.apart import apart_scores, row_taylor
from cascade_ops.sia.depth import entropy_of
from cascade_ops.sia.results import Curve, Estimate, Fidelity, SIACheck, Verdict
from cascade_ops.sia.structural import kappa_of, pi_of, structural_words
from cascade_ops.sia.units import Kind, UnitSet, gates_of, kinds_of, unit_set
from cascade_ops.training import mean_loss

TAU = 0.5
"""The largest A(r) at which losses still count as adding up; docs/sia.md says what it predicts."""
TOLERANCE = 0.01
"""ε: this share of the usable information ``H(Y) − L`` may be lost without asking how it adds up."""
BUDGET = 200
SINGLES = 6
ENOUGH = 12
"""Samples before a verdict can be certain."""
FEWEST = 8
"""Calibration samples without which nothing can be told."""
SHARE = 3
"""The default budget costs about so many forward passes over the data."""
NARROW = 0.1
"""An interval of r* of this width is certain enough."""
BATCH = 32
STABILITY = (0.3, 0.2)
"""Share of units that go, and share that would go next."""
GRANULARITY = {
    Kind.LAYER: Granularity.LAYER,
    Kind.HEAD: Granularity.HEAD,
    Kind.KV_GROUP: Granularity.KV_GROUP,
    Kind.CHANNEL: Granularity.CHANNEL,
}


@dataclass(slots=True)
class _Probe:
    """One unit set under test: what to shut, and the losses found so far."""

    units: UnitSet
    scores: dict[str, Float[Tensor, " units"]]
    ranked: Chain | None
    drawn: Chain | None
    singles: Int[Tensor, " singles"]
    ranked_rises: list[Tensor] = field(default_factory=list)
    drawn_rises: list[Tensor] = field(default_factory=list)
    single_rises: list[Tensor] = field(default_factory=list)
    curve: Curve | None = None

    @property
    def certain(self) -> bool:
        if self.ranked is None or self.curve is None:
            return self.ranked is None
        safe = self.curve.safe
        return safe.n >= ENOUGH and (safe.high - safe.low <= NARROW or safe.high < GRID[0])

    def sets(self, first: bool) -> list[Int[Tensor, " _row"]]:
        """What the next round shuts; random sets and single units in the first only."""
        rows = [] if self.ranked is None else list(self.ranked.rows)
        if first:
            rows += [] if self.drawn is None else list(self.drawn.rows)
            rows += [unit[None] for unit in self.singles]
        return rows

    def found(self, rises: Float[Tensor, "rows samples"], first: bool) -> None:
        sizes = [0 if self.ranked is None else len(self.ranked.rows)]
        if first:
            sizes += [0 if self.drawn is None else len(self.drawn.rows), len(self.singles)]
        for kept, part in zip(
            (self.ranked_rises, self.drawn_rises, self.single_rises), rises.split(sizes), strict=False
        ):
            kept.append(part)


def check(
    model: nn.Module,
    data: Batch,
    *,
    criterion: str = "taylor",
    criteria: Sequence[str] = ("taylor",),
    kinds: Sequence[Kind] | None = None,
    budget: int = BUDGET,
    tau: float = TAU,
    seed: int = 0,
    stability: bool = True,
    scorer: Scorer = score,
    ablate: Ablate | None = None,
    progress: Progress = silent,
) -> SIACheck:
    """Measure, for each unit set, up to which ratio the losses of its units add up.

    Rounds of fresh samples go to the sets whose r* is still uncertain, until all are certain or the budget is spent.

    Args:
        data: calibration samples.
        criterion: orders the units (lowest first) whose removal is tried.
        criteria: whose fidelity is measured besides.
        kinds: unit sets; by default all that differ in this architecture.
        budget: ablations; each is one set of units shut, on ``per_ablation`` samples.
        ablate: computes losses, if this process should not.

    Raises:
        UnknownNameError: no such criterion.
        UsageError: the budget does not suffice for one round (the message says what would).
        DataError: fewer than ``FEWEST`` samples, or activations are not finite.
    """
    began = time.perf_counter()
    anatomy, samples = anatomy_of(model), length_of(data)
    if samples < FEWEST:
        raise DataError(f"expected at least {FEWEST} calibration samples, found {samples}")
    names = tuple(dict.fromkeys((criterion, *criteria)))
    for name in names:
        CRITERIA[name]
    kinds = tuple(kinds or kinds_of(anatomy))
    per = per_ablation(samples)
    progress("score", 0, 1)
    scores = scorer(model, sequential(data, BATCH), names, seed=seed)
    progress("score", 1, 1)
    some = subset(data, max(BATCH, samples // 4), seed)
    apart = _apart(model, some, anatomy, scores, kinds)
    probes = {kind: _probe(anatomy, kind, criterion, scores, apart, seed) for kind in kinds}
    needed = 1 + sum(len(probe.sets(first=True)) for probe in probes.values())
    if needed > budget:
        raise UsageError(f"budget: {budget} ablations do not suffice for one round, which takes {needed}")
    dense = mean_loss(model, some)
    tolerance = TOLERANCE * max(entropy_of(data) - dense, 0.1 * dense)
    spent = _rounds(
        probes,
        data,
        ablate or here(model),
        per,
        budget,
        tau=tau,
        tolerance=tolerance,
        seed=seed,
        progress=progress,
    )
    stable: dict[Kind, Estimate] = {}
    if stability:
        ranked = [probe.units for kind, probe in probes.items() if kind in GRANULARITY and probe.ranked]
        few = subset(data, max(8, samples // 16), seed)
        stable = _stability(model, few, ranked, criterion, seed, progress)
    verdicts = [
        _verdict(anatomy, probe, stable.get(kind), criterion, names, tau=tau, tolerance=tolerance, seed=seed)
        for kind, probe in probes.items()
    ]
    return SIACheck(
        criterion=criterion,
        tau=tau,
        tolerance=tolerance,
        dense_loss=dense,
        verdicts=tuple(verdicts),
        interactions=(),
        depth=None,
        budget=budget,
        ablations=spent,
        per_ablation=per,
        samples=samples,
        seed=seed,
        seconds=time.perf_counter() - began,
    )


def per_ablation(samples: int) -> int:
    """Fresh samples on which each set of units is shut."""
    return min(samples, max(2, round(SHARE * samples / BUDGET)))


def passes(samples: int, budget: int) -> float:
    """What a check costs at most, in forward passes over the data; a backward pass counts as two."""
    scores, dense, apart = 3.0, 0.25, 0.75
    again = 4 * 3 * max(8, samples // 16) / samples
    return scores + dense + apart + again + budget * per_ablation(samples) / samples


def _rounds(
    probes: dict[Kind, _Probe],
    data: Batch,
    ablate: Ablate,
    per: int,
    budget: int,
    *,
    tau: float,
    tolerance: float,
    seed: int,
    progress: Progress,
) -> int:
    """Fill the probes; the number of ablations spent."""
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(length_of(data), generator=generator)
    spent, taken, first = 0, 0, True
    progress("ablate", 0, budget)
    while True:
        wanted = {kind: probe for kind, probe in probes.items() if first or not probe.certain}
        rows = {kind: probe.sets(first) for kind, probe in wanted.items()}
        cost = 1 + sum(map(len, rows.values()))
        if not any(rows.values()) or spent + cost > budget or taken + per > len(order):
            progress("ablate", budget, budget)
            return spent
        batch = take(data, order[taken : taken + per])
        nothing = torch.zeros(0, dtype=torch.long)
        cuts = [
            Cut(
                granularity=kind.gates,
                shut=torch.stack(
                    [probes[kind].units.shut(row) for row in ([nothing] * (number == 0) + rows[kind])]
                ),
            )
            for number, kind in enumerate(rows)
            if rows[kind]
        ]
        losses = ablate(batch, cuts)
        dense = losses[0][:1]
        losses[0] = losses[0][1:]
        filled = [probes[kind] for kind in rows if rows[kind]]
        for probe, found in zip(filled, losses, strict=True):
            probe.found(found - dense, first)
            if probe.ranked is not None:
                rises = torch.cat(probe.ranked_rises, dim=1)
                probe.curve = curve(probe.ranked, rises, tau=tau, tolerance=tolerance, seed=seed)
        spent, taken, first = spent + cost, taken + per, False
        progress("ablate", min(spent, budget), budget)


def _apart(
    model: nn.Module, data: Batch, anatomy: ModelAnatomy, scores: Scores, kinds: Sequence[Kind]
) -> dict[Kind, Float[Tensor, " units"]]:
    wanted = [kind for kind in kinds if kind not in GRANULARITY]
    if not wanted:
        return {}
    rows = row_taylor(model, sequential(data, BATCH))
    found = next((one.per_layer for (_, part), one in scores.items() if part is Granularity.HEAD), None)
    heads = found or tuple(torch.zeros(layer.heads) for layer in anatomy.layers)
    return {kind: apart_scores(rows, anatomy.layers, heads, kind) for kind in wanted}


def _probe(
    anatomy: ModelAnatomy,
    kind: Kind,
    criterion: str,
    scores: Scores,
    apart: dict[Kind, Float[Tensor, " units"]],
    seed: int,
) -> _Probe:
    units = unit_set(anatomy, kind)
    order: Int[Tensor, " units"] | None
    if kind in apart:
        mine = {"row taylor": apart[kind]}
        order = units.lowest_first(apart[kind])
    else:
        part = GRANULARITY[kind]
        mine = {name: torch.cat(one.per_layer) for (name, g), one in scores.items() if g is part}
        order = units.lowest_first(mine[criterion]) if criterion in mine else None
    generator = torch.Generator().manual_seed(seed + 1)
    drawn = torch.randperm(len(units), generator=generator)
    spread = torch.linspace(0, len(units) - 1, min(SINGLES, len(units))).round().long()
    return _Probe(
        units=units,
        scores=mine,
        ranked=None if order is None else chain(next(iter(mine)) if kind in apart else criterion, order),
        drawn=chain("random", drawn, SPARSE),
        singles=(drawn if order is None else order)[spread],
    )


@torch.no_grad()
def _stability(
    model: nn.Module, data: Batch, sets: Sequence[UnitSet], criterion: str, seed: int, progress: Progress
) -> dict[Kind, Estimate]:
    """Of the units that would go next, how many still would once the lowest are gone; Wilson's interval."""

    def scored() -> Scores:
        return score(model, sequential(data, BATCH), (criterion,), seed=seed)

    anatomy, device = anatomy_of(model), next(model.parameters()).device
    dense, found = scored(), {}
    for number, units in enumerate(sets):
        progress("stability", number, len(sets))
        part = GRANULARITY[units.kind]
        gone, following = (max(1, round(share * len(units))) for share in STABILITY)
        if gone + following >= len(units):
            continue
        before = units.lowest_first(torch.cat(dense[criterion, part].per_layer))
        shut = units.shut(before[:gone])[None]
        with gated(model, gates_of(anatomy, units.kind.gates, shut, device=device)):
            again = units.lowest_first(torch.cat(scored()[criterion, part].per_layer))
        left = again[~torch.isin(again, before[:gone])]
        same = int(torch.isin(before[gone : gone + following], left[:following]).sum())
        interval = stats.binomtest(same, following).proportion_ci(0.95, method="wilson")
        found[units.kind] = Estimate(
            value=same / following, low=float(interval.low), high=float(interval.high), n=following
        )
    return found


def _verdict(
    anatomy: ModelAnatomy,
    probe: _Probe,
    stable: Estimate | None,
    criterion: str,
    names: Sequence[str],
    *,
    tau: float,
    tolerance: float,
    seed: int,
) -> Verdict:
    kind = probe.units.kind
    curves = [] if probe.curve is None else [probe.curve]
    if probe.drawn is not None and probe.drawn_rises:
        rises = torch.cat(probe.drawn_rises, dim=1)
        curves.append(curve(probe.drawn, rises, tau=tau, tolerance=tolerance, seed=seed))
    kappa, pi = kappa_of(anatomy, kind), pi_of(anatomy, kind)
    structural = kappa == 1 and pi == 1
    additive = not curves or curves[0].safe.value >= GRID[0]
    return Verdict(
        kind=kind,
        units=len(probe.units),
        kappa=kappa,
        pi=pi,
        structural=structural,
        holds=structural and additive,
        certain=probe.certain,
        curves=tuple(curves),
        fidelity=tuple(_fidelity(probe, seed)),
        stability=stable,
        words=_words(anatomy, kind, structural, curves),
    )


def _words(anatomy: ModelAnatomy, kind: Kind, structural: bool, curves: Sequence[Curve]) -> str:
    text = structural_words(anatomy, kind)
    if not curves:
        return f"{text} Too few units to measure."
    safe, most = curves[0].safe, curves[0].ratios[-1]
    if structural and safe.value < GRID[0]:
        text = text.replace("holds:", "violated: losses do not add up, though it holds structurally:", 1)
    beyond = " or more" if safe.value >= most else ""
    return (
        f"{text} Safe to {safe.value:.0%}{beyond} by {curves[0].order} (95 % CI {100 * safe.low:.0f}–"
        f"{100 * safe.high:.0f}, n = {safe.n})."
    )


def _fidelity(probe: _Probe, seed: int) -> list[Fidelity]:
    """Spearman's ρ with its bootstrap over units."""
    if not probe.single_rises or len(probe.singles) < 4:
        return []
    measured = torch.cat(probe.single_rises, dim=1).mean(dim=1)
    count = len(measured)
    generator = torch.Generator().manual_seed(seed)
    draws = torch.randint(0, count, (RESAMPLES, count), generator=generator)
    draws = torch.cat([torch.arange(count)[None], draws])
    found = []
    for name, scores in probe.scores.items():
        given = scores[probe.singles].double()
        found.append(Fidelity(criterion=name, rho=estimate(_spearman(given[draws], measured[draws]), count)))
    return found


def _spearman(one: Float[Tensor, "draws n"], other: Float[Tensor, "draws n"]) -> Float[Tensor, " draws"]:
    """ρ of each row; 0 where one side is constant."""
    ranks = [torch.as_tensor(stats.rankdata(side.numpy(), axis=1)) for side in (one, other)]
    first, second = (rank - rank.mean(dim=1, keepdim=True) for rank in ranks)
    norm = (first.square().sum(dim=1) * second.square().sum(dim=1)).sqrt()
    return (first * second).sum(dim=1) / norm.clamp(min=1e-12)
