"""What a benchmark found: frozen, JSON-able, schema-versioned. Latencies in milliseconds, memory in bytes."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from cascade_ops.loadtest.ratios import Ratio
from cascade_ops.loadtest.records import Mode
from cascade_ops.loadtest.summary import Summary
from cascade_ops.results import Metric

BENCH_SCHEMA = "cascade.bench/1"


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFacts:
    """One variant, as the run or the server describes it."""

    name: str
    title: str
    task: str
    baseline: bool
    backbone_params: int
    total_params: int
    size_bytes: int
    engine: str | None = None
    version: str | None = None
    compression: float | None = None
    metric: Metric | None = None
    window: int | None = None
    rate_hz: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """One variant under one load: all rounds together, and each. Other fields as in ``Segment``, over all rounds;
    ``mean_batch`` is how many requests the server's model computed together."""

    variant: str
    mode: Mode
    level: float
    whole: Summary
    rounds: tuple[Summary, ...]
    held: int = 0
    generator_cpu: float = 0.0
    mean_batch: float | None = None
    joules_per_answer: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerMemory:
    """Of all the server's replicas, before and after: every variant that they hold, together."""

    resident_before: float
    resident_after: float
    peak_before: float
    peak_after: float
    cuda_after: float | None = None
    replicas: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Online:
    """Measured through HTTP. ``memory`` is None where the server does not tell."""

    url: str
    own: bool
    loads: tuple[Load, ...]
    memory: ServerMemory | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Language:
    """A language model alone: reading the prompt, and writing token by token.

    Attributes:
        ttft_ms: median time to the first token of a prompt of ``prompt_tokens``, none of it cached.
        per_token_ms: median time of each further token.
        kv_bytes: keys and values kept for ``prompt_tokens`` + ``new_tokens`` − 1 tokens, from their tensors.
    """

    prompt_tokens: int
    new_tokens: int
    ttft_ms: float
    per_token_ms: float
    kv_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Probe:
    """One fresh process with one model.

    Attributes:
        load_s: from the model's folder to an engine that answers.
        base_bytes: resident once the framework was imported, before the model was loaded.
        peak_bytes: resident at its highest (VmHWM).
        above_bytes: the highest since the model began to load, less ``base_bytes``.
        resident_bytes: at the end.
        cuda_bytes: allocated on the GPU at its highest; None without one.
        throughput: samples per second, by batch size.
        joules_per_sample: over the largest batches.
        torch: whether it was loaded.
    """

    load_s: float
    base_bytes: int
    peak_bytes: int
    above_bytes: int
    resident_bytes: int
    runs: int
    p50_ms: float
    p5_ms: float
    p95_ms: float
    p99_ms: float | None = None
    cuda_bytes: int | None = None
    throughput: dict[str, float] = field(default_factory=dict)
    joules_per_sample: float | None = None
    torch: bool = True
    language: Language | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Parity:
    """An engine's answers beside plain PyTorch's: largest difference of a probability, share of same answers."""

    difference: float
    agreement: float
    probes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Process:
    """One variant on one engine in a process of its own, once a round; ``failed`` says why there are no rounds."""

    variant: str
    engine: str
    size_bytes: int
    rounds: tuple[Probe, ...] = ()
    parity: Parity | None = None
    failed: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Energy:
    """Which counters were read, and why others were not."""

    sources: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class RatioOf:
    """A figure of ``variant`` ÷ that of ``baseline``; ``where``: under which load, or on which engine."""

    figure: str
    where: str
    variant: str
    baseline: str
    ratio: Ratio


@dataclass(frozen=True, slots=True, kw_only=True)
class Bench:
    """A whole benchmark. ``workload``, ``settings`` and ``provenance`` are free-form but JSON-able."""

    created: int
    models: tuple[ModelFacts, ...]
    workload: dict[str, Any]
    settings: dict[str, Any]
    provenance: dict[str, Any]
    objective_ms: float
    online: Online | None = None
    offline: tuple[Process, ...] = ()
    energy: Energy = Energy()
    ratios: tuple[RatioOf, ...] = ()
    notes: tuple[str, ...] = ()
    schema: str = BENCH_SCHEMA

    @property
    def baseline(self) -> ModelFacts | None:
        """What the others are compared with."""
        return next((model for model in self.models if model.baseline), None)
