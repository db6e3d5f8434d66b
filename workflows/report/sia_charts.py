"""The pictures of an SIA check: gap against ratio, pairs of units, information by depth."""

from __future__ import annotations

from collections.abc import Sequence

from markupsafe import Markup

from cascade_ops.sia.results import Curve, Depth, Estimate, Interactions
from workflows.report import format as fmt
from workflows.report.svg import (
    CURVE_WIDTH,
    frame,
    number,
    percent,
    polyline,
    stretched,
    tag,
    text,
    tick_label,
    ticks,
)

HEIGHT = 170.0
TOP = 10.0
MOST_GAP = 2.0
CELL = 12


def gap_chart(curves: Sequence[Curve], tau: float) -> Markup:
    """A(r) in each order with its interval; τ as a line, r* of the first as a mark."""
    top = min(MOST_GAP, max([1.0, 1.3 * tau, *(one.value for curve in curves for one in curve.gap)]))

    def y(value: float) -> float:
        return HEIGHT * (1 - min(value, top) / top)

    parts: list[Markup] = []
    marks = ticks(0.0, top, 4)
    for mark in marks:
        at = TOP + y(mark)
        parts.append(tag("line", x1="0%", x2="100%", y1=at, y2=at, class_="grid"))
        parts.append(text(tick_label(mark, marks[1] - marks[0]), "0", at + 4, "end", dx=-8))
    for mark in (0.0, 0.25, 0.5, 0.75, 1.0):
        anchor = "start" if mark == 0 else "end" if mark == 1 else "middle"
        parts.append(text(f"{mark:.0%}", percent(100 * mark), TOP + HEIGHT + 16, anchor))
    paths = []
    for curve, name in zip(curves, ("final", "cut"), strict=False):
        xs = [CURVE_WIDTH * ratio for ratio in curve.ratios]
        if name == "final":
            rising = [(x, y(one.high)) for x, one in zip(xs, curve.gap, strict=True)]
            falling = [(x, y(one.low)) for x, one in zip(xs, curve.gap, strict=True)][::-1]
            paths.append(("band", polyline([*rising, *falling]) + "Z"))
        line = [(0.0, y(0.0)), *((x, y(one.value)) for x, one in zip(xs, curve.gap, strict=True))]
        paths.append((f"curve {'final' if name == 'final' else 'random'}", polyline(line)))
    parts.append(stretched(TOP, HEIGHT, *paths))
    at = TOP + y(tau)
    parts.append(tag("line", x1="0%", x2="100%", y1=at, y2=at, class_="mark wanted"))
    parts.append(text("τ", "100%", at - 5, "end", class_="tick strong"))
    if curves:
        x = percent(100 * curves[0].safe.value)
        parts.append(tag("line", x1=x, x2=x, y1=TOP, y2=TOP + HEIGHT, class_="mark"))
        parts.append(text("r*", x, TOP + 10, "end", class_="tick strong", dx=-4))
    spoken = "; ".join(
        f"{curve.order}: " + ", ".join(_point(curve, i) for i in range(len(curve.ratios))) for curve in curves
    )
    return frame(TOP + HEIGHT + 22, *parts, label=f"Gap by ratio. {spoken}", min_width=280)


def _point(curve: Curve, index: int) -> str:
    return f"{curve.ratios[index]:.0%} {curve.gap[index].value:.2f}"


def pair_map(found: Interactions) -> Markup:
    """|H_ij| off the diagonal, in eight steps of the largest; the diagonal is left open."""
    count = len(found.units)
    most = max(
        (abs(v) for i, row in enumerate(found.matrix) for j, v in enumerate(row) if i != j), default=0.0
    )
    cells = []
    for i, row in enumerate(found.matrix):
        for j, value in enumerate(row):
            box = {"x": CELL * j, "y": CELL * i, "width": CELL - 1.0, "height": CELL - 1.0}
            if i == j:
                cells.append(tag("rect", **box, class_="hollow"))
                continue
            level = min(7, int(8 * abs(value) / most)) if most > 0 else 0
            told = f"{found.labels[i]} with {found.labels[j]}: {fmt.significant(value)}"
            title = (tag("title", told),) if count <= 24 else ()
            cells.append(tag("rect", *title, **box, class_=f"kept s{level}"))
    side = max(1, count) * CELL
    return tag(
        "svg",
        *cells,
        class_="unitmap",
        viewBox=f"0 0 {side} {side}",
        style=f"max-width:{min(560, 2 * side)}px",
        role="img",
        aria_label=f"Second derivatives of the loss by pairs of {count} units; largest {number(most)}",
    )


def strongest(found: Interactions, count: int = 5) -> tuple[tuple[str, str, float], ...]:
    """The pairs with the largest |H_ij|."""
    size = len(found.units)
    pairs = [(i, j) for i in range(size) for j in range(i)]
    pairs.sort(key=lambda pair: -abs(found.matrix[pair[0]][pair[1]]))
    return tuple((found.labels[j], found.labels[i], found.matrix[i][j]) for i, j in pairs[:count])


def depth_chart(depth: Depth) -> Markup:
    """Usable information after each block; the line is H(Y)."""
    low = min(0.0, *depth.information)
    top = max(depth.entropy, *depth.information) * 1.05

    def y(value: float) -> float:
        return TOP + HEIGHT * (1 - (value - low) / (top - low))

    parts: list[Markup] = []
    marks = ticks(low, top, 4)
    for mark in marks:
        parts.append(tag("line", x1="0%", x2="100%", y1=y(mark), y2=y(mark), class_="grid"))
        parts.append(text(tick_label(mark, marks[1] - marks[0]), "0", y(mark) + 4, "end", dx=-8))
    width = 100 / len(depth.information)
    for index, value in enumerate(depth.information):
        title = tag("title", f"after block {index}: {value:.3f} nats")
        parts.append(
            tag(
                "rect",
                title,
                x=percent(width * (index + 0.15)),
                width=percent(width * 0.7),
                y=min(y(value), y(0.0)),
                height=max(1.0, abs(y(0.0) - y(value))),
                class_="bar",
            )
        )
        if len(depth.information) <= 16 or index % 4 == 0:
            parts.append(text(str(index), percent(width * (index + 0.5)), TOP + HEIGHT + 16))
    parts.append(
        tag("line", x1="0%", x2="100%", y1=y(depth.entropy), y2=y(depth.entropy), class_="mark wanted")
    )
    said = ", ".join(f"{value:.2f}" for value in depth.information)
    return frame(TOP + HEIGHT + 22, *parts, label=f"Usable information by block, in nats: {said}")


def interval_text(one: Estimate | None, *, share: bool = False) -> str:
    """``0.37 [0.31, 0.44]``, or as percentages."""
    if one is None:
        return fmt.MISSING
    if share:
        return f"{one.value:.0%} [{one.low:.0%}, {one.high:.0%}]"
    return f"{one.value:.2f} [{one.low:.2f}, {one.high:.2f}]"
