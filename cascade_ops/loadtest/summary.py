"""Many requests as a few figures: percentiles where the sample can tell them, throughput, errors, goodput."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float

from cascade_ops.loadtest.records import OK, Request

QUANTILES = {"p50_ms": 0.5, "p90_ms": 0.9, "p95_ms": 0.95, "p99_ms": 0.99, "p999_ms": 0.999}
CONFIDENCE = 0.95


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """Counted requests of one variant under one load.

    Percentiles (milliseconds, from the intended time) are over requests answered with 200 and those given up;
    None where there are fewer than ``samples_needed``.

    Attributes:
        requests: how many were to be sent.
        answered: of these, with 200.
        errors: the others, by status or reason.
        throughput: answered with 200, per second.
        goodput: answered with 200 within the objective, per second.
        within: answered with 200 within the objective, as a share of ``requests``.
        lag_p99_ms: how late the generator itself sent; None where too few tell.
    """

    requests: int
    answered: int
    seconds: float
    throughput: float
    goodput: float
    within: float
    errors: dict[str, int] = field(default_factory=dict)
    mean_ms: float | None = None
    p50_ms: float | None = None
    p90_ms: float | None = None
    p95_ms: float | None = None
    p99_ms: float | None = None
    p999_ms: float | None = None
    max_ms: float | None = None
    lag_p99_ms: float | None = None


def samples_needed(quantile: float) -> int:
    """The fewest independent samples with a two-sided 95 % interval for the quantile: 6, 36, 72, 368, 3,688 for p50 …
    p99.9.

    With n samples all are below the q-quantile with probability qⁿ; beyond n = ln 0.025 / ln q that is rarer than
    1 in 40, and the largest bounds it from above (for q < 0.5 the smallest, from below).
    """
    tail = (1 - CONFIDENCE) / 2
    return math.ceil(math.log(tail) / math.log(max(quantile, 1 - quantile)))


def quantile_of(values: Float[np.ndarray, " samples"], quantile: float) -> float | None:
    """The smallest value that at least a share ``quantile`` of the values does not exceed; None for too few."""
    if len(values) < samples_needed(quantile):
        return None
    return float(np.quantile(values, quantile, method="inverted_cdf"))


def summarise(requests: Sequence[Request], *, seconds: float, objective_ms: float) -> Summary:
    """The counted ones of ``requests``, which took ``seconds`` in all."""
    counted = [request for request in requests if request.counted]
    answered = [request for request in counted if request.status == OK]
    in_time = sum(1e3 * request.latency <= objective_ms for request in answered)
    waits = 1e3 * np.array(
        [request.latency for request in counted if request.tells_latency], dtype=np.float64
    )
    lags = 1e3 * np.array(
        [request.sent - request.intended for request in counted if request.sent is not None], dtype=np.float64
    )
    per_second = 1 / seconds if seconds > 0 else 0.0
    return Summary(
        requests=len(counted),
        answered=len(answered),
        seconds=seconds,
        throughput=len(answered) * per_second,
        goodput=in_time * per_second,
        within=in_time / len(counted) if counted else 0.0,
        errors=dict(Counter(request.outcome for request in counted if request.status != OK)),
        mean_ms=float(waits.mean()) if len(waits) else None,
        max_ms=float(waits.max()) if len(waits) else None,
        lag_p99_ms=quantile_of(lags, 0.99),
        **{name: quantile_of(waits, quantile) for name, quantile in QUANTILES.items()},
    )
