"""What the served application must hold: exact answers, little overhead, full batches, refusal under overload, a killed
replica, flat memory. Tables go to docs/benchmarks.md.

    python benchmarks/serving.py runs/demo [--only exact,overhead,batching,overload,killed,soak] [--minutes 5]

Client, proxy, replica and model share the machine's cores.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import time
from collections import Counter
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import psutil
import torch
from page import rewrite, table
from serving_client import (
    WINDOWS,
    Asked,
    body,
    closed,
    connect,
    one,
    opened,
    real_windows,
    replicas,
    serving,
    upload,
)
from serving_size import run_of

from cascade_ops.checkpoint import load_pruned
from cascade_ops.evaluation import predict
from cascade_ops.loadtest.records import Request
from serve.bench.generator import Sent


def per(found: Sequence[Asked], share: float) -> float:
    accepted = [asked.ms for asked in found if asked.status == 200]
    return float(np.percentile(accepted, 100 * share)) if accepted else float("nan")


def exact(run: Path, args: argparse.Namespace) -> None:
    windows, source = real_windows(run)
    rows = []
    for title, settings in (
        ("batched, `bitwise: true`", {"bitwise": True}),
        ("batched", {}),
        ("one by one (`batch.size: 1`)", {"batch__size": 1}),
    ):
        with serving(run, **settings) as url:
            for model, folder in (("model", run / "model"), ("dense", run / "steps/00-dense/model")):
                expected = (
                    predict(load_pruned(folder), {"signal": torch.from_numpy(windows)}).double().softmax(1)
                )
                bodies = [body(window, model) for window in windows]
                found = sorted(
                    asyncio.run(closed(url, bodies, 32, count=WINDOWS)), key=lambda asked: asked.place
                )
                assert Counter(asked.status for asked in found) == {200: WINDOWS}
                served = torch.tensor(
                    [list(asked.answer["probabilities"].values()) for asked in found], dtype=torch.float64
                )
                rows.append(
                    (
                        title,
                        model if model == "dense" else "compressed",
                        f"{int((served.argmax(1) == expected.argmax(1)).sum())} of {WINDOWS}",
                        int((served == expected).all(1).sum()),
                        f"{float((served - expected).abs().max()):.1e}",
                        f"{np.mean([asked.answer['batch'] for asked in found]):.1f}",
                    )
                )
    text = table(
        ("served", "model", "same class", "equal to the last bit", "largest Δ probability", "mean batch"),
        rows,
    )
    rewrite("serving-exact", f"{WINDOWS} windows of {source}, concurrency 32, engine `eager`:\n\n{text}")


def overhead(run: Path, args: argparse.Namespace) -> None:
    """The same request asked of the service in this process, and over HTTP, in turn."""
    from serve.config import load_config
    from serve.schemas import DiagnoseRequest
    from serve.service import Sample, Service

    windows, _ = real_windows(run)
    bodies = [body(window) for window in windows[:64]]
    service = Service(load_config(None, [f"model={run}"]))

    async def in_process(count: int) -> list[float]:
        times = []
        for place in range(count):
            began = time.perf_counter()
            asked = DiagnoseRequest.model_validate_json(bodies[place % len(bodies)])
            sample = Sample(signal=np.array(asked.signal), fs_hz=asked.fs_hz, preprocessed=True)
            (found,) = await service.diagnose([sample], service.variant(None), "none", began)
            found.model_dump_json()
            times.append(1e3 * (time.perf_counter() - began))
        return times

    rows = []
    loop = asyncio.new_event_loop()
    loop.run_until_complete(service.start())
    for title, settings in (
        ("replica listens (`front: direct`)", {}),
        ("Serve's proxy (`front: proxy`)", {"front": "proxy"}),
    ):
        with serving(run, **settings) as url:
            inside: list[list[float]] = []
            outside: list[list[float]] = []
            for _ in range(8):
                inside.append(loop.run_until_complete(in_process(250)))
                outside.append(
                    [asked.ms for asked in loop.run_until_complete(closed(url, bodies, 1, count=250))]
                )
            a, b = np.median(inside[1:], axis=1), np.median(outside[1:], axis=1)  # the first round warms up
            gap = b - a
            spread = 1.96 * gap.std(ddof=1) / np.sqrt(len(gap))
            rows.append((title, f"{a.mean():.2f}", f"{b.mean():.2f}", f"{gap.mean():.2f} ± {spread:.2f}"))
    service.stop()
    header = ("over HTTP by", "p50 in process, ms", "p50 over HTTP, ms", "overhead, ms")
    rewrite(
        "serving-overhead",
        "One user, windows of 1,024 samples as JSON, 7 interleaved rounds of 250 requests:\n\n"
        + table(header, rows),
    )


def batching(run: Path, args: argparse.Namespace) -> None:
    windows, _ = real_windows(run)
    rows = []
    for model in ("model", "dense"):
        bodies = [body(window, model) for window in windows[:64]]
        figures: dict[str, list[float]] = {}
        cells: dict[str, tuple[float, float, float]] = {}
        with serving(run, batch__size=1) as alone, serving(run) as together:
            for _ in range(5):
                for title, url in (("alone", alone), ("together", together)):
                    found = asyncio.run(closed(url, bodies, 32, seconds=4.0))
                    assert {asked.status for asked in found} == {200}
                    figures.setdefault(title, []).append(len(found) / max(asked.ended for asked in found))
                    cells[title] = (
                        per(found, 0.5),
                        per(found, 0.99),
                        float(np.mean([a.answer["batch"] for a in found])),
                    )
        a, b = np.array(figures["alone"][1:]), np.array(figures["together"][1:])
        name = "compressed" if model == "model" else "dense"
        for title, rates in (("one by one", a), ("batched", b)):
            p50, p99, batch = cells["alone" if title == "one by one" else "together"]
            rows.append((name, title, f"{rates.mean():.0f}", f"{p50:.0f}", f"{p99:.0f}", f"{batch:.1f}", ""))
        ratio = b / a
        rows[-1] = (*rows[-1][:-1], f"{ratio.mean():.2f} ± {1.96 * ratio.std(ddof=1) / 2:.2f}×")
    header = (
        "model",
        "requests are computed",
        "requests/s",
        "p50, ms",
        "p99, ms",
        "mean batch",
        "throughput ratio",
    )
    rewrite(
        "serving-batching", "32 users, closed loop, 4 interleaved rounds of 4 s:\n\n" + table(header, rows)
    )


def overload(run: Path, args: argparse.Namespace) -> None:
    """Of a small model, where the client on the same cores is much of the load, and of one that is not small."""
    parts = [
        overloaded(run, "the demonstration's dense model (0.3 M parameters)", 10, {}),
        overloaded(
            run_of("85"),
            "85 M parameters, dense; `limits: {ongoing: 16, queued: 0}`, `batch.size: 8`",
            30,
            {"limits__ongoing": 16, "limits__queued": 0, "batch__size": 8},
            windows=real_windows(run)[0],
        ),
    ]
    rewrite(
        "serving-overload",
        "Every 503 has `Retry-After: 1`. Latency is of accepted requests, from when they were due; the client, on the "
        "same two cores, sent them late by as much as the last column says.\n\n" + "\n\n".join(parts),
    )


def overloaded(
    run: Path, title: str, seconds: float, settings: dict[str, object], *, windows: np.ndarray | None = None
) -> str:
    """Poisson arrivals at shares of what users in a closed loop get answered."""
    found = real_windows(run)[0] if windows is None else windows
    bodies = [body(window, "dense") for window in found[:64]]
    rows = []

    def told(title: str, sent: Sent) -> list[Request]:
        statuses = Counter(request.outcome for request in sent.requests)
        accepted = [request for request in sent.requests if request.status == 200]
        p50, p99 = np.percentile([1e3 * request.latency for request in accepted], (50, 99))
        late = np.percentile([1e3 * (request.sent - request.intended) for request in accepted], 99)
        number = len(sent.requests)
        others = number - statuses["200"] - statuses["503"]
        offered, answered = (rate(count / sent.seconds) for count in (number, len(accepted)))
        share = f"{statuses['503'] / number:.0%}"
        rows.append((title, offered, answered, share, others, f"{p50:.0f}", f"{p99:.0f}", f"{late:.0f}"))
        return sent.requests

    with serving(run, **settings) as url:
        users = int(str(settings.get("limits__ongoing", 32)))
        asyncio.run(closed(url, bodies, users, seconds=3))
        capacity = len(asyncio.run(closed(url, bodies, users, seconds=seconds))) / seconds

        def at(share: float) -> Sent:
            return asyncio.run(opened(url, bodies, share * capacity, seconds))

        before = told("0.5× capacity", at(0.5))
        told("1× capacity", at(1.0))
        told("2× capacity", at(2.0))
        after = told("0.5× capacity, right after", at(0.5))
    usual = np.median([request.latency for request in before if request.status == 200])
    back = next((s for s in range(10) if np.median(within(after, s)) <= 1.5 * usual), 10)
    header = (
        "arrivals (Poisson)",
        "offered/s",
        "answered/s",
        "503",
        "other failures",
        "p50, ms",
        "p99, ms",
        "sent late, p99, ms",
    )
    return (
        f"{title[0].upper()}{title[1:]}: capacity {rate(capacity)} requests/s ({users} users in a closed loop). Median "
        f"within 1.5× of before in second {back + 1} after the overload.\n\n" + table(header, rows)
    )


def rate(per_second: float) -> str:
    return f"{per_second:.0f}" if per_second >= 100 else f"{per_second:.1f}"


def within(requests: Sequence[Request], second: int) -> list[float]:
    return [one.latency for one in requests if one.status == 200 and second <= one.intended < second + 1] or [
        float("inf")
    ]


def killed(run: Path, args: argparse.Namespace) -> None:
    windows, _ = real_windows(run)
    expected = predict(load_pruned(run / "model"), {"signal": torch.from_numpy(windows)}).argmax(1).tolist()
    classes = load_pruned(run / "model").config.classes
    bodies = [body(window) for window in windows]
    rows = []
    for attempt in range(3):
        with serving(run, replicas__min=2, replicas__max=2, cpus=0.5) as url:

            async def under_load(url: str = url) -> list[Asked]:
                loading = asyncio.create_task(closed(url, bodies, 16, seconds=12))
                await asyncio.sleep(4)
                os.kill(replicas()[0], signal.SIGKILL)
                return await loading

            found = asyncio.run(under_load())
            failed = [asked for asked in found if asked.status != 200]
            wrong = sum(
                asked.answer["diagnosis"] != classes[expected[asked.place % WINDOWS]]
                for asked in found
                if asked.status == 200
            )
            gap = max((b.ended - a.ended for a, b in pairwise(found)), default=0.0)
            rows.append(
                (
                    attempt + 1,
                    len(found),
                    len(failed),
                    dict(Counter(a.status for a in failed)),
                    wrong,
                    f"{gap:.2f}",
                )
            )
    header = (
        "run",
        "requests",
        "failed",
        "how (status; 0: connection)",
        "wrong answers",
        "longest gap between answers, s",
    )
    rewrite(
        "serving-killed",
        "Two replicas behind Serve's proxy, 16 users, one replica killed (SIGKILL) after 4 s of 12:\n\n"
        + table(header, rows),
    )


def soak(run: Path, args: argparse.Namespace) -> None:
    """Good, bad and hostile requests for minutes; the slope of the replica's memory, by least squares."""
    windows, _ = real_windows(run)
    good = [body(window, model) for window in windows[:32] for model in ("model", "dense")]
    bad: list[bytes] = [
        b"{",
        b'{"signal":[NaN],"fs_hz":12000}',
        b'{"signal":["a"],"fs_hz":12000}',
        json.dumps({"signal": [1.0] * 5000, "fs_hz": 12000}).encode(),
        json.dumps({"signal": windows[0].tolist(), "fs_hz": 100}).encode(),
        json.dumps({"signal": windows[0].tolist(), "fs_hz": 12000, "model": "../../etc"}).encode(),
        b"[" * 100_000,
        os.urandom(20_000),
    ]
    statuses: Counter[int] = Counter()
    memory: list[tuple[float, float]] = []

    async def run_all(url: str) -> None:
        rng = np.random.default_rng(0)
        start = time.perf_counter()
        async with connect() as session:

            async def user() -> None:
                while time.perf_counter() - start < 60 * args.minutes:
                    pool = good if rng.random() < 0.7 else bad
                    content = pool[int(rng.integers(len(pool)))]
                    if rng.random() < 0.1:
                        statuses[await upload(session, url, rng)] += 1
                    else:
                        statuses[(await one(session, url, content, 0, start)).status] += 1

            async def watch() -> None:
                process = psutil.Process(replicas()[0])
                while time.perf_counter() - start < 60 * args.minutes:
                    memory.append((time.perf_counter() - start, process.memory_info().rss / 2**20))
                    await asyncio.sleep(1)

            await asyncio.gather(watch(), *(user() for _ in range(8)))

    with serving(run) as url:
        asyncio.run(run_all(url))
    at, held = np.array(memory).T
    late = at > at[-1] / 5  # buffers and caches fill first
    slope, _ = np.polyfit(at[late] / 60, held[late], 1)
    fives = sum(count for status, count in statuses.items() if status >= 500 and status != 503)
    rows = [
        (
            f"{at[-1] / 60:.1f}",
            f"{sum(statuses.values()):,}",
            ", ".join(f"{status}: {count:,}" for status, count in sorted(statuses.items())),
            fives,
            f"{held[late][0]:.0f} → {held[-1]:.0f}",
            f"{slope:+.2f}",
        )
    ]
    header = (
        "minutes",
        "requests",
        "by status (0: connection)",
        "500s",
        "RSS, MiB (from a fifth of the time on)",
        "slope, MiB/min",
    )
    rewrite(
        "serving-soak",
        "8 users; 63 % right requests, 27 % wrong ones, 10 % uploads, half of them damaged:\n\n"
        + table(header, rows),
    )


PARTS: dict[str, Callable[[Path, argparse.Namespace], None]] = {
    part.__name__: part for part in (exact, overhead, batching, overload, killed, soak)
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("--only", default=",".join(PARTS))
    parser.add_argument("--minutes", type=float, default=5.0)
    args = parser.parse_args()
    torch.set_num_threads(1)
    for name in args.only.split(","):
        print(name, flush=True)
        PARTS[name](args.run, args)


if __name__ == "__main__":
    main()
