"""What Prometheus is told: each replica counts, a ledger adds up, any replica tells the whole."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.core import Metric
from prometheus_client.registry import Collector

from serve.memory import memory

disable_created_metrics()  # type: ignore[no-untyped-call]
SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10)
SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
HELD = "cascade_in_hand"
FRESH_S = 10.0
"""A replica that was silent for longer is gone; what it counted stays."""

Snapshot = list[tuple[str, str, str, list[tuple[str, dict[str, str], float]]]]
"""(name, help, type, samples as (name, labels, value)) of each metric: plain values, to be sent."""


class Meter:
    """One replica's counts."""

    def __init__(self, replica: str) -> None:
        self.replica = replica
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "cascade_requests",
            "Requests by answer.",
            ("model", "route", "status"),
            registry=self.registry,
        )
        self.seconds = Histogram(
            "cascade_request_seconds",
            "From a request's arrival in the replica to its answer.",
            ("model",),
            buckets=SECONDS,
            registry=self.registry,
        )
        self.batch = Histogram(
            "cascade_batch_size",
            "Requests computed together.",
            ("model",),
            buckets=SIZES,
            registry=self.registry,
        )
        self._gauges = {
            name: Gauge(name, text, ("replica",), registry=self.registry)
            for name, text in (
                (HELD, "Requests let in that have no answer yet."),
                ("cascade_queue_depth", "Of these, requests that wait for the model."),
                ("cascade_resident_bytes", "Memory of the replica's process (RSS)."),
                ("cascade_peak_resident_bytes", "Its highest so far."),
            )
        }
        self._cuda = Gauge(
            "cascade_cuda_bytes", "Allocated on the GPU by the replica.", ("replica",), registry=self.registry
        )

    def snapshot(self, *, held: int, waiting: int) -> Snapshot:
        """Everything, with the gauges read now."""
        resident, peak = memory()
        for name, value in zip(self._gauges, (held, waiting, resident, peak), strict=True):
            self._gauges[name].labels(self.replica).set(value)
        cuda = _cuda_bytes()
        if cuda is not None:
            self._cuda.labels(self.replica).set(cuda)
        return [
            (
                metric.name,
                metric.documentation,
                metric.type,
                [(sample.name, dict(sample.labels), sample.value) for sample in metric.samples],
            )
            for metric in self.registry.collect()
        ]


class Ledger:
    """What every replica there was has counted, added up. A replica that falls silent without a farewell is lost, and
    with it what it held when it was last heard of."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._latest: dict[str, tuple[float, Snapshot]] = {}
        self._gone: set[str] = set()

    def report(self, replica: str, snapshot: Snapshot) -> None:
        self._latest[replica] = (self._clock(), snapshot)

    def farewell(self, replica: str, snapshot: Snapshot) -> None:
        """The last report of a replica that was told to end."""
        self.report(replica, snapshot)
        self._gone.add(replica)

    def text(self) -> bytes:
        """Prometheus' text format: counts of all replicas added, gauges of those alive."""
        now = self._clock()
        silent = {name for name, (told, _) in self._latest.items() if now - told > FRESH_S}
        snapshots = {name: snapshot for name, (_, snapshot) in self._latest.items()}
        return render(snapshots, alive=snapshots.keys() - silent - self._gone, lost=silent - self._gone)


def render(snapshots: dict[str, Snapshot], *, alive: Iterable[str], lost: Iterable[str] = ()) -> bytes:
    """Merged metrics as text, with how many replicas are alive, and how many were lost with how many requests."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Merged(snapshots, frozenset(alive), frozenset(lost)))
    return generate_latest(registry)


class _Merged(Collector):
    def __init__(self, snapshots: dict[str, Snapshot], alive: frozenset[str], lost: frozenset[str]) -> None:
        self._snapshots, self._alive, self._lost = snapshots, alive, lost

    def collect(self) -> Iterator[Metric]:
        merged: dict[str, Metric] = {}
        sums: dict[str, dict[tuple[str, tuple[tuple[str, str], ...]], float]] = {}
        for replica, snapshot in self._snapshots.items():
            for name, text, kind, samples in snapshot:
                if kind == "gauge" and replica not in self._alive:
                    continue
                merged.setdefault(name, Metric(name, text, kind))
                table = sums.setdefault(name, {})
                for sample, labels, value in samples:
                    key = (sample, tuple(labels.items()))
                    table[key] = table.get(key, 0.0) + value
        for name, metric in merged.items():
            for (sample, pairs), value in sums[name].items():
                metric.add_sample(sample, dict(pairs), value)
            yield metric
        held = sum(_held(self._snapshots[name]) for name in self._lost)
        for name, text, kind, number in (
            ("cascade_replicas", "Replicas that are alive.", "gauge", len(self._alive)),
            (
                "cascade_replicas_lost",
                "Replicas that ended without being told to.",
                "counter",
                len(self._lost),
            ),
            (
                "cascade_requests_lost",
                "What they held when last heard of, a second before at most.",
                "counter",
                held,
            ),
        ):
            metric = Metric(name, text, kind)
            metric.add_sample(name + ("_total" if kind == "counter" else ""), {}, number)
            yield metric


def _held(snapshot: Snapshot) -> float:
    return sum(value for name, _, _, samples in snapshot if name == HELD for _, _, value in samples)


def _cuda_bytes() -> int | None:
    import torch

    return torch.cuda.memory_allocated() if torch.cuda.is_available() else None
