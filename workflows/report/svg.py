"""Just enough SVG: escaped tags, number formatting, ticks.

Charts take their horizontal positions in percent and their vertical ones in pixels. That way a chart
follows the width of the page while its text keeps the reader's size. Curves cannot be given in percent;
they sit in a nested ``<svg>`` that stretches, with strokes that do not.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from markupsafe import Markup, escape

CURVE_WIDTH = 1000


def number(value: float) -> str:
    """At most two decimals: below what a screen resolves, and short in the file."""
    text = f"{value:.2f}".rstrip("0").rstrip(".")
    return "0" if text in ("-0", "") else text


def tag(name: str, *children: str, **attributes: str | float | None) -> Markup:
    """One element. Children that are not ``Markup`` are escaped; ``class_`` becomes ``class``, other
    underscores hyphens; attributes that are None are left out."""
    parts = [f"<{name}"]
    for key, value in attributes.items():
        if value is not None:
            text = value if isinstance(value, str) else number(value)
            parts.append(f' {key.rstrip("_").replace("_", "-")}="{escape(text)}"')
    inner = "".join(escape(child) for child in children)
    parts.append(f">{inner}</{name}>" if inner else "/>")
    return Markup("".join(parts))  # every part above is escaped


def percent(value: float) -> str:
    return f"{number(value)}%"


def frame(height: float, *children: str, label: str, class_: str = "chart", min_width: int = 0) -> Markup:
    """The outer ``<svg>``: full width, a fixed height, one spoken description."""
    return tag(
        "svg",
        *children,
        class_=class_,
        width="100%",
        height=height,
        role="img",
        aria_label=label,
        style=f"min-width:{min_width}px" if min_width else None,
    )


def text(
    content: str, x: str, y: float, anchor: str = "middle", class_: str = "tick", dx: float = 0
) -> Markup:
    return tag("text", content, x=x, y=y, dx=dx or None, text_anchor=anchor, class_=class_)


def stretched(top: float, height: float, *paths: tuple[str, str]) -> Markup:
    """Curves given as (class, path data) in a ``CURVE_WIDTH`` × ``height`` space, over the full width."""
    return tag(
        "svg",
        *(tag("path", d=data, class_=class_, vector_effect="non-scaling-stroke") for class_, data in paths),
        x=0,
        y=top,
        width="100%",
        height=height,
        viewBox=f"0 0 {CURVE_WIDTH} {number(height)}",
        preserveAspectRatio="none",
    )


def polyline(points: Iterable[tuple[float, float] | None]) -> str:
    """Path data through the points; None lifts the pen."""
    parts, pen_down = [], False
    for point in points:
        if point is None:
            pen_down = False
            continue
        parts.append(f"{'L' if pen_down else 'M'}{number(point[0])} {number(point[1])}")
        pen_down = True
    return "".join(parts)


def finite(values: Iterable[float]) -> list[float]:
    return [value for value in values if math.isfinite(value)]


def padded(values: Sequence[float], share: float = 0.08) -> tuple[float, float]:
    """A domain a little wider than the values; (0, 1) when there are none."""
    usable = finite(values)
    if not usable:
        return 0.0, 1.0
    low, high = min(usable), max(usable)
    pad = (high - low) * share or abs(high) * share or 1.0
    return low - pad, high + pad


def ticks(low: float, high: float, wanted: int = 4) -> list[float]:
    """Round values (1, 2 or 5 times a power of ten) inside [low, high]."""
    if not high > low:
        return [low]
    raw = (high - low) / wanted
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * m for m in (1, 2, 5, 10) if power * m >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [index * step for index in range(first, last + 1)]


def tick_label(value: float, step: float) -> str:
    """A tick with just the decimals that its step needs."""
    decimals = max(0, -math.floor(math.log10(step) + 1e-9)) if step > 0 else 0
    return f"{value:,.{decimals}f}".replace("-", "\u2212")
