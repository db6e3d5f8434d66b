"""Shards: contiguous ranges of a model's blocks, each able to run by itself.

A shard is what layer pruning leaves, so surgery builds it: the whole model on the meta device, cut down to
the shard's blocks, and only their weights read from the files. The first shard also has the embedding, the
last one the final norm and the head. Nobody need hold the whole model.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from cascade_ops.anatomy import ModelAnatomy, anatomy_of, base_of, blocks_of, family_of
from cascade_ops.checkpoint import read_config, stored_as
from cascade_ops.errors import UsageError
from cascade_ops.granularity import Granularity
from cascade_ops.plan import PruningPlan
from cascade_ops.surgery import meta_model, prune
from cascade_ops.weights import FLOATS, StoredTensor, read_tensors, stored_tensors


@dataclass(frozen=True, slots=True, kw_only=True)
class Shard:
    """Blocks ``first`` ≤ i < ``stop`` of ``layers``."""

    first: int
    stop: int
    layers: int

    @property
    def is_first(self) -> bool:
        return self.first == 0

    @property
    def is_last(self) -> bool:
        return self.stop == self.layers

    @property
    def depth(self) -> int:
        return self.stop - self.first


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """A shard with its weights. ``model``'s block list holds the shard's blocks only."""

    model: nn.Module
    anatomy: ModelAnatomy
    shard: Shard

    @classmethod
    def whole(cls, model: nn.Module) -> Piece:
        """A model in memory as the only shard."""
        anatomy = anatomy_of(model)
        depth = len(anatomy.layers)
        return cls(model=model, anatomy=anatomy, shard=Shard(first=0, stop=depth, layers=depth))


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """A model on disk: where each of its tensors is, and on which shard it belongs.

    ``embedding``, ``blocks`` (one tuple for each block) and ``head`` name tensors as the model does.
    """

    path: Path
    config: PreTrainedConfig
    anatomy: ModelAnatomy
    dtype: torch.dtype
    stored: dict[str, StoredTensor]
    embedding: tuple[str, ...]
    blocks: tuple[tuple[str, ...], ...]
    head: tuple[str, ...]

    def names(self, shard: Shard) -> tuple[str, ...]:
        """The tensors that a shard needs. Tied ones are needed at both ends."""
        own = tuple(name for block in self.blocks[shard.first : shard.stop] for name in block)
        return (self.embedding if shard.is_first else ()) + own + (self.head if shard.is_last else ())

    def nbytes(self, shard: Shard) -> int:
        """Bytes of a shard's weights on disk."""
        tensors = {(t.file, t.offset): t.nbytes for t in (self.stored[name] for name in self.names(shard))}
        return sum(tensors.values())


def layout_of(path: Path) -> Layout:
    """Read a model folder's config and headers, and check that every tensor is there and fits.

    Raises:
        CheckpointError: a file is missing or truncated, or a tensor is missing, of another shape, or not of
            a floating-point type.
        UnsupportedFamilyError: no FamilySpec describes the model.
    """
    config = read_config(path)
    model = meta_model(config)
    stored = stored_as(model, stored_tensors(path), path)
    blocks, embedding, head = _places(model)
    return Layout(
        path=path,
        config=config,
        anatomy=anatomy_of(model),
        dtype=_common_type(stored),
        stored=stored,
        embedding=embedding,
        blocks=blocks,
        head=head,
    )


def _places(
    model: PreTrainedModel,
) -> tuple[tuple[tuple[str, ...], ...], tuple[str, ...], tuple[str, ...]]:
    """Names of the tensors of each block, before the blocks, and after them."""
    spec, base = family_of(base_of(model).config), base_of(model)
    prefix = next(name for name, module in model.named_modules() if module is base)
    inside = f"{prefix}." if prefix else ""
    after = tuple(f"{inside}{path}." for path in spec.tail)
    in_blocks = f"{inside}{spec.blocks}."
    blocks: list[list[str]] = [[] for _ in blocks_of(model)]
    embedding, head = [], []
    for name in model.state_dict():
        if name.startswith(in_blocks):
            blocks[int(name.removeprefix(in_blocks).partition(".")[0])].append(name)
        elif name.startswith(after) or not name.startswith((inside, "front_end.")):
            head.append(name)
        else:
            embedding.append(name)
    return tuple(map(tuple, blocks)), tuple(embedding), tuple(head)


def _common_type(stored: dict[str, StoredTensor]) -> torch.dtype:
    """The floating-point type of most weights, to which the others are converted."""
    weight = dict.fromkeys(FLOATS, 0)
    for tensor in stored.values():
        if tensor.kind in weight:
            weight[tensor.kind] += tensor.nbytes
    return FLOATS[max(weight, key=lambda kind: weight[kind])]


