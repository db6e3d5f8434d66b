"""The report's charts as inline SVG strings; colours come from the page's CSS classes."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from cascade_ops.results import LayerScores, Metric
from workflows.report import format as fmt
from workflows.report.heatmap import level_class
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

_LOG_SPAN = 20.0
_CURVE_BINS = 240


@dataclass(frozen=True, slots=True, kw_only=True)
class StagePoint:
    """One column of the stage chart: what is left, and the metric after the cut and after recovery."""

    title: str
    subtitle: str
    params: int
    cut: Metric | None
    recovered: Metric


def stage_chart(points: Sequence[StagePoint], style: fmt.MetricStyle) -> Markup:
    """Metric (above) and backbone parameters (below), one column per stage."""
    top, metric_height, gap, bar_height = 26.0, 230.0, 38.0, 110.0
    base = top + metric_height + gap + bar_height
    y = _metric_scale(points, top, metric_height)
    column = 100 / len(points)
    parts = [*_metric_grid(y, style), *_links(points, y, column)]
    for index, point in enumerate(points):
        centre = column * (index + 0.5)
        if point.cut is not None:
            above = _value(point.cut) > _value(point.recovered)
            parts += _estimate(point.cut, centre - 0.2 * column, y, style, "cut", above=above)
            parts += _estimate(point.recovered, centre + 0.2 * column, y, style, "final", above=not above)
        else:
            parts += _estimate(point.recovered, centre, y, style, "dense", above=True)
        before = points[index - 1].params if index else point.params
        parts += _bar(point.params, before, points[0].params, centre, column, base, bar_height)
        parts.append(text(point.title, percent(centre), base + 20, class_="tick strong"))
        parts.append(text(point.subtitle, percent(centre), base + 36))
    parts.append(tag("line", x1="0%", x2="100%", y1=base, y2=base, class_="axis"))
    spoken = "; ".join(
        f"{p.title}: {fmt.integer(p.params)} backbone parameters, "
        + (f"{style.title} {style.value(p.cut.value)} after the cut and " if p.cut else "")
        + f"{style.value(p.recovered.value)}{' after recovery' if p.cut else ''}"
        for p in points
    )
    return frame(base + 42, *parts, label=f"Stages. {spoken}", min_width=58 * len(points))


@dataclass(frozen=True, slots=True)
class _Scale:
    """Value → vertical pixel, linear or logarithmic; ``marks`` are the values that get a grid line."""

    low: float
    high: float
    top: float
    height: float
    log: bool
    marks: tuple[float, ...]
    step: float

    def __call__(self, value: float) -> float:
        if not math.isfinite(value):
            return self.top
        share = (self._map(value) - self._map(self.low)) / (self._map(self.high) - self._map(self.low))
        return self.top + self.height * (1 - min(1.0, max(0.0, share)))

    def _map(self, value: float) -> float:
        return math.log10(max(value, 1e-12)) if self.log else value


def _metric_scale(points: Sequence[StagePoint], top: float, height: float) -> _Scale:
    metrics = [m for p in points for m in (p.cut, p.recovered) if m is not None]
    values = finite(v for m in metrics for v in (m.value, m.low, m.high))
    positive = bool(values) and min(values) > 0
    # A perplexity can grow a thousandfold between cut and recovery; a linear axis would hide the rest.
    if positive and max(values) / min(values) > _LOG_SPAN:
        low, high = min(values) / 1.3, max(values) * 1.3
        decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
        marks = tuple(m * 10.0**d for d in decades for m in (1, 3) if low <= m * 10.0**d <= high)
        return _Scale(low, high, top, height, True, marks, 0.0)
    low, high = padded(values, 0.12)
    found = ticks(low, high)
    step = found[1] - found[0] if len(found) > 1 else 1.0
    return _Scale(low, high, top, height, False, tuple(found), step)


def _metric_grid(y: _Scale, style: fmt.MetricStyle) -> list[Markup]:
    parts = []
    for mark in y.marks:
        if style.as_percent:
            label = f"{tick_label(100 * mark, 100 * y.step)}\u00a0%"
        else:
            label = fmt.significant(mark) if y.log else tick_label(mark, y.step)
        parts.append(tag("line", x1="0%", x2="100%", y1=y(mark), y2=y(mark), class_="grid"))
        parts.append(text(label, "0", y(mark) + 4, "end", dx=-8))
    return parts


def _links(points: Sequence[StagePoint], y: _Scale, column: float) -> list[Markup]:
    """Dashed down the cut, solid up the recovery."""
    parts, previous = [], (0.5 * column, y(points[0].recovered.value))
    for index, point in enumerate(points):
        if point.cut is None:
            continue
        centre = column * (index + 0.5)
        cut = (centre - 0.2 * column, y(point.cut.value))
        recovered = (centre + 0.2 * column, y(point.recovered.value))
        for (x1, y1), (x2, y2), name in ((previous, cut, "fall"), (cut, recovered, "rise")):
            parts.append(tag("line", x1=percent(x1), y1=y1, x2=percent(x2), y2=y2, class_=f"link {name}"))
        previous = recovered
    return parts


def _value(metric: Metric) -> float:
    return metric.value if math.isfinite(metric.value) else math.inf


def _estimate(
    metric: Metric, x: float, y: _Scale, style: fmt.MetricStyle, name: str, *, above: bool
) -> list[Markup]:
    """A marker with its interval and its value."""
    at, middle = percent(x), y(metric.value)
    low, high = middle, middle
    drawn = []
    if math.isfinite(metric.low) and math.isfinite(metric.high):
        low, high = y(metric.low), y(metric.high)
        reach = f"M0 {number(low)}V{number(high)}M-6 {number(low)}h12M-6 {number(high)}h12"
        drawn.append(tag("path", d=reach, class_=f"whisker {name}"))
    title = tag("title", f"{style.value(metric.value)}, 95 % CI {style.interval(metric.low, metric.high)}")
    drawn.append(tag("circle", title, cx=0, cy=middle, r=3.5, class_=f"dot {name}"))
    # Inside its own <svg> a marker can mix a position in percent with a shape in pixels.
    parts = [tag("svg", *drawn, x=at, y=0, width=1, height=1)]
    where = min(high, middle) - 10 if above else max(low, middle) + 18
    parts.append(text(style.value(metric.value), at, where, class_="tick value"))
    return parts


def _bar(
    params: int, before: int, dense: int, centre: float, column: float, base: float, height: float
) -> list[Markup]:
    width, left = 0.56 * column, percent(centre - 0.28 * column)
    tall, was = height * params / max(1, dense), height * before / max(1, dense)
    parts = []
    if was > tall:
        parts.append(
            tag("rect", x=left, y=base - was, width=percent(width), height=was - tall, class_="hollow")
        )
    parts.append(tag("rect", x=left, y=base - tall, width=percent(width), height=tall, class_="bar"))
    label = fmt.count(params) if params == before else fmt.factor(dense / max(1, params))
    parts.append(text(label, percent(centre), base - max(tall, was) - 6, class_="tick value"))
    return parts


def layer_bars(layers: Sequence[LayerScores], borders: Sequence[float]) -> Markup:
    """One bar per layer; a removed layer's bar is hollow and crossed out."""
    scores = [layer.scores[0] if layer.scores else math.nan for layer in layers]
    usable = finite(scores)
    high, low = max([0.0, *usable]), min([0.0, *usable])
    span, top, height = (high - low) or 1.0, 22.0, 130.0
    column = 100 / max(1, len(layers))
    zero = top + height * high / span
    parts = [tag("line", x1="0%", x2="100%", y1=zero, y2=zero, class_="axis")]
    for index, (layer, score) in enumerate(zip(layers, scores, strict=True)):
        centre = column * (index + 0.5)
        state = "kept" if layer.kept else "removed"
        end = zero - height * (score if math.isfinite(score) else 0.0) / span
        bar_top, bar_bottom = min(zero, end), max(zero, end)
        title = tag("title", f"layer {layer.source}: {state}, score {fmt.significant(score)}")
        parts.append(
            tag(
                "rect",
                title,
                x=percent(centre - 0.34 * column),
                width=percent(0.68 * column),
                y=bar_top,
                height=max(2.0, bar_bottom - bar_top),
                class_=f"kept {level_class(score, borders)}" if layer.kept else "hollow removed",
            )
        )
        if not layer.kept:
            parts.append(text("✕", percent(centre), bar_top - 6, class_="tick cross"))
        elif len(layers) <= 16:
            parts.append(text(fmt.significant(score, 2), percent(centre), bar_top - 6, class_="tick value"))
        parts.append(text(str(layer.source), percent(centre), top + height + 16))
    gone = [str(layer.source) for layer in layers if not layer.kept]
    label = f"Layer scores; removed: {', '.join(gone) or 'none'}"
    return frame(top + height + 22, *parts, label=label, min_width=22 * len(layers))


