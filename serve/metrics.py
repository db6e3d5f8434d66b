"""What Prometheus is told: each replica counts, a ledger adds up, any replica tells the whole."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator

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
                ("cascade_queue_depth", "Requests that wait in the replica for the model."),
                ("cascade_resident_bytes", "Memory of the replica's process (RSS)."),
                ("cascade_peak_resident_bytes", "Its highest so far."),
            )
        }
        self._cuda = Gauge(
            "cascade_cuda_bytes", "Allocated on the GPU by the replica.", ("replica",), registry=self.registry
        )

    def snapshot(self, *, waiting: int) -> Snapshot:
        """Everything, with the gauges read now."""
        resident, peak = memory()
        for name, value in zip(self._gauges, (waiting, resident, peak), strict=True):
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
    """Snapshots of every replica there was, merged."""

    def __init__(self) -> None:
        self._latest: dict[str, tuple[float, Snapshot]] = {}

    def report(self, replica: str, snapshot: Snapshot) -> None:
        self._latest[replica] = (time.monotonic(), snapshot)

    def text(self) -> bytes:
        """Prometheus' text format: counts of all replicas added, gauges of those alive."""
        now = time.monotonic()
        alive = {name for name, (told, _) in self._latest.items() if now - told <= FRESH_S}
        snapshots = {name: snapshot for name, (_, snapshot) in self._latest.items()}
        return render(snapshots, alive)


def render(snapshots: dict[str, Snapshot], alive: Iterable[str]) -> bytes:
    """Merged metrics as text, with ``cascade_replicas``, the number alive."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Merged(snapshots, frozenset(alive)))
    return generate_latest(registry)


class _Merged(Collector):
    def __init__(self, snapshots: dict[str, Snapshot], alive: frozenset[str]) -> None:
        self._snapshots, self._alive = snapshots, alive

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
        replicas = Metric("cascade_replicas", "Replicas that are alive.", "gauge")
        replicas.add_sample("cascade_replicas", {}, len(self._alive))
        yield replicas


def _cuda_bytes() -> int | None:
    import torch

    return torch.cuda.memory_allocated() if torch.cuda.is_available() else None
