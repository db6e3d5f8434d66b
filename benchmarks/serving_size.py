"""The paper's practical claim where weights dominate: latency and peak memory at 13.8×, one sample, each model on each
engine in fresh processes, dense and compressed in turn; and what bounds them. Tables go to docs/benchmarks.md.

    python benchmarks/serving_size.py [--sizes 85,302] [--engines eager,onnx,int8] [--rounds 3]

The models have GPT-2's shapes and are trained for one step only: neither time nor memory depends on what weights say.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import yaml
from page import rewrite, table

from cascade_ops.anatomy import anatomy_of
from cascade_ops.checkpoint import load_pruned, read_config
from cascade_ops.loadtest.ratios import Ratio, paired_ratio
from cascade_ops.loadtest.results import Process
from serve.bench.offline import ProbePlan, measure_offline
from serve.bench.workload import simulated
from serve.config import read_config as serve_config
from serve.variants import Variant, variants_of

SHAPES = {
    "85": {"n_embd": 768, "n_layer": 12, "n_head": 12, "n_inner": 3072},
    "302": {"n_embd": 1024, "n_layer": 24, "n_head": 16, "n_inner": 4096},
}
MIB = 2**20


def run_of(size: str) -> Path:
    """A compressed run of this size, made if need be (minutes)."""
    path = Path("runs") / f"size-{size}m"
    if (path / "report.json").is_file():
        return path
    shape = {"model_type": "gpt2", **SHAPES[size], "n_positions": 32, "vocab_size": 1}
    options = {"seconds": 2.0, "loads": ["0", "3"]}
    document = {
        "data": {
            "name": "simulated",
            "split": "load:3",
            "stride": 1024,
            "calibration": 16,
            "options": options,
        },
        "model": {"patch": 32, "config": {**shape, "bos_token_id": None, "eos_token_id": None}},
        "train": {"steps": 1, "batch_size": 2},
        "schedule": {"target": 13.8, "recovery": {"steps": 1, "batch_size": 2}},
    }
    config = Path("runs") / f"size-{size}m.yaml"
    config.parent.mkdir(exist_ok=True)
    config.write_text(yaml.safe_dump(document))
    command = [sys.executable, "-m", "workflows.cli", "compress", str(config), "--out", str(path)]
    subprocess.run(command, check=True)
    return path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", default="85,302")
    parser.add_argument("--engines", default="eager,onnx,int8")
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    torch.set_num_threads(1)
    rows: list[tuple[object, ...]] = []
    bounds: list[tuple[object, ...]] = []
    shares: list[str] = []
    for size in args.sizes.split(","):
        path = run_of(size)
        found = variants_of(serve_config({"models": [{"path": str(path), "name": "compressed"}]}))
        dense, small = found["dense"], found["compressed"]
        plan = ProbePlan(rounds=args.rounds, runs=60, seconds=6.0, batches=(32,))
        windows = simulated(1024, 12000.0).inputs
        told = measure_offline([dense, small], args.engines.split(","), plan, windows)
        rows += compared(dense, told)
        bounds += [bound(variant, told) for variant in (dense, small)]
        shares += [f"- {variant.title}: {profile(variant)}" for variant in (dense, small)]
        print(table(HEADER, rows), flush=True)
    rewrite("serving-size", table(HEADER, rows))
    rewrite(
        "serving-bound",
        table(BOUND_HEADER, bounds) + "\n\nShare of a sample's time by operator:\n\n" + "\n".join(shares),
    )


HEADER = (
    "backbone",
    "engine",
    "latency p50, ms: dense",
    "compressed",
    "reduction",
    "peak memory, MiB: dense",
    "compressed",
    "reduction",
    "of that the model's own: dense",
    "compressed",
    "reduction",
    "total variation from PyTorch",
)


def compared(dense: Variant, told: Sequence[Process]) -> list[tuple[object, ...]]:
    """One line for each engine."""
    rows = []
    for engine in dict.fromkeys(process.engine for process in told):
        one, other = (
            next(p for p in told if p.variant == v and p.engine == engine) for v in ("dense", "compressed")
        )
        failed = one.failed or other.failed
        if failed:
            rows.append((f"{dense.backbone_params / 1e6:.0f} M", engine, failed, *[""] * 9))
            continue
        cells: list[object] = []
        for figure, unit in (("p50_ms", 1.0), ("peak_bytes", MIB), ("above_bytes", MIB)):
            a = [getattr(probe, figure) / unit for probe in one.rounds]
            b = [getattr(probe, figure) / unit for probe in other.rounds]
            cells += [f"{np.median(a):,.1f}" if unit == 1 else f"{np.median(a):,.0f}"]
            cells += [f"{np.median(b):,.1f}" if unit == 1 else f"{np.median(b):,.0f}"]
            cells += [reduction(paired_ratio(b, a))]
        parity = max(p.parity.difference for p in (one, other) if p.parity is not None)
        rows.append((f"{dense.backbone_params / 1e6:.0f} M", engine, *cells, f"{parity:.0e}"))
    return rows


def reduction(ratio: Ratio | None) -> str:
    if ratio is None:
        return "?"
    text = f"{100 * (1 - ratio.value):.1f} %"
    if ratio.low is None or ratio.high is None:
        return text
    return f"{text} ({100 * (1 - ratio.high):.1f}–{100 * (1 - ratio.low):.1f})"


BOUND_HEADER = (
    "model",
    "GFLOP a sample",
    "at the GEMM rate, ms",
    "weights, MiB",
    "at the bandwidth, ms",
    "measured (eager), ms",
    "÷ larger floor",
)


def bound(variant: Variant, told: Sequence[Process]) -> tuple[object, ...]:
    """FLOPs (2 per weight and token) at the GEMM rate and bytes at the bandwidth, beside what was measured."""
    tokens = (variant.expected.window if variant.expected else 0) // int(read_config(variant.folder).patch)
    flops = 2.0 * anatomy_of(read_config(variant.folder)).backbone_params * tokens
    compute, memory = 1e3 * flops / gemm_rate(tokens), 1e3 * variant.size_bytes / bandwidth()
    process = next(p for p in told if p.variant == variant.name and p.engine == "eager")
    measured = float(np.median([probe.p50_ms for probe in process.rounds]))
    return (
        variant.title,
        f"{flops / 1e9:.2f}",
        f"{compute:.1f}",
        f"{variant.size_bytes / MIB:.0f}",
        f"{memory:.1f}",
        f"{measured:.1f}",
        f"{measured / max(compute, memory):.2f}",
    )


def gemm_rate(tokens: int) -> float:
    """FLOP/s of a one-thread matrix product of the feed-forward's shape, weights out of cache: the best of many."""
    weights = [torch.randn(768, 3072) for _ in range(16)]
    x = torch.randn(tokens, 768)
    best = 0.0
    for _ in range(20):
        for weight in weights:
            began = time.perf_counter()
            torch.mm(x, weight)
            best = max(best, 2 * tokens * weight.numel() / (time.perf_counter() - began))
    return best


def bandwidth() -> float:
    """Bytes/s of reading memory far beyond the caches: the best of ten."""
    block = torch.ones(2**27)
    rates = []
    for _ in range(10):
        began = time.perf_counter()
        block.sum()
        rates.append(block.numel() * 4 / (time.perf_counter() - began))
    return max(rates)


@torch.inference_mode()
def profile(variant: Variant) -> str:
    """The operators that take most of a sample's time."""
    model = load_pruned(variant.folder)
    signal = torch.randn(1, 1024)
    for _ in range(3):
        model(signal=signal)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as seen:
        for _ in range(10):
            model(signal=signal)
    events = sorted(seen.key_averages(), key=lambda event: -event.self_cpu_time_total)
    total = sum(event.self_cpu_time_total for event in events)
    return ", ".join(
        f"{e.key.removeprefix('aten::')} {e.self_cpu_time_total / total:.0%}" for e in events[:5]
    )


if __name__ == "__main__":
    main()
