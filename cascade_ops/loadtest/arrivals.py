"""When users come: a Poisson process, drawn in advance so that nothing the server does can delay it."""

from __future__ import annotations

import math

import numpy as np
from jaxtyping import Float

from cascade_ops.errors import UsageError


def poisson_arrivals(rate: float, *, seconds: float, most: int, seed: int) -> Float[np.ndarray, " arrivals"]:
    """Times in [0, seconds), ascending: gaps are independent and exponential with mean 1/``rate`` seconds.

    At most the first ``most`` of them; the same arguments give the same times.

    Raises:
        UsageError: a rate or duration that is not a positive number.
    """
    if not all(math.isfinite(value) and value > 0 for value in (rate, seconds)):
        raise UsageError(
            f"arrivals: expected a rate and a duration above 0, found {rate:g}/s and {seconds:g} s."
        )
    expected = rate * seconds
    enough = math.ceil(expected + 10 * math.sqrt(expected) + 20)  # ten deviations above the mean
    gaps = np.random.default_rng(seed).exponential(1 / rate, size=min(most, enough))
    times: np.ndarray = np.cumsum(gaps)
    return times[times < seconds]
