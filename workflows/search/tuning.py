"""The trials on Ray Tune: how many at a time, who is stopped early, and what is kept of Tune's own."""

from __future__ import annotations

import logging
import os
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cascade_ops.errors import CascadeError, UsageError
from cascade_ops.progress import Progress
from cascade_ops.search import Space
from workflows.config import JobConfig
from workflows.prepare import Prepared
from workflows.scoring.cluster import connected
from workflows.scoring.sizing import Node
from workflows.search.config import SearchConfig
from workflows.search.objectives import objectives_for
from workflows.search.record import TrialRecord, read_record
from workflows.search.trial import Plan, run_trial

if TYPE_CHECKING:
    import optuna

    from workflows.search.job import Request

DATABASE, TUNE = "optuna.db", "tune"
CRASHES = 3
"""How often a trial whose process died is taken up again."""
GRACE_TRIALS = 4
"""Trials at a rung before the median says anything."""
Say = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """How a session went. ``elapsed``: trial → seconds from proposal to end, and those within the trial."""

    wall: float
    slots: int
    elapsed: dict[int, tuple[float, float]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Needs:
    """What one trial takes: its own process, and the workers that it starts by turns."""

    cpus: int
    gpus: int
    inner: int

    @property
    def all_cpus(self) -> int:
        return self.cpus + self.inner


def needs_of(config: JobConfig) -> Needs:
    """Cores and GPUs of one trial, its scoring and recovery workers included."""
    scoring, recovering = config.scoring, config.recovering
    # Ray Train's controller wants a core's share beside its workers.
    fits = recovering.workers * recovering.threads + 1 if recovering.workers else 0
    inner = max(scoring.workers * scoring.threads, fits)
    gpus = 0 if config.device != "cuda" else max(1, scoring.workers, recovering.workers)
    return Needs(cpus=config.threads or 1, gpus=gpus, inner=inner)


def slots_for(nodes: Sequence[Node], needs: Needs, wanted: int | None) -> int:
    """Trials at a time: never more than can have all their workers at once, so that none waits for another.

    Raises:
        UsageError: not even one fits, or more are wanted than fit.
    """
    cpus, gpus = sum(node.cpus for node in nodes), sum(node.gpus for node in nodes)
    fit = cpus // needs.all_cpus
    if needs.gpus:
        fit = min(fit, gpus // needs.gpus)
    if fit < 1:
        raise UsageError(
            f"a trial takes {needs.all_cpus} cores and {needs.gpus} GPUs (workers included), the cluster has {cpus} "
            f"and {gpus}: give it fewer workers or threads, or a larger cluster"
        )
    if wanted is not None and wanted > fit:
        raise UsageError(
            f"search.slots: {wanted} trials at a time would take {wanted * needs.all_cpus} cores, the cluster has "
            f"{cpus}: at most {fit}"
        )
    return wanted or fit


def run_trials(
    request: Request,
    plan: Plan,
    space: Space,
    prepared: Prepared,
    *,
    address: str | None,
    progress: Progress,
    say: Say,
) -> Timing:
    """Run the trials that the study lacks. Raises UsageError, OSError; KeyboardInterrupt if that was asked."""
    from workflows.search.proposals import FINISHED

    with _quiet():
        from workflows.search.proposals import Proposals, finished

        search, began = request.search, time.perf_counter()
        storage = open_storage(plan.folder, search)
        objectives = objectives_for(search.objectives, request.config.task)
        board = _Board(search.trials, objectives[0].name, objectives[0].mode, progress, say)
        proposals = Proposals(space, search, objectives, storage, board.told)
        if not proposals.study.get_trials(deepcopy=False):
            _known_before(proposals.study, space, search, say)
        for record in finished(proposals.study):
            board.remember(record)
        states = [one.state for one in proposals.study.get_trials(deepcopy=False)]
        missing = search.trials - sum(state in FINISHED for state in states)
        board.show()
        if missing <= 0:
            return Timing(wall=0.0, slots=1, elapsed={})
        needs = needs_of(request.config)
        cpus = None if address else max(os.cpu_count() or 1, needs.all_cpus)
        with connected(address, cpus=cpus) as nodes:
            slots = min(slots_for(nodes, needs, search.slots), missing)
            say(f"trials: {missing} to go, {slots} at a time")
            _tune(plan, prepared, search, proposals, needs, slots, missing)
        done = len(finished(proposals.study))
        if done < search.trials and proposals.halted is None:
            say(f"after {done} trials nothing new is left to try: the space is small, or --resume goes on")
        if proposals.halted is not None:
            raise CascadeError(proposals.halted)
        return Timing(wall=time.perf_counter() - began, slots=slots, elapsed=proposals.elapsed)


def _tune(
    plan: Plan,
    prepared: Prepared,
    search: SearchConfig,
    proposals: Any,
    needs: Needs,
    slots: int,
    missing: int,
) -> None:
    from ray import tune

    name = time.strftime("%Y%m%d-%H%M%S")
    resources = {"CPU": float(needs.cpus)} | ({"GPU": 1.0} if needs.gpus else {})
    tuner = tune.Tuner(
        tune.with_resources(tune.with_parameters(run_trial, plan=plan, prepared=prepared), resources),
        tune_config=tune.TuneConfig(
            search_alg=proposals,
            scheduler=scheduler_for(search, plan, proposals),
            num_samples=missing,
            max_concurrent_trials=slots,
            reuse_actors=True,  # importing torch takes longer than many a trial
            trial_dirname_creator=_folder_name,
        ),
        run_config=tune.RunConfig(
            name=name,
            storage_path=str(plan.folder / TUNE),
            verbose=0,
            failure_config=tune.FailureConfig(max_failures=CRASHES),
        ),
    )
    tuner.fit()


def _folder_name(trial: Any) -> str:
    return f"{trial.config.get('number', 0):04d}-{trial.trial_id}"


def scheduler_for(search: SearchConfig, plan: Plan, proposals: Any) -> Any:
    """Who is stopped before the end; rungs are fidelities, then parts of the way to the target."""
    from ray.tune.schedulers import AsyncHyperBandScheduler, FIFOScheduler, MedianStoppingRule

    if not search.uses_rungs:
        return FIFOScheduler()
    aim = {"metric": proposals.metric, "mode": proposals.mode}
    if search.scheduler == "median":
        return MedianStoppingRule(
            time_attr="rung", grace_period=0, min_samples_required=GRACE_TRIALS, hard_stop=True, **aim
        )
    return AsyncHyperBandScheduler(
        time_attr="milestone",
        max_t=plan.reduction**plan.last_rung,  # type: ignore[arg-type]  # any number will do
        grace_period=1,
        reduction_factor=plan.reduction,
        **aim,
    )


def open_storage(folder: Path, search: SearchConfig) -> optuna.storages.BaseStorage:
    """Optuna's database. Raises UsageError."""
    from optuna.storages import RDBStorage

    url = search.storage or f"sqlite:///{folder / DATABASE}"
    try:
        return RDBStorage(url)
    except Exception as error:  # every database has errors of its own
        reason = (str(error).strip() or type(error).__name__).split("\n")[0]
        raise UsageError(f"search.storage: {url} cannot be opened ({reason})") from None


def _known_before(study: Any, space: Space, search: SearchConfig, say: Say) -> None:
    """The paper's schedules, and the best of earlier searches, are tried first."""
    from workflows.search.proposals import ORIGIN, paper_points, points_of, schedule_of

    known = [("paper", point) for point in paper_points(space)]
    for folder in search.warm_start:
        points = points_of(read_record(Path(folder)), space)
        say(f"warm start: {len(points)} schedules from {folder}")
        known += [("warm start", point) for point in points]
    schedules = []
    for origin, point in known:
        schedule = schedule_of(space, point)
        if schedule not in schedules:
            schedules.append(schedule)
            study.enqueue_trial(point, user_attrs={ORIGIN: origin})


class _Board:
    """How far the search is, and its best trial yet."""

    def __init__(self, trials: int, name: str, mode: str, progress: Progress, say: Say) -> None:
        self._trials, self._name, self._sign = trials, name, 1 if mode == "min" else -1
        self._progress, self._say = progress, say
        self._done, self._best = 0, None  # type: tuple[int, float | None]

    def remember(self, record: TrialRecord) -> None:
        self._done += 1
        value = record.values.get(self._name)
        if (
            record.feasible
            and value is not None
            and (self._best is None or self._sign * (value - self._best) < 0)
        ):
            self._best = value

    def told(self, record: TrialRecord) -> None:
        self.remember(record)
        self.show()
        if record.state == "failed":
            self._say(f"trial {record.number} failed: {record.error}")

    def show(self) -> None:
        best = {} if self._best is None else {self._name: self._best}
        self._progress("trials", self._done, self._trials, **best)


@contextmanager
def _quiet() -> Iterator[None]:
    """Tune and Optuna say things that are for other users of theirs."""
    settings = {
        "TUNE_DISABLE_SIGINT_HANDLER": "1",  # Ctrl-C is ours
        "RAY_AIR_NEW_OUTPUT": "0",
        "RAY_CHDIR_TO_TRIAL_DIR": "0",  # relative paths of the configuration mean the same everywhere
        "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
    }
    before = {name: os.environ.get(name) for name in settings}
    os.environ.update(settings)
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    for name in ("ray.tune", "ray._private", "ray.air", "ray.train"):
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
