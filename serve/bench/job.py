"""A whole benchmark: models alone, then behind a server, then what the figures say side by side."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from cascade_ops.errors import UsageError
from cascade_ops.loadtest.figures import ratios_of
from cascade_ops.loadtest.records import Request
from cascade_ops.loadtest.results import Bench, Energy, Load, ModelFacts, Online, Process
from cascade_ops.loadtest.summary import QUANTILES, samples_needed
from cascade_ops.progress import Progress, silent
from cascade_ops.serde import to_jsonable
from serve.bench.energy import Meter
from serve.bench.energy import meter as energy_meter
from serve.bench.generator import Bounds
from serve.bench.offline import ALONE, ProbePlan, check_engines, measure_offline
from serve.bench.online import SHARES, Loaded, LoadPlan, measure_online
from serve.bench.own import own_server
from serve.bench.target import checked_url, is_here, token_from
from serve.bench.workload import Workload, described, workload_for
from serve.config import BASELINE, load_config
from serve.variants import Variant, variants_of

BUSY = 0.8
"""A generator that uses more of a core than this may be what limits the rate."""
MOST_USERS, MOST_RATE = 1024, 1e5
WARMUP_SHARE, WARMUP_MOST_S = 0.2, 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchOptions:
    """What ``cascade bench`` was asked for.

    ``models`` are ``[NAME=]PATH`` as for ``cascade serve``; the own server runs the first of ``engines``.
    """

    models: tuple[str, ...] = ()
    url: str | None = None
    concurrency: tuple[int, ...] = (1, 8, 32)
    rates: tuple[float, ...] | None = None
    seconds: float = 10.0
    requests: int = 2000
    rounds: int = 3
    objective_ms: float = 50.0
    engines: tuple[str, ...] = ("eager", "onnx")
    offline: bool = True
    online: bool = True
    detail: str = "none"
    threads: int = 1
    device: str = "cpu"
    token_env: str | None = None
    allow_remote: bool = False
    seed: int = 0


def check(options: BenchOptions) -> BenchOptions:
    """As they will be carried out. Raises UsageError before anything starts."""
    if not options.online and not options.offline:
        raise UsageError("--offline-only and --online-only exclude each other.")
    if not options.models and options.url is None:
        raise UsageError("expected a run to measure, as in `cascade bench runs/demo`, or --url of a server.")
    if not options.models and not options.online:
        raise UsageError("--offline-only: models are measured from their folders. Name a run.")
    if options.url is not None:
        options = replace(options, url=checked_url(options.url, allow_remote=options.allow_remote))
    if options.rates is None and not options.concurrency and options.online:
        raise UsageError("--rates: without a closed loop the capacity is unknown. Give rates, as in 50,100.")
    for name, least in (
        ("rounds", 1),
        ("requests", 1),
        ("seconds", 0.1),
        ("objective_ms", 0),
        ("threads", 1),
    ):
        if not getattr(options, name) >= least:
            flag = name.replace("_", "-")
            raise UsageError(f"--{flag}: expected at least {least:g}, found {getattr(options, name):g}.")
    if any(users < 1 or users > MOST_USERS for users in options.concurrency):
        raise UsageError(f"--concurrency: expected 1 to {MOST_USERS} users, found {options.concurrency}.")
    if any(not 0 < rate < MOST_RATE for rate in options.rates or ()):
        raise UsageError(f"--rates: expected requests per second above 0, below {MOST_RATE:g}.")
    if not options.engines:
        raise UsageError("--engines: expected at least one, as in eager,onnx.")
    token_from(options.token_env)
    return options if options.models else replace(options, offline=False)


def longest(options: BenchOptions, variants: int) -> float:
    """Seconds that the loads take at most, while the server answers."""
    rates = len(SHARES) * variants if options.rates is None else len(options.rates)
    segments = options.rounds * variants * (len(options.concurrency) + rates)
    return segments * (options.seconds + _warmup(options))


def run_bench(
    options: BenchOptions,
    *,
    provenance: dict[str, Any],
    windows: Workload | None = None,
    progress: Progress = silent,
    told: Callable[[str], None] = lambda line: None,
) -> tuple[Bench, tuple[Request, ...]]:
    """Measure, and conclude. ``windows``: what is sent, if not simulated.

    Raises:
        UsageError, ConfigError, CheckpointError, CascadeError: it cannot be measured.
    """
    options = check(options)
    variants, facts = _variants(options)
    meter = energy_meter()
    workload = workload_for(facts, windows) if facts else windows
    loaded = None
    if options.online:
        told(f"loads: {longest(options, len(facts) or 2) / 60:.1f} min at most, if answers come in time")
        loaded = _online(options, workload, meter, progress)
        workload = loaded.workload
    offline: tuple[Process, ...] = ()
    if options.offline:
        names = ", ".join(variant.name for variant in variants)
        told(f"fresh processes: {names} on {', '.join(options.engines)}, {options.rounds} times each")
        plan = ProbePlan(rounds=options.rounds, threads=options.threads, device=options.device)
        inputs = workload.inputs if workload is not None else None
        offline = measure_offline(variants, options.engines, plan, inputs, progress=progress)
    if loaded is not None:
        facts = _joined(loaded.models, facts)
    assert workload is not None  # there were models, or a server that has some
    bench = Bench(
        created=int(time.time()),
        models=_with_baseline(facts),
        workload=described(workload, facts[0].task, options.detail),
        settings=_settings(options),
        provenance=provenance,
        objective_ms=options.objective_ms,
        online=None if loaded is None else loaded.online,
        offline=offline,
        energy=Energy(sources=meter.sources, missing=meter.missing),
    )
    bench = replace(bench, ratios=ratios_of(bench), notes=tuple(_notes(bench)))
    return bench, () if loaded is None else loaded.requests


def _variants(options: BenchOptions) -> tuple[tuple[Variant, ...], tuple[ModelFacts, ...]]:
    if not options.models:
        return (), ()
    found = tuple(variants_of(load_config(None, options.models)).values())
    check_engines(options.engines, found[0].task, options.device)
    return found, tuple(_facts(variant) for variant in found)


def _online(options: BenchOptions, workload: Workload | None, meter: Meter, progress: Progress) -> Loaded:
    plan = LoadPlan(
        concurrency=options.concurrency,
        rates=options.rates,
        rounds=options.rounds,
        bounds=Bounds(seconds=options.seconds, requests=options.requests, warmup_s=_warmup(options)),
        objective_ms=options.objective_ms,
        detail=options.detail,
        seed=options.seed,
    )
    if options.url is not None:
        return measure_online(
            options.url,
            plan,
            token=token_from(options.token_env),
            workload=workload,
            meter=meter if is_here(options.url) else None,
            progress=progress,
        )
    with own_server(
        options.models, engine=options.engines[0], threads=options.threads, progress=progress
    ) as url:
        return measure_online(url, plan, own=True, workload=workload, meter=meter, progress=progress)


def _facts(variant: Variant) -> ModelFacts:
    return ModelFacts(
        name=variant.name,
        title=variant.title,
        task=variant.task,
        baseline=variant.baseline,
        backbone_params=variant.backbone_params,
        total_params=variant.total_params,
        size_bytes=variant.size_bytes,
        version=variant.version,
        compression=variant.compression,
        metric=variant.metric,
        window=None if variant.expected is None else variant.expected.window,
        rate_hz=None if variant.expected is None else variant.expected.rate_hz,
    )


def _joined(served: Sequence[ModelFacts], own: Sequence[ModelFacts]) -> tuple[ModelFacts, ...]:
    """The server's models, and those that were measured alone but are not served."""
    names = {model.name for model in served}
    return (*served, *(model for model in own if model.name not in names))


