"""Losses of a model with sets of gates shut: many sets in one forward, since gates differ from row to row."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from cascade_ops.anatomy import anatomy_of
from cascade_ops.batches import Batch, length_of, on_device
from cascade_ops.gates import gated
from cascade_ops.granularity import Granularity
from cascade_ops.loss import per_sample_loss
from cascade_ops.sia.units import gates_of

ROWS, TOKENS = 128, 2048
"""Most sets × samples, and tokens, of one forward. Part of the result's bits, so it does not depend on who computes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cut:
    """Gates of one granularity to shut together, one row for each set."""

    granularity: Granularity
    shut: Bool[Tensor, "sets gates"]


@runtime_checkable
class Ablate(Protocol):
    """``ablate`` of some model, or another way to the same losses."""

    def __call__(self, batch: Batch, cuts: Sequence[Cut]) -> list[Float[Tensor, "_sets samples"]]: ...


@torch.no_grad()
def ablate(model: nn.Module, batch: Batch, cut: Cut) -> Float[Tensor, "sets samples"]:
    """Per-sample losses, in nats and float64, with the gates of each set shut."""
    anatomy, samples = anatomy_of(model), length_of(batch)
    batch = on_device(batch, model)
    device = next(model.parameters()).device
    found = []
    for chosen in cut.shut.split(sets_at_once(batch)):
        repeated = {
            name: tensor.repeat(len(chosen), *(1,) * (tensor.dim() - 1)) for name, tensor in batch.items()
        }
        rows = chosen.repeat_interleave(samples, dim=0)
        with gated(model, gates_of(anatomy, cut.granularity, rows, device=device)):
            losses = per_sample_loss(model, repeated)
        found.append(losses.double().view(len(chosen), samples).cpu())
    return torch.cat(found)


def sets_at_once(batch: Batch) -> int:
    """Sets of gates in one forward; all samples of a set are in the same one."""
    length = batch["input_ids"].shape[1] if "input_ids" in batch else 1
    return max(1, min(ROWS, TOKENS // length) // length_of(batch))


def here(model: nn.Module) -> Ablate:
    """``ablate`` of ``model`` in this process."""

    def carried_out(batch: Batch, cuts: Sequence[Cut]) -> list[Float[Tensor, "_sets samples"]]:
        return [ablate(model, batch, cut) for cut in cuts]

    return carried_out
