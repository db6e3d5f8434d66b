"""Searches on CWRU at 13.8×: against the default schedule, and against random schedules at equal compute.

Every search is a ``cascade search`` in a process of its own, with the demonstration's model and a tight recovery
budget, so that schedules differ; both kinds of search share stages in the same way.

    python benchmarks/search_cwru.py OUT [--seeds 3] [--trials 40] [--steps 90]
    python benchmarks/search_cwru.py OUT --table            # from what is there
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml
from page import rewrite

from workflows.config import default_document
from workflows.search.record import SearchRecord, TrialRecord, read_record

ROOT = Path(__file__).resolve().parent
ARMS: dict[str, dict[str, Any]] = {
    "search": {},
    "random": {"sampler": "random", "scheduler": "none", "branch": 0.0},
}
T95 = {1: 12.71, 2: 4.303, 3: 3.182, 4: 2.776}


def configuration(seed: int, arm: str, trials: int, steps: int, split: str) -> dict[str, Any]:
    """The demonstration on CWRU, with little recovery."""
    document = default_document()
    document["seed"] = seed
    document["data"] |= {"name": "cwru", "split": split}
    document["train"]["steps"] = 400
    document["schedule"]["recovery"]["steps"] = steps
    document["search"] = {"trials": trials, "seed": seed, **ARMS[arm]}
    return document


def run(out: Path, seeds: int, trials: int, steps: int, split: str) -> None:
    """Every search that is not there yet."""
    for arm in ARMS:
        for seed in range(seeds):
            folder = out / f"{arm}-{seed}"
            if (folder / "search.json").is_file():
                continue
            folder.parent.mkdir(parents=True, exist_ok=True)
            config = out / f"{arm}-{seed}.yaml"
            config.write_text(yaml.safe_dump(configuration(seed, arm, trials, steps, split)))
            command = [
                sys.executable,
                "-m",
                "workflows.cli",
                "search",
                str(config),
                "--out",
                str(folder),
                "-q",
            ]
            subprocess.run(command, check=False)


def best(trials: list[TrialRecord], seconds: float = math.inf) -> tuple[TrialRecord | None, int]:
    """The best complete trial of those that so much computing pays for, and how many these are."""
    spent, paid = 0.0, []
    for trial in trials:
        spent += trial.seconds
        if spent > seconds:
            break
        paid.append(trial)
    complete = [trial for trial in paid if trial.feasible]
    return min(complete, key=lambda trial: trial.values["loss"], default=None), len(paid)


def rows(out: Path) -> dict[str, list[dict[str, float]]]:
    """Arm → a row of figures for each seed."""
    found: dict[str, list[dict[str, float]]] = {}
    for folder in sorted(out.glob("search-*/")):
        seed = folder.name.split("-")[1]
        search, random = read_record(folder), read_record(out / f"random-{seed}")
        compute = sum(trial.seconds for trial in search.trials)
        found.setdefault("default schedule", []).append(figures(search.reference))
        for name, record, limit in (
            ("search, all trials", search, math.inf),
            ("random, all trials", random, math.inf),
            ("random, at the search's compute", random, compute),
        ):
            trial, paid = best(list(record.trials), limit)
            if trial is not None:
                found.setdefault(name, []).append(figures(trial.outcome) | spent(record, limit, paid))
    return found


def figures(outcome: dict[str, float]) -> dict[str, float]:
    return {
        name: outcome[name] for name in ("loss", "accuracy", "test_loss", "test_accuracy") if name in outcome
    }


def spent(record: SearchRecord, limit: float, paid: int) -> dict[str, float]:
    """Computing, sharing and what happened to trials."""
    total = sum(trial.seconds for trial in record.trials)
    return {
        "trials": paid,
        "seconds": min(total, limit),
        "shared": 1 - record.computed / record.requested,
        "overhead": record.overhead,
        "foresight": record.foresight if record.foresight is not None else math.nan,
    }


def table(out: Path) -> str:
    """Mean ± half-width of the 95 % interval over seeds."""
    columns = {
        "loss": "validation loss",
        "test_loss": "test loss",
        "test_accuracy": "test accuracy, %",
        "trials": "trials",
        "seconds": "trial seconds",
        "shared": "stages shared, %",
        "overhead": "Tune's overhead, %",
        "foresight": "ρ validation–test",
    }
    lines = ["| schedule | " + " | ".join(columns.values()) + " |", "| --- " * (len(columns) + 1) + "|"]
    for name, seeds in rows(out).items():
        scales = {key: 100.0 if "%" in title else 1.0 for key, title in columns.items()}
        cells = [spread([scales[key] * row[key] for row in seeds if key in row]) for key in columns]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def spread(values: list[float]) -> str:
    """Empty where there are none."""
    values = [value for value in values if math.isfinite(value)]
    if not values:
        return ""
    mean = sum(values) / len(values)
    decimals = 4 if abs(mean) < 0.06 and max(values) < 0.1 and min(values) > 0 else 1
    if len(values) == 1:
        return f"{mean:.{decimals}f}"
    variance = sum((value - mean) ** 2 for value in values) / (len(values) - 1)
    half = T95.get(len(values) - 1, 2.0) * math.sqrt(variance / len(values))
    return f"{mean:.{decimals}f} ± {half:.{decimals}f}"


def main() -> None:
    """Run what is missing, print the table, and keep every trial's figures."""
    parser = argparse.ArgumentParser()
    parser.add_argument("out", type=Path)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--trials", type=int, default=40)
    parser.add_argument("--steps", type=int, default=90)
    parser.add_argument("--split", default="load:3")
    parser.add_argument("--table", action="store_true", help="from what is there")
    parser.add_argument("--mark", action="store_true", help="write the table into docs/search.md")
    options = parser.parse_args()
    if not options.table:
        run(options.out, options.seeds, options.trials, options.steps, options.split)
    text = table(options.out)
    print(text)
    if options.mark:
        rewrite("search-cwru", text, ROOT.parent / "docs" / "search.md")
        (ROOT / "results" / "search-cwru.json").write_text(json.dumps(rows(options.out), indent=1) + "\n")


if __name__ == "__main__":
    main()
