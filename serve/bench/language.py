"""A language model alone: reading a prompt and writing tokens are timed apart, since other things bound them."""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor
from transformers import PreTrainedModel

from cascade_ops.probes import step

SEQUENCES = 8
"""Texts of which the steps are timed, fewer where they take long."""


def lengths(config: Any, prompt: int, new: int) -> tuple[int, int]:
    """Tokens to read and to write, within what the model has positions for."""
    room = getattr(config.get_text_config(), "max_position_embeddings", None) or prompt + new
    written = max(2, min(new, room // 2))
    return max(1, min(prompt, room - written)), written


def prompt_for(model: PreTrainedModel, tokens: int) -> Int[Tensor, "1 tokens"]:
    """The same random tokens for the same model."""
    vocabulary = int(model.config.get_text_config().vocab_size)
    ids = torch.randint(vocabulary, (1, tokens), generator=torch.Generator().manual_seed(0))
    return ids.to(model.device)


def prefill(model: PreTrainedModel, prompt: Int[Tensor, "1 tokens"]) -> Callable[[], object]:
    """Reads the prompt into an empty cache."""
    return lambda: likeliest(model, prompt, None)


def decode(
    model: PreTrainedModel, prompt: Int[Tensor, "1 tokens"], new: int, seconds: float
) -> dict[str, Any]:
    """Time of each token after the first, greedily, and the bytes of keys and values at the end."""
    took: list[float] = []
    cache: Any = None
    until = time.perf_counter() + seconds
    for _ in range(SEQUENCES):
        token, cache = likeliest(model, prompt, None)
        for _ in range(new - 1):
            began = time.perf_counter()
            token, cache = likeliest(model, token, cache)
            took.append(time.perf_counter() - began)
        if time.perf_counter() > until:
            break
    return {"per_token_ms": 1e3 * median(took), "kv_bytes": cache_bytes(cache)}


def likeliest(
    model: PreTrainedModel, ids: Int[Tensor, "1 tokens"], cache: Any
) -> tuple[Int[Tensor, "1 1"], Any]:
    """The next token, on the CPU's word that it is there, and the cache with ``ids`` in it."""
    logits, cache = step(model, ids, cache)
    token = logits.argmax(-1, keepdim=True)
    int(token)  # waits for the device
    return token, cache


def cache_bytes(cache: Any) -> int:
    """Of the tensors of keys and values in every layer."""
    tensors = [
        tensor for layer in cache.layers for tensor in (layer.keys, layer.values) if tensor is not None
    ]
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
