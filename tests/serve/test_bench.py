"""The load generator against a server of known behaviour: what is counted, what is bounded, what a stall does."""

from __future__ import annotations

import asyncio
import json
import time
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from cascade_ops.errors import (
    CascadeError,
    CheckpointError,
    ConfigError,
    RunExistsError,
    UnknownNameError,
    UsageError,
)
from cascade_ops.loadtest import Summary, figures_of, summarise
from serve.bench import saved
from serve.bench.generator import Bounds, Sent, Shot, closed_loop, open_loop, poster, session_for
from serve.bench.job import BenchOptions, check, run_bench
from serve.bench.online import LoadPlan, default_rates, measure_online
from serve.bench.target import checked_url, read_metrics, token_from
from serve.bench.workload import bodies, simulated, workload_for
from tests.serve.stub import TOKEN, Stub, serving
from tests.unit.loadtest.factory import bench, model

BODY = json.dumps({"model": "small"}).encode()
QUICK = Bounds(seconds=1.0, requests=10_000, warmup_s=0.1, patience_s=5.0)


def run(stub: Stub, mode: str, level: float, bounds: Bounds = QUICK) -> Sent:
    shot = Shot(round=0, variant="small", mode=mode, level=float(level), bodies=[BODY])  # type: ignore[arg-type]

    async def whole() -> Sent:
        async with session_for(None) as session:
            post = poster(session, f"{stub.url}/v1/diagnose")
            return await (closed_loop if mode == "closed" else open_loop)(post, shot, bounds)

    return asyncio.run(whole())


def summed(sent: Sent, objective_ms: float = 50.0) -> Summary:
    return summarise(sent.requests, seconds=sent.seconds, objective_ms=objective_ms)


def test_a_stall_shows_in_the_open_loop_and_hides_in_the_closed_one() -> None:
    """The server stands still for 0.5 of 2 seconds: a user in turn meets that once, a quarter of those who come do."""
    bounds = replace(QUICK, seconds=2.0, requests=1500)
    with serving(Stub(stall=(0.5, 0.5))) as stub:
        closed = run(stub, "closed", 1, bounds)
    with serving(Stub(stall=(0.5, 0.5))) as stub:
        opened = run(stub, "open", 250, bounds)
    slow = [one.latency for one in closed.requests if one.latency > 0.1]
    assert max(slow) > 0.4  # it was there
    assert len(slow) < 0.01 * len(closed.requests)  # and p99 does not see it
    shown = summed(opened)
    assert shown.p99_ms is not None
    assert shown.p99_ms > 400
    assert shown.p90_ms is not None
    assert shown.p90_ms > 150  # the wait falls from 0.5 s to 0 over a quarter of the arrivals
    assert shown.within < 0.9


def test_waiting_for_a_slot_is_the_users_waiting() -> None:
    """With a ceiling the generator itself would leave arrivals out; they are sent late, and count from before."""
    bounds = replace(QUICK, seconds=1.6, ceiling=4, warmup_s=0.0)
    with serving(Stub(stall=(0.4, 0.5))) as stub:
        sent = run(stub, "open", 280, bounds)
        assert stub.most_outstanding <= 4
    assert sent.held > 50
    found = summed(sent)
    assert found.p99_ms is not None
    assert found.p99_ms > 400
    assert found.lag_p99_ms is not None
    assert found.lag_p99_ms > 300
    assert found.requests == len(sent.requests)


def test_users_who_gave_up_are_counted_and_time_is_bounded() -> None:
    bounds = replace(QUICK, seconds=0.5, ceiling=2, patience_s=0.3, warmup_s=0.0)
    with serving(Stub(service_s={"small": 3.0})) as stub:
        began = time.monotonic()
        sent = run(stub, "open", 40, bounds)
        took = time.monotonic() - began
    assert took < 2.5
    found = summed(sent)
    assert found.answered == 0
    assert set(found.errors) <= {"timeout", "unsent"}
    assert sum(found.errors.values()) == found.requests > 5
    assert found.p50_ms is not None
    assert found.p50_ms >= 290  # they waited so long at least


