"""How many workers, how many shards: from what the nodes have and what a shard needs.

The estimate of a worker's memory is an upper bound meant to be compared with what a node offers before
anything starts; ``docs/benchmarks.md`` sets it beside what was measured.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from cascade_ops.errors import UsageError
from cascade_ops.layer import LayerAnatomy
from cascade_ops.shards import Layout, Shard, partition

INTERPRETER = 640 * 2**20
"""A worker's libraries and buffers, in bytes."""
IN_FLIGHT = 2
"""Micro-batches under way for each worker where every worker has its own shard."""
GIB = 2**30


class ClusterTooSmallError(UsageError):
    """No node can hold a shard."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """What a node offers: ``memory`` in bytes."""

    name: str
    cpus: int
    gpus: int
    memory: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """What was asked for; None: choose. ``gpu``: one worker for each GPU instead of each ``threads`` cores."""

    shards: int | None = None
    workers: int | None = None
    threads: int | None = 1
    gpu: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizing:
    """The division of the work. ``need`` is the memory of the most demanding worker, in bytes."""

    shards: tuple[Shard, ...]
    workers: int
    need: int
    in_flight: int


def size_up(layout: Layout, nodes: Sequence[Node], wish: Wish, need: Callable[[Shard], int]) -> Sizing:
    """As many workers as there are cores for, and the fewest shards that let each of them fit its share of memory.

    Fewer workers get more memory each: their number falls where not even single blocks would fit.

    Args:
        need: bytes that a worker needs for a shard.

    Raises:
        ClusterTooSmallError: nothing fits, with what is needed and what there is.
        UsageError: more shards than blocks.
    """
    depth = len(layout.blocks)
    counts = [wish.shards] if wish.shards is not None else range(1, depth + 1)
    slots = [_slots(node, wish) for node in nodes]
    if sum(slots) == 0 or (wish.workers or 0) > sum(slots):
        raise ClusterTooSmallError(_no_slot(nodes, wish, sum(slots)))
    most = wish.workers or sum(slots)
    wanted = range(most, 0, -1) if wish.workers is None else [most]
    needs: dict[int, int] = {}
    for workers in wanted:
        room = _room(nodes, slots, workers)
        for count in counts:
            shards = partition(layout, count)
            needs[count] = max(need(shard) for shard in shards)
            if needs[count] <= room:
                return Sizing(
                    shards=shards, workers=workers, need=needs[count], in_flight=_window(count, workers)
                )
    count, least = min(needs.items(), key=lambda pair: pair[1])
    raise ClusterTooSmallError(
        f"no worker can hold a shard: with {count} shards it needs {least / GIB:.2f} GiB, and the nodes "
        f"have {_room(nodes, slots, wanted[-1]) / GIB:.2f} GiB for each of {wanted[-1]} workers. "
        f"{'Give more --shards' if wish.shards is not None and wish.shards < depth else 'Give a smaller --batch'}, "
        "fewer --workers, or larger nodes."
    )


def _slots(node: Node, wish: Wish) -> int:
    """Workers that a node's cores (and GPUs) can take."""
    by_core = node.cpus // (wish.threads or 1)
    return min(by_core, node.gpus) if wish.gpu else by_core


def _no_slot(nodes: Sequence[Node], wish: Wish, slots: int) -> str:
    if wish.gpu and not any(node.gpus for node in nodes):
        return "no node has a GPU: choose --device cpu, or join a cluster that has some"
    each = f"{wish.threads or 1} threads{' and a GPU' if wish.gpu else ''}"
    asked = f"{wish.workers or 1} workers of {each} were asked for"
    have = ", ".join(f"{n.name} {n.cpus} cores{f', {n.gpus} GPUs' if n.gpus else ''}" for n in nodes[:4])
    return f"{asked}, the nodes can take {slots} ({have}). Give fewer --workers or --threads."


def _room(nodes: Sequence[Node], slots: Sequence[int], workers: int) -> int:
    """Memory for each of ``workers``, placed one by one where most is left for them."""
    placed = [0] * len(nodes)
    for _ in range(workers):
        open_nodes = [i for i in range(len(nodes)) if placed[i] < slots[i]]
        best = max(open_nodes, key=lambda i: nodes[i].memory / (placed[i] + 1))
        placed[best] += 1
    return min(int(node.memory / count) for node, count in zip(nodes, placed, strict=True) if count)


def _window(shards: int, workers: int) -> int:
    """Micro-batches in flight. Fewer workers than shards stream the model, once for all micro-batches."""
    return IN_FLIGHT * workers + shards if workers >= shards else 2**31


def fitting_threads(nodes: Sequence[Node]) -> int:
    """Threads of a worker: one on small nodes, an eighth of the cores of the smallest on large ones."""
    return max(1, min((node.cpus for node in nodes if node.cpus), default=1) // 8)


def memory_needed(layout: Layout, shard: Shard, *, tokens: int, dtype: torch.dtype, gradients: bool) -> int:
    """Bytes that a worker needs for a shard: libraries, weights, and activations of one micro-batch.

    Args:
        tokens: of a micro-batch.
    """
    stored = layout.nbytes(shard)
    weights = stored * dtype.itemsize // layout.dtype.itemsize
    if shard.depth < shard.layers or dtype != layout.dtype:  # the next shard, or what is being converted
        weights += stored
    layers = layout.anatomy.layers[shard.first : shard.stop]
    hidden, gated = layout.anatomy.hidden_size, layout.anatomy.gated
    transient = max(_block(layer, hidden, gated, dtype.itemsize) for layer in layers)
    graph = sum(_block(layer, hidden, gated, dtype.itemsize) for layer in layers) if gradients else 0
    logits = 4 * 4 * _vocabulary(layout) if gradients and shard.is_last else 0
    return INTERPRETER + weights + tokens * (transient + graph + logits)


def _block(layer: LayerAnatomy, hidden: int, gated: bool, size: int) -> int:
    """Bytes for each token of what one block keeps for the way back: norms (in float32), attention's inputs and
    output, the feed-forward network's intermediate values."""
    attention = (2 * layer.heads + 2 * layer.kv_heads) * layer.head_dim
    channels = (5 if gated else 3) * layer.channels
    return size * (4 * hidden + 2 * attention + channels) + 2 * 4 * hidden


def _vocabulary(layout: Layout) -> int:
    return int(getattr(layout.config, "vocab_size", 0) or 0)
