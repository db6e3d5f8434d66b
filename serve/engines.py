"""Models in memory: loaded once, compared with plain PyTorch, then answering."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import PreTrainedModel

from cascade_ops.batches import Batch
from cascade_ops.checkpoint import load_pruned
from cascade_ops.data.windows import normalise
from cascade_ops.diagnosis import Expected
from cascade_ops.engines import Engine, Parity, start_engine
from cascade_ops.errors import UsageError
from cascade_ops.tokenizers import tokenizer_in
from serve.decoding import step
from serve.variants import Variant

PROBES = 8
PROBE_TOKENS = 16
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
    engine, parity = start_engine(variant.engine, model, probes_for(variant, model), task=variant.task)
    language = None
    if variant.tokenizer is not None:
        tokenizer = tokenizer_in(variant.tokenizer)
        tokenizer("warm")  # the first text takes longer than any other
        language = Language(model=model, tokenizer=tokenizer)
    return Loaded(variant=variant, engine=engine, parity=parity, language=language)


def probes_for(variant: Variant, model: PreTrainedModel) -> Batch:
    """Inputs of the right shape from a fixed seed: noise with impacts, or texts that the model itself writes."""
    if variant.expected is None:
        return {"input_ids": own_texts(model)}
    return {"signal": torch.from_numpy(impacts(variant.expected))}


def own_texts(model: PreTrainedModel) -> Int[Tensor, "texts tokens"]:
    """Drawn from the model after a random token each: on random tokens alone, rounding tells more than it does on any
    text (int8 SmolLM2: a total variation of 0.20 instead of 0.13)."""
    config = model.config.get_text_config()
    length = min(PROBE_TOKENS, getattr(config, "max_position_embeddings", None) or PROBE_TOKENS)
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(int(config.vocab_size), (PROBES, 1), generator=generator)
    latest, cache = ids, None
    while ids.shape[1] < length:
        logits, cache = step(model, latest, cache)
        probabilities = logits.float().softmax(-1).nan_to_num(1.0)  # NaN is for the comparison to report
        latest = torch.multinomial(probabilities.cpu(), 1, generator=generator)
        ids = torch.cat([ids, latest], dim=1)
    return ids


def impacts(expected: Expected) -> Float[np.ndarray, "windows samples"]:
    """Windows with decaying impacts at different rates, which excite more of a classifier than noise does."""
    rng = np.random.default_rng(0)
    time = np.arange(expected.window) / expected.rate_hz
    windows = rng.normal(size=(PROBES, expected.window))
    for index, window in enumerate(windows):
        for start in np.arange(rng.uniform(0, 0.01), time[-1], 1 / (30.0 + 25.0 * index)):
            since = np.clip(time - start, 0, None)
            window += 6 * (time >= start) * np.exp(-800 * since) * np.sin(2 * np.pi * 3000 * since)
    return normalise(windows)[0]


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
