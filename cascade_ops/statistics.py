"""What scoring must know about a model's behaviour on calibration data, as mergeable sums.

``Statistics`` is a commutative monoid under ``+``: sums of any partition of the calibration set add
up to the same statistics, so one code path serves a local loop, shards and a resumed run. All sums
accumulate in float64.

| quantity | key | sum over |
|---|---|---|
| ``x``, ``x²`` | (name, HEAD or CHANNEL, layer) | tokens; one entry per input column |
| ``x xᵀ`` | (name, HEAD or CHANNEL, layer) | tokens; input columns × input columns |
| ``Σₒ|Σ_{d∈h} x_d W_od|`` | (name, HEAD, layer) | tokens; one entry per head |
| ``|x|`` | (name, CHANNEL, layer) | tokens; one entry per channel |
| ``|∂ℓ/∂g|``, ``(∂ℓ/∂g)²`` | (name, granularity, layer) | samples; one entry per unit |
| ``cos`` | (name, LAYER, layer) | tokens; cosine of the block's input and output |
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from jaxtyping import Float
from torch import Tensor

from cascade_ops.granularity import Granularity

Need = Literal[
    "moments", "projection", "gate_gradients", "block_cosine", "head_covariance", "channel_covariance"
]
Key = tuple[str, Granularity, int]

X, X_SQUARED, XX, COSINE = "x", "x2", "xx", "cos"
PROJECTED, ABS_X = "projected", "abs_x"
ABS_GRADIENT, SQUARED_GRADIENT = "abs_gradient", "squared_gradient"


@dataclass(frozen=True, slots=True, kw_only=True)
class Statistics:
    """Sums over ``samples`` samples and ``tokens`` tokens."""

    samples: int
    tokens: int
    sums: Mapping[Key, Float[Tensor, "*_units"]]

    @classmethod
    def zero(cls) -> Statistics:
        return cls(samples=0, tokens=0, sums={})

    def __add__(self, other: Statistics) -> Statistics:
        keys = dict.fromkeys((*self.sums, *other.sums))
        merged = {
            key: self.sums[key] + other.sums[key]
            if key in self.sums and key in other.sums
            else self.sums.get(key, other.sums.get(key))
            for key in keys
        }
        return Statistics(
            samples=self.samples + other.samples,
            tokens=self.tokens + other.tokens,
            sums={key: value for key, value in merged.items() if value is not None},
        )

    def beside(self, other: Statistics) -> Statistics:
        """Other quantities of the *same* samples: both sets of sums, the samples counted once."""
        assert (self.samples, self.tokens) == (other.samples, other.tokens), "not of the same samples"
        return Statistics(samples=self.samples, tokens=self.tokens, sums={**self.sums, **other.sums})
