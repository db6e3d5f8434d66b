"""The pictures of a search: trials over two figures, what each trial chose, and which choices mattered."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from markupsafe import Markup

from workflows.report import format as fmt
from workflows.report.svg import (
    CURVE_WIDTH,
    frame,
    padded,
    percent,
    polyline,
    stretched,
    tag,
    text,
    tick_label,
    ticks,
)

if TYPE_CHECKING:
    from workflows.search.record import Mode

HEIGHT, TOP = 260.0, 30.0
AXIS_HEIGHT = 230.0
ROW = 22.0
STEPS = 8
"""Colours of the ramp."""
CROSS, DIAMOND = "M-5-5L5 5M-5 5L5-5", "M0-7L7 0L0 7L-7 0Z"
UNITS = ("layer", "head", "kv_group", "channel")


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """One trial (or the reference, number −1) over two figures. ``kind`` is its mark."""

    number: int
    x: float
    y: float
    kind: str
    told: str


def scatter(
    points: Sequence[Point],
    line: Sequence[tuple[float, float]],
    x_name: str,
    y_name: str,
    level: float | None = None,
) -> Markup:
    """Trials as marks and a line through what is best; the page's script redraws it over other figures.

    The range is that of complete trials; what was stopped outside of it stands at the edge. ``level`` is the
    reference's figure where it has none across.
    """
    core = [point for point in points if point.kind != "pruned"]
    core = core if len(core) > 1 else list(points)
    x_low, x_high = padded([point.x for point in points], 0.04)
    y_low, y_high = padded([*(point.y for point in core), *([] if level is None else [level])], 0.12)

    def across(value: float) -> float:
        return 100 * (value - x_low) / (x_high - x_low)

    def down(value: float) -> float:
        return TOP + HEIGHT * (1 - (min(max(value, y_low), y_high) - y_low) / (y_high - y_low))

    parts: list[Markup] = []
    marks = ticks(y_low, y_high, 5)
    for mark in marks:
        parts.append(tag("line", x1="0%", x2="100%", y1=down(mark), y2=down(mark), class_="grid moving"))
        label = tick_label(mark, marks[-1] - marks[-2] if len(marks) > 1 else 1)
        parts.append(text(label, "0", down(mark) + 4, "end", class_="tick moving", dx=-8))
    marks = ticks(x_low, x_high, 6)
    for mark in marks:
        label = tick_label(mark, marks[-1] - marks[-2] if len(marks) > 1 else 1)
        parts.append(text(label, percent(across(mark)), TOP + HEIGHT + 18, class_="tick moving"))
    parts.append(text(x_name, "100%", TOP + HEIGHT + 38, "end", class_="tick strong xname"))
    parts.append(text(y_name, "0", 12, "start", class_="tick strong yname", dx=-44))
    if level is not None:
        at = down(level)
        parts.append(tag("line", x1="0%", x2="100%", y1=at, y2=at, class_="mark wanted moving"))
    path = polyline([(CURVE_WIDTH * across(x) / 100, down(y) - TOP) for x, y in line])
    parts.append(stretched(TOP, HEIGHT, ("curve final front", path)))
    parts += [_mark(point, across(point.x), down(point.y)) for point in points]
    spoken = "; ".join(point.told for point in points)
    # A group, not an image: its marks can be reached one by one.
    return tag(
        "svg",
        *parts,
        class_="chart scatter",
        width="100%",
        height=TOP + HEIGHT + 44,
        role="group",
        aria_label=f"{y_name} over {x_name}. {spoken}",
    )


def _mark(point: Point, x: float, y: float) -> Markup:
    """A circle, or a shape of its own: what colour says is said by form too."""
    common = {
        "class_": f"trial {point.kind}",
        "data_trial": str(point.number),
        "role": "img",
        "aria_label": point.told,
    }
    title = tag("title", point.told)
    if point.kind in ("beyond", "reference"):
        shape = tag("path", d=CROSS if point.kind == "beyond" else DIAMOND)
        target = tag("circle", r=8, class_="target")
        return tag("svg", title, target, shape, x=percent(x), y=y, width=1, height=1, **common)
    radius = 7.5 if point.kind == "winner" else 5.0
    return tag("circle", title, cx=percent(x), cy=y, r=radius, **common)


def steps(points: Sequence[tuple[float, float]], x_mode: Mode, y_mode: Mode) -> list[tuple[float, float]]:
    """The stair through the points that none beats in both figures, from the best across to the best up."""
    x_sign, y_sign = (1 if mode == "min" else -1 for mode in (x_mode, y_mode))
    line: list[tuple[float, float]] = []
    for x, y in sorted(points, key=lambda one: (x_sign * one[0], y_sign * one[1])):
        if line and y_sign * y >= y_sign * line[-1][1]:
            continue
        if line:
            line.append((x, line[-1][1]))
        line.append((x, y))
    return line


def key_mark(kind: str) -> Markup:
    """The legend's cross or diamond."""
    shape = tag("path", d=CROSS if kind == "beyond" else DIAMOND, transform="translate(7 7) scale(.85)")
    group = tag("g", shape, class_=f"trial {kind}")
    return tag("svg", group, class_="key", viewBox="0 0 14 14", width=14, height=14, aria_hidden="true")


