"""Models in memory: loaded once, compared with plain PyTorch, then answering."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedModel

from cascade_ops.batches import Batch
from cascade_ops.checkpoint import load_pruned
from cascade_ops.engines import Engine, Parity, start_engine
from cascade_ops.errors import UsageError
from cascade_ops.probes import probes_for
from cascade_ops.tokenizers import tokenizer_in
from serve.variants import Variant

CHUNK = 256
"""Windows of one forward pass; more are computed in turn, to bound memory."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Language:
    """What writing takes beside an engine."""

    model: PreTrainedModel
    tokenizer: Any


@dataclass(frozen=True, slots=True, kw_only=True, weakref_slot=True)
class Loaded:
    """A model that answers. A classifier keeps its engine alone, which may hold no PyTorch model."""

    variant: Variant
    engine: Engine
    parity: Parity
    language: Language | None = None


def device_for(gpus: float) -> str:
    """Where models compute. Raises UsageError where a GPU was asked for and there is none."""
    if gpus and not torch.cuda.is_available():
        raise UsageError(
            f"gpus: expected a CUDA GPU here, as {gpus:g} was asked for, found none. Set gpus: 0."
        )
    return "cuda" if gpus else "cpu"


def load(variant: Variant, *, device: str) -> Loaded:
    """``variant`` on its engine, once that answers as plain PyTorch does.

    Raises:
        CheckpointError, UsageError, EngineError: it cannot be loaded or does not pass.
    """
    model = load_pruned(variant.folder).to(device)  # type: ignore[arg-type]  # its stubs know no device names
    engine, parity = start_engine(variant.engine, model, _probes(variant, model), task=variant.task)
    language = None
    if variant.tokenizer is not None:
        tokenizer = tokenizer_in(variant.tokenizer)
        tokenizer("warm")  # the first text takes longer than any other
        language = Language(model=model, tokenizer=tokenizer)
    return Loaded(variant=variant, engine=engine, parity=parity, language=language)


def _probes(variant: Variant, model: PreTrainedModel) -> Batch:
    return (
        probes_for(model) if variant.expected is None else probes_for(model, rate_hz=variant.expected.rate_hz)
    )


def answer(
    engine: Engine, windows: Float[Tensor, "windows samples"], *, bitwise: bool
) -> Float[Tensor, "windows classes"]:
    """Logits. ``bitwise``: kernels for a batch of one differ in the last bits, so a lone window gets company."""
    if bitwise and len(windows) == 1:
        return engine({"signal": windows.expand(2, -1)})[:1]
    pieces = [windows[start : start + CHUNK] for start in range(0, len(windows), CHUNK)]
    if bitwise and len(pieces) > 1 and len(pieces[-1]) == 1:
        return torch.cat([answer(engine, piece, bitwise=True) for piece in pieces])
    return torch.cat([engine({"signal": piece}) for piece in pieces])
