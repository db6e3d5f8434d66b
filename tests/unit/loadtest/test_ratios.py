"""Ratios over rounds: the known one is found, as often as the interval says, and one round claims nothing."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cascade_ops.loadtest import Ratio, paired_ratio, unpaired_ratio

POSITIVE = st.floats(1e-3, 1e3)
PAIRS = st.lists(st.tuples(POSITIVE, POSITIVE), min_size=2, max_size=8)
TRUTH = 0.35


def holds(ratio: Ratio | None) -> bool:
    assert ratio is not None
    assert ratio.low is not None
    assert ratio.high is not None
    return ratio.low <= TRUTH <= ratio.high


def test_the_paired_interval_holds_the_truth_as_often_as_it_says() -> None:
    """Rounds differ fourfold among each other; that is common to both, and cancels."""
    rng = np.random.default_rng(0)
    held, widths = 0, []
    for _ in range(1000):
        shared = np.exp(rng.normal(0, 0.7, 5))
        dense = 10 * shared * np.exp(rng.normal(0, 0.05, 5))
        small = TRUTH * 10 * shared * np.exp(rng.normal(0, 0.05, 5))
        ratio = paired_ratio(small.tolist(), dense.tolist())
        held += holds(ratio)
        assert ratio is not None
        assert ratio.high is not None
        assert ratio.low is not None
        widths.append(ratio.high / ratio.low)
    assert 0.93 <= held / 1000 <= 0.97
    assert np.median(widths) < 1.25


def test_the_unpaired_interval_holds_the_truth_as_often_as_it_says() -> None:
    rng = np.random.default_rng(1)
    held = 0
    for _ in range(1000):
        before, after = np.exp(rng.normal(2, 0.05, 4)), TRUTH * np.exp(rng.normal(2, 0.15, 6))
        held += holds(unpaired_ratio(after.tolist(), before.tolist()))
    assert 0.93 <= held / 1000 <= 0.98


@given(PAIRS)
def test_turning_a_ratio_round_turns_its_interval(pairs: list[tuple[float, float]]) -> None:
    ours, theirs = zip(*pairs, strict=True)
    for form in (paired_ratio, unpaired_ratio):
        there, back = form(ours, theirs), form(theirs, ours)
        assert there is not None
        assert back is not None
        assert there.value * back.value == pytest.approx(1)
        if there.low and back.high:
            assert there.low * back.high == pytest.approx(1, rel=1e-6)


@given(PAIRS, st.floats(0.1, 10))
def test_the_unit_does_not_matter(pairs: list[tuple[float, float]], unit: float) -> None:
    ours, theirs = zip(*pairs, strict=True)
    plain, scaled = (
        paired_ratio(ours, theirs),
        paired_ratio([unit * v for v in ours], [unit * v for v in theirs]),
    )
    assert plain is not None
    assert scaled is not None
    assert scaled.value == pytest.approx(plain.value)


def test_one_round_has_no_interval() -> None:
    for form in (paired_ratio, unpaired_ratio):
        ratio = form([3.0], [10.0])
        assert ratio is not None
        assert ratio.value == pytest.approx(0.3)
        assert (ratio.low, ratio.high, ratio.differs) == (None, None, None)


@pytest.mark.parametrize(
    ("ours", "theirs"), [([], []), ([1.0], [1.0, 2.0]), ([0.0, 1.0], [1.0, 1.0]), ([math.nan], [1.0])]
)
def test_no_ratio_where_there_is_none(ours: list[float], theirs: list[float]) -> None:
    assert paired_ratio(ours, theirs) is None


def test_whether_it_differs_is_whether_the_interval_leaves_out_one() -> None:
    apart = paired_ratio([3.0, 3.1, 2.9], [10.0, 10.1, 9.9])
    alike = paired_ratio([10.0, 9.0, 11.0], [10.0, 10.1, 9.9])
    assert apart is not None
    assert alike is not None
    assert apart.differs is True
    assert alike.differs is False
