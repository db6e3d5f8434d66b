"""Does the search find a known constrained optimum, and how many stages do its trials share?

The objective is made up, cheap, and known: over the real space of schedules of a small GPT-2 at 13.8×, each choice
has a cost, layers and heads an interaction, and a limit cuts off the unconstrained optimum. The least feasible value is
found by enumeration. Searches propose through the same code as ``cascade search``, without Ray.

    python benchmarks/search_synthetic.py [--seeds 10] [--trials 60] [--mark --picture docs/search-regret.svg]
"""

from __future__ import annotations

import argparse
import json
import math
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import optuna
from page import rewrite
from transformers import GPT2Config

from cascade_ops.anatomy import anatomy_of
from cascade_ops.granularity import Granularity
from cascade_ops.schedule import CascadeSchedule, Recovery
from cascade_ops.search import Bound, Space
from cascade_ops.serde import from_jsonable, to_jsonable
from workflows.search.config import SearchConfig, make_space
from workflows.search.objectives import objectives_for
from workflows.search.proposals import Proposals
from workflows.search.record import TrialRecord
from workflows.search.results import winner_of

DOCS = Path(__file__).resolve().parent.parent / "docs"
TARGET = 13.8
LIMIT = "latency"
ARMS = {"search": {}, "TPE alone": {"branch": 0.0}, "random": {"sampler": "random"}}
COSTS: dict[str, dict[Any, float]] = {
    "order": {"layer head channel": 0.0, "head layer channel": 0.04, "layer channel head": 0.10},
    "compensation": {True: 0.0, False: 0.12},
    "rank": {16: 0.0, 8: 0.02, 4: 0.06},
    "last_share": {0.75: 0.0, 0.6: 0.02, 0.9: 0.03, 0.4: 0.08},
    "layer_criterion": {"fisher": 0.0, "taylor": 0.02, "magnitude": 0.10},
    "head_criterion": {"taylor": 0.0, "fisher": 0.01, "magnitude": 0.05},
    "channel_criterion": {"taylor": 0.0, "fisher": 0.02, "magnitude": 0.12},
    "head_allocation": {"uniform": 0.0, "global": 0.02},
    "channel_allocation": {"global": 0.0, "uniform": 0.03},
    "layer_rounds": {2: 0.0, 3: 0.01, 1: 0.04},
    "head_rounds": {1: 0.0, 2: 0.005, 3: 0.01},
    "channel_rounds": {3: 0.0, 2: 0.02, 1: 0.05},
}
OTHER = 0.15
"""Cost of a choice that is not listed."""


def space_of(search: SearchConfig) -> Space:
    """Six layers, eight heads, 256 channels, with the bounds that CWRU's check gave."""
    anatomy = anatomy_of(GPT2Config(n_embd=64, n_layer=6, n_head=8, n_inner=256))
    bounds = {
        Granularity.LAYER: Bound(safe=0.49),
        Granularity.HEAD: Bound(safe=0.9),
        Granularity.CHANNEL: Bound(safe=0.68),
    }
    return make_space(anatomy, Recovery(), TARGET, search, bounds)


def shape_cost(layers: int, heads: int) -> float:
    """Best at 2 layers and 2 heads, which the limit forbids."""
    return 0.02 * (layers - 2) ** 2 + 0.006 * (heads - 2) ** 2 + 0.004 * abs((layers - 2) * (heads - 2))


def latency(layers: int, heads: int, channels: float) -> float:
    """Few layers of many channels are quick in life; here they are slow, so that the limit bites."""
    return channels / 256 + 0.02 * heads / layers


def figures(space: Space, params: dict[str, Any]) -> tuple[float, float]:
    """Objective and latency of one draw."""
    layers, heads = params.get("layers", 6), params.get("heads", 8)
    value = shape_cost(layers, heads)
    value += sum(COSTS[name].get(choice, OTHER) for name, choice in params.items() if name in COSTS)
    return value, latency(layers, heads, space.channels_for(layers, heads))


def optimum(space: Space, limit: float) -> float:
    """The least value within the limit: choices cost nothing at best, so only shapes are enumerated."""
    return min(
        shape_cost(layers, heads)
        for layers, heads in space.pairs()
        if latency(layers, heads, space.channels_for(layers, heads)) <= limit
    )


