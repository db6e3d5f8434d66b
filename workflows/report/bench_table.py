"""A benchmark as the rows of a terminal's tables: the same words as on its page, in fewer columns."""

from __future__ import annotations

from cascade_ops.loadtest.results import Bench
from workflows.report.bench_alone import columns_of, rows_of
from workflows.report.bench_page import load_rows, ratio_rows

Table = tuple[tuple[str, ...], list[tuple[str, ...]]]


def loads_table(bench: Bench) -> Table:
    """Every model under every load."""
    columns = ("load", "model", "p50", "p90", "p95", "p99", "p99.9 ms", "answers/s", "goodput/s", "errors")
    rows = load_rows(bench.online.loads if bench.online else ())
    return columns, [
        (one.load, one.variant, *one.percentiles, one.throughput, one.goodput, one.errors) for one in rows
    ]


def processes_table(bench: Bench) -> Table:
    """Every model on every engine."""
    columns = ("engine", "model", *(title for title, _ in columns_of(bench)))
    rows = rows_of(bench) if bench.offline else []
    return columns, [
        (one.engine, one.variant, *(("not measured",) * len(one.cells) if one.failed else one.cells))
        for one in rows
    ]


def ratios_table(bench: Bench) -> Table:
    """Every figure beside the baseline's."""
    columns = ("where", "model", "figure", "÷ baseline", "95 % interval", "")
    return columns, [
        (one.where, one.variant, one.figure, one.value, one.interval, one.words)
        for one in ratio_rows(bench.ratios)
    ]
