"""What a search comes to: the front, the winner as a configuration and a run, and the record of it all."""

from __future__ import annotations

import json
import math
import shutil
import warnings
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq
from scipy import stats

from cascade_ops.augment import varied
from cascade_ops.checkpoint import load_pruned
from cascade_ops.evaluation import evaluate
from cascade_ops.granularity import Granularity
from cascade_ops.measure import latency
from cascade_ops.progress import Progress
from cascade_ops.results import StageResult
from cascade_ops.search import Bound, Reach, Space
from cascade_ops.serde import from_jsonable, to_jsonable
from cascade_ops.shards import layout_of
from workflows import job
from workflows.artifacts import step_names
from workflows.config import JobConfig, dump
from workflows.provenance import provenance
from workflows.report.render import write_page
from workflows.rundir import DENSE, RunDir
from workflows.search.objectives import objectives_for
from workflows.search.proposals import dominates, finished, schedule_of
from workflows.search.record import (
    DOCUMENT,
    PAGE,
    TABLE,
    WINNER,
    BoundRecord,
    ObjectiveRecord,
    SearchRecord,
    TrialRecord,
    machine_view,
)
from workflows.search.trial import REFERENCE, Plan, fidelity_name, figures, model_figures
from workflows.search.tuning import Timing, open_storage
from workflows.summary import model_name

if TYPE_CHECKING:
    import optuna

    from workflows.search.job import Request, Say

ENOUGH = 5
"""Complete trials without which nothing can be said about parameters or agreement."""
TIMING = "timing.json"


def conclude(
    request: Request,
    plan: Plan,
    shared: job.Shared,
    space: Space,
    bounds: dict[Granularity, Bound],
    reach: Reach,
    timing: Timing,
    *,
    progress: Progress,
    say: Say,
) -> SearchRecord:
    """Sum up what the study holds, write the winner's schedule and run it to its report, and write the record."""
    import optuna

    from workflows.search.proposals import STUDY

    study = optuna.load_study(study_name=STUDY, storage=open_storage(plan.folder, request.search))
    trials = tuple(finished(study))
    objectives = objectives_for(request.search.objectives, request.config.task)
    front = front_of(trials, objectives)
    winner = winner_of(trials, objectives)
    if winner is not None:
        config = winning_config(request.config, plan, schedule_of(space, winner.params))
        write_page(plan.folder / WINNER, dump(config))
        _run_winner(config, plan, shared, progress, say)
    dense, reference = _compared(request, plan, shared)
    wall, slots, overhead = _times(plan.folder, timing)
    description = shared.prepared.description
    record = SearchRecord(
        model=model_name(request.config),
        data=f"{description['name']}, split {description['split']}",
        task=request.config.task,
        target=request.target,
        reach=reach.compression,
        objectives=objectives,
        limits=dict(request.search.limits),
        bounds=tuple(_bound(space, unit, bounds) for unit in _searched(space)),
        rounds=space.rounds,
        sampler=_sampler_name(request),
        scheduler=_scheduler_name(request),
        ignored_sia=request.search.ignore_sia,
        trials=trials,
        winner=None if winner is None else winner.number,
        front=front,
        dense=dense,
        reference=reference,
        reference_name="the configuration's own schedule",
        importances=importances(study, objectives),
        agreement=agreement(trials, plan.fidelities, objectives[0]),
        foresight=foresight(trials, objectives[0]),
        wall=wall,
        slots=slots,
        overhead=overhead,
        provenance=provenance(
            seed=request.config.seed, threads=request.config.threads or 1, data_fingerprint=plan.origin.data
        ),
    )
    write_record(record, plan.folder)
    return record


def winning_config(config: JobConfig, plan: Plan, schedule: Any) -> JobConfig:
    """A configuration that ``cascade compress`` runs as it is."""
    explicit = replace(config.schedule, target=None, stages=schedule.stages, recovery=schedule.recovery)
    return replace(config, schedule=explicit, out=None, store=None)


def _run_winner(config: JobConfig, plan: Plan, shared: job.Shared, progress: Progress, say: Say) -> None:
    """The winner's run; its steps are all in the store."""
    from cascade_ops.errors import RunExistsError

    folder = plan.folder / "winner"
    try:
        job.start(config, folder, shared=shared, progress=progress, say=say)
    except RunExistsError:  # an earlier session had another winner
        shutil.rmtree(folder)
        job.start(config, folder, shared=shared, progress=progress, say=say)