def one_search(
    search: SearchConfig, trials: int, limit: float
) -> tuple[list[float], list[TrialRecord], float]:
    """Best feasible value after each trial, the records, and the share of stages that were shared."""
    space = space_of(search)
    objectives = objectives_for(("loss",), "diagnosis")
    records: list[TrialRecord] = []
    proposals = Proposals(space, search, objectives, optuna.storages.InMemoryStorage(), records.append)
    best, curve, seen, needed = math.inf, [], set(), 0
    for number in range(trials):
        point: Any = proposals.suggest(str(number))
        schedule = from_jsonable(CascadeSchedule, point["schedule"])
        for key in stage_keys(schedule):
            needed += 1
            seen.add(key)
        value, delay = figures(space, point["params"])
        record = TrialRecord(
            number=point["number"],
            state="complete",
            origin=point["origin"],
            params=point["params"],
            values={"loss": value},
            outcome={"loss": value, LIMIT: delay},
            violations={LIMIT: delay / limit - 1},
        )
        result = {"loss": value, "rung": 0, "record": json.dumps(to_jsonable(record)), "complete": True}
        proposals.on_trial_complete(str(number), result)
        if delay <= limit:
            best = min(best, value)
        curve.append(best)
    return curve, records, 1 - len(seen) / needed


def stage_keys(schedule: CascadeSchedule) -> list[str]:
    """What each stage depends on, as a run would key it."""
    recovery = to_jsonable(replace(schedule.recovery, steps=0))
    stages = [to_jsonable(replace(stage, share=1.0)) for stage in schedule.stages]
    steps = schedule.steps()
    return [
        json.dumps([stages[: end + 1], steps[: end + 1], recovery]) for end in range(len(schedule.stages))
    ]


def main() -> None:
    """Run all arms and seeds, print the table, write curves and picture."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--trials", type=int, default=60)
    parser.add_argument("--limit", type=float, default=0.2)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/search-synthetic.json"))
    parser.add_argument("--picture", type=Path)
    parser.add_argument("--mark", action="store_true", help="write the table into docs/search.md")
    options = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.simplefilter("ignore")
    base = SearchConfig(trials=options.trials, limits={LIMIT: options.limit})
    best = optimum(space_of(base), options.limit)
    free = min(shape_cost(*pair) for pair in space_of(base).pairs())
    lines = [
        f"Optimum within the limit {best:.4f}, without it {free:.4f}.\n",
        "| proposals | regret at 20 | regret at 60 | within 0.01 of the optimum | winners beyond the limit "
        "| stages shared |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    curves: dict[str, list[list[float]]] = {}
    for name, changes in ARMS.items():
        curves[name], shares, broken = [], [], 0
        for seed in range(options.seeds):
            search = replace(base, seed=seed, **changes)
            curve, records, shared = one_search(search, options.trials, options.limit)
            winner = winner_of(records, objectives_for(("loss",), "diagnosis"))
            broken += winner is not None and winner.violations[LIMIT] > 0
            curves[name].append([value - best for value in curve])
            shares.append(shared)
        found = sum(curve[-1] <= 0.01 for curve in curves[name])
        lines.append(
            f"| {name} | {_spread(curves[name], 19)} | {_spread(curves[name], options.trials - 1)} | "
            f"{found} of {options.seeds} | {broken} | {sum(shares) / len(shares):.0%} |"
        )
    text = "\n".join(lines)
    print(text)
    if options.mark:
        rewrite("search-synthetic", text, DOCS / "search.md")
    options.out.write_text(json.dumps({"optimum": best, "regret": curves}) + "\n")
    if options.picture is not None:
        plot(curves, options.picture)


def plot(curves: dict[str, list[list[float]]], path: Path) -> None:
    """Mean regret after each trial, with every seed behind it."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "cascade"  # the same figures give the same file
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 4))
    for (name, seeds), colour in zip(curves.items(), ("#0b5f8a", "#5a6673", "#a8480a"), strict=True):
        for curve in seeds:
            axes.step(range(1, len(curve) + 1), curve, where="post", color=colour, alpha=0.15, linewidth=1)
        mean = [sum(column) / len(seeds) for column in zip(*seeds, strict=True)]
        axes.step(range(1, len(mean) + 1), mean, where="post", color=colour, linewidth=2.2, label=name)
    axes.set(xlabel="trials", ylabel="regret: best within the limit − optimum", ylim=(0, 0.6))
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})


def _spread(curves: list[list[float]], at: int) -> str:
    values = sorted(curve[min(at, len(curve) - 1)] for curve in curves)
    mean = sum(values) / len(values)
    half = (
        2.262 * math.sqrt(sum((v - mean) ** 2 for v in values) / (len(values) - 1) / len(values))
        if len(values) > 1
        else 0.0
    )
    return f"{mean:.3f} ± {half:.3f}"


if __name__ == "__main__":
    main()
