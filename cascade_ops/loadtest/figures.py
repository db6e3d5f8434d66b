"""Every figure of a benchmark that can be compared, under a name and a place, round by round."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from operator import attrgetter
from statistics import median

from cascade_ops.loadtest.ratios import Ratio, paired_ratio
from cascade_ops.loadtest.results import Bench, Load, Probe, Process, RatioOf
from cascade_ops.loadtest.summary import Summary

ON_LINE = ("p50_ms", "p95_ms", "p99_ms", "throughput", "goodput")
OFF_LINE = (
    "p50_ms",
    "p99_ms",
    "peak_bytes",
    "above_bytes",
    "resident_bytes",
    "cuda_bytes",
    "load_s",
    "joules_per_sample",
)
OF_LANGUAGE = ("ttft_ms", "per_token_ms", "kv_bytes")
MORE_IS_BETTER = ("throughput", "goodput", "capacity", "batch_throughput")
CAPACITY = "capacity"


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """One figure of one variant. ``rounds`` is empty where a round lacks it."""

    name: str
    where: str
    variant: str
    value: float
    rounds: tuple[float, ...] = ()

    @property
    def key(self) -> tuple[str, str, str]:
        return self.name, self.where, self.variant

    @property
    def more_is_better(self) -> bool:
        return self.name.partition("[")[0] in MORE_IS_BETTER


def load_place(load: Load) -> str:
    """``closed loop, 8 at a time``, ``open loop, 120/s``."""
    if load.mode == "closed":
        return f"closed loop, {load.level:g} at a time"
    return f"open loop, {load.level:g}/s"


def engine_place(process: Process) -> str:
    """``one process, eager``."""
    return f"one process, {process.engine}"


def capacity(loads: Iterable[Load], variant: str) -> Load | None:
    """The closed-loop load with the most answers per second; None where the variant answered none."""
    own = [
        load for load in loads if load.variant == variant and load.mode == "closed" and load.whole.answered
    ]
    return max(own, key=lambda load: load.whole.throughput, default=None)


def figures_of(bench: Bench) -> tuple[Figure, ...]:
    """All of them, in the order in which they were measured."""
    found: list[Figure] = []
    if bench.online is not None:
        loads = bench.online.loads
        for load in loads:
            found += _of_load(load)
        best = (capacity(loads, name) for name in dict.fromkeys(load.variant for load in loads))
        found += [
            _figure(CAPACITY, "closed loop", load.variant, load.whole, load.rounds, attrgetter("throughput"))
            for load in best
            if load is not None
        ]
    for process in bench.offline:
        found += _of_process(process)
    return tuple(found)


def ratios_of(bench: Bench) -> tuple[RatioOf, ...]:
    """Each figure ÷ the baseline's, paired by round where every round has it."""
    if bench.baseline is None:
        return ()
    theirs = {
        (figure.name, figure.where): figure
        for figure in figures_of(bench)
        if figure.variant == bench.baseline.name
    }
    found = []
    for figure in figures_of(bench):
        other = theirs.get((figure.name, figure.where))
        if other is None or figure.variant == other.variant:
            continue
        ratio = _ratio(figure, other)
        if ratio is not None:
            found.append(
                RatioOf(
                    figure=figure.name,
                    where=figure.where,
                    variant=figure.variant,
                    baseline=other.variant,
                    ratio=ratio,
                )
            )
    return tuple(found)


def _ratio(ours: Figure, theirs: Figure) -> Ratio | None:
    paired = paired_ratio(ours.rounds, theirs.rounds)
    return paired if paired is not None else paired_ratio((ours.value,), (theirs.value,))


def _of_load(load: Load) -> Iterator[Figure]:
    place = load_place(load)
    for name in ON_LINE:
        if getattr(load.whole, name) is not None:
            yield _figure(name, place, load.variant, load.whole, load.rounds, attrgetter(name))
    if load.joules_per_answer is not None:
        yield Figure(
            name="joules_per_answer", where=place, variant=load.variant, value=load.joules_per_answer
        )


def _figure(
    name: str,
    where: str,
    variant: str,
    whole: Summary,
    rounds: Sequence[Summary],
    read: Callable[[Summary], float | None],
) -> Figure:
    value, each = read(whole), [read(one) for one in rounds]
    assert value is not None  # asked for only where there is one
    complete = tuple(one for one in each if one is not None)
    return Figure(
        name=name,
        where=where,
        variant=variant,
        value=value,
        rounds=complete if len(complete) == len(each) else (),
    )


def _of_process(process: Process) -> Iterator[Figure]:
    place = engine_place(process)
    yield Figure(name="size_bytes", where=place, variant=process.variant, value=float(process.size_bytes))
    if not process.rounds:
        return
    batches = dict.fromkeys(size for probe in process.rounds for size in probe.throughput)
    readers: dict[str, Callable[[Probe], float | None]] = {
        **{name: attrgetter(name) for name in OFF_LINE},
        **{name: partial(_of_language, name) for name in OF_LANGUAGE},
        **{f"batch_throughput[{size}]": partial(_of_batch, size) for size in batches},
    }
    for name, read in readers.items():
        values = [float(value) for value in map(read, process.rounds) if value is not None]
        if values:
            complete = len(values) == len(process.rounds)
            yield Figure(
                name=name,
                where=place,
                variant=process.variant,
                value=median(values),
                rounds=tuple(values) if complete else (),
            )


def _of_language(name: str, probe: Probe) -> float | None:
    value = None if probe.language is None else getattr(probe.language, name)
    return None if value is None else float(value)


def _of_batch(size: str, probe: Probe) -> float | None:
    return probe.throughput.get(size)
