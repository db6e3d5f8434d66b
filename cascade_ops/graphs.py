"""A model as one graph for compilers: tensors in, logits out, any batch and any length of text."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from cascade_ops.batches import Batch, take

MOST_SAMPLES = 4096
"""Largest batch that a graph admits."""


class Logits(nn.Module):
    """Positional tensors in, logits out."""

    def __init__(self, model: PreTrainedModel, names: list[str]) -> None:
        super().__init__()
        self.model, self.names = model, names
        self.options = {"use_cache": False} if "input_ids" in names and model.can_generate() else {}

    def forward(self, *inputs: Tensor) -> Tensor:
        logits: Tensor = self.model(**dict(zip(self.names, inputs, strict=True)), **self.options).logits
        return logits


def graph_of(model: PreTrainedModel, example: Batch) -> tuple[Logits, tuple[Tensor, ...], dict[str, Any]]:
    """The module, an example of two samples, and which dimensions are free: the batch, and the length of a text."""
    batch = torch.export.Dim("batch", min=1, max=MOST_SAMPLES)
    longest = getattr(model.config.get_text_config(), "max_position_embeddings", None) or 2**20
    free = {0: batch, 1: torch.export.Dim("length", min=2, max=int(longest))}
    shapes = tuple(free if name in ("input_ids", "attention_mask") else {0: batch} for name in example)
    return Logits(model, list(example)), tuple(take(example, slice(0, 2)).values()), {"inputs": shapes}


@contextmanager
def quietly() -> Iterator[None]:
    """Without the exporters' own deprecations and progress."""
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(logging.NOTSET)