def _with_baseline(models: Sequence[ModelFacts]) -> tuple[ModelFacts, ...]:
    """Exactly one baseline: as told, or the one that is called so; none otherwise."""
    chosen = next((model.name for model in models if model.baseline), None)
    if chosen is None:
        chosen = next((model.name for model in models if model.name == BASELINE), None)
    return tuple(replace(model, baseline=model.name == chosen) for model in models)


def _warmup(options: BenchOptions) -> float:
    return min(WARMUP_MOST_S, WARMUP_SHARE * options.seconds)


def _settings(options: BenchOptions) -> dict[str, Any]:
    found: dict[str, Any] = to_jsonable(options)
    for name in ("models", "token_env", "allow_remote"):
        del found[name]
    return {**found, "warmup_s": _warmup(options)}


def _notes(bench: Bench) -> Iterator[str]:
    """What a reader must know first."""
    if bench.workload["source"] == "simulated":
        yield "The windows sent are simulated; what is in them does not change how long they take."
    if bench.settings["rounds"] == 1:
        yield "One round: ratios have no interval. Use --rounds 3 or more."
    if bench.baseline is None:
        yield "No model is the baseline, so there are no ratios. Call one dense: dense=FOLDER."
    for process in bench.offline:
        if process.failed:
            yield f"{process.variant} on {process.engine} was not measured: {process.failed}"
    if bench.online is not None:
        yield from _about_loads(bench.online)
    if any(process.engine == ALONE for process in bench.offline):
        yield (
            "onnx exports the model when it starts, as a server does, so its peak includes PyTorch's exporter; "
            f"{ALONE} only runs the exported file."
        )


def _about_loads(online: Online) -> Iterator[str]:
    if online.memory is not None and len({load.variant for load in online.loads}) > 1:
        yield "The server holds all variants at once: its memory is theirs together. Single models' is under engines."
    busy = [load for load in online.loads if load.generator_cpu > BUSY]
    if busy:
        yield f"The load generator used more than {BUSY:.0%} of a core {_times(busy)}: it may have been the limit."
    held = [load for load in online.loads if load.held]
    if held:
        yield f"The ceiling of outstanding requests was reached {_times(held)}: arrivals waited for a slot."
    fewest = min((load.whole.requests for load in online.loads), default=0)
    untold = [name for name, quantile in QUANTILES.items() if fewest < samples_needed(quantile)]
    if untold:
        names = ", ".join(name.removesuffix("_ms").replace("p999", "p99.9") for name in untold)
        yield (
            f"Some loads have too few requests for {names} (p99 takes {samples_needed(0.99)}, p99.9 takes "
            f"{samples_needed(0.999):,}): more --requests and --seconds."
        )


def _times(loads: Sequence[Load]) -> str:
    return f"under {len(loads)} load{'s' if len(loads) > 1 else ''}"