def front_of(trials: Sequence[TrialRecord], objectives: Sequence[ObjectiveRecord]) -> tuple[int, ...]:
    """Numbers of the trials that no other one beats in every objective, best of the first objective first."""
    feasible = [trial for trial in trials if trial.feasible]
    points = {trial.number: _signed(trial, objectives) for trial in feasible}
    best = [n for n, point in points.items() if not any(dominates(other, point) for other in points.values())]
    return tuple(sorted(best, key=lambda n: (points[n], n)))


def winner_of(trials: Sequence[TrialRecord], objectives: Sequence[ObjectiveRecord]) -> TrialRecord | None:
    """The best of the first objective among trials within every limit; of several, the front's knee.

    The knee is the front's trial that is nearest to the best of every objective at once, each scaled to the front's
    range.
    """
    by_number = {trial.number: trial for trial in trials}
    front = front_of(trials, objectives)
    if not front:
        return None
    points = {n: _signed(by_number[n], objectives) for n in front}
    low = [min(column) for column in zip(*points.values(), strict=True)]
    high = [max(column) for column in zip(*points.values(), strict=True)]

    def distance(n: int) -> float:
        scaled = [
            (value - a) / (b - a) if b > a else 0.0 for value, a, b in zip(points[n], low, high, strict=True)
        ]
        return math.hypot(*scaled)

    return by_number[min(front, key=lambda n: (distance(n), points[n], n))]


def _signed(trial: TrialRecord, objectives: Sequence[ObjectiveRecord]) -> tuple[float, ...]:
    return tuple(trial.values[one.name] * (1 if one.mode == "min" else -1) for one in objectives)


def importances(study: optuna.Study, objectives: Sequence[ObjectiveRecord]) -> dict[str, dict[str, float]]:
    """Objective → parameter → share of the objective's spread that it explains (PED-ANOVA, Watanabe et al. 2023)."""
    from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances
    from optuna.trial import TrialState

    complete = study.get_trials(states=(TrialState.COMPLETE,), deepcopy=False)
    if len(complete) < ENOUGH:
        return {}
    found = {}
    for place, one in enumerate(objectives):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                shares = get_param_importances(
                    study,
                    evaluator=PedAnovaImportanceEvaluator(),
                    target=partial(_value, place=place),
                )
            except (ValueError, RuntimeError):  # all trials alike
                continue
        found[one.name] = {name: float(share) for name, share in shares.items() if math.isfinite(share)}
    return found


def _value(trial: Any, *, place: int) -> float:
    return float(trial.values[place])


def agreement(
    trials: Sequence[TrialRecord], fidelities: Sequence[float], objective: ObjectiveRecord
) -> dict[str, tuple[float, int]]:
    """How far each fidelity ranks complete trials as the full recovery does."""
    found = {}
    for fraction in fidelities:
        name = fidelity_name(fraction)
        pairs = [
            (dict(trial.rungs)[name], trial.values[objective.name])
            for trial in trials
            if trial.state == "complete" and name in dict(trial.rungs)
        ]
        rho = spearman(pairs)
        if rho is not None:
            found[name] = (rho, len(pairs))
    return found


def foresight(trials: Sequence[TrialRecord], objective: ObjectiveRecord) -> float | None:
    """How far the validation side ranks complete trials as the test side does."""
    test = f"test_{objective.name}"
    pairs = [
        (trial.values[objective.name], trial.outcome[test])
        for trial in trials
        if trial.state == "complete" and test in trial.outcome
    ]
    return spearman(pairs)


def spearman(pairs: Sequence[tuple[float, float]]) -> float | None:
    """ρ; None for too few pairs, or where one side is constant."""
    if len(pairs) < ENOUGH or any(len(set(side)) < 2 for side in zip(*pairs, strict=True)):
        return None
    return float(stats.spearmanr([a for a, _ in pairs], [b for _, b in pairs]).statistic)


