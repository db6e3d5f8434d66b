"""A benchmark as one page: what changed, latency against load, engines alone, and what accuracy costs."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from markupsafe import Markup

from cascade_ops.loadtest.figures import capacity, figures_of, load_place
from cascade_ops.loadtest.records import Mode
from cascade_ops.loadtest.results import Bench, Load, ModelFacts, RatioOf, ServerMemory
from cascade_ops.loadtest.summary import QUANTILES, Summary
from cascade_ops.serde import to_jsonable
from workflows.report import format as fmt
from workflows.report.bench_alone import (
    ENGINES,
    columns_of,
    marks_of,
    panels_of,
    parity_of,
    rows_of,
    tradeoffs_of,
)
from workflows.report.bench_charts import Mark, Series, Spot, key, load_chart
from workflows.report.bench_words import good, in_words, interval_of, name_of, value_of
from workflows.report.render import environment
from workflows.report.svg import tick_label, ticks
from workflows.report.view import Tile, flattened

TILES = (
    ("closed loop, 1 at a time", "p50_ms", "Latency, one user"),
    ("closed loop", "capacity", "Capacity"),
    ("one process", "above_bytes", "Peak memory, one process"),
    ("one process", "size_bytes", "Size on disk"),
    ("one process", "p50_ms", "Latency, one process"),
    ("one process", "per_token_ms", "Time per token"),
)
"""Headline figures in order of interest: where (a prefix), which, and under which title."""
MOST_TILES = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class ChartView:
    title: str
    picture: Markup
    note: str


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadRow:
    """``load`` and ``short`` are empty under the first variant of a load, ``group`` under a loop's first load."""

    load: str
    short: str
    group: str
    last: bool
    variant: str
    percentiles: tuple[str, ...]
    throughput: str
    within: str
    goodput: str
    errors: str
    requests: str
    batch: str
    joules: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RatioRow:
    where: str
    last: bool
    variant: str
    figure: str
    value: str
    interval: str
    words: str
    state: str


def render_bench(bench: Bench) -> str:
    """The whole page as one string."""
    order = _order(bench)
    loads = bench.online.loads if bench.online else ()
    baseline = bench.baseline
    others = [model.name for model in bench.models if model is not baseline]
    metric = next((model.metric for model in bench.models if model.metric), None)
    return (
        environment()
        .get_template("bench.html.j2")
        .render(
            title=", ".join(others) or bench.models[0].name,
            subtitle=f"side by side with {baseline.name}" if baseline and others else "how fast, how large",
            eyebrow=_eyebrow(bench),
            lead=_lead(bench),
            notes=bench.notes,
            tiles=_tiles(bench),
            legend=[(name, key(index)) for name, index in order.items()],
            colours=order,
            engines=[
                (ENGINES.get(name, name), key(mark, engine=True)) for name, mark in marks_of(bench).items()
            ],
            keys={
                "solid": key(0, dashed=False),
                "dashed": key(0, dashed=True),
                "failed": key(1, failed=True) if any(_failed(load.whole) for load in loads) else None,
            },
            charts=_charts(bench, order),
            loads=load_rows(loads),
            batched=any(load.mean_batch is not None for load in loads),
            joules=any(load.joules_per_answer is not None for load in loads),
            memory=_memory(bench.online.memory) if bench.online else "",
            objective=bench.objective_ms,
            threads=_threads(bench),
            rounds=_times(bench),
            rounds_said=f"{bench.settings.get('rounds', '?')} round{'s' if bench.settings.get('rounds') != 1 else ''}",
            panels=panels_of(bench, order),
            process_columns=[title for title, _ in columns_of(bench)],
            processes=rows_of(bench),
            parity=parity_of(bench),
            metric=fmt.capital(fmt.metric_style(metric.name).title) if metric else "",
            tradeoffs=tradeoffs_of(bench, order),
            baseline=baseline.name if baseline else "",
            several=len(others) > 1,
            ratios=ratio_rows(bench.ratios),
            provenance=_provenance(bench),
            schema=bench.schema,
            fmt=fmt,
        )
    )


def _order(bench: Bench) -> dict[str, int]:
    """Colours and marks: the baseline is grey, others follow."""
    names = [model.name for model in sorted(bench.models, key=lambda model: not model.baseline)]
    first = 0 if bench.baseline else 1
    return {name: (first + place) % 6 for place, name in enumerate(names)}


def _eyebrow(bench: Bench) -> str:
    day = time.strftime("%Y-%m-%d", time.gmtime(bench.created))
    cores = bench.provenance.get("cores")
    served = f"server {bench.online.url}" if bench.online and not bench.online.own else ""
    parts = (day, served, f"{cores} cores" if cores else "", str(bench.provenance.get("machine") or ""))
    return " · ".join(part for part in parts if part)


