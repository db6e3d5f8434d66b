"""Score runs drawn: ranks over a whole model, maps of them, distributions, agreement of criteria.

A cell's colour is a percentile, the share of the model's units that score lower, in eight equal steps. Ranks make
criteria comparable whose scores differ by orders of magnitude. Scores that are not finite have no rank.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from workflows.report import format as fmt
from workflows.report.heatmap import LEVELS, MAX_TITLED_CELLS, level_class
from workflows.report.svg import (
    CURVE_WIDTH,
    frame,
    number,
    padded,
    percent,
    stretched,
    tag,
    text,
    tick_label,
    ticks,
)

Values = NDArray[np.float64]

STRIP_CELLS = 128
PERCENTILES = (1, 25, 50, 75, 99)
_BORDERS = tuple(step / LEVELS for step in range(1, LEVELS))
_TALL_ROW, _MAP_HEIGHT, _LINE_HEIGHT = 14.0, 560.0, 13.0
_DECADES = 12
_WIDE = 30
_TINY = 1e-300  # beyond it, and its inverse, an axis could not be computed in floating point
_SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def ranks(values: Values) -> Values:
    """Ranks from 1, lowest first; equal values share their mean rank, values that are not finite have NaN."""
    found = np.full(values.shape, np.nan)
    usable = np.isfinite(values)
    _, inverse, counts = np.unique(values[usable], return_inverse=True, return_counts=True)
    found[usable] = (np.cumsum(counts) - (counts - 1) / 2)[inverse]
    return found


def percentiles(values: Values) -> Values:
    """Ranks as shares inside (0, 1); NaN for values that are not finite."""
    return (ranks(values) - 0.5) / max(1, int(np.isfinite(values).sum()))


def correlation(first: Values, second: Values) -> float:
    """Spearman's correlation of two columns of ranks, over the units that have both; NaN where undefined."""
    if first.shape != second.shape:
        return math.nan
    both = np.isfinite(first) & np.isfinite(second)
    if not both.all():
        first, second = ranks(first[both]), ranks(second[both])
    if len(first) < 2:
        return math.nan
    first, second = first - first.mean(), second - second.mean()
    scale = math.sqrt(float(first @ first) * float(second @ second))
    return max(-1.0, min(1.0, float(first @ second) / scale)) if scale > 0 else math.nan


def agreement(columns: Sequence[Values]) -> Values:
    """Spearman's correlation of every two columns."""
    ranked = [ranks(column) for column in columns]
    found = np.full((len(columns), len(columns)), np.nan)
    for i, first in enumerate(ranked):
        for j, second in enumerate(ranked[: i + 1]):
            found[i, j] = found[j, i] = correlation(first, second)
    return found


def mean_agreement(layers: Sequence[Sequence[Values]]) -> Values:
    """Agreement inside each layer, averaged over the layers where it is defined."""
    found = np.stack([agreement(columns) for columns in layers])
    defined = np.isfinite(found)
    total, layers_defined = np.where(defined, found, 0.0).sum(axis=0), defined.sum(axis=0)
    return np.where(layers_defined > 0, total / np.maximum(1, layers_defined), np.nan)


def level(percentile: float) -> str:
    """``s0`` (lowest eighth) … ``s7``; ``sx`` without a rank."""
    return level_class(percentile, _BORDERS)


@dataclass(frozen=True, slots=True, kw_only=True)
class RankRow:
    """One layer of a map: percentiles of its cells, and what each says when pointed at."""

    label: str
    cells: Values
    titles: tuple[str, ...] = ()


def units_per_cell(layers: Sequence[Values]) -> int:
    """How many neighbouring channels share a cell, so that the widest layer has ``STRIP_CELLS`` at most."""
    return max(1, math.ceil(max((len(layer) for layer in layers), default=0) / STRIP_CELLS))


def binned(values: Values, per_cell: int) -> Values:
    """Means of ``per_cell`` neighbours, over those that are numbers."""
    if per_cell == 1:
        return values
    starts = np.arange(0, len(values), per_cell)
    if not len(starts):
        return values
    usable = np.isfinite(values)
    total = np.add.reduceat(np.where(usable, values, 0.0), starts)
    counted = np.add.reduceat(usable.astype(np.float64), starts)
    return np.where(counted > 0, total / np.maximum(1.0, counted), np.nan)


