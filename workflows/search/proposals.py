"""What to try next: Optuna's proposals to Ray Tune, kept in a database that is the search's memory.

Tune's own checkpoints are not used. Whether a trial is finished is what the database says, at the moment it is told;
a trial that was under way when a search was killed is handed out again, under its number, with its parameters.
"""

from __future__ import annotations

import json
import math
import random
import time
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, cast

import optuna
from optuna.samplers import BaseSampler, NSGAIISampler, RandomSampler, TPESampler
from optuna.study import Study
from optuna.trial import FrozenTrial, Trial, TrialState
from ray.tune.search import Searcher
from ray.tune.search.optuna import OptunaSearch

from cascade_ops.granularity import Granularity
from cascade_ops.schedule import CascadeSchedule
from cascade_ops.search import Preferred, Space, Unreachable, draw
from cascade_ops.search.drawing import PARTS, prefix
from cascade_ops.serde import from_jsonable, to_jsonable
from workflows.search.config import SearchConfig
from workflows.search.record import ObjectiveRecord, SearchRecord, TrialRecord

RECORD, ORIGIN = "record", "origin"
FINISHED = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL)
ATTEMPTS = 40
"""Draws to find something new, the later half of them at random."""
STARTUP = 10
"""Trials drawn at random before a model of the objective is worth having."""
FAR = 1e9
"""The excess of a figure that is not finite."""
STUDY = "cascade"
HOPELESS = 5
"""So many failures before the first success are not the schedules' fault."""


@dataclass(frozen=True, slots=True)
class Asked:
    """An Optuna trial as a Suggest, asked only for what is not ``kept`` from another trial or not possible any more."""

    trial: Any
    kept: Mapping[str, Any] = field(default_factory=dict)
    chosen: dict[str, Any] = field(default_factory=dict)

    def integer(self, name: str, low: int, high: int) -> int:
        kept = self.kept.get(name)
        possible = kept is not None and low <= kept <= high
        self.chosen[name] = kept if possible else self.trial.suggest_int(name, low, high)
        return int(self.chosen[name])

    def choice(self, name: str, options: Sequence[Any]) -> Any:
        kept = self.kept.get(name)
        self.chosen[name] = kept if kept in options else self.trial.suggest_categorical(name, options)
        return self.chosen[name]


def proposed(trial: Any, *, space: Space) -> dict[str, Any]:
    """Optuna's define-by-run function: what a trial is besides its parameters."""
    schedule = draw(space, Asked(trial))
    return {
        "schedule": to_jsonable(schedule),
        "number": trial.number,
        "origin": trial.user_attrs.get(ORIGIN, "drawn"),
        "params": dict(trial.params),
    }