def _lead(bench: Bench) -> str:
    """Latency and memory of one process, or latency of one user, as a sentence."""
    alone = [_first(bench, "one process", figure) for figure in ("p50_ms", "above_bytes")]
    found = [one for one in alone if one is not None]
    if not found:
        found = [one for one in [_first(bench, "closed loop, 1 at a time", "p50_ms")] if one is not None]
    if not found:
        return ""
    parts = []
    for one in found:
        spread = f" (ratio {interval_of(one.ratio)})" if one.ratio.low is not None else ""
        parts.append(f"{name_of(one.figure)} {in_words(one.ratio)}{spread}")
    first = found[0]
    return f"{first.variant} beside {first.baseline}, {first.where}: {', '.join(parts)}."


def _first(bench: Bench, where: str, figure: str) -> RatioOf | None:
    return next((one for one in bench.ratios if one.where.startswith(where) and one.figure == figure), None)


def _tiles(bench: Bench) -> list[Tile]:
    values = {figure.key: figure.value for figure in figures_of(bench)}
    tiles: list[Tile] = []
    for where, figure, title in TILES:
        found = _first(bench, where, figure)
        if found is None or len(tiles) == MOST_TILES:
            continue
        before = values[figure, found.where, found.baseline]
        after = values[figure, found.where, found.variant]
        ratio = found.ratio
        spread = f", ratio {interval_of(ratio)}" if ratio.low is not None and ratio.low != ratio.high else ""
        tiles.append(
            Tile(
                title=title,
                value=in_words(ratio),
                before=value_of(figure, before),
                after=value_of(figure, after),
                note=f"{found.where}{spread}",
            )
        )
    return tiles


def _charts(bench: Bench, order: dict[str, int]) -> list[ChartView]:
    if bench.online is None:
        return []
    found = []
    closed = [load for load in bench.online.loads if load.mode == "closed"]
    opened = [load for load in bench.online.loads if load.mode == "open"]
    if closed:
        levels = sorted({load.level for load in closed})
        places = {level: (place + 0.5) / len(levels) for place, level in enumerate(levels)}
        picture = load_chart(
            _series(closed, order, places),
            labels=[(x, f"{level:g}") for level, x in places.items()],
            x_name="users at a time",
            objective_ms=bench.objective_ms,
            label=_spoken(closed),
        )
        found.append(ChartView(title="Closed loop", picture=picture, note=""))
    if opened:
        found.append(_open_chart(bench, opened, order))
    return found


def _open_chart(bench: Bench, opened: Sequence[Load], order: dict[str, int]) -> ChartView:
    assert bench.online is not None
    best = {name: capacity(bench.online.loads, name) for name in order}
    most = 1.08 * max(
        [load.level for load in opened] + [one.whole.throughput for one in best.values() if one is not None]
    )
    marks = [
        Mark(index=order[name], x=one.whole.throughput / most, name=name)
        for name, one in best.items()
        if one is not None
    ]
    found = ticks(0.0, most, 5)
    step = found[1] - found[0] if len(found) > 1 else 1.0
    picture = load_chart(
        _series(opened, order, {load.level: load.level / most for load in opened}),
        labels=[(value / most, tick_label(value, step)) for value in found],
        x_name="requests offered per second",
        objective_ms=bench.objective_ms,
        marks=marks,
        label=_spoken(opened),
    )
    note = "Capacity: most answers per second in the closed loop." if marks else ""
    return ChartView(title="Open loop", picture=picture, note=note)


def _series(loads: Sequence[Load], order: dict[str, int], places: dict[float, float]) -> list[Series]:
    found = []
    for name, index in order.items():
        own = sorted((load for load in loads if load.variant == name), key=lambda load: load.level)
        for percentile, dashed in (("p99_ms", True), ("p50_ms", False)):
            spots = tuple(
                Spot(
                    x=places[load.level],
                    ms=getattr(load.whole, percentile),
                    told=f"{name}, {load_place(load)}: {percentile[:3]} {_ms(getattr(load.whole, percentile))} ms",
                    failed=_failed(load.whole),
                )
                for load in own
            )
            if spots:
                found.append(Series(index=index, dashed=dashed, spots=spots))
    return found


def _failed(summary: Summary) -> bool:
    return summary.answered < summary.requests


def _spoken(loads: Sequence[Load]) -> str:
    return "Latency against load. " + "; ".join(
        f"{load.variant}, {load_place(load)}: p50 {_ms(load.whole.p50_ms)} ms, p99 {_ms(load.whole.p99_ms)} ms"
        for load in loads
    )


