"""Requests and whole benchmarks made up from formulas: a server whose queue grows with the load."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from functools import cache

import numpy as np

from cascade_ops.loadtest.figures import ratios_of
from cascade_ops.loadtest.records import Mode, Request
from cascade_ops.loadtest.results import (
    Bench,
    Energy,
    Language,
    Load,
    ModelFacts,
    Online,
    Parity,
    Probe,
    Process,
    ServerMemory,
)
from cascade_ops.loadtest.summary import summarise
from cascade_ops.results import Metric

DENSE, SMALL = "dense", "small"
SERVICE_MS = {DENSE: 8.0, SMALL: 2.6, "smaller": 1.9}


def request(latency_ms: float = 1.0, *, status: int = 200, **fields: object) -> Request:
    """One that was sent when it was intended."""
    settings: dict[str, object] = {
        "round": 0,
        "variant": DENSE,
        "mode": "closed",
        "level": 1.0,
        "intended": 0.0,
        "sent": 0.0,
        "finished": latency_ms / 1e3,
    }
    return Request(status=status, **(settings | fields))  # type: ignore[arg-type]


def requests_of(latencies_ms: Sequence[float], **fields: object) -> list[Request]:
    return [request(one, **fields) for one in latencies_ms]


def model(name: str, **fields: object) -> ModelFacts:
    shrink = 1.0 if name == DENSE else 13.8
    settings: dict[str, object] = {
        "name": name,
        "title": f"gpt2, {name}",
        "task": "diagnosis",
        "baseline": name == DENSE,
        "backbone_params": round(299_904 / shrink),
        "total_params": round(319_562 / shrink),
        "size_bytes": round(1_286_176 / shrink),
        "version": "3f2a90b1c4d5",
        "engine": "eager",
        "metric": Metric(name="accuracy", value=0.998, low=0.993, high=0.9995, samples=1070)
        if name == DENSE
        else Metric(name="accuracy", value=0.9991, low=0.9947, high=0.9998, samples=1070),
        "window": 1024,
        "rate_hz": 12_000.0,
    }
    return ModelFacts(**(settings | fields))  # type: ignore[arg-type]


@cache
def load(
    variant: str, mode: Mode, level: float, *, rounds: int = 3, count: int = 130, objective_ms: float = 50.0
) -> Load:
    """Latencies as of a queue with one server: they grow as the load nears what it can do."""
    service = SERVICE_MS[variant]
    most = 1e3 / service
    rng = np.random.default_rng(zlib.crc32(f"{variant}{level}".encode()))
    rate = min(level, most) if mode == "open" else most * level / (level + 1.0)
    use = min(0.97, rate / most)
    refused = 0.0 if mode == "closed" or level <= most else 1 - most / level
    every = []
    for number in range(rounds):
        waits = service + rng.exponential(service * use / (1 - use), count)
        every.append(
            [
                request(
                    wait,
                    status=503 if rng.random() < refused else 200,
                    round=number,
                    variant=variant,
                    mode=mode,
                    level=level,
                )
                for wait in waits * rng.normal(1, 0.03)
            ]
        )
    seconds = count / (level if mode == "open" else rate)
    return Load(
        variant=variant,
        mode=mode,
        level=level,
        whole=summarise(
            [r for one in every for r in one], seconds=seconds * rounds, objective_ms=objective_ms
        ),
        rounds=tuple(summarise(one, seconds=seconds, objective_ms=objective_ms) for one in every),
        mean_batch=1 + 3 * use,
        generator_cpu=0.2,
    )


def probe(variant: str, engine: str, number: int = 0, **fields: object) -> Probe:
    faster = {"eager": 1.0, "onnx": 0.3, "onnx-alone": 0.29, "int8": 1.1, "compile": 0.6}[engine]
    middle = SERVICE_MS[variant] * faster * (1 + 0.02 * number)
    alone = engine == "onnx-alone"
    settings: dict[str, object] = {
        "load_s": 0.05,
        "base_bytes": 48_000_000 if alone else 412_000_000,
        "peak_bytes": 81_000_000 if alone else 446_000_000,
        "above_bytes": round((33e6 if alone else 34e6) * (1 if variant == DENSE else 0.8)) + 10_000 * number,
        "resident_bytes": 80_000_000 if alone else 440_000_000,
        "runs": 400,
        "p50_ms": middle,
        "p5_ms": 0.9 * middle,
        "p95_ms": 1.4 * middle,
        "p99_ms": 1.9 * middle,
        "throughput": {"8": 4e3 / middle, "32": 5e3 / middle},
        "torch": not alone,
    }
    return Probe(**(settings | fields))  # type: ignore[arg-type]


def processes(
    variants: Sequence[str] = (DENSE, SMALL),
    engines: Sequence[str] = ("eager", "onnx", "onnx-alone"),
    rounds: int = 3,
) -> tuple[Process, ...]:
    return tuple(
        Process(
            variant=variant,
            engine=engine,
            size_bytes=model(variant).size_bytes + (300_000 if engine == "onnx-alone" else 0),
            rounds=tuple(probe(variant, engine, number) for number in range(rounds)),
            parity=Parity(difference=2.4e-7, agreement=1.0, probes=9),
        )
        for engine in engines
        for variant in variants
    )


def bench(*, rounds: int = 3, variants: Sequence[str] = (DENSE, SMALL), **fields: object) -> Bench:
    """Everything that a benchmark of classifiers has."""
    rates = (60.0, 100.0, 190.0, 460.0)
    loads = [
        *(load(v, "closed", level, rounds=rounds) for level in (1.0, 8.0, 32.0) for v in variants),
        *(load(v, "open", rate, rounds=rounds) for rate in rates for v in variants),
    ]
    memory = ServerMemory(resident_before=5.1e8, resident_after=5.3e8, peak_before=5.2e8, peak_after=5.5e8)
    settings: dict[str, object] = {
        "created": 1_764_000_000,
        "models": tuple(model(name) for name in variants),
        "workload": {"source": "simulated", "route": "/v1/diagnose", "samples": 1024, "bytes_each": 9_400},
        "settings": {"rounds": rounds, "seconds": 10.0, "requests": 2000, "threads": 1, "detail": "none"},
        "provenance": {"cores": 2, "machine": "x86_64", "versions": {"torch": "2.13.0"}},
        "objective_ms": 50.0,
        "online": Online(url="http://127.0.0.1:8000", own=True, loads=tuple(loads), memory=memory),
        "offline": processes(variants, rounds=rounds),
        "energy": Energy(missing=("RAPL: no processor package under /sys/class/powercap",)),
        "notes": ("The windows sent are simulated; what is in them does not change how long they take.",),
    }
    whole = Bench(**(settings | fields))  # type: ignore[arg-type]
    return Bench(**{**{f: getattr(whole, f) for f in Bench.__dataclass_fields__}, "ratios": ratios_of(whole)})


def language_bench() -> Bench:
    """A language model alone: no server, no classifier's metric."""

    def read(variant: str, number: int) -> Probe:
        slow = 4.0 if variant == DENSE else 1.0
        told = Language(
            prompt_tokens=128,
            new_tokens=32,
            ttft_ms=30 * slow + number,
            per_token_ms=6 * slow,
            kv_bytes=round(1.2e6 * slow),
        )
        return probe(variant, "eager", number, throughput={}, language=told)

    offline = tuple(
        Process(
            variant=name,
            engine="eager",
            size_bytes=5_000_000,
            rounds=tuple(read(name, number) for number in range(3)),
        )
        for name in (DENSE, SMALL)
    )
    models = tuple(model(name, task="lm", metric=None, window=None) for name in (DENSE, SMALL))
    return bench(models=models, online=None, offline=offline, workload={"source": "one prompt"})