def rank_map(rows: Sequence[RankRow], *, unit: str, units: int, label: str) -> Markup:
    """One row per layer, one cell per unit (or per few neighbours, without gaps between cells)."""
    columns = max(1, max((len(row.cells) for row in rows), default=0))
    tall, top = _row_height(len(rows)), 2.0
    base = top + tall * len(rows)
    cells = sum(len(row.cells) for row in rows)
    titled = cells <= MAX_TITLED_CELLS and all(len(row.titles) == len(row.cells) for row in rows)
    body = _titled(rows, columns, top, tall) if titled else [_merged(rows, columns, top, tall, base)]
    ends = [text(f"{unit} 0" if units > 1 else f"{unit} 0, the only one", "0%", base + 15, "start")]
    if units > 1:
        ends.append(text(fmt.integer(units - 1), "100%", base + 15, "end"))
    return frame(base + 20, *_labels(rows, top, tall), *body, *ends, label=label)


def _row_height(rows: int) -> float:
    return min(_TALL_ROW, max(4.0, _MAP_HEIGHT / max(1, rows)))


def _labels(rows: Sequence[RankRow], top: float, tall: float) -> list[Markup]:
    """Layer numbers, as many as there is room for."""
    every = math.ceil(_LINE_HEIGHT / tall)
    return [
        text(row.label, "0", top + tall * (index + 0.5) + 4, "end", dx=-8)
        for index, row in enumerate(rows)
        if index % every == 0
    ]


def _titled(rows: Sequence[RankRow], columns: int, top: float, tall: float) -> list[Markup]:
    width = 100 / columns
    return [
        tag(
            "rect",
            tag("title", title),
            x=percent(width * (column + 0.04)),
            y=top + tall * index + 0.5,
            width=percent(0.92 * width),
            height=tall - 1,
            class_=f"cell {level(value)}",
        )
        for index, row in enumerate(rows)
        for column, (value, title) in enumerate(zip(row.cells.tolist(), row.titles, strict=True))
    ]


def _merged(rows: Sequence[RankRow], columns: int, top: float, tall: float, base: float) -> Markup:
    """One path per level. Few cells stand apart; many touch, and runs of one level are one box."""
    width = CURVE_WIDTH / columns
    apart = columns <= STRIP_CELLS // 2
    gap = 0.08 * width if apart else 0.0
    paths: defaultdict[str, list[str]] = defaultdict(list)
    for index, row in enumerate(rows):
        levels = [level(value) for value in row.cells.tolist()]
        start = 0
        for column, name in enumerate(levels):
            following = levels[column + 1] if column + 1 < len(levels) else None
            if not apart and following == name:
                continue
            wide = number(width * (column + 1 - start) - gap)
            corner = f"M{number(width * start + gap / 2)} {number(tall * index + 0.5)}"
            paths[name].append(f"{corner}h{wide}v{number(tall - 1)}h-{wide}z")
            start = column + 1
    drawn = ((f"cell {name}", "".join(data)) for name, data in sorted(paths.items()))
    return stretched(top, base - top, *drawn)


def spreads(layers: Sequence[Values]) -> Values:
    """The ``PERCENTILES`` of each layer's finite scores, a row of NaN where there are none."""
    found = np.full((len(layers), len(PERCENTILES)), np.nan)
    for index, layer in enumerate(layers):
        usable = layer[np.isfinite(layer)]
        if len(usable):
            found[index] = np.percentile(usable, PERCENTILES)
    return found


@dataclass(frozen=True, slots=True, kw_only=True)
class Axis:
    """Score → horizontal position in percent. ``marks`` are labelled grid lines.

    ``bend`` is 0 on a linear and on a logarithmic axis; else the axis is linear up to about ``±bend`` and
    logarithmic beyond, on both sides.
    """

    low: float
    high: float
    log: bool
    marks: tuple[tuple[float, str], ...]
    bend: float = 0.0

    def __call__(self, value: float) -> float:
        low, high = self._map(self.low), self._map(self.high)
        return 100 * (self._map(min(max(value, self.low), self.high)) - low) / (high - low)

    def _map(self, value: float) -> float:
        if self.log:
            return math.log(value)
        return math.asinh(value / self.bend) if self.bend else value

    @property
    def title(self) -> str:
        if self.bend:
            return "symmetric logarithmic axis"
        return "logarithmic axis" if self.log else "linear axis"


