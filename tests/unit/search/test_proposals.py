"""The study is the memory of a search: nothing finished is lost, nothing is tried twice, nothing odd poisons it."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.trial import TrialState

from cascade_ops.granularity import Granularity
from cascade_ops.schedule import CascadeSchedule
from cascade_ops.search import Preferred, draw
from cascade_ops.serde import from_jsonable, to_jsonable
from tests.unit.search.test_space import MHA, space
from workflows.search.config import SearchConfig
from workflows.search.objectives import objectives_for
from workflows.search.proposals import (
    HOPELESS,
    Proposals,
    branch_of,
    finished,
    paper_points,
    ranking,
    sampler_for,
    schedule_of,
)
from workflows.search.record import TrialRecord
from workflows.search.results import front_of, winner_of

pytestmark = pytest.mark.filterwarnings("ignore")  # Optuna calls several of its samplers experimental
SPACE = space(target=8.0)
Open = Callable[..., Proposals]


@pytest.fixture
def opened(tmp_path: Path) -> Open:
    """The search of one database, as often as it is started."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)

    def again(told: list[TrialRecord] | None = None, **changes: Any) -> Proposals:
        search = replace(SearchConfig(trials=20), **changes)
        storage = optuna.storages.RDBStorage(f"sqlite:///{tmp_path / 'optuna.db'}")
        objectives = objectives_for(search.objectives, "diagnosis")
        return Proposals(SPACE, search, objectives, storage, (told if told is not None else []).append)

    return again


def cost(params: dict[str, Any]) -> float:
    """Something to minimise."""
    return params.get("layers", 6) / 6 + (params["rank"] == 4) + 0.1 * params.get("layer_rounds", 0)


