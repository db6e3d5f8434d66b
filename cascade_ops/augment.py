"""Random changes of training signals that leave the fault what it is.

A model trained at some loads has to hold at others. What another load changes first is the shaft speed,
by a few percent, and how far the fault stands above the noise: so these are varied.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from cascade_ops.batches import Batch
from cascade_ops.errors import ConfigError


@dataclass(frozen=True, slots=True, kw_only=True)
class Augment:
    """How much training signals are varied; 0 switches a change off.

    Attributes:
        speed: each window is stretched in time by a factor uniform in 1 ± speed.
        noise: white noise is added, its standard deviation uniform in [0, noise] times the signal's.
    """

    speed: float = 0.03
    noise: float = 0.3

    def __post_init__(self) -> None:
        if not 0 <= self.speed < 0.5:
            raise ConfigError(f"speed: must be in [0, 0.5), got {self.speed:g}")
        if not self.noise >= 0:
            raise ConfigError(f"noise: must be ≥ 0, got {self.noise:g}")


def augmented(batch: Batch, augment: Augment | None, generator: torch.Generator) -> Batch:
    """The batch with its signals varied; anything but signals is passed through."""
    if augment is None or "signal" not in batch:
        return batch
    signal = batch["signal"]
    if augment.speed:
        signal = stretched(signal, 1 + augment.speed * _symmetric(len(signal), generator))
    if augment.noise:
        level = augment.noise * torch.rand(len(signal), 1, generator=generator)
        signal = signal + level * torch.randn(signal.shape, generator=generator)
    signal = signal - signal.mean(dim=1, keepdim=True)
    return {**batch, "signal": signal / signal.std(dim=1, keepdim=True).clamp(min=1e-12)}


def varied(batch: Batch, augment: Augment | None, *, draws: int = 4, seed: int = 0) -> Batch:
    """``draws`` variations of every sample, always the same ones; the batch itself where nothing is varied.

    A validation side of the same recordings as the training side says little about others. Varied as in training, it
    ranks models more as other recordings do (docs/search.md).
    """
    if augment is None or "signal" not in batch or not (augment.speed or augment.noise):
        return batch
    generator = torch.Generator().manual_seed(seed)
    drawn = [augmented(batch, augment, generator) for _ in range(draws)]
    return {name: torch.cat([one[name] for one in drawn]) for name in batch}


def _symmetric(n: int, generator: torch.Generator) -> Float[Tensor, " n"]:
    return 2 * torch.rand(n, generator=generator) - 1


def stretched(
    signal: Float[Tensor, "batch samples"], factor: Float[Tensor, " batch"]
) -> Float[Tensor, "batch samples"]:
    """Read each window ``factor`` times as fast about its middle, by linear interpolation.

    Where a factor above 1 reads past an end, the end sample is held.
    """
    samples = signal.shape[1]
    middle = (samples - 1) / 2
    position = (torch.arange(samples) - middle) * factor[:, None] + middle
    position = position.clamp(0, samples - 1)
    left = position.floor().long().clamp(max=samples - 2)
    weight = position - left
    return signal.gather(1, left) * (1 - weight) + signal.gather(1, left + 1) * weight