def axis_of(points: Values) -> Axis:
    """An axis that shows the differences of most points.

    Logarithmic where nothing drawn is negative (zeros then sit at the left edge); else linear, or linear only
    around 0 where magnitudes differ widely.
    """
    usable = np.clip(points[np.isfinite(points)], -1 / _TINY, 1 / _TINY)
    positive = usable[usable > _TINY]
    if len(positive) and usable.min() >= 0:
        top = float(positive.max())
        low, high = max(float(positive.min()), top * 10.0**-_DECADES) / 1.15, top * 1.15
        return Axis(low=low, high=high, log=True, marks=_log_marks(low, high))
    sizes = np.abs(usable)[np.abs(usable) > _TINY]
    if len(sizes) and sizes.max() > _WIDE * np.median(sizes):
        bend = max(float(np.median(sizes)), float(sizes.max()) * 10.0**-_DECADES)
        low, high = min(0.0, 1.15 * float(usable.min())), max(0.0, 1.15 * float(usable.max()))
        return Axis(low=low, high=high, log=False, marks=_bent_marks(low, high, bend), bend=bend)
    low, high = padded(usable.tolist(), 0.03)
    found = ticks(low, high, 3)
    step = found[1] - found[0] if len(found) > 1 else 1.0
    plain = 1e-4 <= step < 1e6
    marks = tuple((m, tick_label(m, step) if plain else fmt.significant(m, 2)) for m in found)
    return Axis(low=low, high=high, log=False, marks=marks)


def _bent_marks(low: float, high: float, bend: float) -> tuple[tuple[float, str], ...]:
    """0, and on either side two powers of ten at most."""
    first, last = math.ceil(math.log10(bend)), math.floor(math.log10(max(-low, high)))
    powers = [power for power in dict.fromkeys((last, (first + last) // 2)) if power >= first]
    right = [(10.0**power, _power(power)) for power in powers]
    left = [(-value, fmt.MINUS + name) for value, name in right]
    return tuple((value, name) for value, name in ((0.0, "0"), *right, *left) if low <= value <= high)


def _log_marks(low: float, high: float) -> tuple[tuple[float, str], ...]:
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    powers = [decade for decade in decades if low <= 10.0**decade <= high]
    if len(powers) >= 2:
        every = math.ceil(len(powers) / 5)
        return tuple((10.0**power, _power(power)) for power in powers[::every])
    steps = (1, 2, 5) if high / low > 2.5 else (1, 1.2, 1.5, 2, 3, 4, 5, 6, 7, 8, 9)
    marks = [m * 10.0**decade for decade in decades for m in steps if low <= m * 10.0**decade <= high]
    every = max(1, math.ceil(len(marks) / 4))
    return tuple((mark, fmt.significant(mark, 2)) for mark in marks[::every])


def _power(power: int) -> str:
    plain = {-2: "0.01", -1: "0.1", 0: "1", 1: "10", 2: "100", 3: "1,000"}
    return plain.get(power, "10" + str(power).translate(_SUPERSCRIPTS))


def distribution(spread: Values, medians: Values, labels: Sequence[str], *, axis: Axis, label: str) -> Markup:
    """Per layer a line from the 1st to the 99th percentile, a box over the middle half, a tick at the median.

    ``medians`` are the layers' median percentiles within the model: the colour of the box.
    """
    rows = [RankRow(label=name, cells=np.empty(0)) for name in labels]
    tall, top = _row_height(len(rows)), 2.0
    base = top + tall * len(rows)
    parts = _labels(rows, top, tall)
    for mark, name in axis.marks:
        at = percent(axis(mark))
        parts.append(tag("line", x1=at, x2=at, y1=top, y2=base, class_="grid"))
        parts.append(text(name, at, base + 15))
    for index, (row, median) in enumerate(zip(spread.tolist(), medians.tolist(), strict=True)):
        parts += _spread(row, level(median), labels[index], axis, top + tall * index, tall)
    return frame(base + 20, *parts, label=label)


def _spread(
    row: Sequence[float], colour: str, name: str, axis: Axis, top: float, tall: float
) -> list[Markup]:
    middle = top + tall / 2
    if not all(map(math.isfinite, row)):
        return [text("no finite score", "2%", middle + 4, "start")]
    low, quarter, half, three, high = map(axis, row)
    told = ", ".join(f"{p} %: {fmt.significant(v)}" for p, v in zip(PERCENTILES, row, strict=True))
    title = tag("title", f"layer {name}: {told}")
    # A box thinner than a pixel would vanish where a layer's scores are equal.
    wide = max(0.3, three - quarter)
    inset = min(2.5, tall / 5)
    return [
        tag("line", title, x1=percent(low), x2=percent(high), y1=middle, y2=middle, class_="reach"),
        tag(
            "rect",
            title,
            x=percent(quarter),
            y=top + inset,
            width=percent(wide),
            height=tall - 2 * inset,
            class_=f"half {colour}",
        ),
        tag("line", x1=percent(half), x2=percent(half), y1=top + 1, y2=top + tall - 1, class_="median"),
    ]