def partition(layout: Layout, shards: int) -> tuple[Shard, ...]:
    """Exactly ``shards`` contiguous ranges whose largest weighs as little as possible.

    Raises:
        UsageError: more shards than blocks, or none.
    """
    depth = len(layout.blocks)
    if not 1 <= shards <= depth:
        raise UsageError(f"shards: must be between 1 and the model's {depth} blocks, got {shards}")
    costs = [layout.nbytes(Shard(first=i, stop=i + 1, layers=depth)) for i in range(depth)]
    low, high = max(costs), sum(costs)
    while low < high:  # the smallest capacity for which first-fit needs no more ranges than wanted
        middle = (low + high) // 2
        if len(_first_fit(costs, middle)) <= shards:
            high = middle
        else:
            low = middle + 1
    starts = _exactly(_first_fit(costs, low), shards, depth)
    return tuple(
        Shard(first=first, stop=stop, layers=depth)
        for first, stop in zip(starts, [*starts[1:], depth], strict=True)
    )


def _first_fit(costs: Sequence[int], capacity: int) -> list[int]:
    """Where ranges start if each takes blocks while they fit."""
    starts, filled = [0], 0
    for index, cost in enumerate(costs):
        if filled and filled + cost > capacity:
            starts.append(index)
            filled = 0
        filled += cost
    return starts


def _exactly(starts: list[int], shards: int, depth: int) -> list[int]:
    """Split the longest ranges until there are ``shards`` of them."""
    starts = list(starts)
    while len(starts) < shards:
        lengths = [stop - first for first, stop in zip(starts, [*starts[1:], depth], strict=True)]
        longest = lengths.index(max(lengths))
        starts.insert(longest + 1, starts[longest] + lengths[longest] // 2)
    return starts


def load_shard(
    layout: Layout, shard: Shard, *, dtype: torch.dtype | None = None, device: torch.device | str = "cpu"
) -> Piece:
    """A shard with its weights.

    Args:
        dtype: of the weights; as stored by default.

    Raises:
        CheckpointError: a file has become unreadable.
    """
    tensors = read_tensors(layout.stored, layout.names(shard))
    return assembled(layout.config, shard, tensors, dtype=dtype or layout.dtype, device=device)


def blocks_alone(model: PreTrainedModel) -> Iterator[Piece]:
    """Each block of a model in memory as a shard of its own, with the same weights, not a copy of them."""
    blocks, embedding, head = _places(model)
    held = model.state_dict()
    for index, own in enumerate(blocks):
        shard = Shard(first=index, stop=index + 1, layers=len(blocks))
        names = (*(embedding if shard.is_first else ()), *own, *(head if shard.is_last else ()))
        tensors = {name: held[name] for name in names}
        yield assembled(model.config, shard, tensors, dtype=model.dtype, device=model.device)


def assembled(
    config: PreTrainedConfig,
    shard: Shard,
    tensors: Mapping[str, Tensor],
    *,
    dtype: torch.dtype,
    device: torch.device | str = "cpu",
) -> Piece:
    """A shard of the model that ``config`` describes, from its tensors under their names in the whole model.

    Parameters that belong elsewhere are NaN without memory of their own: whatever used one would show.
    """
    model = meta_model(config)
    if shard.depth < shard.layers:
        prune(model, PruningPlan.from_keep(Granularity.LAYER, [list(range(shard.first, shard.stop))]))
    blocks = _block_prefix(model)
    weights = {
        _local(name, blocks, shard): tensor.to(device=device, dtype=dtype) for name, tensor in tensors.items()
    }
    nowhere = torch.full((), torch.nan, dtype=dtype, device=device)
    for name, expected in model.state_dict().items():
        if name not in weights:
            weights[name] = nowhere.expand(expected.shape)
    model.load_state_dict(weights, strict=True, assign=True)
    if shard.is_first and shard.is_last:
        model.tie_weights()
    model.requires_grad_(False)
    model.to(device)  # type: ignore[arg-type]  # buffers; transformers wraps nn.Module.to
    model.eval()
    return Piece(model=model, anatomy=anatomy_of(model), shard=shard)


def _block_prefix(model: PreTrainedModel) -> str:
    blocks = blocks_of(model)
    return f"{next(name for name, module in model.named_modules() if module is blocks)}."


def _local(name: str, blocks: str, shard: Shard) -> str:
    """A tensor's name inside the shard, whose blocks are numbered from 0."""
    if not name.startswith(blocks):
        return name
    index, _, rest = name.removeprefix(blocks).partition(".")
    return f"{blocks}{int(index) - shard.first}.{rest}"