def test_the_closed_loop_has_so_many_users_and_no_more() -> None:
    with serving(Stub(service_s={"small": 0.02})) as stub:
        found = summed(run(stub, "closed", 6))
        assert stub.most_outstanding == 6
    assert found.p50_ms is not None
    assert found.p50_ms >= 20
    assert 100 < found.throughput <= 300  # 6 users of 20 ms each
    assert found.errors == {}


@pytest.mark.parametrize(("mode", "level"), [("closed", 4), ("open", 400)])
def test_requests_are_bounded(mode: str, level: float) -> None:
    bounds = replace(QUICK, seconds=30.0, requests=60, warmup_s=0.05)
    with serving(Stub()) as stub:
        began = time.monotonic()
        sent = run(stub, mode, level, bounds)
        assert time.monotonic() - began < 5
        assert len([one for one in sent.requests if one.counted]) <= 60
        assert 60 <= stub.seen["small"] == len(sent.requests) <= 120
    assert 0 < sent.seconds < 5


@pytest.mark.parametrize(("mode", "level"), [("closed", 2), ("open", 50)])
def test_time_is_bounded_and_warming_up_apart(mode: str, level: float) -> None:
    bounds = replace(QUICK, seconds=0.4, warmup_s=0.2)
    with serving(Stub()) as stub:
        sent = run(stub, mode, level, bounds)
    assert 0.3 < sent.seconds < 1.5
    warm = [one for one in sent.requests if not one.counted]
    assert warm
    assert all(one.intended < 0.2 for one in warm)
    assert all(one.intended >= 0.2 for one in sent.requests if one.counted)


def test_refusals_and_broken_connections_are_counted() -> None:
    with serving(Stub(refuse_every=5)) as stub:
        found = summed(run(stub, "closed", 2, replace(QUICK, seconds=0.4)))
    assert found.errors["503"] == pytest.approx(found.requests / 5, abs=2)
    assert found.answered == found.requests - found.errors["503"]
    with serving(Stub(drop_every=7)) as stub:
        broken = summed(run(stub, "open", 100, replace(QUICK, seconds=0.6)))
    assert broken.errors["connection"] == pytest.approx(broken.requests / 7, abs=3)
    assert broken.answered + broken.errors["connection"] == broken.requests


PLAN = LoadPlan(
    concurrency=(1, 4),
    rates=(50.0,),
    rounds=2,
    bounds=Bounds(seconds=0.15, requests=400, warmup_s=0.03),
    objective_ms=50.0,
    detail="none",
)


def test_variants_take_turns_and_the_faster_one_is() -> None:
    with serving(Stub(service_s={"dense": 0.02, "small": 0.005})) as stub:
        loaded = measure_online(stub.url, PLAN)
        order = list(dict.fromkeys((one.mode, one.round, one.level, one.variant) for one in loaded.requests))
        assert len(loaded.requests) == stub.seen.total() - len(stub.models), (
            "each is first asked whether it understands"
        )
    firsts = [name for (mode, _, _, name) in order if mode == "closed"][::2]
    assert firsts == ["dense", "small", "small", "dense"]
    assert {mode for mode, *_ in order} == {"closed", "open"}
    loads = {(load.mode, load.level, load.variant): load for load in loaded.online.loads}
    slow, quick = loads["closed", 1, "dense"].whole, loads["closed", 1, "small"].whole
    assert quick.throughput > 1.5 * slow.throughput
    assert loads["closed", 4, "dense"].mean_batch == pytest.approx(2.0, abs=0.3)
    memory = loaded.online.memory
    assert memory is not None
    assert (memory.resident_after, memory.peak_after, memory.replicas) == (3e8, 4e8, 2)


def test_default_rates_are_shares_of_each_capacity() -> None:
    """121/s and 373/s: half, four fifths and six fifths of each; those nearly alike only once."""
    online = bench().online
    assert online is not None
    found = default_rates([load for load in online.loads if load.mode == "closed"])
    assert found == (61.0, 97.0, 150.0, 190.0, 300.0, 450.0)


