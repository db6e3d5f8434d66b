"""Inputs of a fixed seed on which two ways of running a model are compared."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import PreTrainedModel

from cascade_ops.batches import Batch
from cascade_ops.data.resample import COMMON_RATE_HZ
from cascade_ops.data.windows import normalise

PROBES = 8
PROBE_TOKENS = 16


def probes_for(model: PreTrainedModel, *, rate_hz: float = COMMON_RATE_HZ) -> Batch:
    """What ``model`` takes: windows with impacts, texts that it writes itself, padded tokens, or pictures of noise."""
    config = model.config
    generator = torch.Generator().manual_seed(0)
    if model.main_input_name == "signal" and config.front_end == "patch":
        return {"signal": torch.from_numpy(impacts(config.window, rate_hz))}
    if model.main_input_name == "pixel_values":
        return {"pixel_values": torch.randn(PROBES, 3, *_square(config.image_size), generator=generator)}
    if model.can_generate():
        return {"input_ids": own_texts(model)}
    text = getattr(config, "backbone_config", config)
    ids = torch.randint(int(text.vocab_size), (PROBES, _length(text)), generator=generator)
    shorter = torch.arange(PROBES).remainder(ids.shape[1] // 2)[:, None]
    return {"input_ids": ids, "attention_mask": (torch.arange(ids.shape[1]) < ids.shape[1] - shorter).long()}


def own_texts(model: PreTrainedModel) -> Int[Tensor, "texts tokens"]:
    """Drawn from the model after a random token each: on random tokens alone, rounding tells more than it does on any
    text (int8 SmolLM2: a total variation of 0.20 instead of 0.13)."""
    config = model.config.get_text_config()
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(int(config.vocab_size), (PROBES, 1), generator=generator)
    latest, cache = ids, None
    while ids.shape[1] < _length(config):
        logits, cache = step(model, latest, cache)
        probabilities = logits.float().softmax(-1).nan_to_num(1.0)  # NaN is for the comparison to report
        latest = torch.multinomial(probabilities.cpu(), 1, generator=generator)
        ids = torch.cat([ids, latest], dim=1)
    return ids


@torch.inference_mode()
def step(
    model: PreTrainedModel, ids: Int[Tensor, "texts tokens"], cache: Any
) -> tuple[Float[Tensor, "texts vocabulary"], Any]:
    """Logits of the next tokens, where the model computes, and the cache with ``ids`` in it (None: an empty one)."""
    found = model(input_ids=ids.to(model.device), past_key_values=cache, use_cache=True, logits_to_keep=1)
    return found.logits[:, -1], found.past_key_values


def impacts(window: int, rate_hz: float) -> Float[np.ndarray, "windows samples"]:
    """Windows with decaying impacts at different rates, which excite more of a classifier than noise does."""
    rng = np.random.default_rng(0)
    time = np.arange(window) / rate_hz
    windows = rng.normal(size=(PROBES, window))
    for index, row in enumerate(windows):
        for start in np.arange(rng.uniform(0, 0.01), time[-1], 1 / (30.0 + 25.0 * index)):
            since = np.clip(time - start, 0, None)
            row += 6 * (time >= start) * np.exp(-800 * since) * np.sin(2 * np.pi * 3000 * since)
    return normalise(windows)[0]


def _length(config: Any) -> int:
    return min(PROBE_TOKENS, getattr(config, "max_position_embeddings", None) or PROBE_TOKENS)


def _square(size: Any) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else (int(size[0]), int(size[1]))
