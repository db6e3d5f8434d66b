"""A worker: one shard in memory at a time (and the next one being read), and what is computed on it."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
import platform
import time
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cascade_ops.errors import CascadeError, CheckpointError
from cascade_ops.scoring import check_statistics, needs_of, scores_from
from cascade_ops.shards import Layout, Piece, Shard, assembled, layout_of
from cascade_ops.statistics import Need, Statistics
from cascade_ops.sweep import GRADIENT, backward, forward
from cascade_ops.training import deterministic
from cascade_ops.weights import read_tensors

Packed = tuple[np.ndarray, str]
"""A tensor as an array and the name of its type: numpy knows no bfloat16."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Orders:
    """What every call to a worker has in common."""

    criteria: tuple[str, ...]
    dtype: torch.dtype
    device: str
    threads: int
    seed: int

    @property
    def needs(self) -> frozenset[Need]:
        return needs_of(self.criteria)


@dataclass(frozen=True, slots=True, kw_only=True)
class Card:
    """Who a worker is, once it has started."""

    node: str
    pid: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Receipt:
    """What a call found and what it cost: seconds, and the worker's memory in bytes, now and at its peak.

    ``found`` are statistics of one micro-batch, or a shard's scores.
    """

    found: Any
    seconds: float
    memory: int
    peak: int


class ShardWorker:
    """Made into a Ray actor by the driver; works the same in the driver's own process."""

    def __init__(self, layout: Layout, shards: tuple[Shard, ...], orders: Orders) -> None:
        deterministic(orders.threads)
        self._layout, self._shards, self._orders = layout, shards, orders
        self._loaded: tuple[int, Piece] | None = None
        self._coming: tuple[int, Future[dict[str, Tensor]]] | None = None
        self._reader = ThreadPoolExecutor(max_workers=1)

    def card(self) -> Card:
        """Answers when the worker has started. Raises CheckpointError where the node has another model, or none."""
        if layout_of(self._layout.path).stored != self._layout.stored:
            raise CheckpointError(
                f"{self._layout.path}: holds another model on {platform.node()} than on the machine that asked. "
                "Every node must have the same files."
            )
        import ray

        return Card(node=ray.get_runtime_context().get_node_id(), pid=os.getpid())

    def forward(
        self, index: int, following: int | None, batch: Mapping[str, Tensor], hidden: Packed | None
    ) -> tuple[Receipt, Packed | None]:
        """Forward statistics of one micro-batch, and the hidden states for the next shard."""
        began = time.perf_counter()
        piece = self._piece(index, following)
        statistics, above = forward(piece, self._here(batch), self._orders.needs, self._unpacked(hidden))
        self._check(index, piece, statistics, self._orders.needs - {GRADIENT})
        return self._receipt(_on_cpu(statistics), began), None if piece.shard.is_last else _packed(above)

    def backward(
        self,
        index: int,
        following: int | None,
        batch: Mapping[str, Tensor],
        hidden: Packed | None,
        gradient: Packed | None,
    ) -> tuple[Receipt, Packed | None]:
        """Gate gradients of one micro-batch, and the loss's gradient for the shard below.

        The last shard runs once only, so its other statistics are among these.
        """
        began = time.perf_counter()
        piece = self._piece(index, following)
        needs: frozenset[Need] = self._orders.needs if piece.shard.is_last else frozenset({GRADIENT})
        statistics, below = backward(
            piece, self._here(batch), needs, self._unpacked(hidden), self._unpacked(gradient)
        )
        self._check(index, piece, statistics, needs)
        return self._receipt(_on_cpu(statistics), began), None if piece.shard.is_first else _packed(below)

    def score(self, index: int, statistics: Statistics) -> Receipt:
        """Scores of a shard from its statistics over all micro-batches."""
        began = time.perf_counter()
        piece, orders = self._piece(index, None), self._orders
        scores = scores_from(piece.model, piece.anatomy, statistics, orders.criteria, seed=orders.seed)
        return self._receipt(scores, began)

    def _piece(self, index: int, following: int | None) -> Piece:
        """The shard, loaded if need be; meanwhile the next one is read."""
        if self._loaded is None or self._loaded[0] != index:
            self._loaded = None  # before the next is there
            gc.collect()
            tensors, orders = self._read(index), self._orders
            shard = self._shards[index]
            self._loaded = (
                index,
                assembled(self._layout.config, shard, tensors, dtype=orders.dtype, device=orders.device),
            )
            if following is not None:
                self._coming = following, self._reader.submit(self._tensors, following)
        return self._loaded[1]

    def _read(self, index: int) -> dict[str, Tensor]:
        coming, self._coming = self._coming, None
        if coming is not None and coming[0] == index:
            return coming[1].result()
        if coming is not None:
            coming[1].cancel()
        return self._tensors(index)

    def _tensors(self, index: int) -> dict[str, Tensor]:
        return read_tensors(self._layout.stored, self._layout.names(self._shards[index]))

    def _check(self, index: int, piece: Piece, statistics: Statistics, needs: frozenset[Need]) -> None:
        try:
            check_statistics(statistics, piece.anatomy, needs)
        except CascadeError as error:
            shard = piece.shard
            raise type(error)(f"shard {index} (blocks {shard.first} to {shard.stop - 1}): {error}") from None

    def _here(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {name: tensor.to(self._orders.device) for name, tensor in batch.items()}

    def _unpacked(self, packed: Packed | None) -> Tensor | None:
        if packed is None:
            return None
        data, kind = packed
        # The array is shared memory that nobody may write to.
        return torch.from_numpy(data.copy()).view(getattr(torch, kind)).to(self._orders.device)

    def _receipt(self, found: Any, began: float) -> Receipt:
        now, peak = memory(self._orders.device)
        return Receipt(found=found, seconds=time.perf_counter() - began, memory=now, peak=peak)


def _packed(tensor: Tensor) -> Packed:
    plain = tensor.detach().cpu().contiguous()
    kind = str(plain.dtype).removeprefix("torch.")
    return (plain.view(torch.int16) if plain.dtype == torch.bfloat16 else plain).numpy(), kind


def _on_cpu(statistics: Statistics) -> Statistics:
    sums = {key: value.cpu() for key, value in statistics.sums.items()}
    return Statistics(samples=statistics.samples, tokens=statistics.tokens, sums=sums)


def memory(device: str = "cpu") -> tuple[int, int]:
    """This process's memory in bytes, now and at its peak: resident, or allocated on the GPU."""
    if device == "cuda":
        return torch.cuda.memory_allocated(), torch.cuda.max_memory_allocated()
    try:
        with open("/proc/self/status") as status:
            lines = dict(line.split(":", 1) for line in status)
        return tuple(int(lines[name].split()[0]) * 1024 for name in ("VmRSS", "VmHWM"))  # type: ignore[return-value]
    except (OSError, KeyError):
        import resource
        import sys

        unit = 1 if sys.platform == "darwin" else 1024
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
        return peak, peak


def memory_held(device: str = "cpu") -> int:
    """This process's memory in bytes, after what is free has been given back."""
    gc.collect()
    if device != "cuda":
        with contextlib.suppress(OSError, AttributeError):  # glibc only
            ctypes.CDLL("libc.so.6").malloc_trim(0)
    return memory(device)[0]
