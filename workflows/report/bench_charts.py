"""The pictures of a benchmark: latency against load, bars per engine, accuracy against latency and size."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from workflows.report import format as fmt
from workflows.report.search_charts import steps
from workflows.report.svg import (
    CURVE_WIDTH,
    finite,
    frame,
    number,
    padded,
    percent,
    polyline,
    stretched,
    tag,
    text,
    tick_label,
    ticks,
)

HEIGHT, TOP = 250.0, 24.0
ROW, GROUP = 24.0, 30.0
LABELS, BARS = 26.0, 52.0
"""Percent of the width: where bars begin, and how long the longest is."""
SHAPES = (
    "M-4.5 0a4.5 4.5 0 1 0 9 0a4.5 4.5 0 1 0-9 0Z",
    "M-4.2-4.2H4.2V4.2H-4.2Z",
    "M0-6L6 0L0 6L-6 0Z",
    "M0-5.5L5.5 4.5H-5.5Z",
    "M0 5.5L5.5-4.5H-5.5Z",
    "M-2-5.5H2V-2H5.5V2H2V5.5H-2V2H-5.5V-2H-2Z",
)
"""A variant's mark: what colour says is said by form too."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Spot:
    """A latency at a load; ``failed``: not every request was answered."""

    x: float
    ms: float | None
    told: str
    failed: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Series:
    """One percentile of one variant; ``index`` chooses colour and mark, ``dashed`` the line."""

    index: int
    dashed: bool
    spots: tuple[Spot, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Mark:
    """A vertical line at a load: a variant's capacity."""

    index: int
    x: float
    name: str


def load_chart(
    series: Sequence[Series],
    *,
    labels: Sequence[tuple[float, str]],
    x_name: str,
    objective_ms: float,
    marks: Sequence[Mark] = (),
    label: str,
) -> Markup:
    """Latency on a logarithmic scale; ``x`` and the places of ``labels`` are shares of the width."""
    values = finite(spot.ms for one in series for spot in one.spots if spot.ms is not None)
    low, high = _decades([*values, *([objective_ms] if _near(objective_ms, values) else [])])
    top = TOP + 16 * len(marks)

    def y(value: float) -> float:
        share = (math.log(value) - math.log(low)) / (math.log(high) - math.log(low))
        return top + HEIGHT * (1 - min(1.0, max(0.0, share)))

    parts = [text("latency, ms", "0", 10, "start", "tick strong", dx=-44)]
    for mark in _log_ticks(low, high):
        parts.append(tag("line", x1="0%", x2="100%", y1=y(mark), y2=y(mark), class_="grid"))
        parts.append(text(fmt.significant(mark, 1), "0", y(mark) + 4, "end", dx=-8))
    parts += [text(name, percent(100 * x), top + HEIGHT + 18) for x, name in labels]
    parts.append(text(x_name, "100%", top + HEIGHT + 38, "end", "tick strong"))
    for place, one in enumerate(marks):
        x, above = percent(100 * one.x), TOP + 16 * place
        parts.append(tag("line", x1=x, x2=x, y1=above, y2=top + HEIGHT, class_=f"capacity v{one.index}"))
        side, dx = ("end", -5) if one.x > 0.5 else ("start", 5)
        parts.append(text(f"capacity of {one.name}", x, above + 8, side, "tick value", dx=dx))
    if low <= objective_ms <= high:
        at = y(objective_ms)
        parts.append(tag("line", x1="0%", x2="100%", y1=at, y2=at, class_="mark wanted"))
    parts.append(stretched(top, HEIGHT, *(_line(one, y, top) for one in series)))
    if low <= objective_ms <= high:
        at = y(objective_ms) - 6
        parts.append(text(f"objective {objective_ms:g} ms", "0", at, "start", "tick value", dx=4))
    parts += [_spot(one.index, spot, y) for one in series for spot in one.spots if spot.ms is not None]
    return frame(top + HEIGHT + 44, *parts, label=label)


def _line(one: Series, y: Callable[[float], float], top: float) -> tuple[str, str]:
    points = [None if s.ms is None else (CURVE_WIDTH * s.x, y(s.ms) - top) for s in one.spots]
    return f"curve v v{one.index}{' dashed' if one.dashed else ''}", polyline(points)


def _spot(index: int, spot: Spot, y: Callable[[float], float]) -> Markup:
    assert spot.ms is not None
    state = "point failed" if spot.failed else "point"
    shape = tag("path", tag("title", spot.told), d=SHAPES[index % len(SHAPES)], class_=f"{state} v{index}")
    return tag("svg", shape, x=percent(100 * spot.x), y=y(spot.ms), width=1, height=1)


def _near(value: float, others: Sequence[float]) -> bool:
    """Worth a line: not so far away that it would press the rest together."""
    return bool(others) and min(others) / 4 <= value <= 4 * max(others)


def _decades(values: Sequence[float]) -> tuple[float, float]:
    usable = [value for value in finite(values) if value > 0]
    if not usable:
        return 1.0, 10.0
    low, high = min(usable) / 1.25, max(usable) * 1.25
    return low, max(high, 3 * low)


def _log_ticks(low: float, high: float) -> list[float]:
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    steps_of = (1, 2, 5) if high / low < 200 else (1,)
    return [m * 10.0**p for p in powers for m in steps_of if low <= m * 10.0**p <= high]


@dataclass(frozen=True, slots=True, kw_only=True)
class Bar:
    """One variant's bar within a group; ``reach`` is what lies between two percentiles."""

    index: int
    name: str
    value: float
    shown: str
    reach: tuple[float, float] | None = None


def bars(groups: Sequence[tuple[str, Sequence[Bar]]], *, label: str) -> Markup:
    """Bars from zero, one group for each engine."""
    most = max((max((bar.value, *(bar.reach or ()))) for _, group in groups for bar in group), default=1.0)
    scale = BARS / (most or 1.0)
    parts: list[Markup] = []
    top = 0.0
    for title, group in groups:
        parts.append(text(title, "0%", top + 18, "start", "tick strong"))
        top += GROUP
        for bar in group:
            parts += _bar(bar, top, scale)
            top += ROW
        top += 6
    spoken = "; ".join(f"{title}, {bar.name}: {bar.shown}" for title, group in groups for bar in group)
    return frame(top + 2, *parts, label=f"{label}. {spoken}")


def _bar(bar: Bar, top: float, scale: float) -> list[Markup]:
    long = scale * bar.value
    parts = [
        text(bar.name, "0%", top + 12, "start"),
        tag(
            "rect",
            tag("title", f"{bar.name}: {bar.shown}"),
            x=percent(LABELS),
            y=top,
            width=percent(max(0.3, long)),
            height=ROW - 8,
            class_=f"fill v{bar.index}",
        ),
    ]
    end = long
    if bar.reach is not None:
        low, high = (LABELS + scale * value for value in bar.reach)
        middle, end = top + (ROW - 8) / 2, max(long, high - LABELS)
        parts.append(tag("line", x1=percent(low), x2=percent(high), y1=middle, y2=middle, class_="reach"))
        parts += [
            tag("line", x1=percent(x), x2=percent(x), y1=middle - 4, y2=middle + 4, class_="reach")
            for x in (low, high)
        ]
    parts.append(text(bar.shown, percent(LABELS + end), top + 12, "start", "tick value", dx=6))
    return parts


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """A variant (its colour) on an engine (its mark): its metric with its interval against a cost."""

    index: int
    mark: int
    cost: float
    value: float
    low: float
    high: float
    told: str


def tradeoff(choices: Sequence[Choice], *, x_name: str, y_name: str, style: fmt.MetricStyle) -> Markup:
    """The metric over a cost on a logarithmic scale; the stair passes through what none beats in both."""
    x_low, x_high = _decades([choice.cost for choice in choices])
    x_low, x_high = x_low / 1.3, x_high * 1.3
    edges = [edge for choice in choices for edge in (choice.low, choice.value, choice.high)]
    y_low, y_high = padded(edges, 0.12)

    def across(value: float) -> float:
        return (math.log(value) - math.log(x_low)) / (math.log(x_high) - math.log(x_low))

    def down(value: float) -> float:
        return TOP + HEIGHT * (1 - (value - y_low) / (y_high - y_low))

    parts = [text(y_name, "0", 10, "start", "tick strong", dx=-44)]
    found = ticks(y_low, y_high, 4)
    for mark in found:
        step = found[1] - found[0] if len(found) > 1 else 1.0
        named = f"{tick_label(100 * mark, 100 * step)}\u00a0%" if style.as_percent else tick_label(mark, step)
        parts.append(tag("line", x1="0%", x2="100%", y1=down(mark), y2=down(mark), class_="grid"))
        parts.append(text(named, "0", down(mark) + 4, "end", dx=-8))
    for mark in _log_ticks(x_low, x_high):
        parts.append(text(fmt.significant(mark, 1), percent(100 * across(mark)), TOP + HEIGHT + 18))
    parts.append(text(x_name, "100%", TOP + HEIGHT + 38, "end", "tick strong"))
    stair = steps(
        [(one.cost, one.value) for one in choices], "min", "max" if style.higher_is_better else "min"
    )
    path = polyline((CURVE_WIDTH * across(x), down(y) - TOP) for x, y in stair)
    parts.append(stretched(TOP, HEIGHT, ("curve front", path)))
    parts += [_choice(one, across(one.cost), down) for one in choices]
    spoken = "; ".join(one.told for one in choices)
    return frame(TOP + HEIGHT + 44, *parts, label=f"{y_name} over {x_name}. {spoken}")


def _choice(choice: Choice, x: float, down: Callable[[float], float]) -> Markup:
    at = down(choice.value)
    drawn = []
    if math.isfinite(choice.low) and math.isfinite(choice.high):
        low, high = number(down(choice.low) - at), number(down(choice.high) - at)
        reach = f"M0 {low}V{high}M-5 {low}h10M-5 {high}h10"
        drawn.append(tag("path", d=reach, class_=f"whisker v v{choice.index}"))
    shape = SHAPES[choice.mark % len(SHAPES)]
    drawn.append(tag("path", tag("title", choice.told), d=shape, class_=f"point v{choice.index}"))
    return tag("svg", *drawn, x=percent(100 * x), y=at, width=1, height=1)


def key(index: int, *, dashed: bool | None = None, failed: bool = False, engine: bool = False) -> Markup:
    """The legend's mark of a variant, of an ``engine``, or a line with ``dashed`` given."""
    if dashed is not None:
        line = tag("line", x1=0, x2=26, y1=7, y2=7, class_=f"curve {'dashed' if dashed else ''} plain")
        return tag("svg", line, class_="key", viewBox="0 0 26 14", width=26, height=14, aria_hidden="true")
    shape = tag(
        "path",
        d=SHAPES[index % len(SHAPES)],
        transform="translate(7 7)",
        class_=f"point{' failed' if failed else ''} {'v5' if engine else f'v{index}'}",
    )
    return tag("svg", shape, class_="key", viewBox="0 0 14 14", width=14, height=14, aria_hidden="true")
