"""The part of a benchmark's page on models without a server: bars, rows, and what accuracy costs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median

from markupsafe import Markup

from cascade_ops.loadtest.results import Bench, ModelFacts, Probe, Process
from workflows.report import format as fmt
from workflows.report.bench_charts import Bar, Choice, bars, tradeoff

Reader = Callable[[Probe], float | None]
ENGINES = {
    "eager": "PyTorch",
    "compile": "torch.compile",
    "int8": "int8 (torchao)",
    "onnx": "ONNX Runtime",
    "onnx-alone": "ONNX, no PyTorch",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Panel:
    title: str
    picture: Markup
    note: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessRow:
    """``engine`` is empty under the first variant of an engine."""

    engine: str
    last: bool
    variant: str
    failed: bool
    cells: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class TradeoffView:
    title: str
    picture: Markup


def panels_of(bench: Bench, order: dict[str, int]) -> list[Panel]:
    """Latency, memory and size, side by side."""
    measured = [process for process in bench.offline if process.rounds]
    if not measured:
        return []
    language = bench.models[0].task == "lm"
    return [
        Panel(
            title="Time to first token" if language else "Latency of one sample",
            picture=bars(_groups(measured, order, _latency_bar), label="Latency"),
            note="Median; the line spans the 5th to the 95th percentile.",
        ),
        Panel(
            title="Peak memory",
            picture=bars(_groups(measured, order, _memory_bar), label="Peak memory"),
            note="Above the framework.",
        ),
        Panel(
            title="Size on disk",
            picture=bars(_groups(measured, order, _size_bar), label="Size"),
            note="Weights; for an exported model the whole file.",
        ),
    ]


def _groups(
    processes: Sequence[Process], order: dict[str, int], make: Callable[[Process, int], Bar]
) -> list[tuple[str, list[Bar]]]:
    names = dict.fromkeys(process.engine for process in processes)
    found = []
    for engine in names:
        own = [process for process in processes if process.engine == engine]
        own.sort(key=lambda process: order[process.variant])
        found.append((ENGINES.get(engine, engine), [make(one, order[one.variant]) for one in own]))
    return found


def _latency_bar(process: Process, index: int) -> Bar:
    value = _middle(process, lambda probe: probe.p50_ms)
    low, high = _middle(process, lambda probe: probe.p5_ms), _middle(process, lambda probe: probe.p95_ms)
    assert value is not None  # there are rounds
    reach = None if low is None or high is None else (low, high)
    return Bar(index=index, name=process.variant, value=value, shown=fmt.milliseconds(value), reach=reach)


def _memory_bar(process: Process, index: int) -> Bar:
    value = _middle(process, lambda probe: probe.above_bytes) or 0.0
    return Bar(index=index, name=process.variant, value=value, shown=fmt.size(value))


def _size_bar(process: Process, index: int) -> Bar:
    return Bar(
        index=index, name=process.variant, value=process.size_bytes, shown=fmt.size(process.size_bytes)
    )


def _middle(process: Process, read: Reader) -> float | None:
    values = [value for value in map(read, process.rounds) if value is not None]
    return median(values) if len(values) == len(process.rounds) and values else None


def columns_of(bench: Bench) -> list[tuple[str, Callable[[Process], str]]]:
    """Title and cell of each column; those that no process has are left out."""
    sizes = dict.fromkeys(
        size for process in bench.offline for probe in process.rounds for size in probe.throughput
    )
    wanted: list[tuple[str, Reader, Callable[[float], str]]] = [
        ("p50, ms", lambda probe: probe.p50_ms, fmt.significant),
        ("p5, ms", lambda probe: probe.p5_ms, fmt.significant),
        ("p95, ms", lambda probe: probe.p95_ms, fmt.significant),
        ("p99, ms", lambda probe: probe.p99_ms, fmt.significant),
        *((f"samples/s by {size}", _batch(size), fmt.significant) for size in sizes),
        (
            "first token, ms",
            lambda probe: probe.language.ttft_ms if probe.language else None,
            fmt.significant,
        ),
        (
            "per token, ms",
            lambda probe: probe.language.per_token_ms if probe.language else None,
            fmt.significant,
        ),
        ("keys and values", lambda probe: probe.language.kv_bytes if probe.language else None, fmt.size),
        ("load, s", lambda probe: probe.load_s, lambda value: fmt.significant(value, 2)),
        ("peak above", lambda probe: probe.above_bytes, fmt.size),
        ("peak in all", lambda probe: probe.peak_bytes, fmt.size),
        ("at the end", lambda probe: probe.resident_bytes, fmt.size),
        ("GPU peak", lambda probe: probe.cuda_bytes, fmt.size),
        ("J/sample", lambda probe: probe.joules_per_sample, fmt.significant),
    ]
    found = [
        (title, _cell(read, shown))
        for title, read, shown in wanted
        if any(_middle(process, read) is not None for process in bench.offline)
    ]
    return [*found, ("on disk", lambda process: fmt.size(process.size_bytes))]


def _batch(size: str) -> Reader:
    return lambda probe: probe.throughput.get(size)


def _cell(read: Reader, shown: Callable[[float], str]) -> Callable[[Process], str]:
    def cell(process: Process) -> str:
        value = _middle(process, read)
        return fmt.MISSING if value is None else shown(value)

    return cell


def rows_of(bench: Bench) -> list[ProcessRow]:
    """One for each variant on each engine."""
    columns = columns_of(bench)
    ordered = sorted(
        bench.offline, key=lambda one: [other.engine for other in bench.offline].index(one.engine)
    )
    rows = []
    for place, process in enumerate(ordered):
        again = place > 0 and ordered[place - 1].engine == process.engine
        rows.append(
            ProcessRow(
                engine="" if again else ENGINES.get(process.engine, process.engine),
                last=place + 1 == len(ordered) or ordered[place + 1].engine != process.engine,
                variant=process.variant,
                failed=process.failed is not None,
                cells=tuple(cell(process) for _, cell in columns),
            )
        )
    return rows


def parity_of(bench: Bench) -> str:
    """The largest difference of a probability, engine by engine."""
    worst: dict[str, float] = {}
    for process in bench.offline:
        if process.parity is not None and process.engine not in ("eager", "onnx-alone"):
            worst[process.engine] = max(worst.get(process.engine, 0.0), process.parity.difference)
    return ", ".join(
        f"{ENGINES.get(engine, engine)} differs by {fmt.significant(value, 2)} of a probability at most"
        for engine, value in worst.items()
    )


def tradeoffs_of(bench: Bench, order: dict[str, int]) -> list[TradeoffView]:
    """The metric over latency, and over size; nothing where fewer than two models have one."""
    facts = {model.name: model for model in bench.models}
    known = [one for one in bench.offline if one.rounds and facts[one.variant].metric]
    if len({process.variant for process in known}) < 2:
        return []
    marks = marks_of(bench)
    costs: list[tuple[str, str, Callable[[Process], float]]] = [
        ("Against latency", "ms for one sample", lambda one: _middle(one, lambda probe: probe.p50_ms) or 0.0),
        ("Against size", "MB on disk", lambda one: one.size_bytes / 1e6),
    ]
    found = []
    for title, x_name, cost in costs:
        once = {(one.variant, cost(one)): one for one in reversed(known)}  # the first of several at one place
        choices = [
            _choice(one, facts[one.variant], order[one.variant], marks[one.engine], cost(one), x_name)
            for one in reversed(once.values())
        ]
        metric = facts[known[0].variant].metric
        assert metric is not None  # as chosen above
        style = fmt.metric_style(metric.name)
        picture = tradeoff(choices, x_name=x_name, y_name=style.title, style=style)
        found.append(TradeoffView(title=title, picture=picture))
    return found


def marks_of(bench: Bench) -> dict[str, int]:
    """The mark of each engine, in the order in which they were measured."""
    return {name: place for place, name in enumerate(dict.fromkeys(one.engine for one in bench.offline))}


def _choice(process: Process, facts: ModelFacts, index: int, mark: int, cost: float, unit: str) -> Choice:
    metric = facts.metric
    assert metric is not None  # chosen by it
    shown = fmt.metric_style(metric.name).value(metric.value)
    engine = ENGINES.get(process.engine, process.engine)
    return Choice(
        index=index,
        mark=mark,
        cost=cost,
        value=metric.value,
        low=metric.low,
        high=metric.high,
        told=f"{process.variant}, {engine}: {shown} at {fmt.significant(cost)} {unit}",
    )
