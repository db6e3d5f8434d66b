"""A benchmark's figures, their ratios, and two benchmarks side by side."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from cascade_ops.loadtest import Bench, compare, figures_of, ratios_of
from cascade_ops.loadtest.figures import capacity
from cascade_ops.loadtest.results import Process
from cascade_ops.serde import from_jsonable, to_jsonable
from tests.unit.loadtest.factory import DENSE, SERVICE_MS, SMALL, bench, language_bench, probe, processes


def slower(found: Bench, factor: float) -> Bench:
    """Every process of the small model takes longer."""

    def change(process: Process) -> Process:
        if process.variant != SMALL:
            return process
        rounds = tuple(replace(one, p50_ms=factor * one.p50_ms) for one in process.rounds)
        return replace(process, rounds=rounds)

    return replace(found, offline=tuple(change(process) for process in found.offline))


def test_a_benchmark_survives_json() -> None:
    found = bench()
    again = from_jsonable(Bench, json.loads(json.dumps(to_jsonable(found), allow_nan=False)))
    assert again == found


def test_ratios_are_the_variants_figures_over_the_baselines() -> None:
    found = {(one.figure, one.where): one for one in bench().ratios}
    latency = found["p50_ms", "one process, eager"]
    assert (latency.variant, latency.baseline) == (SMALL, DENSE)
    assert latency.ratio.value == pytest.approx(SERVICE_MS[SMALL] / SERVICE_MS[DENSE])
    assert latency.ratio.differs
    assert latency.ratio.rounds == 3
    size = found["size_bytes", "one process, eager"]
    assert size.ratio.value == pytest.approx(1 / 13.8, rel=1e-3)
    assert size.ratio.low is None  # exact: nothing was repeated
    assert found["capacity", "closed loop"].ratio.value == pytest.approx(8.0 / 2.6, rel=0.05)
    assert found["batch_throughput[8]", "one process, onnx"].ratio.value > 1
    assert ("p999_ms", "closed loop, 1 at a time") not in found


def test_no_baseline_no_ratios() -> None:
    alone = bench(variants=(SMALL,))
    assert alone.baseline is None
    assert ratios_of(alone) == ()
    assert figures_of(alone)


def test_capacity_is_the_most_that_users_were_answered() -> None:
    online = bench().online
    assert online is not None
    best = capacity(online.loads, SMALL)
    assert best is not None
    assert best.mode == "closed"
    assert best.whole.throughput == max(
        load.whole.throughput for load in online.loads if load.mode == "closed" and load.variant == SMALL
    )
    assert capacity(online.loads, "nobody") is None


def test_language_models_are_compared_by_their_own_figures() -> None:
    found = {one.figure: one.ratio.value for one in language_bench().ratios}
    assert found["kv_bytes"] == pytest.approx(0.25)
    assert found["per_token_ms"] == pytest.approx(0.25)
    assert 0.25 < found["ttft_ms"] < 0.3


def test_a_change_is_found_and_only_that() -> None:
    before = bench()
    result = compare(before, slower(before, 1.5))
    worse = [one for one in result.changes if one.better is False]
    assert {(one.figure, one.variant) for one in worse} == {("p50_ms", SMALL)}
    assert {one.where for one in worse} == {
        "one process, eager",
        "one process, onnx",
        "one process, onnx-alone",
    }
    for one in worse:
        assert one.ratio is not None
        assert one.ratio.value == pytest.approx(1.5)
    assert not [one for one in result.changes if one.better is True]
    assert (result.differences, result.only_before, result.only_after) == ((), (), ())
    faster = compare(slower(before, 1.5), before)
    assert {one.figure for one in faster.changes if one.better} == {"p50_ms"}


def test_more_answers_are_better_and_less_latency_is() -> None:
    before = bench(offline=(processes((SMALL,), ("eager",))[0],))
    quick = replace(
        before.offline[0],
        rounds=tuple(
            replace(probe(SMALL, "eager", n), throughput={"8": 9e3 + n, "32": 9e3}) for n in range(3)
        ),
    )
    changes = {one.figure: one for one in compare(before, replace(before, offline=(quick,))).changes}
    assert changes["batch_throughput[8]"].better is True


def test_what_else_differs_is_told() -> None:
    before = bench()
    after = replace(
        before,
        settings={**before.settings, "threads": 2},
        provenance={**before.provenance, "cores": 8},
        models=(replace(before.models[0], version="000000000000"), *before.models[1:]),
        offline=before.offline[:2],
    )
    result = compare(before, after)
    assert {one.what for one in result.differences} == {
        "settings: threads",
        "machine: cores",
        f"model: {DENSE}.version",
    }
    assert result.only_after == ()
    assert any("onnx-alone" in name for name in result.only_before)


def test_one_round_each_gives_ratios_without_a_verdict() -> None:
    before = bench(rounds=1)
    result = compare(before, slower(before, 2.0))
    doubled = next(
        one
        for one in result.changes
        if one.figure == "p50_ms" and "eager" in one.where and one.variant == SMALL
    )
    assert doubled.ratio is not None
    assert doubled.ratio.value == pytest.approx(2.0)
    assert doubled.better is None