def ended(point: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """What a trial reports last."""
    value = cost(point["params"])
    record = TrialRecord(
        number=point["number"],
        state="complete",
        origin=point["origin"],
        params=point["params"],
        values={"loss": value},
        outcome={"loss": value},
    )
    record = replace(record, **changes)
    return {
        "loss": record.values.get("loss", value),
        "rung": 3,
        "complete": record.state == "complete",
        "record": json.dumps(to_jsonable(record)),
        "work": 1.0,
    }


def run(search: Proposals, count: int, start: int = 0) -> list[dict[str, Any]]:
    points = []
    for index in range(start, start + count):
        point: Any = search.suggest(str(index))
        search.on_trial_complete(str(index), ended(point))
        points.append(point)
    return points


def test_interrupted_is_uninterrupted(opened: Open, tmp_path: Path) -> None:
    """Killed after every trial and started again, a search tries what it would have tried in one go."""
    whole = run(opened(), 16)
    (tmp_path / "optuna.db").unlink()
    pieces = [run(opened(), 1, start=index)[0] for index in range(16)]
    assert [one["params"] for one in pieces] == [one["params"] for one in whole]
    assert [one["number"] for one in pieces] == list(range(16))


def test_a_trial_under_way_is_handed_out_again(opened: Open) -> None:
    first = opened()
    lost: Any = first.suggest("a")
    kept: Any = first.suggest("b")
    first.on_trial_complete("b", ended(kept))
    again = opened()
    point: Any = again.suggest("c")
    assert point == lost
    again.on_trial_complete("c", ended(point))
    new: Any = again.suggest("d")
    assert new["number"] == 2
    assert [record.number for record in finished(again.study)] == [0, 1]


def test_what_is_drawn_is_the_schedule_of_its_parameters(opened: Open) -> None:
    for point in run(opened(), 12):
        assert schedule_of(SPACE, point["params"]) == from_jsonable(CascadeSchedule, point["schedule"])


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_values_that_are_not_finite_fail_the_trial_alone(opened: Open, value: float) -> None:
    told: list[TrialRecord] = []
    search = opened(told)
    run(search, 4)
    point: Any = search.suggest("odd")
    search.on_trial_complete("odd", ended(point, values={"loss": value}))
    assert told[-1].state == "failed"
    assert told[-1].error == "loss is not finite"
    assert search.study.trials[4].state is TrialState.FAIL
    run(search, 8, start=10)
    assert search.study.best_trial.number != 4
    assert len(finished(search.study)) == 13


def test_a_worker_that_dies_again_and_again(opened: Open) -> None:
    told: list[TrialRecord] = []
    search = opened(told)
    search.suggest("a")
    search.on_trial_complete("a", None, error=True)
    assert (told[0].state, told[0].error) == ("failed", "its worker died, again and again")
    assert search.study.trials[0].state is TrialState.FAIL


def test_a_stopped_trial_is_pruned_with_its_figures_on_the_way(opened: Open) -> None:
    search = opened()
    point: Any = search.suggest("a")
    search.on_trial_result("a", {**ended(point, state="pruned"), "loss": 0.9, "rung": 0})
    search.on_trial_result(
        "a", {**ended(point, state="pruned"), "loss": 0.8, "rung": 0}
    )  # again, after a crash
    search.on_trial_complete("a", {**ended(point, state="pruned"), "loss": 0.7, "rung": 1})
    trial = search.study.trials[0]
    assert trial.state is TrialState.PRUNED
    assert trial.intermediate_values == {0: 0.9, 1: 0.7}


def test_limits_are_constraints_that_no_winner_exceeds(opened: Open) -> None:
    search = opened(limits={"latency": 0.5})
    for index in range(12):
        point: Any = search.suggest(str(index))
        slow = point["params"].get("layers", 6) < 4
        search.on_trial_complete(str(index), ended(point, violations={"latency": 0.3 if slow else -0.2}))
    ranked = ranking(search.study.trials, ["MINIMIZE"])
    excess = [trial.constraints["latency"] for trial in ranked]
    assert excess == sorted(excess)
    assert search.study.best_trial.constraints["latency"] <= 0


def test_two_objectives_go_on_after_a_restart(opened: Open) -> None:
    """NSGA-II keeps its generations in the database, and values that are not finite stay out of the front."""
    objectives = objectives_for(("loss", "params"), "diagnosis")

    def values(point: dict[str, Any]) -> dict[str, float]:
        return {"loss": cost(point["params"]), "params": 100.0 * point["params"].get("layers", 6)}

    for index in range(14):
        search = opened(objectives=("loss", "params"), trials=14)
        point: Any = search.suggest(str(index))
        found = {"loss": math.nan, "params": 1.0} if index == 5 else values(point)
        search.on_trial_complete(str(index), ended(point, values=found, outcome=found))
    records = finished(search.study)
    assert [record.state for record in records].count("failed") == 1
    front = front_of(records, objectives)
    best = [search.study.trials[number] for number in front]
    assert {trial.number for trial in search.study.best_trials} == set(front)
    assert all(trial.state is TrialState.COMPLETE for trial in best)
    winner = winner_of(records, objectives)
    assert winner is not None
    assert winner.number in front


def test_hopeless_from_the_start_stops_the_search(opened: Open) -> None:
    search = opened()
    for index in range(HOPELESS):
        point: Any = search.suggest(str(index))
        search.on_trial_complete(
            str(index), ended(point, state="failed", values={}, error="DataError: no files")
        )
    assert search.halted is not None
    assert "DataError: no files" in search.halted
    assert search.suggest("more") == "FINISHED"


def test_a_full_disk_is_not_the_trials_fault(opened: Open) -> None:
    search = opened()
    point: Any = search.suggest("a")
    search.on_trial_complete("a", {**ended(point), "halt": "the disk is full"})
    assert search.halted == "the disk is full"
    assert search.study.trials[0].state is TrialState.RUNNING  # so that it is taken up again
    assert opened().suggest("b") == point


def test_branches_share_the_first_stages_of_good_trials(opened: Open) -> None:
    import random

    search = opened(branch=1.0, trials=15)
    run(search, 14)
    branches = []
    for seed in range(30):
        branch = branch_of(search.study, SPACE, search._search, random.Random(seed))
        assert branch is not None
        branches.append(branch)
        parent, fixed = branch
        params = search.study.trials[parent].params
        assert fixed
        assert fixed.items() <= params.items()
    best = ranking(search.study.trials, ["MINIMIZE"])[0].number
    count = sum(parent == best for parent, _ in branches)
    assert count > 30 / 14  # parents are drawn by rank
    assert branch_of(search.study, SPACE, replace(search._search, sampler="random"), random.Random(0)) is None


def test_the_papers_schedule_is_in_the_space() -> None:
    points = paper_points(SPACE)
    assert [point["compensation"] for point in points] == [True, False]
    schedule = draw(SPACE, Preferred(points[0]))
    cuts = list(dict.fromkeys(stage.granularity for stage in schedule.stages))
    assert cuts == [Granularity.LAYER, Granularity.HEAD, Granularity.CHANNEL]
    assert schedule.stages[0].ratio == pytest.approx(1 - round(6 * 8**-0.4) / 6)
    assert MHA.backbone_params  # the space is that model's


def test_neighbouring_seeds_draw_differently() -> None:
    study = optuna.create_study()
    space_of = {"x": optuna.distributions.FloatDistribution(0, 1)}
    drawn = []
    for number in range(60):
        study.sampler = sampler_for(SearchConfig(sampler="random"), f"{number} 0")
        drawn.append(study.ask(space_of).params["x"])
    mean = sum(drawn) / 60
    steps = [(a - mean) * (b - mean) for a, b in pairwise(drawn)]
    assert abs(sum(steps) / sum((a - mean) ** 2 for a in drawn)) < 0.35
    assert 0.35 < mean < 0.65
