"""A benchmark's figures in words: names, units, and ratios as people say them."""

from __future__ import annotations

from cascade_ops.loadtest.figures import MORE_IS_BETTER
from cascade_ops.loadtest.ratios import Ratio
from workflows.report import format as fmt

NAMES = {
    "p50_ms": "latency p50",
    "p95_ms": "latency p95",
    "p99_ms": "latency p99",
    "throughput": "answers per second",
    "goodput": "goodput",
    "capacity": "capacity",
    "joules_per_answer": "energy per answer",
    "joules_per_sample": "energy per sample",
    "size_bytes": "size on disk",
    "peak_bytes": "peak memory in all",
    "above_bytes": "peak memory above the framework",
    "resident_bytes": "memory at the end",
    "cuda_bytes": "peak GPU memory",
    "load_s": "time to load",
    "ttft_ms": "time to first token",
    "per_token_ms": "time per token",
    "kv_bytes": "keys and values kept",
}

SAME = 0.005
WIDE = 4.0
"""An interval whose ends are farther apart than this factor says little."""


def name_of(figure: str) -> str:
    """``latency p50``, ``samples per second in batches of 8``."""
    kind, _, size = figure.partition("[")
    if kind == "batch_throughput":
        return f"samples/s in batches of {size.rstrip(']')}"
    return NAMES.get(kind, figure)


def value_of(figure: str, value: float) -> str:
    """With its unit."""
    if figure.endswith("_ms"):
        return fmt.milliseconds(value)
    if figure.endswith("_bytes"):
        return fmt.size(value)
    if figure.endswith("_s"):
        return fmt.duration(value)
    if figure.startswith("joules"):
        return f"{fmt.significant(value)}{fmt.NBSP}J"
    return f"{fmt.significant(value)}{fmt.NBSP}/s"


def interval_of(ratio: Ratio) -> str:
    """``0.31–0.35``; a dash where one round says nothing of the spread."""
    if ratio.low is None or ratio.high is None:
        return fmt.MISSING
    return f"{fmt.significant(ratio.low)}–{fmt.significant(ratio.high)}"


def in_words(ratio: Ratio) -> str:
    """``67 % less``, ``3.1× as much``, or what an interval with 1 in it allows to say."""
    if ratio.low is not None and ratio.high is not None and ratio.low < 1 < ratio.high:
        return "no clear difference" if ratio.high / ratio.low < WIDE else "too uncertain to tell"
    if abs(ratio.value - 1) < SAME:
        return "the same"
    if ratio.value < 1:
        return f"{fmt.percent(1 - ratio.value, 0 if ratio.value < 0.95 else 1)} less"
    if ratio.value < 1.95:
        return f"{fmt.percent(ratio.value - 1, 0 if ratio.value > 1.05 else 1)} more"
    return f"{fmt.factor(ratio.value)} as much"


def good(figure: str, ratio: Ratio) -> bool | None:
    """Whether the difference is for the better; None where none was shown. Sizes need no interval."""
    shown = figure == "size_bytes" if ratio.differs is None else ratio.differs
    if not shown or abs(ratio.value - 1) < SAME:
        return None
    return (ratio.value > 1) is (figure.partition("[")[0] in MORE_IS_BETTER)
