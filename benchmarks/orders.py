"""In which order to cut: all six orders, one-shot scores, and everything at once, at equal recovery.

    python benchmarks/orders.py [--seeds 0 1 2 3 4] [--workers 2]

Every seed is one Ray task: it trains a dense model on CWRU (load 3 left out) and compresses copies of it to the same
final shape, with the same total of recovery steps divided equally over the cuts. *One-shot* takes all scores from the
dense model; *at once* does so too, cuts three times and spends all steps after the last. Steps are few, and one target
is beyond the paper's, so that there is something to tell apart. Results are appended to
benchmarks/results/orders.jsonl; what is there already is not run again. The table in docs/sia.md is rewritten.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import itertools
import json
import sys
import time
from pathlib import Path
from typing import Any

from diagnosis import interval, percent
from page import rewrite, table

ROOT = Path(__file__).resolve().parent
RESULTS = ROOT / "results" / "orders.jsonl"
PAGE = ROOT.parent / "docs" / "sia.md"
TARGETS = (13.8, 40.0)
STEPS = 30
PARTS = ("layer", "head", "channel")
ORDERS = tuple(itertools.permutations(PARTS))
KINDS = (*(" → ".join(order) for order in ORDERS), "one-shot scores", "at once")


def schedules(target: float, anatomy: Any, recovery: Any) -> dict[str, Any]:
    """Every kind as a schedule. Ratios are those of the default one, so that all end in the same shape."""
    import torch

    from cascade_ops.cascade import default_schedule, plan_stage
    from cascade_ops.granularity import Granularity
    from cascade_ops.schedule import CascadeSchedule, Stage
    from cascade_ops.scoring import ImportanceScores

    left, ratios = anatomy, {}
    for stage in default_schedule(target, anatomy).stages:
        rows = tuple(torch.zeros(n) for n in left.units(stage.granularity))
        alike = ImportanceScores(
            granularity=stage.granularity, criterion=stage.criterion, per_layer=rows, samples=0
        )
        before = sum(left.units(stage.granularity))
        left = left.after(plan_stage(stage, alike, left, anatomy))
        ratios[stage.granularity.value] = 1 - sum(left.units(stage.granularity)) / before
    found = {}
    for kind, order in zip(KINDS, [*ORDERS, PARTS, PARTS], strict=True):
        last_only = kind == "at once"
        stages = tuple(
            Stage(
                granularity=Granularity(part),
                ratio=ratios[part],
                share=float(not last_only or part == order[-1]),
            )
            for part in order
        )
        rescore = kind not in ("one-shot scores", "at once")
        found[kind] = CascadeSchedule(stages=stages, recovery=recovery, rescore=rescore)
    return found


def run(seed: int) -> list[dict[str, Any]]:
    """Train one dense model; compress copies of it in every order; one row each."""
    import torch

    from cascade_ops.anatomy import anatomy_of
    from cascade_ops.cascade import run_cascade
    from cascade_ops.data import make_split, open_dataset
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
    recovery = dataclasses.replace(config.schedule.recovery, steps=STEPS, compensation=False)
    rows = []
    for target in TARGETS:
        for kind, schedule in schedules(target, anatomy_of(dense), recovery).items():
            model, began = copy.deepcopy(dense), time.perf_counter()
            result = run_cascade(model, schedule, data, seed=seed)[-1]
            rows.append(
                {
                    "seed": seed,
                    "kind": kind,
                    "target": target,
                    "compression": anatomy_of(dense).backbone_params / result.params,
                    "accuracy": result.after_recovery.metric.value,
                    "loss": result.after_recovery.loss,
                    "seconds": time.perf_counter() - began,
                }
            )
    return rows


def page(rows: list[dict[str, Any]]) -> str:
    """Accuracy and test loss by order and target."""
    seeds = sorted({row["seed"] for row in rows})
    by = {(row["kind"], row["target"], row["seed"]): row for row in rows}
    lines, reached = [], []
    for kind in KINDS:
        cells = [kind]
        for target in TARGETS:
            found = [by[kind, target, seed] for seed in seeds]
            loss, half = interval([row["loss"] for row in found])
            cells.append(f"{percent([row['accuracy'] for row in found])} ({loss:.2f} ± {half:.2f})")
            reached += [row["compression"] / target for row in found]
        lines.append(cells)
    head = ("order", *(f"{target:g}×" for target in TARGETS))
    return (
        f"{STEPS} recovery steps of 64 windows in all, {len(seeds)} seeds, targets met within "
        f"{max(abs(r - 1) for r in reached):.1%}. Accuracy in % (cross-entropy on the test side), mean ± half-width of "
        f"the 95 % confidence interval:\n\n" + table(head, lines)
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--workers", type=int, default=2, help="one-thread Ray tasks at a time")
    arguments = parser.parse_args()
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
    print(text)
    rewrite("orders", text, PAGE)


if __name__ == "__main__":
    main()
