"""Recovery fits by DeepSpeed: a step beside the same step in plain torch, memory and loss curve against ZeRO stage.

    python benchmarks/zero.py [step memory]

Rewrites the tables in docs/benchmarks.md. Weights are random: neither speed nor memory depends on their values.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import socket
import statistics as stats
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import torch
from page import rewrite, table
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from cascade_ops.loss import per_sample_loss
from cascade_ops.recovery import prepare, train_config
from cascade_ops.schedule import Recovery, RecoveryMethod
from cascade_ops.training import Engine, Plain, adamw
from cascade_ops.zero import Zero, ZeroEngine
from workflows.config import RecoveringConfig
from workflows.recovery.trainer import cluster_recoverer
from workflows.scoring.cluster import connected

RESULTS = Path(__file__).resolve().parent / "results" / "zero.json"
MIB = 2**20
BOUND = 1.1


def llama(hidden: int, layers: int) -> PreTrainedModel:
    """GQA 4:1, SwiGLU."""
    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            hidden_size=hidden,
            num_hidden_layers=layers,
            num_attention_heads=hidden // 64,
            num_key_value_heads=hidden // 256,
            intermediate_size=hidden * 8 // 3 // 64 * 64,
            vocab_size=4096,
        )
    )


def tokens(samples: int) -> dict[str, torch.Tensor]:
    return {"input_ids": torch.randint(0, 4096, (samples, 128), generator=torch.Generator().manual_seed(0))}


def step() -> list[dict[str, Any]]:
    """Ten steps of each engine in turn, one thread, one worker: medians."""
    _alone()
    rows = []
    dense, batch = llama(512, 8), tokens(8)
    for method in cast(tuple[RecoveryMethod, ...], ("lora", "full")):
        recovery = Recovery(steps=50, batch_size=8, method=method)
        settings = train_config(recovery, recovery.steps)
        engines: dict[str, Engine] = {}
        for name in ("plain torch", "ZeRO 0", "ZeRO 1", "ZeRO 2", "ZeRO 3"):
            model = copy.deepcopy(dense)
            prepare(model, recovery, 0)
            model.train()
            trained = [p for p in model.parameters() if p.requires_grad]
            params = sum(p.numel() for p in trained)  # ZeRO 3 is about to take them away
            engines[name] = (
                Plain(model=model, optimizer=adamw(model, settings), trainable=trained, clip=settings.clip)
                if name == "plain torch"
                else ZeroEngine(model, settings, Zero(stage=int(name[-1])))  # type: ignore[arg-type]
            )
        seconds: dict[str, list[float]] = {name: [] for name in engines}
        for _ in range(11):
            for name, engine in engines.items():
                began = time.perf_counter()
                engine.step(batch, per_sample_loss, 1e-4)
                seconds[name].append(time.perf_counter() - began)
        medians = {name: stats.median(found[1:]) for name, found in seconds.items()}
        rows += [
            {
                "method": method,
                "params": params,
                "engine": name,
                "seconds": s,
                "ratio": s / medians["plain torch"],
            }
            for name, s in medians.items()
        ]
    return rows


def _alone() -> None:
    """A process group of this process only."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    os.environ.update(address, RANK="0", WORLD_SIZE="1", LOCAL_RANK="0")
    torch.distributed.init_process_group("gloo", rank=0, world_size=1)


def memory() -> list[dict[str, Any]]:
    """Full fits of four steps on one and two workers: the first worker's peak, and the curve beside one worker's."""
    rows: list[dict[str, Any]] = []
    dense = llama(768, 10)
    params = sum(p.numel() for p in dense.parameters())
    recovery = Recovery(steps=4, batch_size=4, method="full", learning_rate=1e-4)
    with tempfile.TemporaryDirectory() as scratch, connected(None, cpus=3):
        first: tuple[float, ...] | None = None
        for workers, zero in (
            (1, Zero(stage=0)),
            *((2, Zero(stage=stage)) for stage in (0, 1, 2, 3)),
            (2, Zero(stage=3, checkpointing=True)),
        ):
            recoverer = cluster_recoverer(
                RecoveringConfig(workers=workers, zero=zero), Path(scratch), device="cpu"
            )
            result = recoverer(
                copy.deepcopy(dense),
                tokens(16),
                recovery,
                steps=recovery.steps,
                seed=0,
                validation=None,
                teacher=None,
                augment=None,
                progress=_silent,
            )
            first = first or result.losses
            apart = max(abs(one - other) for one, other in zip(result.losses, first, strict=True))
            row = {
                "params": params,
                "workers": workers,
                "stage": zero.stage,
                "checkpointing": zero.checkpointing,
                "peak": result.peak_bytes / MIB,
                "held": result.held_bytes / MIB,
                "seconds": result.seconds / recovery.steps,
                "apart": apart,
                "loss": result.losses[-1],
            }
            print(row, file=sys.stderr)
            rows.append(row)
    return rows


def _silent(phase: str, done: int, total: int, **figures: float) -> None:
    """Nothing to say."""


def page(found: dict[str, list[dict[str, Any]]]) -> None:
    """Both tables, from what has been measured."""
    steps = table(
        ("trained", "trainable parameters", "engine", "s per step", "÷ plain torch", "≤ 1.1"),
        [
            (
                row["method"],
                f"{row['params']:,}",
                row["engine"],
                f"{row['seconds']:.3f}",
                f"{row['ratio']:.2f}",
                "" if row["engine"] == "plain torch" else "yes" if row["ratio"] <= BOUND else "**no**",
            )
            for row in found.get("step", [])
        ],
    )
    held = table(
        (
            "workers",
            "ZeRO stage",
            "activations",
            "peak of a worker, MiB",
            "s per step",
            "max |Δloss| to 1 worker",
        ),
        [
            (
                str(row["workers"]),
                str(row["stage"]),
                "recomputed" if row["checkpointing"] else "kept",
                f"{row['held']:,.0f}",
                f"{row['peak']:,.0f}",
                f"{row['seconds']:.2f}",
                f"{row['apart']:.1e}",
            )
            for row in found.get("memory", [])
        ],
    )
    rewrite("zero-step", steps)
    rewrite("zero-memory", held)


PARTS: dict[str, Callable[[], list[dict[str, Any]]]] = {"step": step, "memory": memory}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("parts", nargs="*", choices=[*PARTS, []], default=list(PARTS))
    torch.set_num_threads(1)
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    found = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    for part in parser.parse_args().parts:
        found[part] = PARTS[part]()
        RESULTS.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n")
    page(found)


if __name__ == "__main__":
    main()
