"""The cascade as data."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cascade_ops.errors import ConfigError
from cascade_ops.granularity import Granularity
from cascade_ops.schedule import CascadeSchedule, Recovery, Stage
from cascade_ops.serde import from_jsonable, to_jsonable


def stage(**fields: Any) -> Stage:
    return Stage(**({"granularity": Granularity.HEAD, "ratio": 0.5} | fields))


@settings(deadline=None)
@given(
    shares=st.lists(st.floats(0, 10), min_size=1, max_size=8),
    steps=st.integers(0, 10_000),
)
def test_steps_sum_to_the_budget_exactly(shares: list[float], steps: int) -> None:
    schedule = CascadeSchedule(
        stages=tuple(stage(share=share) for share in shares), recovery=Recovery(steps=steps)
    )
    parts = schedule.steps()
    assert len(parts) == len(shares)
    assert all(part >= 0 for part in parts)
    assert sum(parts) == (steps if sum(shares) > 0 else 0)
    for part, share in zip(parts, shares, strict=True):
        if sum(shares) > 0:
            assert abs(part - steps * share / sum(shares)) <= 1 + 1e-6
        assert share > 0 or part == 0


def test_steps_follow_the_shares() -> None:
    stages = (stage(share=1.0), stage(share=1.0), stage(share=2.0), stage(share=0.0))
    assert CascadeSchedule(stages=stages, recovery=Recovery(steps=400)).steps() == (100, 100, 200, 0)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"ratio": None}, "ratio, target: give exactly one, got None and None"),
        ({"ratio": 0.5, "target": 2.0}, r"give exactly one, got 0\.5 and 2\.0"),
        ({"ratio": 1.5}, r"ratio: must be in \(0, 1\), got 1\.5"),
        ({"ratio": 0.0}, r"ratio: must be in \(0, 1\), got 0"),
        ({"ratio": float("nan")}, r"ratio: must be in \(0, 1\), got nan"),
        ({"ratio": None, "target": 1.0}, "target: must be a compression > 1, got 1"),
        ({"ratio": None, "target": float("nan")}, "target: must be a compression > 1, got nan"),
        ({"share": -1.0}, "share: must be ≥ 0, got -1"),
    ],
)
def test_a_bad_stage_is_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        stage(**fields)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"steps": -1}, "steps: must be ≥ 0, got -1"),
        ({"batch_size": 0}, "batch_size: must be ≥ 1, got 0"),
        ({"rank": 0}, "rank: must be ≥ 1, got 0"),
        ({"learning_rate": 0.0}, "learning_rate: must be > 0, got 0"),
        ({"unfreeze": ("norms", "heads")}, r"unfreeze: knows norms, biases and rest, got \['heads'\]"),
    ],
)
def test_a_bad_recovery_is_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Recovery(**fields)


def test_a_schedule_needs_stages_and_rising_targets() -> None:
    with pytest.raises(ConfigError, match="at least one stage"):
        CascadeSchedule(stages=())
    with pytest.raises(
        ConfigError, match=r"stages\.2\.target: must exceed the stage before it \(3×\), got 2×"
    ):
        CascadeSchedule(
            stages=(stage(ratio=None, target=3.0), stage(), stage(ratio=None, target=2.0)),
        )


@pytest.mark.parametrize(
    "order", list(itertools.permutations((Granularity.LAYER, Granularity.HEAD, Granularity.CHANNEL)))
)
def test_every_order_is_a_schedule_and_survives_json(order: tuple[Granularity, ...]) -> None:
    schedule = CascadeSchedule(
        stages=tuple(
            Stage(granularity=one, target=2.0 + index, allocation="global") for index, one in enumerate(order)
        ),
        recovery=Recovery(steps=10, unfreeze=("norms",)),
        rescore=False,
    )
    assert from_jsonable(CascadeSchedule, to_jsonable(schedule)) == schedule
