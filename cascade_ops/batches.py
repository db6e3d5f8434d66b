"""Batches: dicts of tensors with one first dimension."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from cascade_ops.errors import DataError

Batch = Mapping[str, Tensor]
"""``signal``/``input_ids``/``attention_mask``/``labels`` → tensor; the first dimension is the sample."""


def length_of(data: Batch) -> int:
    """Number of samples. Raises DataError when there are none, or the tensors disagree."""
    sizes = {name: len(tensor) for name, tensor in data.items()}
    if not sizes or len(set(sizes.values())) != 1:
        raise DataError(f"expected tensors with one number of samples, got {sizes or 'none'}")
    size = next(iter(sizes.values()))
    if size == 0:
        raise DataError(
            "expected at least one sample, got an empty set: check the split and the class filter"
        )
    return size


def take(data: Batch, index: Tensor | slice) -> dict[str, Tensor]:
    return {name: tensor[index] for name, tensor in data.items()}


def sequential(data: Batch, batch_size: int) -> Iterator[dict[str, Tensor]]:
    """All samples once, in order."""
    for start in range(0, length_of(data), batch_size):
        yield take(data, slice(start, start + batch_size))


def shuffled(data: Batch, batch_size: int, seed: int) -> Iterator[dict[str, Tensor]]:
    """Endless epochs, each in a new order that depends on the seed alone. Batches are always full."""
    size = length_of(data)
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(size, generator=generator)
    while True:
        while len(order) < batch_size:
            order = torch.cat([order, torch.randperm(size, generator=generator)])
        yield take(data, order[:batch_size])
        order = order[batch_size:]


def subset(data: Batch, samples: int, seed: int) -> dict[str, Tensor]:
    """``samples`` of them without replacement (all, if there are fewer), in stored order."""
    size = length_of(data)
    chosen = torch.randperm(size, generator=torch.Generator().manual_seed(seed))[:samples]
    return take(data, chosen.sort().values)


def on_device(data: Batch, model: nn.Module) -> dict[str, Tensor]:
    device = next(model.parameters()).device
    return {name: tensor.to(device) for name, tensor in data.items()}
