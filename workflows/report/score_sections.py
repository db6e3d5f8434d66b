"""What a score run's page says of each granularity: its maps, whether the criteria agree, what scores lowest."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
from markupsafe import Markup

from workflows.report import format as fmt
from workflows.report import score_maps
from workflows.report.score_maps import RankRow, Values

if TYPE_CHECKING:
    from workflows.scoring.record import ScoreReport

LOWEST = 5
# What random says is no opinion; it is there to show what no agreement looks like.
CONTROL = "random"
_OPPOSED, _NARROW = -0.1, 8


@dataclass(frozen=True)
class Criterion:
    """One criterion's scores of one granularity, layer by layer."""

    name: str
    sources: tuple[int, ...]
    layers: tuple[Values, ...]

    @cached_property
    def all(self) -> Values:
        return np.concatenate(self.layers) if self.layers else np.empty(0)

    @cached_property
    def percentiles(self) -> tuple[Values, ...]:
        """Each unit's percentile among all units of the model."""
        borders = np.cumsum([len(layer) for layer in self.layers])[:-1]
        return tuple(np.split(score_maps.percentiles(self.all), borders))


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    text: str
    colour: str
    title: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """A coloured table with criteria as rows."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, tuple[Cell, ...]], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Drawing:
    """One criterion's map, and for channels the distribution beside it."""

    criterion: str
    map: Markup
    distribution: Markup | None = None
    axis: str = ""
    note: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class MapSection:
    """All criteria of one granularity: a table for layers, drawings for the others, or why there are none."""

    granularity: str
    title: str
    lead: str
    table: Table | None = None
    drawings: tuple[Drawing, ...] = ()
    narrow: bool = False
    binned: int = 1
    note: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class AgreementView:
    """One matrix or two; ``extremes`` names the pairs that agree most and least."""

    title: str
    tables: tuple[Table, ...]
    extremes: str


@dataclass(frozen=True, slots=True, kw_only=True)
class LowestView:
    """(criterion, ((unit, score), …)) by row; ``often`` tells the units that most criteria name."""

    title: str
    unit: str
    rows: tuple[tuple[str, tuple[tuple[str, str], ...]], ...]
    often: str


def criteria_of(report: ScoreReport, granularity: str) -> tuple[Criterion, ...]:
    """In the order that was asked for."""
    order = {name: index for index, name in enumerate(report.criteria)}
    given = [one for one in report.scores if one.granularity == granularity and one.layers]
    return tuple(
        Criterion(
            one.criterion,
            tuple(layer.source for layer in one.layers),
            tuple(np.asarray(layer.scores, dtype=np.float64) for layer in one.layers),
        )
        for one in sorted(given, key=lambda one: order.get(one.criterion, len(order)))
    )


class Agreement:
    """Spearman's correlation of a granularity's criteria, over the model and inside its layers."""

    def __init__(self, criteria: tuple[Criterion, ...]) -> None:
        self.criteria = criteria
        self.whole = score_maps.agreement([one.all for one in criteria])
        layers = list(zip(*(one.layers for one in criteria), strict=False))
        several = len(layers) > 1 and any(len(scores) > 1 for scores in criteria[0].layers)
        self.inside = score_maps.mean_agreement(layers) if several and len(criteria) > 1 else None

    def pairs(self) -> list[tuple[float, str]]:
        """The defined correlations over the whole model with the names, without the control, rising."""
        real = [(index, one.name) for index, one in enumerate(self.criteria) if one.name != CONTROL]
        found = ((float(self.whole[i, j]), f"{a} and {b}") for i, a in real for j, b in real if i < j)
        return sorted(pair for pair in found if math.isfinite(pair[0]))

    def median(self) -> float:
        """Of all pairs; NaN where there is none."""
        pairs = self.pairs()
        return float(np.median([value for value, _ in pairs])) if pairs else math.nan


_LEADS = {
    "layer": "The number in a cell is the layer's rank within the criterion: 1 is the lowest score, the first to go.",
    "head": "One row per layer, one cell per head. Colour ranks a head among all heads of the model.",
    "kv_group": "Heads that share keys and values stay or go together. Colour ranks a group among all groups.",
    "channel": "Left: where in each layer the cheap channels are, coloured by rank among all channels of the model. "
    "Right: how a layer's scores are spread; a box far to the left is a layer with cheap channels.",
}


def map_section(granularity: str, criteria: tuple[Criterion, ...], *, shared: bool) -> MapSection:
    title = fmt.granularity(granularity)
    if not criteria:
        alone = granularity == "kv_group" and not shared
        note = (
            "Every head has keys and values of its own, so each KV group is one head: see the attention heads."
            if alone
            else f"No criterion scored the {fmt.inside(title)}."
        )
        return MapSection(granularity=granularity, title=title, lead="", note=note)
    lead = _LEADS[granularity]
    if granularity == "layer":
        table = _layer_table(criteria)
        return MapSection(granularity=granularity, title=title, lead=lead, table=table)
    per_cell = max(score_maps.units_per_cell(one.layers) for one in criteria)
    drawings = tuple(_drawing(one, granularity, per_cell) for one in criteria)
    widest = max(len(layer) for one in criteria for layer in one.layers)
    return MapSection(
        granularity=granularity,
        title=title,
        lead=lead,
        drawings=drawings,
        narrow=widest <= _NARROW,
        binned=per_cell,
    )


