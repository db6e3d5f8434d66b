"""Which recovery wins: nothing, compensation, low-rank updates, distillation, full fine-tuning, at equal steps.

    python benchmarks/recovery.py [--seeds 0 1 2] [--workers 2]

Every seed is one Ray task: it trains a dense model on CWRU (load 3 left out) and compresses copies of it by the
default cascade to each target, with each recovery. Steps are few on purpose: with the default's 600 all but the
first two reach 100 %. Results are appended to benchmarks/results/recovery.jsonl; what is there already is not run
again. The table in docs/benchmarks.md is rewritten.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from diagnosis import interval, percent
from page import rewrite, table

RESULTS = Path(__file__).resolve().parent / "results" / "recovery.jsonl"
TARGETS = (4.0, 13.8, 20.0)
STEPS = 60
CUTS = (("channel", 0.3), ("channel", 0.5), ("channel", 0.7), ("head", 0.25), ("head", 0.5))
"""Single cuts, without any training after them."""
KINDS: dict[str, dict[str, Any]] = {
    "none": {"steps": 0},
    "compensation": {"steps": 0, "compensation": True},
    "LoRA": {},
    "LoRA + compensation": {"compensation": True},
    "LoRA + distillation": {"distillation": {}},
    "LoRA + both": {"compensation": True, "distillation": {}},
    "full": {"method": "full"},
    "full + compensation": {"method": "full", "compensation": True},
    "full + distillation": {"method": "full", "distillation": {}},
    "full + both": {"method": "full", "compensation": True, "distillation": {}},
}


def run(seed: int) -> list[dict[str, Any]]:
    """Train one dense model; compress copies of it to every target with every recovery; one row each."""
    import torch

    from cascade_ops.anatomy import anatomy_of
    from cascade_ops.cascade import default_schedule, run_stage
    from cascade_ops.data import make_split, open_dataset
    from cascade_ops.distillation import cache_teacher
    from cascade_ops.evaluation import evaluate
    from cascade_ops.schedule import Distillation
    from cascade_ops.tasks import diagnosis_data
    from cascade_ops.training import fit
    from workflows.config import default_document, resolve
    from workflows.prepare import build_dense

    torch.set_num_threads(1)
    config = resolve(default_document())
    split = make_split(
        open_dataset("cwru"), split="load:3", length=config.data.length, stride=config.data.stride
    )
    data = diagnosis_data(
        split, calibration_samples=config.data.calibration, seed=seed, augment=config.data.augment
    )
    torch.manual_seed(seed)
    dense = build_dense(config, data)
    fit(dense, data.train, config.train, seed=seed, augment=data.augment)
    measured = evaluate(dense, data.test, task="diagnosis", classes=data.classes)
    rows = [
        {
            "seed": seed,
            "kind": "dense",
            "target": 1.0,
            "accuracy": measured.metric.value,
            "loss": measured.loss,
        }
    ]
    rows += cuts(dense, data, seed)
    with tempfile.TemporaryDirectory() as scratch:
        teacher = cache_teacher(dense, data.train, Path(scratch) / "teacher", Distillation())
        for target in TARGETS:
            for kind, settings in KINDS.items():
                given = {"steps": STEPS, "compensation": False} | settings
                if "distillation" in given:
                    given["distillation"] = Distillation(**given["distillation"])
                recovery = dataclasses.replace(config.schedule.recovery, **given)
                schedule = default_schedule(target, anatomy_of(dense), recovery=recovery)
                model, began = copy.deepcopy(dense), time.perf_counter()
                for index in range(len(schedule.stages)):
                    result = run_stage(
                        model,
                        schedule,
                        index,
                        data=data,
                        dense=anatomy_of(dense),
                        seed=seed,
                        teacher=lambda: teacher,
                    )
                rows.append(
                    {
                        "seed": seed,
                        "kind": kind,
                        "target": target,
                        "accuracy": result.after_recovery.metric.value,
                        "loss": result.after_recovery.loss,
                        "seconds": time.perf_counter() - began,
                    }
                )
    return rows


def cuts(dense: Any, data: Any, seed: int) -> list[dict[str, Any]]:
    """What compensation buys before any training, after one cut of the dense model."""
    from cascade_ops.cascade import run_cascade
    from cascade_ops.granularity import Granularity
    from cascade_ops.schedule import CascadeSchedule, Recovery, Stage

    rows = []
    for granularity, ratio in CUTS:
        for compensation in (False, True):
            stage = Stage(granularity=Granularity(granularity), ratio=ratio)
            recovery = Recovery(steps=0, compensation=compensation)
            schedule = CascadeSchedule(stages=(stage,), recovery=recovery)
            (result,) = run_cascade(copy.deepcopy(dense), schedule, data, seed=seed)
            found = result.before_recovery
            rows.append(
                {
                    "seed": seed,
                    "kind": f"{granularity} {ratio}",
                    "target": float(compensation),
                    "accuracy": found.metric.value,
                    "loss": found.loss,
                }
            )
    return rows


def page(rows: list[dict[str, Any]]) -> str:
    """Accuracy and test loss by recovery and target."""
    seeds = sorted({row["seed"] for row in rows})
    by = {(row["kind"], row["target"], row["seed"]): row for row in rows}
    dense = [by["dense", 1.0, seed]["accuracy"] for seed in seeds]
    lines = []
    for kind in KINDS:
        cells = [kind]
        for target in TARGETS:
            found = [by[kind, target, seed] for seed in seeds]
            loss, half = interval([row["loss"] for row in found])
            cells.append(f"{percent([row['accuracy'] for row in found])} ({loss:.3f} ± {half:.3f})")
        lines.append(cells)
    head = ("recovery", *(f"{target:g}×" for target in TARGETS))
    return (
        f"{STEPS} steps of 64 windows ({', '.join(k for k, v in KINDS.items() if v.get('steps') == 0)}: no step); "
        f"{len(seeds)} seeds; dense {percent(dense)} %. Accuracy in % (cross-entropy on the test side):\n\n"
        + table(head, lines)
        + "\n\nOne cut of the dense model, no training at all:\n\n"
        + table(("removed", "cut", "cut and compensated"), [_cut(*cut, by, seeds) for cut in CUTS])
    )


def _cut(
    granularity: str, ratio: float, by: dict[tuple[str, float, int], dict[str, Any]], seeds: list[int]
) -> list[str]:
    cells = [f"{ratio:.0%} of {granularity}s"]
    for compensation in (0.0, 1.0):
        found = [by[f"{granularity} {ratio}", compensation, seed] for seed in seeds]
        loss, half = interval([row["loss"] for row in found])
        cells.append(f"{percent([row['accuracy'] for row in found])} ({loss:.3f} ± {half:.3f})")
    return cells


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--workers", type=int, default=2, help="one-thread Ray tasks at a time")
    arguments = parser.parse_args()
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    rows = [json.loads(line) for line in RESULTS.read_text().splitlines()] if RESULTS.exists() else []
    todo = [seed for seed in arguments.seeds if seed not in {row["seed"] for row in rows}]
    if todo:
        import ray

        environment = {"env_vars": {"OMP_NUM_THREADS": "1"}}
        ray.init(
            "local",
            num_cpus=arguments.workers,
            include_dashboard=False,
            log_to_driver=False,
            runtime_env=environment,
        )
        pending = {ray.remote(num_cpus=1)(run).remote(seed): seed for seed in todo}
        while pending:
            (ready,), _ = ray.wait(list(pending), num_returns=1)
            seed, fresh = pending.pop(ready), ray.get(ready)
            with RESULTS.open("a") as file:
                file.writelines(json.dumps(row) + "\n" for row in fresh)
            rows += fresh
            print(f"seed {seed}: done; {len(pending)} left", file=sys.stderr, flush=True)
    text = page(rows)
    rewrite("recovery", text)
    print(text)


if __name__ == "__main__":
    main()
