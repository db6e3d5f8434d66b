"""Charts of a vibration signal and its envelope spectrum."""

from __future__ import annotations

import bisect
import math
from collections.abc import Sequence

from markupsafe import Markup

from workflows.report import format as fmt
from workflows.report.svg import (
    CURVE_WIDTH,
    finite,
    frame,
    percent,
    polyline,
    stretched,
    tag,
    text,
    tick_label,
    ticks,
)


def waveform_chart(signal: Sequence[float], fs_hz: float) -> Markup:
    """The signal over time; the vertical scale is symmetric about zero."""
    top, height = 6.0, 120.0
    peak = max((abs(v) for v in finite(signal)), default=0.0) or 1.0
    last = max(1, len(signal) - 1)
    path = polyline(
        (CURVE_WIDTH * i / last, height / 2 * (1 - 0.95 * v / peak)) if math.isfinite(v) else None
        for i, v in enumerate(signal)
    )
    milliseconds = 1000 * len(signal) / fs_hz
    parts: list[Markup] = []
    marks = ticks(0, milliseconds, 5)
    step = marks[1] - marks[0] if len(marks) > 1 else 1.0
    for mark in marks:
        at = percent(100 * mark / milliseconds)
        anchor = "start" if mark == 0 else "end" if mark > 0.97 * milliseconds else "middle"
        parts.append(tag("line", x1=at, x2=at, y1=top, y2=top + height, class_="grid"))
        parts.append(text(tick_label(mark, step), at, top + height + 16, anchor))
    parts.append(tag("line", x1="0%", x2="100%", y1=top + height / 2, y2=top + height / 2, class_="axis"))
    parts.append(stretched(top, height, ("curve signal", path)))
    label = f"Vibration signal, {len(signal)} samples over {fmt.significant(milliseconds)} ms"
    return frame(top + height + 22, *parts, label=label)


def spectrum_limit(envelope_hz: Sequence[float], characteristic_hz: dict[str, float]) -> float:
    """The highest frequency worth drawing: three times the highest characteristic one."""
    available = max(finite(envelope_hz), default=1.0)
    marks = finite(characteristic_hz.values())
    return min(available, 3.3 * max(marks)) if marks else available


def spectrum_chart(
    envelope_hz: Sequence[float],
    envelope: Sequence[float],
    characteristic_hz: dict[str, float],
    expected: Sequence[str],
) -> Markup:
    """Envelope spectrum with the characteristic frequencies; the expected ones also show two harmonics."""
    limit = spectrum_limit(envelope_hz, characteristic_hz)
    levels, marks = _mark_levels(characteristic_hz, limit)
    top, height = 10.0 + 16 * levels, 150.0
    shown = [
        (f, a) for f, a in zip(envelope_hz, envelope, strict=True) if f <= limit and math.isfinite(f + a)
    ]
    shown = _peaks(shown, 600)
    peak = max((a for _, a in shown), default=0.0) or 1.0
    path = polyline((CURVE_WIDTH * f / limit, height * (1 - 0.96 * a / peak)) for f, a in shown)
    parts: list[Markup] = []
    found = ticks(0, limit, 5)
    for mark in found:
        at = percent(100 * mark / limit)
        anchor = "start" if mark == 0 else "end" if mark > 0.97 * limit else "middle"
        parts.append(text(tick_label(mark, found[1] if len(found) > 1 else 1), at, top + height + 16, anchor))
    for name, hz, level in marks:
        parts += _frequency(name, hz, limit, 12 + 16 * level, top + height, wanted=name in expected)
    parts.append(stretched(top, height, ("curve signal", path)))
    parts.append(tag("line", x1="0%", x2="100%", y1=top + height, y2=top + height, class_="axis"))
    named = ", ".join(f"{name} {fmt.significant(hz, 4)} Hz" for name, hz in characteristic_hz.items())
    return frame(top + height + 22, *parts, label=f"Envelope spectrum to {limit:.0f} Hz. Marked: {named}")


def _frequency(
    name: str, hz: float, limit: float, label_y: float, bottom: float, *, wanted: bool
) -> list[Markup]:
    kind = "mark wanted" if wanted else "mark"
    at = percent(100 * hz / limit)
    parts = [tag("line", x1=at, x2=at, y1=label_y + 4, y2=bottom, class_=kind)]
    anchor = "start" if hz < 0.06 * limit else "end" if hz > 0.94 * limit else "middle"
    parts.append(text(name, at, label_y, anchor, class_="tick strong" if wanted else "tick"))
    for harmonic in (2, 3):
        if wanted and harmonic * hz <= limit:
            place = percent(100 * harmonic * hz / limit)
            parts.append(tag("line", x1=place, x2=place, y1=label_y + 4, y2=bottom, class_="mark harmonic"))
            parts.append(text(f"{harmonic}×", place, label_y, class_="tick"))
    return parts


def _mark_levels(
    characteristic_hz: dict[str, float], limit: float
) -> tuple[int, list[tuple[str, float, int]]]:
    """Give each label a row of its own where neighbours would overlap on a narrow screen."""
    room = 0.17 * limit
    ends: list[float] = []
    marks = []
    for name, hz in sorted(characteristic_hz.items(), key=lambda item: item[1]):
        if not (math.isfinite(hz) and 0 <= hz <= limit):
            continue
        level = next((i for i, end in enumerate(ends) if hz - end >= room), len(ends))
        ends[level : level + 1] = [hz]
        marks.append((name, hz, level))
    return len(ends), marks


def _peaks(points: Sequence[tuple[float, float]], limit: int) -> list[tuple[float, float]]:
    """Thin a spectrum out by keeping the highest line of each group: peaks must survive."""
    size = math.ceil(len(points) / limit) if points else 1
    return [max(points[i : i + size], key=lambda p: p[1]) for i in range(0, len(points), size)]


def prominence(envelope_hz: Sequence[float], envelope: Sequence[float], hz: float) -> float:
    """Highest envelope line within 2 % (or one bin) of ``hz``, over the median line; NaN where unknown."""
    usable = sorted(
        (f, a) for f, a in zip(envelope_hz, envelope, strict=True) if f > 0 and math.isfinite(f + a)
    )
    if len(usable) < 3 or not math.isfinite(hz):
        return math.nan
    bin_width = usable[1][0] - usable[0][0]
    reach = max(0.02 * hz, bin_width)
    first = bisect.bisect_left(usable, (hz - reach, -math.inf))
    last = bisect.bisect_right(usable, (hz + reach, math.inf))
    near = [amplitude for _, amplitude in usable[first:last]]
    median = sorted(a for _, a in usable)[len(usable) // 2]
    return max(near) / median if near and median > 0 else math.nan
