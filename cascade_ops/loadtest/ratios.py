"""How many times more or less: ratios of positive figures that were measured again and again."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import stdtrit  # Student's t quantile; scipy.stats takes a second to import

TAIL = 0.975


@dataclass(frozen=True, slots=True, kw_only=True)
class Ratio:
    """A geometric mean of ratios with its 95 % interval; None where one round says nothing of the spread."""

    value: float
    low: float | None = None
    high: float | None = None
    rounds: int = 1

    @property
    def differs(self) -> bool | None:
        """Whether the interval leaves out 1; None without an interval."""
        if self.low is None or self.high is None:
            return None
        return not self.low <= 1 <= self.high


def paired_ratio(ours: Sequence[float], theirs: Sequence[float]) -> Ratio | None:
    """``ours`` ÷ ``theirs``, round by round: what slows a whole round cancels.

    exp(m ± t₀.₉₇₅,ₙ₋₁ · s/√n) with m and s the mean and deviation of the n log-ratios. None without rounds, or where a
    figure is not positive.
    """
    if not ours or len(ours) != len(theirs) or not _positive([*ours, *theirs]):
        return None
    logs = np.log(np.asarray(ours, dtype=np.float64) / np.asarray(theirs, dtype=np.float64))
    mean, count = float(logs.mean()), len(logs)
    if count == 1:
        return Ratio(value=math.exp(mean))
    reach = float(stdtrit(count - 1, TAIL)) * float(logs.std(ddof=1)) / math.sqrt(count)
    return _around(mean, reach, count)


def unpaired_ratio(after: Sequence[float], before: Sequence[float]) -> Ratio | None:
    """``after`` ÷ ``before``, whose rounds do not belong together: Welch's interval on the logarithms."""
    if not after or not before or not _positive([*after, *before]):
        return None
    one, other = (np.log(np.asarray(values, dtype=np.float64)) for values in (after, before))
    mean, count = float(one.mean() - other.mean()), min(len(one), len(other))
    if count == 1:
        return Ratio(value=math.exp(mean))
    shares = [float(logs.var(ddof=1)) / len(logs) for logs in (one, other)]
    total = sum(shares)
    if total == 0:
        return _around(mean, 0.0, count)
    freedom = total**2 / sum(
        share**2 / (len(logs) - 1) for share, logs in zip(shares, (one, other), strict=True)
    )
    return _around(mean, float(stdtrit(freedom, TAIL)) * math.sqrt(total), count)


def _around(mean: float, reach: float, rounds: int) -> Ratio:
    low, high = (float(np.exp(mean + sign * reach)) for sign in (-1, 1))
    return Ratio(value=math.exp(mean), low=low, high=high if math.isfinite(high) else None, rounds=rounds)


def _positive(values: Sequence[float]) -> bool:
    return all(math.isfinite(value) and value > 0 for value in values)
