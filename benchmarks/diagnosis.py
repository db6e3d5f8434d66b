"""Accuracy of the cascade beside one-shot pruning with the whole recovery budget at the end.

    python benchmarks/diagnosis.py [--seeds 0 1 2 3 4] [--settings cwru-load3 …] [--workers 2]

Every (setting, seed) is one Ray task: it trains a dense model and compresses copies of it by each method,
at equal recovery steps, equal calibration data and equal target. Results are appended to
benchmarks/results/diagnosis.jsonl; what is there already is not run again, so an interrupted run goes on
where it was. The tables in docs/benchmarks.md are rewritten from that file.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import json
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from page import rewrite
from scipy import stats

if TYPE_CHECKING:
    from cascade_ops.results import Evaluation, StageResult
    from cascade_ops.schedule import CascadeSchedule

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "diagnosis.jsonl"
REGIMES = ((13.8, 600), (40.0, 600), (13.8, 60))
"""(backbone compression, recovery steps)."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """A dataset and a split. ``faults_only`` leaves the normal class out of training and test."""

    title: str
    dataset: str
    split: str
    faults_only: bool = False


SETTINGS = {
    "cwru-load3": Setting(title="CWRU, load 3 left out, 10 classes", dataset="cwru", split="load:3"),
    "cwru-load3-faults": Setting(
        title="CWRU, load 3 left out, 9 fault classes", dataset="cwru", split="load:3", faults_only=True
    ),
    "cwru-time": Setting(title="CWRU, later segments, 10 classes", dataset="cwru", split="time"),
    "cwru-bearing": Setting(
        title="CWRU, 14 mil bearings left out, fault type", dataset="cwru", split="bearing:IR014,B014,OR014"
    ),
    "uestc-speed1200": Setting(
        title="UESTC, 1200 rpm left out, 4 classes", dataset="uestc", split="speed:1200"
    ),
}
METHODS = {
    "dense": "dense",
    "cascade": "cascade",
    "one-shot": "one-shot, whole budget at the end",
    "unrecovered": "one-shot, no recovery",
}


def run(name: str, seed: int) -> list[dict[str, Any]]:
    """Train one dense model, compress copies of it by every method to every target; one row each."""
    import torch

    from cascade_ops.cascade import default_schedule, run_cascade
    from cascade_ops.data import CWRU_FAULT_LABELS, make_split, open_dataset
    from cascade_ops.evaluation import evaluate
    from cascade_ops.tasks import diagnosis_data
    from cascade_ops.training import fit
    from workflows.config import default_document, resolve
    from workflows.prepare import build_dense

    torch.set_num_threads(1)
    setting, config = SETTINGS[name], resolve(default_document())
    split = make_split(
        open_dataset(setting.dataset),
        split=setting.split,
        length=config.data.length,
        stride=config.data.stride,
        classes=CWRU_FAULT_LABELS if setting.faults_only else None,
    )
    data = diagnosis_data(
        split, calibration_samples=config.data.calibration, seed=seed, augment=config.data.augment
    )
    torch.manual_seed(seed)
    dense, began = build_dense(config, data), time.perf_counter()
    fit(dense, data.train, config.train, seed=seed, augment=data.augment)
    measured = evaluate(dense, data.test, task="diagnosis", classes=data.classes)
    rows = [_row(name, seed, "dense", (1.0, 0), measured, (), began)]
    for target, steps in REGIMES:
        recovery = dataclasses.replace(config.schedule.recovery, steps=steps, compensation=False)
        cascade = default_schedule(target, recovery=recovery)
        for method, schedule in (
            ("cascade", cascade),
            ("one-shot", one_shot(cascade, steps)),
            ("unrecovered", one_shot(cascade, 0)),
        ):
            model, began = copy.deepcopy(dense), time.perf_counter()
            results = run_cascade(model, schedule, data, seed=seed)
            evaluation = results[-1].after_recovery
            rows.append(_row(name, seed, method, (target, steps), evaluation, results, began))
    return rows


def one_shot(cascade: CascadeSchedule, steps: int) -> CascadeSchedule:
    """The same cuts, all from importance on the dense model, and all recovery after the last one."""
    *cuts, last = cascade.stages
    return dataclasses.replace(
        cascade,
        stages=(*(dataclasses.replace(stage, share=0.0) for stage in cuts), last),
        recovery=dataclasses.replace(cascade.recovery, steps=steps),
        rescore=False,
    )


def _row(
    setting: str,
    seed: int,
    method: str,
    regime: tuple[float, int],
    evaluation: Evaluation,
    results: tuple[StageResult, ...],
    began: float,
) -> dict[str, Any]:
    return {
        "setting": setting,
        "seed": seed,
        "method": method,
        "regime": list(regime),
        "accuracy": evaluation.metric.value,
        "macro_auroc": evaluation.extra["macro_auroc"].value,
        "loss": evaluation.loss,
        "per_class": evaluation.per_class,
        "test_windows": evaluation.metric.samples,
        "params": results[-1].params if results else None,
        "seconds": time.perf_counter() - began,
        "stages": [
            {
                "granularity": result.granularity,
                "ratio": result.ratio,
                "before": result.before_recovery.metric.value,
                "after": result.after_recovery.metric.value,
                "trainable": result.recovery.trainable_params,
                "steps": result.recovery.steps,
            }
            for result in results
        ],
    }


def interval(values: list[float]) -> tuple[float, float]:
    """Mean and half-width of the 95 % confidence interval (Student's t over seeds)."""
    half = float(stats.t.ppf(0.975, len(values) - 1) * stats.sem(values)) if len(values) > 1 else float("nan")
    return float(np.mean(values)), half


def tables(rows: list[dict[str, Any]]) -> str:
    """Markdown: per target, accuracy by setting and method with the paired difference; recall by class."""
    by = {(row["setting"], row["method"], tuple(row["regime"]), row["seed"]): row for row in rows}
    lines = []
    for target, steps in REGIMES:
        lines += [
            f"Backbone {target:g}× smaller, {steps} recovery steps, accuracy in %:",
            "",
            "| setting | test windows | seeds | " + " | ".join(METHODS.values()) + " | cascade − one-shot |",
            "|---|---|---|" + "---|" * (len(METHODS) + 1),
        ]
        for name, setting in SETTINGS.items():
            seeds = sorted({row["seed"] for row in rows if row["setting"] == name})
            if not seeds:
                continue
            regimes = {method: (1.0, 0) if method == "dense" else (target, steps) for method in METHODS}
            found = {
                method: [by[name, method, regime, seed]["accuracy"] for seed in seeds]
                for method, regime in regimes.items()
            }
            paired = [a - b for a, b in zip(found["cascade"], found["one-shot"], strict=True)]
            windows = by[name, "dense", (1.0, 0), seeds[0]]["test_windows"]
            cells = " | ".join(percent(values) for values in found.values())
            lines.append(
                f"| {setting.title} | {windows} | {len(seeds)} | {cells} | {percent(paired, sign=True)} |"
            )
        lines.append("")
    first = REGIMES[0]
    lines += [f"Recall of each class at {first[0]:g}×, {first[1]} steps, mean over seeds, in %:", ""]
    for name, setting in SETTINGS.items():
        chosen = [row for row in rows if row["setting"] == name and tuple(row["regime"]) in ((1.0, 0), first)]
        if chosen:
            lines += per_class(setting.title, chosen)
    return "\n".join(lines).rstrip()


def per_class(title: str, rows: list[dict[str, Any]]) -> list[str]:
    """One table of recall by class and method."""
    classes = list(rows[0]["per_class"])
    lines = [
        f"| {title} | " + " | ".join(classes) + " | macro AUROC |",
        "|---|" + "---|" * (len(classes) + 1),
    ]
    for method, words in METHODS.items():
        mine = [row for row in rows if row["method"] == method]
        means = [100 * np.mean([row["per_class"][label] for row in mine]) for label in classes]
        auroc = np.mean([row["macro_auroc"] for row in mine])
        lines.append(f"| {words} | " + " | ".join(f"{mean:.0f}" for mean in means) + f" | {auroc:.4f} |")
    return [*lines, ""]


def percent(values: list[float], *, sign: bool = False) -> str:
    """Mean ± half-width, in percent."""
    mean, half = interval(values)
    shown = round(100 * mean, 1) + 0.0  # no -0.0
    return f"{shown:{'+' if sign else ''}.1f} ± {100 * half:.1f}"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--settings", nargs="+", choices=SETTINGS, default=list(SETTINGS))
    parser.add_argument("--workers", type=int, default=2, help="one-thread Ray tasks at a time")
    arguments = parser.parse_args()
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    rows = [json.loads(line) for line in RESULTS.read_text().splitlines()] if RESULTS.exists() else []
    done = {(row["setting"], row["seed"]) for row in rows}
    todo = [(s, k) for k in arguments.seeds for s in arguments.settings if (s, k) not in done]
    if todo:
        import ray

        here = (
            {}
            if os.environ.get("RAY_ADDRESS")
            else {"address": "local", "num_cpus": arguments.workers, "include_dashboard": False}
        )
        ray.init(log_to_driver=False, runtime_env={"env_vars": {"OMP_NUM_THREADS": "1"}}, **here)
        pending = {ray.remote(num_cpus=1)(run).remote(*one): one for one in todo}
        while pending:
            (ready,), _ = ray.wait(list(pending), num_returns=1)
            one = pending.pop(ready)
            fresh = ray.get(ready)
            with RESULTS.open("a") as file:
                file.writelines(json.dumps(row) + "\n" for row in fresh)
            rows += fresh
            figures = ", ".join(f"{row['method']} {row['regime']} {row['accuracy']:.3f}" for row in fresh)
            print(f"{one[0]} seed {one[1]}: {figures}; {len(pending)} left", file=sys.stderr, flush=True)
    text = tables([row for row in rows if row["setting"] in SETTINGS])
    rewrite("diagnosis", text)
    print(text)


if __name__ == "__main__":
    main()