def loss_curve(losses: Sequence[float], label: str) -> Markup | None:
    """Mean loss over a few steps at a time, with the range in between; None without a finite loss."""
    if not finite(losses):
        return None
    top, height = 8.0, 110.0
    size = math.ceil(len(losses) / _CURVE_BINS)
    chunks = [finite(losses[i : i + size]) for i in range(0, len(losses), size)]
    low, high = padded([v for chunk in chunks for v in chunk], 0.05)
    y = _linear(low, high, height)
    xs = [CURVE_WIDTH * (i + 0.5) / len(chunks) for i in range(len(chunks))]
    means = polyline((x, y(sum(c) / len(c))) if c else None for x, c in zip(xs, chunks, strict=True))
    filled = [(x, min(c), max(c)) for x, c in zip(xs, chunks, strict=True) if c]
    band = polyline([(x, y(most)) for x, _, most in filled] + [(x, y(least)) for x, least, _ in filled[::-1]])
    marks = ticks(low, high, 3)
    step = marks[1] - marks[0] if len(marks) > 1 else 1.0
    parts: list[Markup] = []
    for mark in marks:
        at = top + y(mark)
        parts.append(tag("line", x1="0%", x2="100%", y1=at, y2=at, class_="grid"))
        parts.append(text(tick_label(mark, step), "0", at + 4, "end", dx=-8))
    parts.append(stretched(top, height, ("band", band + "Z"), ("curve final", means)))
    parts.append(text("step 1", "0%", top + height + 16, "start"))
    parts.append(text(f"step {fmt.integer(len(losses))}", "100%", top + height + 16, "end"))
    return frame(top + height + 22, *parts, label=label)