def test_bodies_are_windows_of_the_asked_model() -> None:
    facts = (model("dense", window=64), model("small", window=64))
    workload = workload_for(facts, None)
    made = [json.loads(body) for body in bodies(workload, "small", "lines")]
    assert len(made) == 64
    assert {(one["model"], one["detail"], len(one["signal"])) for one in made} == {("small", "lines", 64)}
    assert workload.inputs is not None
    assert workload.inputs.mean(axis=1) == pytest.approx(0, abs=1e-6)
    with pytest.raises(UsageError, match="windows of 64 samples, found 32"):
        workload_for(facts, simulated(32, 12_000.0))
    with pytest.raises(UsageError, match="Measure them apart"):
        workload_for((facts[0], model("small", window=128)), None)


def test_a_whole_benchmark_is_saved_and_read_again(tmp_path: Path) -> None:
    options = BenchOptions(concurrency=(2,), rates=(60.0,), seconds=0.2, rounds=2, offline=False)
    with serving(Stub()) as stub:
        found, requests = run_bench(replace(options, url=stub.url + "/"), provenance={"cores": 2})
        saved.save(found, requests, "<p>page</p>", tmp_path / "bench")
        assert saved.load(tmp_path / "bench") == found
        table = pq.read_table(tmp_path / "bench" / "requests.parquet")
        assert table.num_rows == stub.seen.total() - len(stub.models), (
            "each is first asked whether it understands"
        )
    assert set(table.column("variant").to_pylist()) == {"dense", "small"}
    assert {one.figure for one in found.ratios} >= {"p50_ms", "throughput", "capacity"}
    assert len(figures_of(found)[0].rounds) == 2
    assert found.energy.sources or found.energy.missing
    with pytest.raises(RunExistsError, match="not a benchmark"):
        saved.save(found, requests, "", tmp_path)
    (tmp_path / "bench" / "bench.json").write_text('{"schema": "cascade.report/1"}')
    with pytest.raises(CheckpointError, match=r"expected a benchmark of schema 'cascade\.bench/1'"):
        saved.load(tmp_path / "bench")


def test_a_token_is_sent_and_its_lack_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BENCH_TOKEN", TOKEN)
    plan = replace(PLAN, concurrency=(1,), rates=(), rounds=1)
    with serving(Stub(token=TOKEN)) as stub:
        assert measure_online(stub.url, plan, token=token_from("BENCH_TOKEN")).requests
        with pytest.raises(UsageError, match="asks for a token"):
            measure_online(stub.url, plan)
    with pytest.raises(ConfigError, match="--token-env NOT_SET_HERE"):
        token_from("NOT_SET_HERE")


def test_nobody_there_and_nothing_answered_are_told() -> None:
    with serving(Stub()) as stub:
        url = stub.url
    with pytest.raises(CascadeError, match="does not answer"):
        measure_online(url, PLAN)
    plan = replace(PLAN, concurrency=(1,), rates=(), rounds=1)
    with (
        serving(Stub(refuse_every=1)) as stub,
        pytest.raises(CascadeError, match="answered no request with 200; found 503"),
    ):
        measure_online(stub.url, plan)


