"""Numbers and names as a reader wants them: units attached, about three significant digits."""

from __future__ import annotations

import math
from dataclasses import dataclass

NBSP = "\u00a0"
MINUS = "\u2212"
MISSING = "–"

_PERCENT_WORDS = ("accuracy", "recall", "precision", "f1")
_LOWER_IS_BETTER_WORDS = ("perplexity", "loss", "nll", "error", "bits")
_GRANULARITIES = {
    "layer": ("Layers", "layer"),
    "head": ("Attention heads", "head"),
    "kv_group": ("KV groups", "KV group"),
    "channel": ("FFN channels", "channel"),
}


def integer(value: int) -> str:
    """12345 → ``12,345``."""
    return f"{value:,}"


def count(value: float) -> str:
    """A parameter count: 1583104 → ``1.58 M``."""
    for limit, unit in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= limit:
            return f"{significant(value / limit)}{NBSP}{unit}"
    return f"{value:,.0f}"


def size(value: float) -> str:
    """Bytes in decimal units: 6341120 → ``6.34 MB``."""
    for limit, unit in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if abs(value) >= limit:
            return f"{significant(value / limit)}{NBSP}{unit}"
    return f"{value:,.0f}{NBSP}B"


def significant(value: float, digits: int = 3) -> str:
    """``digits`` significant digits without an exponent for everyday magnitudes."""
    if not math.isfinite(value):
        return "not finite"
    if value == 0:
        return "0"
    magnitude = math.floor(math.log10(abs(value)))
    if magnitude < -4 or magnitude > 6:
        return f"{value:.{digits - 1}e}".replace("-", MINUS)
    return f"{value:,.{max(0, digits - 1 - magnitude)}f}".replace("-", MINUS)


def factor(value: float) -> str:
    """A ratio: 13.84 → ``13.8×``; close to one it keeps a second decimal, so that 1.04 is not 1.0."""
    if not math.isfinite(value):
        return MISSING
    decimals = 0 if value >= 99.5 else 2 if value < 1.95 else 1
    return f"{value:.{decimals}f}×"


def milliseconds(value: float) -> str:
    return f"{significant(value)}{NBSP}ms"


def duration(seconds: float) -> str:
    """Seconds as ``0.8 s``, ``42 s``, ``3 min 12 s`` or ``1 h 04 min``."""
    if not math.isfinite(seconds):
        return MISSING
    if seconds < 10:
        return f"{seconds:.1f}{NBSP}s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole}{NBSP}s"
    minutes, rest = divmod(whole, 60)
    if minutes < 60:
        return f"{minutes}{NBSP}min {rest:02d}{NBSP}s"
    return f"{minutes // 60}{NBSP}h {minutes % 60:02d}{NBSP}min"


def percent(value: float, decimals: int = 1) -> str:
    """A fraction as a percentage: 0.854 → ``85.4 %``."""
    return f"{100 * value:.{decimals}f}{NBSP}%" if math.isfinite(value) else MISSING


def ratio(value: float) -> str:
    """A removed fraction: 0.625 → ``62.5 %``, 0.5 → ``50 %``."""
    return percent(value).replace(".0" + NBSP, NBSP)


def capital(title: str) -> str:
    """The title with its first letter raised; the rest (AUROC) as it is."""
    return title[:1].upper() + title[1:]


def inside(title: str) -> str:
    """A title inside a sentence: "Layers" is lowered, "FFN channels" is not."""
    return title if title[1:2].isupper() else title[:1].lower() + title[1:]


def smaller(before: float, after: float) -> str:
    """``13.8× smaller``, ``1.20× larger`` or ``the same``."""
    if not (before > 0 and after > 0):
        return MISSING
    if before == after:
        return "the same"
    return f"{factor(before / after)} smaller" if before > after else f"{factor(after / before)} larger"


def granularity(name: str) -> str:
    """The plural title of a granularity; unknown ones show their own name."""
    return _GRANULARITIES.get(name, (name.replace("_", " ").capitalize(), name))[0]


def unit(name: str) -> str:
    """One unit of a granularity."""
    return _GRANULARITIES.get(name, ("", name.replace("_", " ")))[1]


@dataclass(frozen=True, slots=True, kw_only=True)
class MetricStyle:
    """How a metric is titled and written. Percent metrics are stored as fractions."""

    title: str
    as_percent: bool
    higher_is_better: bool

    def value(self, value: float) -> str:
        if not math.isfinite(value):
            return "not finite"
        if self.as_percent:
            return percent(value)
        return f"{value:.3f}" if abs(value) < 1 else significant(value, 4)

    def interval(self, low: float, high: float) -> str:
        """``84.3–86.4 %``."""
        if not (math.isfinite(low) and math.isfinite(high)):
            return "interval unknown"
        if self.as_percent:
            return f"{100 * low:.1f}–{percent(high)}"
        return f"{self.value(low)}–{self.value(high)}"

    def change(self, before: float, after: float) -> str:
        """The signed difference; for percentages in points, so that it cannot be read as relative."""
        difference = after - before
        if not math.isfinite(difference):
            return MISSING
        if self.as_percent:
            return f"{100 * difference:+.1f}{NBSP}points".replace("-", MINUS)
        sign = "+" if difference >= 0 else MINUS
        return f"{sign}{self.value(abs(difference))}"


def metric_style(name: str) -> MetricStyle:
    """Style of a metric by the words of its name."""
    lowered = name.lower()
    return MetricStyle(
        title=lowered.replace("_", " ").replace("auroc", "AUROC").replace("f1", "F1"),
        as_percent=any(word in lowered for word in _PERCENT_WORDS),
        higher_is_better=not any(word in lowered for word in _LOWER_IS_BETTER_WORDS),
    )


def speed(dense_ms: float, final_ms: float) -> str:
    """``3.1× faster``, ``1.20× slower`` or ``as fast as before``."""
    if not (dense_ms > 0 and final_ms > 0):
        return "speed unknown"
    ratio = dense_ms / final_ms
    if ratio >= 1.05:
        return f"{factor(ratio)} faster"
    if ratio <= 1 / 1.05:
        return f"{factor(1 / ratio)} slower"
    return "as fast as before"