def _compared(request: Request, plan: Plan, shared: job.Shared) -> tuple[dict[str, float], dict[str, float]]:
    """Outcomes of the dense model and of the reference run (empty if it was not wanted)."""
    run = RunDir(path=plan.folder / REFERENCE)
    folder, data = run.step(DENSE) / "model", shared.prepared.data
    anatomy = layout_of(folder).anatomy
    model: Any = load_pruned(folder)
    model.to(request.config.device)
    dense = model_figures(folder, anatomy, anatomy)
    for prefix, side in (("", varied(data.validation, data.augment)), ("test_", data.test)):
        dense |= figures(prefix, evaluate(model, side, task=data.task, classes=data.classes))
    if not request.search.reference:
        return dense, {}
    name = step_names(request.config.schedule.build())[-1]
    last = from_jsonable(StageResult, run.result(name))
    final = run.step(name) / "model"
    assert last.validation is not None  # every stage has it
    reference = {**figures("", last.validation), **figures("test_", last.after_recovery)}
    reference |= model_figures(final, layout_of(final).anatomy, anatomy)
    if plan.timed:
        pruned: Any = load_pruned(final)
        pruned.to(request.config.device)
        times = latency([model, pruned], data.test)
        dense |= {"latency_ms": times[0].median, "latency": 1.0}
        reference |= {"latency_ms": times[1].median, "latency": times[1].median / times[0].median}
    return dense, reference


def _times(folder: Path, timing: Timing) -> tuple[float, int, float]:
    """Wall seconds and Tune's overhead over all sessions of the search."""
    place = folder / TIMING
    try:
        before = json.loads(place.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        before = {"wall": 0.0, "slots": 1, "elapsed": 0.0, "work": 0.0}
    total = {
        "wall": before["wall"] + timing.wall,
        "slots": max(before["slots"], timing.slots),
        "elapsed": before["elapsed"] + sum(spent for spent, _ in timing.elapsed.values()),
        "work": before["work"] + sum(work for _, work in timing.elapsed.values()),
    }
    write_page(place, json.dumps(total) + "\n")
    share = 1 - total["work"] / total["elapsed"] if total["elapsed"] else 0.0
    return total["wall"], total["slots"], share


def _searched(space: Space) -> tuple[Granularity, ...]:
    return tuple(dict.fromkeys(one for order in space.orders for one in order))


def _bound(space: Space, unit: Granularity, bounds: dict[Granularity, Bound]) -> BoundRecord:
    one = bounds.get(unit, Bound())
    return BoundRecord(
        unit=unit.value,
        safe=one.safe,
        loss=one.loss,
        ratio=space.bound(unit),
        least=space.least(unit),
        units=space.count(unit),
    )


def _sampler_name(request: Request) -> str:
    names = {"tpe": "TPE", "nsga2": "NSGA-II", "random": "random"}
    auto = "tpe" if len(request.search.objectives) == 1 else "nsga2"
    return names[auto if request.search.sampler == "auto" else request.search.sampler]


def _scheduler_name(request: Request) -> str:
    if not request.search.uses_rungs:
        return "none"
    return "median" if request.search.scheduler == "median" else "ASHA"


def write_record(record: SearchRecord, folder: Path) -> None:
    """The document, the table, and the page."""
    text = json.dumps(machine_view(record), ensure_ascii=False, allow_nan=False, indent=1)
    pq.write_table(pa.Table.from_pylist([_row(trial) for trial in record.trials]), folder / TABLE)
    write_page(folder / DOCUMENT, text + "\n")
    from workflows.report.search_page import render_search

    write_page(folder / PAGE, render_search(record))


def _row(trial: TrialRecord) -> dict[str, Any]:
    """A trial as a flat row: parameters, outcome and limits by their names."""
    flat = to_jsonable(trial)
    nested = {"params": "param", "outcome": "", "values": "objective", "violations": "limit"}
    row = {name: value for name, value in flat.items() if name not in (*nested, "stages", "rungs", "beyond")}
    for name, prefix in nested.items():
        row |= {f"{prefix}.{key}".lstrip("."): value for key, value in flat[name].items()}
    row["beyond"] = ", ".join(trial.beyond)
    row["stages"] = json.dumps(flat["stages"])
    row["rungs"] = json.dumps(flat["rungs"])
    return row