def test_a_server_that_does_not_understand_is_quoted() -> None:
    with (
        serving(Stub(fault="no tokenizer")) as stub,
        pytest.raises(CascadeError, match=r"refuses what it would be sent \(422\): .*no tokenizer"),
    ):
        measure_online(stub.url, PLAN)
    assert stub.seen.total() == 1


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("http://example.org:8000", "--allow-remote"),
        ("http://10.0.0.5", "--allow-remote"),
        ("http://127.0.0.1.example.org", "--allow-remote"),
        ("ftp://127.0.0.1", "expected an address"),
        ("127.0.0.1:8000", "expected an address"),
        ("http://127.0.0.1:99999", "expected an address"),
        ("http://user:pass@127.0.0.1", "user or password"),
    ],
)
def test_other_machines_are_refused_unless_asked_for(url: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        checked_url(url, allow_remote=False)


def test_this_machine_is_loaded_by_any_of_its_names() -> None:
    for url in ("http://127.0.0.1:8000", "http://localhost:1", "http://[::1]:8000", "http://127.9.9.9"):
        assert checked_url(url + "/", allow_remote=False) == url
    assert checked_url("https://example.org/app/", allow_remote=True) == "https://example.org/app"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({}, "expected a run to measure"),
        ({"url": "http://127.0.0.1", "online": False}, "Name a run"),
        ({"models": ("a",), "online": False, "offline": False}, "exclude each other"),
        ({"models": ("a",), "rounds": 0}, "--rounds: expected at least 1, found 0"),
        ({"models": ("a",), "seconds": 0.0}, "--seconds"),
        ({"models": ("a",), "concurrency": (0,)}, "--concurrency"),
        ({"models": ("a",), "rates": (-1.0,)}, "--rates"),
        ({"models": ("a",), "concurrency": ()}, "capacity is unknown"),
        ({"models": ("a",), "engines": ()}, "--engines"),
    ],
)
def test_requests_that_cannot_be_carried_out(changes: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        check(BenchOptions(**changes))  # type: ignore[arg-type]


def test_metrics_that_cannot_be_read_are_no_metrics() -> None:
    assert read_metrics("").batches == {}
    with pytest.raises(ValueError):  # noqa: PT011  (the parser's own words)
        read_metrics("cascade_resident_bytes{ 12\n")


def test_the_command_measures_writes_and_compares(tmp_path: Path) -> None:
    from typer.testing import CliRunner

    from workflows.cli import app

    def cascade(*arguments: object) -> tuple[int, str, str]:
        result = CliRunner().invoke(app, ["bench", *map(str, arguments)])
        return result.exit_code, result.stdout, result.stderr

    folder = tmp_path / "one"
    with serving(Stub()) as stub:
        quick = ("--seconds", 0.15, "--rounds", 1, "--concurrency", 2, "--url", stub.url)
        code, out, err = cascade(*quick, "--rates", 40, "--out", folder)
        assert code == 0, out + err
        assert "closed loop, 2 at a time" in out
        assert "note: One round" in err
        code, out, err = cascade(*quick, "--out", tmp_path / "two", "--json")
        assert code == 0, out + err
        document = json.loads(out)
    assert document["schema"] == "cascade.bench/1"
    rates = {load["level"] for load in document["online"]["loads"] if load["mode"] == "open"}
    best = max(load["whole"]["throughput"] for load in document["online"]["loads"])
    assert len(rates) > 2  # by default shares of what the closed loop found
    assert max(rates) < 1.3 * best
    assert sorted(path.name for path in folder.iterdir()) == ["bench.html", "bench.json", "requests.parquet"]
    assert "Latency against load" in (folder / "bench.html").read_text(encoding="utf-8")
    code, out, err = cascade("--compare", folder, tmp_path / "two")
    assert code == 0, out + err
    assert "latency p50" in out
    code, out, _ = cascade("--compare", folder, folder, "--json")
    document = json.loads(out)
    assert document["schema"] == "cascade.bench.compare/1"
    assert {change["ratio"]["value"] for change in document["changes"] if change["ratio"]} == {1.0}
    for arguments, told in (
        (("--url", "http://192.0.2.1"), "--allow-remote"),
        (("--url", stub.url, "--rates", "fast"), "--rates: expected numbers"),
        (("--url", stub.url, "--concurrency", "1.5"), "--concurrency: expected whole numbers"),
        (("--url", stub.url, "--detail", "lots"), "unknown --detail 'lots'"),
        (("--compare", folder, tmp_path), "expected a benchmark's folder"),
    ):
        code, _, err = cascade(*arguments)
        assert code in (1, 2)
        assert told in err


def test_saved_benchmarks_that_are_not_whole_are_refused(tmp_path: Path) -> None:
    saved.save(bench(), (), "", tmp_path / "whole")
    document = json.loads((tmp_path / "whole" / "bench.json").read_text(encoding="utf-8"))
    del document["objective_ms"]
    (tmp_path / "whole" / "bench.json").write_text(json.dumps(document), encoding="utf-8")
    with pytest.raises(CheckpointError, match="not a whole benchmark"):
        saved.load(tmp_path / "whole")


def test_unknown_engines_are_named(finished: Path) -> None:
    options = BenchOptions(models=(str(finished),), online=False, engines=("eager", "onyx"))
    with pytest.raises(UnknownNameError, match="Did you mean 'onnx'"):
        run_bench(options, provenance={})
    with pytest.raises(UsageError, match="--device cpu"):
        run_bench(replace(options, engines=("onnx",), device="cuda"), provenance={})
