"""Arrivals, latencies and percentiles: what is counted, from when, and what too few samples cannot tell."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cascade_ops.errors import UsageError
from cascade_ops.loadtest import poisson_arrivals, samples_needed, summarise
from cascade_ops.loadtest.records import TIMEOUT, UNSENT
from cascade_ops.loadtest.summary import QUANTILES, quantile_of
from tests.unit.loadtest.factory import request, requests_of

LATENCIES = st.lists(st.floats(0.01, 1e4), min_size=1, max_size=600)


@given(
    rate=st.floats(0.1, 500), seconds=st.floats(0.01, 5), most=st.integers(0, 300), seed=st.integers(0, 99)
)
def test_arrivals_are_ascending_bounded_and_repeatable(
    rate: float, seconds: float, most: int, seed: int
) -> None:
    times = poisson_arrivals(rate, seconds=seconds, most=most, seed=seed)
    assert len(times) <= most
    assert np.all(np.diff(times) >= 0)
    assert np.all((times >= 0) & (times < seconds))
    assert np.array_equal(times, poisson_arrivals(rate, seconds=seconds, most=most, seed=seed))


def test_arrivals_are_a_poisson_process() -> None:
    times = poisson_arrivals(200.0, seconds=100.0, most=10**6, seed=0)
    gaps = np.diff(times)
    assert len(times) == pytest.approx(20_000, rel=0.03)
    assert gaps.std() == pytest.approx(gaps.mean(), rel=0.03)  # as exponential gaps have it
    counts = np.histogram(times, bins=1000, range=(0, 100))[0]
    assert counts.var() == pytest.approx(counts.mean(), rel=0.15)
    assert np.corrcoef(gaps[1:], gaps[:-1])[0, 1] == pytest.approx(0, abs=0.03)


@pytest.mark.parametrize(("rate", "seconds"), [(0.0, 1.0), (-1.0, 1.0), (math.nan, 1.0), (1.0, math.inf)])
def test_arrivals_that_cannot_be(rate: float, seconds: float) -> None:
    with pytest.raises(UsageError, match="above 0"):
        poisson_arrivals(rate, seconds=seconds, most=10, seed=0)


@given(LATENCIES, st.sampled_from(list(QUANTILES.values())))
def test_percentiles_by_definition_and_beside_numpy(latencies: list[float], quantile: float) -> None:
    values = np.array(latencies)
    found = quantile_of(values, quantile)
    if len(values) < samples_needed(quantile):
        assert found is None
        return
    assert found in latencies
    assert np.mean(values <= found) >= quantile
    assert np.mean(values < found) < quantile  # none smaller would do
    assert found >= np.quantile(values, quantile, method="lower")
    assert found <= np.quantile(values, quantile, method="higher")


@pytest.mark.parametrize(
    ("quantile", "needed"), [(0.5, 6), (0.05, 72), (0.9, 36), (0.95, 72), (0.99, 368), (0.999, 3688)]
)
def test_how_many_samples_tell_a_percentile(quantile: float, needed: int) -> None:
    """So many that all of them lie on one side of it once in 40 times at most, and not one fewer."""
    assert samples_needed(quantile) == needed
    larger = max(quantile, 1 - quantile)
    assert larger**needed <= 0.025 < larger ** (needed - 1)


def test_too_few_requests_tell_no_tail() -> None:
    few = summarise(requests_of([1.0] * 367), seconds=1.0, objective_ms=50.0)
    enough = summarise(requests_of([1.0] * 368), seconds=1.0, objective_ms=50.0)
    assert (few.p95_ms, few.p99_ms, few.p999_ms) == (pytest.approx(1.0), None, None)
    assert enough.p99_ms == pytest.approx(1.0)
    none = summarise([], seconds=1.0, objective_ms=50.0)
    assert (none.p50_ms, none.mean_ms, none.max_ms, none.lag_p99_ms, none.within) == (
        None,
        None,
        None,
        None,
        0,
    )


def test_latency_counts_from_the_intended_time() -> None:
    """The generator's own lateness, and a held request's waiting, are the user's too."""
    late = request(mode="open", level=10.0, intended=1.0, sent=1.4, finished=1.5)
    assert late.latency == pytest.approx(0.5)
    found = summarise([late] * 400, seconds=1.0, objective_ms=200.0)
    assert found.p99_ms == pytest.approx(500)
    assert found.lag_p99_ms == pytest.approx(400)
    assert found.goodput == 0


def test_errors_are_counted_by_what_they_were() -> None:
    mixed = [
        *requests_of([10.0] * 90),
        *requests_of([0.1] * 5, status=503),
        *requests_of([0.2] * 2, status=400),
        *requests_of([900.0] * 2, status=0, error=TIMEOUT),
        request(700.0, status=0, error=UNSENT, sent=None),
    ]
    found = summarise(mixed, seconds=10.0, objective_ms=50.0)
    assert found.errors == {"503": 5, "400": 2, "timeout": 2, "unsent": 1}
    assert (found.requests, found.answered) == (100, 90)
    assert found.throughput == pytest.approx(9.0)
    assert found.within == pytest.approx(0.9)
    # a quick refusal is not a quick answer, but who gave up waited at least so long
    assert found.mean_ms == pytest.approx((90 * 10 + 2 * 900 + 700) / 93)
    assert found.max_ms == pytest.approx(900)


def test_goodput_is_what_came_within_the_objective() -> None:
    requests = [*requests_of([10.0] * 60), *requests_of([90.0] * 30), *requests_of([1.0] * 10, status=503)]
    found = summarise(requests, seconds=5.0, objective_ms=50.0)
    assert found.throughput == pytest.approx(18.0)
    assert found.goodput == pytest.approx(12.0)
    assert found.within == pytest.approx(0.6)


def test_warming_up_does_not_count() -> None:
    warm = requests_of([500.0] * 50, counted=False)
    counted = requests_of([2.0] * 50)
    with_it = summarise([*warm, *counted], seconds=1.0, objective_ms=50.0)
    assert with_it == summarise(counted, seconds=1.0, objective_ms=50.0)
    assert with_it.max_ms == pytest.approx(2.0)


@given(LATENCIES, st.floats(0.1, 1e4), st.floats(0.1, 100), st.randoms())
def test_summaries_are_consistent_and_blind_to_order(
    latencies: list[float], objective: float, seconds: float, random: object
) -> None:
    requests = requests_of(latencies)
    found = summarise(requests, seconds=seconds, objective_ms=objective)
    assert 0 <= found.goodput <= found.throughput
    assert found.throughput == pytest.approx(len(latencies) / seconds)
    told = [value for name in QUANTILES if (value := getattr(found, name)) is not None]
    assert told == sorted(told)
    if told:
        assert found.max_ms is not None
        assert told[-1] <= found.max_ms
    random.shuffle(requests)  # type: ignore[attr-defined]
    again = summarise(requests, seconds=seconds, objective_ms=objective)
    assert again.p50_ms == found.p50_ms
    assert again.mean_ms == pytest.approx(found.mean_ms)
