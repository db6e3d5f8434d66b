"""One trial, in a process of its own: the same schedule with more and more recovery, stage by stage.

Every fidelity is a compress run in the trial's folder. What earlier trials have computed is taken from the store of
the search, and a trial that was interrupted goes on where it was, since its runs do.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from cascade_ops.anatomy import ModelAnatomy
from cascade_ops.batches import Batch
from cascade_ops.checkpoint import load_pruned
from cascade_ops.errors import DataError
from cascade_ops.export import refusals
from cascade_ops.files import disk_full
from cascade_ops.granularity import Granularity
from cascade_ops.measure import latency
from cascade_ops.results import Evaluation, StageResult
from cascade_ops.schedule import CascadeSchedule
from cascade_ops.serde import from_jsonable, to_jsonable
from cascade_ops.shards import layout_of
from cascade_ops.training import deterministic
from workflows import job
from workflows.config import JobConfig
from workflows.origin import Origin
from workflows.prepare import Prepared
from workflows.rundir import DENSE, RunDir
from workflows.search.config import at_fidelity
from workflows.search.record import StageRecord, TrialRecord
from workflows.steps import Source
from workflows.store import open_store

STORE, SCORES, TEACHERS, TRIALS, REFERENCE = "store", "scores", "teachers", "trials", "reference"
FULL = "full recovery"
PARTS = 2
"""Rungs of a run with the full recovery: each of so many parts of the way to the target, in the logarithm of the
compression, so that all orders and numbers of rounds compare."""
MB = 1e6
DISK_FULL = "the disk is full: nothing was half-written; make room and resume"

Report = Callable[[dict[str, Any]], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What all trials of a search have in common.

    Attributes:
        folder: of the search.
        config: every run's, but for the schedule.
        bounds: granularity → the share that a round may remove by the check, obeyed or not.
        fidelities: shares of the recovery tried before the full one; none where nothing compares trials by them.
        objective: the figure that trials are compared by on the way.
        reduction: one trial in so many goes on at each rung.
        limits: figure → largest value; runtime: a target that must take the model.
        timed: latency is wanted.
    """

    folder: Path
    config: JobConfig
    origin: Origin
    bounds: dict[Granularity, float]
    fidelities: tuple[float, ...]
    objectives: tuple[str, ...]
    reduction: float
    limits: dict[str, float]
    runtime: str | None
    timed: bool

    @property
    def last_rung(self) -> int:
        return len(self.fidelities) + PARTS - 1

    def trial_folder(self, number: int) -> Path:
        return self.folder / TRIALS / f"{number:04d}"

    @property
    def dense(self) -> Path:
        return RunDir(path=self.folder / REFERENCE).step(DENSE) / "model"


def shared_in(folder: Path, prepared: Prepared, origin: Origin) -> job.Shared:
    """What all runs of the search in ``folder`` start from."""
    store = open_store(str(folder / STORE), links=True)
    return job.Shared(
        prepared=prepared, origin=origin, store=store, scores=folder / SCORES, teachers=folder / TEACHERS
    )


def fidelity_name(fraction: float) -> str:
    """A share of the recovery budget in words."""
    if fraction == 0:
        return "no recovery"
    return FULL if fraction == 1 else f"{fraction:.0%} of the recovery"


@dataclass(slots=True, kw_only=True)
class Trial:
    """A trial under way: its record grows, and is reported at every rung."""

    plan: Plan
    shared: job.Shared
    record: TrialRecord
    report: Report
    schedule: CascadeSchedule
    rung: int = -1
    stages: list[StageRecord] = field(default_factory=list)

    def run(self) -> None:
        """All fidelities in turn. Raises what a run raises."""
        for fraction in (*self.plan.fidelities, 1.0):
            self._fidelity(fraction)

    def _fidelity(self, fraction: float) -> None:
        config = replace(
            self.plan.config,
            schedule=replace(
                self.plan.config.schedule,
                target=None,
                stages=self.schedule.stages,
                recovery=self.schedule.recovery,
            ),
        )
        self.stages = []
        folder = self.plan.trial_folder(self.record.number) / f"{fraction:g}"
        last: list[StageResult] = []

        def told(index: int, result: StageResult, source: Source) -> None:
            last[:] = [result]
            self._staged(index, result, source, fraction)

        run = job.start(at_fidelity(config, fraction), folder, shared=self.shared, until="stages", told=told)
        outcome = self._outcome(run, last[0])
        violations = limits_exceeded(outcome, run.step(_last_step(run)) / "model", self.plan)
        done = {name: outcome[name] for name in self.plan.objectives} if fraction == 1 else {}
        self.record = replace(
            self.record,
            state="complete" if fraction == 1 else "pruned",
            outcome=outcome,
            values=done,
            violations=violations,
            stages=tuple(self.stages),
        )
        rung = self.plan.last_rung if fraction == 1 else self.plan.fidelities.index(fraction)
        self._at_rung(rung, fidelity_name(fraction), outcome[self.plan.objectives[0]])

    def _staged(self, index: int, result: StageResult, source: Source, fraction: float) -> None:
        """A stage is done: counted, and at the full recovery compared with other trials that are as far."""
        computed = source != "taken"
        dense = layout_of(self.plan.dense).anatomy.backbone_params
        stage = self.schedule.stages[index]
        self.stages.append(
            StageRecord(
                granularity=result.granularity,
                ratio=result.ratio,
                criterion=result.criterion,
                allocation=stage.allocation,
                steps=result.recovery.steps,
                compression=dense / result.params,
                cached=not computed,
                seconds=result.seconds,
            )
        )
        self.record = replace(
            self.record,
            requested=self.record.requested + 1,
            computed=self.record.computed + computed,
            saved=self.record.saved + (0.0 if computed else result.seconds),
            beyond=_beyond(self.record.beyond, result, self.plan),
        )
        if fraction < 1 or index == len(self.schedule.stages) - 1 or result.validation is None:
            return
        parts_done = math.floor(PARTS * self._way(index, dense / result.params))
        rung = len(self.plan.fidelities) - 1 + parts_done
        outcome = figures("", result.validation)
        name = self.plan.objectives[0]
        if parts_done and rung > self.rung and name in outcome:
            self._at_rung(rung, f"{dense / result.params:.3g}× on the way", outcome[name])

    def _way(self, index: int, compression: float) -> float:
        """How far the cascade has come, less than 1."""
        target = self.plan.config.schedule.target
        if target is None:
            return index / len(self.schedule.stages)
        return min(math.log(compression) / math.log(target), 0.999)

    def _outcome(self, run: RunDir, last: StageResult) -> dict[str, float]:
        assert last.validation is not None  # run_stage measures it
        folder = run.step(_last_step(run)) / "model"
        anatomy = layout_of(folder).anatomy
        dense = layout_of(self.plan.dense).anatomy
        found = {**figures("", last.validation), **figures("test_", last.after_recovery)}
        found |= model_figures(folder, anatomy, dense)
        if self.plan.timed:
            found |= measured_latency(self.plan, folder, self.shared.prepared.data.test)
        return found

    def _at_rung(self, rung: int, name: str, value: float) -> None:
        """Raises DataError: the figure is not finite, and more of it will not mend it."""
        if not math.isfinite(value):
            raise DataError(f"{self.plan.objectives[0]} is {value} ({name})")
        self.rung = rung
        self.record = replace(self.record, rungs=(*self.record.rungs, (name, value)))
        self.report(told_by(self.record, self.plan, rung, value))