def _layer_table(criteria: tuple[Criterion, ...]) -> Table:
    rows = []
    for one in criteria:
        order, shares = score_maps.ranks(one.all), np.concatenate(one.percentiles)
        cells = tuple(
            Cell(
                text=f"{rank:g}" if math.isfinite(rank) else fmt.MISSING,
                colour=score_maps.level(share).replace("s", "m"),
                title=f"{one.name}, layer {source}: score {fmt.significant(score)}",
            )
            for source, rank, share, score in zip(one.sources, order, shares, one.all, strict=True)
        )
        rows.append((one.name, cells))
    return Table(title="Rank of each layer", columns=tuple(map(str, criteria[0].sources)), rows=tuple(rows))


def _drawing(one: Criterion, granularity: str, per_cell: int) -> Drawing:
    labels = tuple(map(str, one.sources))
    widest = max(len(layer) for layer in one.layers)
    rows = [
        RankRow(
            label=label,
            cells=score_maps.binned(shares, per_cell),
            titles=_titles(granularity, label, scores) if per_cell == 1 else (),
        )
        for label, shares, scores in zip(labels, one.percentiles, one.layers, strict=True)
    ]
    medians = np.array([_median(shares) for shares in one.percentiles])
    spoken = f"{one.name}, {fmt.inside(fmt.granularity(granularity))} by layer"
    drawn = score_maps.rank_map(rows, unit=fmt.unit(granularity), units=widest, label=f"Ranks: {spoken}")
    if granularity != "channel":
        return Drawing(criterion=one.name, map=drawn)
    spread = score_maps.spreads(one.layers)
    axis = score_maps.axis_of(spread)
    zeros = int((one.all == 0).sum())
    note = ""
    if axis.log and zeros:
        note = f"{fmt.integer(zeros)} scores are 0: a logarithmic axis can only show them at its left edge."
    return Drawing(
        criterion=one.name,
        map=drawn,
        distribution=score_maps.distribution(spread, medians, labels, axis=axis, label=f"Scores: {spoken}"),
        axis=axis.title,
        note=note,
    )


def _median(values: Values) -> float:
    usable = values[np.isfinite(values)]
    return float(np.median(usable)) if len(usable) else math.nan


def _titles(granularity: str, layer: str, scores: Values) -> tuple[str, ...]:
    unit = fmt.unit(granularity)
    return tuple(
        f"layer {layer}, {unit} {i}: score {fmt.significant(score)}"
        for i, score in enumerate(scores.tolist())
    )


def correlation_text(value: float) -> str:
    """Two decimals, and no minus before zero."""
    if not math.isfinite(value):
        return fmt.MISSING
    return f"{round(value, 2) + 0.0:.2f}".replace("-", fmt.MINUS)


def agreement_view(granularity: str, found: Agreement) -> AgreementView:
    names = tuple(one.name for one in found.criteria)
    tables = [_matrix("Over the whole model", names, found.whole)]
    if found.inside is not None:
        tables.append(_matrix("Inside a layer, mean over layers", names, found.inside))
    pairs, extremes = found.pairs(), ""
    if len(pairs) > 1:
        (least, apart), (most, together) = pairs[0], pairs[-1]
        extremes = (
            f"Over the whole model, {together} agree most ({correlation_text(most)}), "
            f"{apart} least ({correlation_text(least)})."
        )
    return AgreementView(title=fmt.granularity(granularity), tables=tuple(tables), extremes=extremes)


def _matrix(title: str, names: tuple[str, ...], values: Values) -> Table:
    rows = tuple(
        (
            name,
            tuple(
                Cell(
                    text=correlation_text(value),
                    colour="m-none" if other == name else _colour(value),
                    title=f"{name} and {other}",
                )
                for other, value in zip(names, row, strict=True)
            ),
        )
        for name, row in zip(names, values.tolist(), strict=True)
    )
    return Table(title=title, columns=names, rows=rows)


def _colour(value: float) -> str:
    if not math.isfinite(value):
        return "m-none"
    if value < _OPPOSED:
        return "opposed"
    return f"m{max(0, min(7, math.floor(8 * value)))}"


def lowest_view(granularity: str, criteria: tuple[Criterion, ...]) -> LowestView:
    rows, named = [], Counter[str]()
    for one in criteria:
        found = _lowest_units(one, whole_layers=granularity == "layer")
        rows.append((one.name, tuple((unit, fmt.significant(score, 2)) for unit, score in found)))
        if one.name != CONTROL:
            named.update(unit for unit, _ in found)
    asked = sum(one.name != CONTROL for one in criteria)
    most = max(named.values(), default=0)
    often = [unit for unit, times in named.items() if times == most]
    told = f"{', '.join(often)} (by {most} of {asked} criteria)" if most > 1 and len(often) <= LOWEST else ""
    return LowestView(
        title=fmt.granularity(granularity), unit=fmt.unit(granularity), rows=tuple(rows), often=told
    )


def _lowest_units(one: Criterion, *, whole_layers: bool) -> list[tuple[str, float]]:
    """The lowest finite scores with ``layer`` or ``layer.unit``."""
    usable = np.flatnonzero(np.isfinite(one.all))
    order = usable[np.argsort(one.all[usable], kind="stable")][:LOWEST]
    starts = np.cumsum([0, *(len(layer) for layer in one.layers)])
    found = []
    for position in order.tolist():
        layer = int(np.searchsorted(starts, position, side="right")) - 1
        name = str(one.sources[layer])
        unit = name if whole_layers else f"{name}.{position - int(starts[layer])}"
        found.append((unit, float(one.all[position])))
    return found