@dataclass(frozen=True, slots=True, kw_only=True)
class Axis:
    """One parameter: its labels from bottom to top, or the ends of its range."""

    name: str
    labels: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One trial: its height on each axis, in 0 … 1 (None: the choice did not arise), and its rank, 0 = best."""

    number: int
    heights: tuple[float | None, ...]
    rank: float
    told: str


def parallel(axes: Sequence[Axis], lines: Sequence[Line]) -> Markup:
    """Each trial as a line over all choices; the best are the darkest and drawn last."""
    count = len(axes)
    places = [100 * (index + 0.5) / count for index in range(count)]
    parts: list[Markup] = []
    paths = []
    for line in sorted(lines, key=lambda one: -one.rank):
        corners = [
            None if height is None else (CURVE_WIDTH * place / 100, AXIS_HEIGHT * (1 - height))
            for place, height in zip(places, line.heights, strict=True)
        ]
        shade = STEPS - 1 - min(STEPS - 1, int(line.rank * STEPS))
        # Axes that do not concern a trial are crossed straight over.
        paths.append((f"choice r{shade} t{line.number}", polyline([one for one in corners if one])))
    parts.append(stretched(TOP, AXIS_HEIGHT, *paths))
    for place, axis in zip(places, axes, strict=True):
        x = percent(place)
        parts.append(tag("line", x1=x, x2=x, y1=TOP, y2=TOP + AXIS_HEIGHT, class_="axis"))
        for index, label in enumerate(axis.labels):
            height = index / (len(axis.labels) - 1) if len(axis.labels) > 1 else 0.5
            parts.append(text(label, x, TOP + AXIS_HEIGHT * (1 - height) + 4, "start", "tick value", dx=5))
        name = text(axis.name, x, TOP + AXIS_HEIGHT + 20, "middle", class_="tick strong")
        parts.append(name)
    spoken = "; ".join(line.told for line in lines)
    width = 130 * count
    return frame(TOP + AXIS_HEIGHT + 28, *parts, label=f"Choices by trial. {spoken}", min_width=width)


def importance_bars(shares: Mapping[str, float]) -> Markup:
    """A bar for each parameter, largest first."""
    ranked = sorted(shares.items(), key=lambda pair: -pair[1])
    parts: list[Markup] = []
    for index, (name, share) in enumerate(ranked):
        y = ROW * index
        parts.append(text(name, "0%", y + 14, "start", class_="tick strong"))
        parts.append(tag("rect", x="42%", y=y + 4, width=percent(46 * share), height=ROW - 9, class_="bar"))
        at = percent(42 + 46 * share)
        parts.append(text(fmt.percent(share, 0), at, y + 14, "start", class_="tick", dx=6))
    spoken = ", ".join(f"{name} {share:.0%}" for name, share in ranked)
    return frame(ROW * len(ranked) + 4, *parts, label=f"Importance of choices: {spoken}")


def axis_of(name: str, values: Sequence[Any]) -> tuple[Axis, dict[Any, float]]:
    """An axis of what was chosen, and the height of each value: numbers to scale, the rest in order."""
    distinct = list(dict.fromkeys(values))  # every value is plain: see ``plain``
    numeric = all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in distinct)
    if numeric and len(distinct) > 4:
        low, high = min(distinct), max(distinct)
        heights = {value: (value - low) / (high - low) for value in distinct}
        return Axis(name=name, labels=(shown(low), shown(high))), heights
    ordered = sorted(distinct) if numeric else sorted(distinct, key=str)
    last = max(1, len(ordered) - 1)
    heights = {value: index / last if len(ordered) > 1 else 0.5 for index, value in enumerate(ordered)}
    return Axis(name=name, labels=tuple(shown(value) for value in ordered)), heights


def plain(value: Any) -> Any:
    """A choice as something that can be compared: a number, or words."""
    if isinstance(value, (list, tuple)):
        return ", ".join(shown(one) for one in value)
    finite_or_word = isinstance(value, str) or (isinstance(value, (int, float)) and math.isfinite(value))
    return value if finite_or_word else shown(value)


def shown(value: Any) -> str:
    """A choice in short; an order of granularities by its initials."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return fmt.significant(value)
    if isinstance(value, (list, tuple)):
        return ", ".join(shown(one) for one in value)
    words = str(value).split()
    ordered = len(words) > 1 and all(word in UNITS for word in words)
    return "›".join(word[0] for word in words) if ordered else str(value)