def sampler_for(search: SearchConfig, place: str) -> BaseSampler:
    """The sampler of one draw.

    It is made anew for each, seeded by its place in the search, so that a search that was interrupted draws what an
    uninterrupted one would have.
    """
    seed = zlib.crc32(f"{search.seed} {place}".encode())  # neighbouring seeds would draw alike
    name = search.sampler
    if name == "auto":
        name = "tpe" if len(search.objectives) == 1 else "nsga2"
    if name == "random":
        return RandomSampler(seed=seed)
    if name == "nsga2":
        return NSGAIISampler(seed=seed, population_size=max(8, min(50, search.trials // 4)))
    startup = min(STARTUP, max(1, search.trials // 4))
    return TPESampler(seed=seed, n_startup_trials=startup, multivariate=True, group=True)


class Proposals(OptunaSearch):
    """Ray's Optuna search with a memory of its own.

    Args:
        space: what may be drawn.
        search: its options.
        objectives: in order; with one of them, figures on the way are reported to Optuna too.
        storage: Optuna's.
        told: called when a trial is finished, with its record.
    """

    def __init__(
        self,
        space: Space,
        search: SearchConfig,
        objectives: tuple[ObjectiveRecord, ...],
        storage: optuna.storages.BaseStorage,
        told: Callable[[TrialRecord], None],
    ) -> None:
        single = len(objectives) == 1
        names: list[str] = [one.name for one in objectives]
        modes: list[str] = [one.mode for one in objectives]
        super().__init__(
            space=partial(proposed, space=space),
            metric=names[0] if single else names,
            mode=modes[0] if single else modes,
            sampler=sampler_for(search, "first"),
            storage=storage,
            study_name=STUDY,
        )
        self._schedules, self._search, self._told = space, search, told
        self._single = single
        self._left: list[FrozenTrial] = list(self.study.get_trials(states=(TrialState.RUNNING,)))
        self._asked: dict[str, float] = {}
        self._keys: dict[str, str] = {}
        self.elapsed: dict[int, tuple[float, float]] = {}
        self.halted: str | None = None
        self._failed = 0.0

    @property
    def study(self) -> Study:
        return cast(Study, self._ot_study)  # made by __init__, since there is a space

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:  # type: ignore[override]
        """The next trial: one that was left over, one that shares a prefix with a good one, or a new one."""
        if self.halted is not None:
            return Searcher.FINISHED
        if trial_id not in self._ot_trials:
            trial = self._next()
            if trial is None:
                return Searcher.FINISHED
            self._ot_trials[trial_id] = trial
            self._asked[trial_id] = time.perf_counter()
        return super().suggest(trial_id)

    def _next(self) -> Trial | None:
        """None: nothing new can be found any more."""
        study = self.study
        if self._left:
            return Trial(study, self._left.pop(0)._trial_id)
        known = study.get_trials(deepcopy=False)
        if any(one.state is TrialState.WAITING for one in known):
            return study.ask()
        study.sampler = sampler_for(self._search, f"{len(known)}")
        found = self._new_point(known)
        if found is None:
            return None
        params, origin = found
        study.enqueue_trial(params, user_attrs={ORIGIN: origin})
        return study.ask()

    def _new_point(self, known: Sequence[FrozenTrial]) -> tuple[dict[str, Any], str] | None:
        """Parameters of a schedule that no trial has had, drawn in a copy of the study, and where they come from.

        Several parameters may stand for one schedule, and a sampler that has found something good asks for it again.
        """
        seen = {self._key(one.params) for one in known if one.params}
        copy = optuna.create_study(directions=self.study.directions, study_name=STUDY)
        copy.add_trials([one for one in known if one.state is not TrialState.WAITING])
        for attempt in range(ATTEMPTS):
            place = f"{len(known)} {attempt}"
            desperate = attempt >= ATTEMPTS // 2
            search = replace(self._search, sampler="random") if desperate else self._search
            copy.sampler = sampler_for(search, place)
            branch = branch_of(self.study, self._schedules, search, random.Random(f"{search.seed} {place}"))
            asked = Asked(copy.ask(), {} if branch is None else branch[1])
            try:
                draw(self._schedules, asked)
            except Unreachable:  # a free search may draw the dense model itself
                continue
            if self._key(asked.chosen) not in seen:
                return asked.chosen, "drawn" if branch is None else f"branch of {branch[0]}"
        return None

    def _key(self, params: dict[str, Any]) -> str:
        """The same for parameters that stand for the same schedule."""
        if (key := self._keys.get(repr(params))) is None:
            schedule = schedule_of(self._schedules, params)
            key = self._keys[repr(params)] = json.dumps(to_jsonable(schedule))
        return key

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """A figure on the way."""
        trial = self._ot_trials[trial_id]
        if not isinstance(trial, Trial) or not self._single or result.get("failed") or result.get("halt"):
            return
        value, rung = float(result[str(self.metric)]), int(result["rung"])
        already = self.study._storage.get_trial(trial._trial_id).intermediate_values
        if math.isfinite(value) and rung not in already:  # a trial that goes on after a crash reports again
            trial.report(value, rung)

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        """The end of a trial: complete, stopped early, or failed."""
        if trial_id in self._completed_trials:
            return
        self._completed_trials.add(trial_id)
        trial = self._ot_trials[trial_id]
        if result and result.get("halt"):
            self.halted = str(result["halt"])
            return
        if result:
            self.on_trial_result(trial_id, result)  # Tune tells of the last result only here
        record = self._record(trial, result, error)
        trial.set_user_attr(RECORD, to_jsonable(record))
        for name, excess in record.violations.items():
            trial.set_constraint(name, excess if math.isfinite(excess) else FAR)
        if record.state == "complete":
            values = [record.values[one] for one in self._search.objectives]
            self.study.tell(trial, values, state=TrialState.COMPLETE)
        else:
            states = {"pruned": TrialState.PRUNED, "failed": TrialState.FAIL}
            self.study.tell(trial, state=states[record.state])
        spent = time.perf_counter() - self._asked[trial_id]
        self.elapsed[trial.number] = (spent, float((result or {}).get("work", spent)))
        self._told(record)
        self._failed = self._failed + 1 if record.state == "failed" else -math.inf
        if self._failed == HOPELESS:
            self.halted = f"the first {HOPELESS} trials have all failed, the last with: {record.error}"

    def _record(self, trial: Trial, result: dict[str, Any] | None, error: bool) -> TrialRecord:
        """The trial's own record; values that are not finite make it a failure."""
        if not result or RECORD not in result:
            return TrialRecord(
                number=trial.number,
                state="failed",
                origin=trial.user_attrs.get(ORIGIN, "drawn"),
                params=dict(trial.params),
                error="its worker died, again and again" if error else "it reported nothing",
            )
        record = from_jsonable(TrialRecord, json.loads(result[RECORD]))
        record = replace(record, seconds=float(result.get("work", 0.0)))
        if error and record.state != "complete":
            return replace(record, state="failed", error="its worker died, again and again", values={})
        odd = [name for name, value in record.values.items() if not math.isfinite(value)]
        if record.state == "complete" and odd:
            return replace(record, state="failed", error=f"{odd[0]} is not finite", values={})
        return record

    def __getstate__(self) -> dict[str, Any]:
        """Nothing, as for ``save``: Tune pickles what it might restore."""
        return {}

    def save(self, checkpoint_path: str) -> None:
        """Nothing: the database has it all."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing, as for ``save``."""


def branch_of(
    study: Study, space: Space, search: SearchConfig, chance: random.Random
) -> tuple[int, dict[str, Any]] | None:
    """A good trial and the parameters that its first stages depend on; None: everything is to be drawn.

    Not before a third of the trials, which look around. Trials with the same prefix share its stages, so that such a
    trial costs only what differs. Parents are drawn by rank, the n-th best with a chance that falls as 0.7ⁿ; cuts go as
    late as possible half of the time.
    """
    complete = [one for one in study.get_trials(deepcopy=False) if one.state is TrialState.COMPLETE]
    early = len(study.get_trials(deepcopy=False)) < max(STARTUP, search.trials // 3)
    if search.sampler == "random" or early or len(complete) < 3 or chance.random() >= search.branch:
        return None
    ranked = ranking(complete, [one.name for one in study.directions])
    place = min(int(math.log(1 - chance.random()) / math.log(0.7)), len(ranked) - 1)
    parent = ranked[place]
    names = {" ".join(order): order for order in space.orders}
    order = names[parent.params.get("order", next(iter(names)))]
    longest = len(order) - 1
    if longest < 1:
        return None
    length = longest if chance.random() < 0.5 else chance.randint(1, longest)
    fixed = {name: parent.params[name] for name in prefix(space, order, length) if name in parent.params}
    return (parent.number, fixed) if fixed else None


def ranking(trials: Sequence[FrozenTrial], directions: Sequence[str]) -> list[FrozenTrial]:
    """Best first: kept limits, then how many others dominate, then the first objective."""

    def signed(trial: FrozenTrial) -> tuple[float, ...]:
        return tuple(
            -value if direction == "MAXIMIZE" else value
            for value, direction in zip(trial.values, directions, strict=True)
        )

    points = [signed(trial) for trial in trials]
    dominated = [sum(dominates(other, point) for other in points) for point in points]
    excess = [max((0.0, *trial.constraints.values())) for trial in trials]
    order = sorted(range(len(trials)), key=lambda i: (excess[i], dominated[i], points[i], trials[i].number))
    return [trials[i] for i in order]


def dominates(one: Sequence[float], other: Sequence[float]) -> bool:
    """At least as good everywhere and better somewhere; smaller is better."""
    pairs = list(zip(one, other, strict=True))
    return all(a <= b for a, b in pairs) and any(a < b for a, b in pairs)


def paper_points(space: Space) -> list[dict[str, Any]]:
    """The paper's schedule, layers then heads then channels, as near as the space has it, with and without what this
    project adds."""
    target = space.target or 4.0
    wishes: dict[str, Any] = {
        "order": " ".join(("layer", space.heads.value, "channel")),
        "rank": 16,
        "last_share": 0.75,
        "layers": round(space.count(Granularity.LAYER) * target**-0.40),
        "heads": round(space.count(space.heads) * target**-0.35),
        "channel_parts": round(PARTS * target**-0.25),
    }
    points = []
    for compensation in (True, False):
        asked = Preferred({**wishes, "compensation": compensation})
        draw(space, asked)
        if asked.chosen not in points:
            points.append(asked.chosen)
    return points


def finished(study: Study) -> list[TrialRecord]:
    """Every finished trial, by number."""
    return [
        from_jsonable(TrialRecord, one.user_attrs[RECORD])
        for one in study.get_trials(deepcopy=False)
        if one.state in FINISHED and RECORD in one.user_attrs
    ]


def schedule_of(space: Space, params: dict[str, Any]) -> CascadeSchedule:
    """The schedule that parameters stand for."""
    return draw(space, Preferred(params))


BEST = 5
"""Schedules taken over from an earlier search."""


def points_of(record: SearchRecord, space: Space) -> list[dict[str, Any]]:
    """The best schedules of an earlier search, as near as this space has them."""
    complete = [trial for trial in record.trials if trial.feasible]
    first = record.objectives[0]
    sign = 1 if first.mode == "min" else -1
    ranked = sorted(
        complete, key=lambda trial: (trial.number not in record.front, sign * trial.values[first.name])
    )
    points: list[dict[str, Any]] = []
    for trial in ranked[:BEST]:
        asked = Preferred(trial.params)
        draw(space, asked)
        if asked.chosen not in points:
            points.append(asked.chosen)
    return points