def told_by(record: TrialRecord, plan: Plan, rung: int, value: float) -> dict[str, Any]:
    """What Tune hears: objectives, where the trial is, and its record as it stands."""
    values = {name: record.values.get(name, math.nan) for name in plan.objectives}
    return {
        **values,
        plan.objectives[0]: value,
        "rung": rung,
        "milestone": plan.reduction**rung,
        "complete": record.state == "complete",
        "record": json.dumps(to_jsonable(record)),
    }


def run_trial(point: dict[str, Any], *, plan: Plan, prepared: Prepared) -> None:
    """The function that Ray Tune runs: a trial to its end, or to its error, which is reported like a result.

    ``prepared`` comes from the object store, so that no worker reads the data.
    """
    from ray import tune

    began = time.perf_counter()
    deterministic(plan.config.threads)
    spent = [0.0]

    def report(result: dict[str, Any]) -> None:
        spent[0] = time.perf_counter() - began
        tune.report({**result, "work": spent[0]})

    record = TrialRecord(
        number=point["number"], state="failed", origin=point["origin"], params=point["params"]
    )
    trial = Trial(
        plan=plan,
        shared=shared_in(plan.folder, prepared, plan.origin),
        record=record,
        report=report,
        schedule=from_jsonable(CascadeSchedule, point["schedule"]),
    )
    try:
        trial.run()
    except Exception as error:  # whatever a schedule does to a model is a finding about the schedule
        if disk_full(error) is not None:  # but this is not about the schedule
            report(told_by(record, plan, trial.rung, math.nan) | {"halt": DISK_FULL})
            return
        failed = replace(trial.record, state="failed", error=_said(error), values={})
        report(told_by(failed, plan, trial.rung, math.nan) | {"failed": True})


def _said(error: Exception) -> str:
    first = str(error).strip().split("\n")[0]
    return f"{type(error).__name__}: {first}" if first else type(error).__name__


def figures(prefix: str, found: Evaluation) -> dict[str, float]:
    """The metric and the loss of one side."""
    return {f"{prefix}{found.metric.name}": found.metric.value, f"{prefix}loss": found.loss}


def model_figures(folder: Path, anatomy: ModelAnatomy, dense: ModelAnatomy) -> dict[str, float]:
    """What a model weighs."""
    size = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    return {
        "params": float(anatomy.backbone_params),
        "total_params": float(anatomy.total_params),
        "compression": dense.backbone_params / anatomy.backbone_params,
        "memory_mb": size / MB,
    }


def measured_latency(plan: Plan, folder: Path, samples: Batch) -> dict[str, float]:
    """Of one sample, the dense model measured in turn with the compressed one."""
    models: list[Any] = [load_pruned(plan.dense), load_pruned(folder)]
    for model in models:
        model.to(plan.config.device)
    dense, final = latency(models, samples)
    return {"latency_ms": final.median, "latency": final.median / dense.median}


def limits_exceeded(outcome: dict[str, float], folder: Path, plan: Plan) -> dict[str, float]:
    """Limit → excess as a share of the limit; what a runtime refuses is counted."""
    found = {name: outcome[name] / most - 1 for name, most in plan.limits.items()}
    if plan.runtime is not None:
        found[f"runs on {plan.runtime}"] = float(len(refusals(layout_of(folder).anatomy, plan.runtime)))
    return found


def _beyond(already: tuple[str, ...], result: StageResult, plan: Plan) -> tuple[str, ...]:
    most = plan.bounds.get(Granularity(result.granularity), 1.0)
    found = {*already, *([result.granularity] if result.ratio > most + 1e-9 else [])}
    return tuple(sorted(found))


def _last_step(run: RunDir) -> str:
    return sorted(path.name for path in (run.path / "steps").iterdir() if not path.name.startswith("."))[-1]