def load_rows(loads: Sequence[Load]) -> list[LoadRow]:
    """Each load, closed loops first, with every variant under it."""
    rank: dict[Mode, int] = {"closed": 0, "open": 1}
    ordered = sorted(loads, key=lambda load: (rank[load.mode], load.level))
    rows = []
    for place, load in enumerate(ordered):
        whole, title = load.whole, load_place(load)
        before = ordered[place - 1] if place else None
        again = before is not None and load_place(before) == title
        held = f", {load.held} held" if load.held else ""
        rows.append(
            LoadRow(
                load="" if again else title,
                short="" if again else title.partition(", ")[2],
                group=""
                if before is not None and before.mode == load.mode
                else f"{load.mode.capitalize()} loop",
                last=place + 1 == len(ordered) or load_place(ordered[place + 1]) != title,
                variant=load.variant,
                percentiles=tuple(_ms(getattr(whole, name)) for name in QUANTILES),
                throughput=fmt.significant(whole.throughput),
                within=_percent(whole.within),
                goodput=fmt.significant(whole.goodput),
                errors=(
                    ", ".join(f"{fmt.integer(count)} × {name}" for name, count in whole.errors.items())
                    or "none"
                )
                + held,
                requests=fmt.integer(whole.requests),
                batch=fmt.MISSING if load.mean_batch is None else fmt.significant(load.mean_batch, 2),
                joules=fmt.MISSING
                if load.joules_per_answer is None
                else fmt.significant(load.joules_per_answer),
            )
        )
    return rows


def _percent(share: float) -> str:
    """99.96 % is not 100 %."""
    return fmt.percent(min(share, 0.999) if share < 1 else 1.0, 0 if share == 1 else 1)


def _ms(value: float | None) -> str:
    return fmt.MISSING if value is None or not math.isfinite(value) else fmt.significant(value)


def ratio_rows(ratios: Sequence[RatioOf]) -> list[RatioRow]:
    """As measured, each place named once."""
    rows = []
    for place, one in enumerate(ratios):
        again = place > 0 and ratios[place - 1].where == one.where
        better = good(one.figure, one.ratio)
        rows.append(
            RatioRow(
                where="" if again else one.where,
                last=place + 1 == len(ratios) or ratios[place + 1].where != one.where,
                variant=one.variant,
                figure=name_of(one.figure),
                value=fmt.significant(one.ratio.value),
                interval=interval_of(one.ratio),
                words=in_words(one.ratio),
                state="" if better is None else "less" if better else "worse",
            )
        )
    return rows


def _memory(found: ServerMemory | None) -> str:
    if found is None:
        return "The server does not tell its memory."
    replicas = "one replica" if found.replicas == 1 else f"{found.replicas} replicas together"
    gpu = "" if found.cuda_after is None else f", {fmt.size(found.cuda_after)} on the GPU"
    return (
        f"Memory of the server ({replicas}, all models): {fmt.size(found.resident_before)} before, "
        f"{fmt.size(found.resident_after)} after, {fmt.size(found.peak_after)} at its highest{gpu}."
    )


def _threads(bench: Bench) -> str:
    threads = bench.settings.get("threads", 1)
    return f"{threads} thread{'s' if threads != 1 else ''} each"


def _times(bench: Bench) -> str:
    rounds = max((len(process.rounds) for process in bench.offline), default=0)
    runs = int(median([probe.runs for process in bench.offline for probe in process.rounds] or [0]))
    return f"{rounds} of each kind, about {fmt.integer(runs)} single samples in each"


def _provenance(bench: Bench) -> list[tuple[str, tuple[tuple[str, str], ...]]]:
    groups = [
        *(("Model " + model.name, _about(model)) for model in bench.models),
        ("Workload", bench.workload),
        ("Settings", bench.settings),
        ("Energy", {"read": list(bench.energy.sources), "not read": list(bench.energy.missing)}),
        ("Versions and machine", bench.provenance),
    ]
    return [(title, tuple(flattened("", to_jsonable(values)))) for title, values in groups if values]


def _about(model: ModelFacts) -> dict[str, object]:
    style = fmt.metric_style(model.metric.name) if model.metric else None
    measured = None
    if model.metric and style:
        measured = f"{style.value(model.metric.value)} (95 % CI {style.interval(model.metric.low, model.metric.high)})"
    return {
        "title": model.title,
        "version": model.version,
        "served on": model.engine,
        "backbone parameters": fmt.integer(model.backbone_params),
        "all parameters": fmt.integer(model.total_params),
        "size on disk": fmt.size(model.size_bytes),
        style.title if style else "metric": measured,
    }
