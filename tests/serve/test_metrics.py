"""Counts of all replicas, dead ones too, add up; gauges are of those alive."""

from __future__ import annotations

from prometheus_client.parser import text_string_to_metric_families

from serve.memory import memory
from serve.metrics import FRESH_S, Ledger, Meter, Snapshot, render


def snapshot(replica: str, requests: int) -> Snapshot:
    meter = Meter(replica)
    for number in range(requests):
        meter.requests.labels("m", "/v1/diagnose", "200").inc()
        meter.seconds.labels("m").observe(0.003 * (number + 1))
        meter.batch.labels("m").observe(4)
    return meter.snapshot(held=requests + 1, waiting=requests)


def values(text: bytes) -> dict[str, float]:
    return {
        sample.name + "".join(f",{v}" for _, v in sorted(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text.decode())
        for sample in family.samples
    }


def test_counts_add_up() -> None:
    text = render({"a": snapshot("a", 3), "b": snapshot("b", 5)}, alive=["a"])
    found = values(text)
    assert found["cascade_requests_total,m,/v1/diagnose,200"] == 8
    assert found["cascade_request_seconds_count,m"] == 8
    assert found["cascade_request_seconds_bucket,0.005,m"] == 2
    assert found["cascade_request_seconds_bucket,+Inf,m"] == 8
    assert found["cascade_batch_size_sum,m"] == 32
    assert found["cascade_queue_depth,a"] == 3
    assert "cascade_queue_depth,b" not in found, "a dead replica has no queue"
    assert found["cascade_replicas"] == 1


def test_a_later_report_replaces_an_earlier_one() -> None:
    ledger = Ledger()
    ledger.report("a", snapshot("a", 1))
    ledger.report("a", snapshot("a", 4))
    assert values(ledger.text())["cascade_requests_total,m,/v1/diagnose,200"] == 4


def test_a_replica_that_falls_silent_is_lost_with_what_it_held() -> None:
    now = 0.0
    ledger = Ledger(lambda: now)
    ledger.report("killed", snapshot("killed", 3))
    ledger.farewell("told to end", snapshot("told to end", 2))
    ledger.report("alive", snapshot("alive", 1))
    now = FRESH_S - 1
    ledger.report("alive", snapshot("alive", 1))
    found = values(ledger.text())
    assert found["cascade_replicas"] == 2
    assert found["cascade_replicas_lost_total"] == 0
    now = FRESH_S + 1
    found = values(ledger.text())
    assert found["cascade_replicas"] == 1
    assert found["cascade_replicas_lost_total"] == 1
    assert found["cascade_requests_lost_total"] == 4
    assert found["cascade_requests_total,m,/v1/diagnose,200"] == 6, "what it counted stays"


def test_memory_is_read() -> None:
    now, peak = memory()
    assert 10e6 < now <= peak