def _linear(low: float, high: float, height: float) -> Callable[[float], float]:
    return lambda value: height * (1 - (value - low) / (high - low))


def swatches() -> Markup:
    """The legend's colour ramp, lowest to highest."""
    boxes = (tag("rect", x=14 * i, y=0, width=12, height=12, rx=2, class_=f"kept s{i}") for i in range(8))
    return tag("svg", *boxes, class_="ramp", viewBox="0 0 110 12", width=110, height=12, aria_hidden="true")


def key_square(kind: str) -> Markup:
    """The legend's cell: ``kept``, ``removed`` or ``share``."""
    if kind == "kept":
        body = [tag("rect", x=1, y=1, width=12, height=12, rx=2, class_="kept s6")]
    elif kind == "removed":
        body = [
            tag("rect", x=1, y=1, width=12, height=12, rx=2, class_="hollow"),
            tag("rect", x=5, y=5, width=4, height=4, rx=1, class_="removed s6"),
        ]
    else:
        body = [
            tag("rect", x=1, y=1, width=12, height=12, rx=2, class_="hollow"),
            tag("rect", x=1, y=8, width=12, height=5, class_="kept s6"),
        ]
    return tag("svg", *body, class_="key", viewBox="0 0 14 14", width=14, height=14, aria_hidden="true")


def dot_key(name: str) -> Markup:
    """The legend's marker for a stage chart series."""
    dot = tag("circle", cx=number(7), cy=number(7), r=5, class_=f"dot {name}")
    return tag("svg", dot, class_="key", viewBox="0 0 14 14", width=14, height=14, aria_hidden="true")
