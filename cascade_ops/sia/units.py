"""What a criterion ranks one by one, and which gates each of them shuts.

A *unit set* is disjoint when no gate is shut by two of its units. Whole heads of multi-head attention, KV groups and
feed-forward channels are; the parts that per-component criteria rank apart are not:

| set | units | a gate is shut by |
|---|---|---|
| ``layer`` | blocks | its block |
| ``head`` | query heads, K/V going with the last of a group | its head |
| ``kv_group`` | K/V heads with all their query heads | its group |
| ``channel`` | gate–up–down triples (up–down pairs without a gate) | its channel |
| ``head_apart`` | Q/O slices and K/V slices | its own slice, or its group's K/V |
| ``channel_apart`` | gate rows and up rows | either row |
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from cascade_ops.anatomy import ModelAnatomy
from cascade_ops.gates import Gates
from cascade_ops.granularity import Granularity

NONE = -1


class Kind(enum.StrEnum):
    """The unit sets, coarse to fine; those taken apart come last."""

    LAYER = "layer"
    HEAD = "head"
    KV_GROUP = "kv_group"
    CHANNEL = "channel"
    HEAD_APART = "head_apart"
    CHANNEL_APART = "channel_apart"

    @property
    def gates(self) -> Granularity:
        """Whose gates its units shut."""
        match self:
            case Kind.LAYER:
                return Granularity.LAYER
            case Kind.CHANNEL | Kind.CHANNEL_APART:
                return Granularity.CHANNEL
            case _:
                return Granularity.HEAD


@dataclass(frozen=True, slots=True, kw_only=True)
class UnitSet:
    """Units of one kind over the whole model.

    Attributes:
        shuts: the gates that each unit shuts, as positions among all gates of the model in layer order; rows are
            filled up with −1.
        group: units of one group are ranked against each other: those of a layer, or of one of its parts where
            parts are ranked apart.
        gates: number of gates of each layer (for LAYER a single number).
    """

    kind: Kind
    shuts: Int[Tensor, "units width"]
    group: Int[Tensor, " units"]
    gates: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.shuts)

    def shut(self, chosen: Int[Tensor, " chosen"]) -> Bool[Tensor, " gates"]:
        """Which gates are shut when these units are removed together."""
        hit = self.shuts[chosen].flatten()
        found = torch.zeros(sum(self.gates), dtype=torch.bool)
        found[hit[hit != NONE]] = True
        return found

    def lowest_first(self, scores: Float[Tensor, " units"]) -> Int[Tensor, " units"]:
        """Units in the order in which they go when every group loses the same share of its lowest."""
        place = torch.empty(len(self), dtype=torch.float64)
        for number in self.group.unique():
            own = (self.group == number).nonzero().flatten()
            order = own[scores[own].argsort(stable=True)]
            place[order] = (torch.arange(len(own), dtype=torch.float64) + 0.5) / len(own)
        return place.argsort(stable=True)

    def label(self, unit: int) -> str:
        """``layer.unit`` of a disjoint set; a layer's own number."""
        if self.kind is Kind.LAYER:
            return str(unit)
        own = (self.group == self.group[unit]).nonzero().flatten()
        return f"{int(self.group[unit]) // 2}.{unit - int(own[0])}"

    @property
    def overlap(self) -> int:
        """The most units that shut the same gate; 1: disjoint."""
        hit = self.shuts.flatten()
        return int(torch.bincount(hit[hit != NONE]).max())


def kinds_of(anatomy: ModelAnatomy) -> tuple[Kind, ...]:
    """The unit sets to tell apart in this architecture: where K/V are shared, KV groups and what per-component criteria
    rank; where there is a gate, triples and its rows."""
    shared = any(max(layer.heads_per_kv) > 1 for layer in anatomy.layers)
    heads = (Kind.KV_GROUP, Kind.HEAD_APART) if shared else (Kind.HEAD,)
    channels = (Kind.CHANNEL, Kind.CHANNEL_APART) if anatomy.gated else (Kind.CHANNEL,)
    return (Kind.LAYER, *heads, *channels)


def unit_set(anatomy: ModelAnatomy, kind: Kind) -> UnitSet:
    """All units of a kind."""
    if kind is Kind.LAYER:
        depth = len(anatomy.layers)
        return UnitSet(
            kind=kind, shuts=torch.arange(depth)[:, None], group=torch.zeros(depth).long(), gates=(depth,)
        )
    counts = anatomy.units(kind.gates)
    rows: list[list[int]] = []
    group: list[int] = []
    first = 0
    for index, (count, layer) in enumerate(zip(counts, anatomy.layers, strict=True)):
        own = [[first + gate] for gate in range(count)]
        shared = [[first + head for head in layer.heads_of((one,))] for one in range(layer.kv_heads)]
        parts = {
            Kind.HEAD: (own,),
            Kind.CHANNEL: (own,),
            Kind.KV_GROUP: (shared,),
            Kind.HEAD_APART: (own, shared),
            Kind.CHANNEL_APART: (own, own),
        }[kind]
        for number, part in enumerate(parts):
            rows += part
            group += [2 * index + number] * len(part)
        first += count
    width = max(map(len, rows))
    shuts = torch.tensor([row + [NONE] * (width - len(row)) for row in rows])
    return UnitSet(kind=kind, shuts=shuts, group=torch.tensor(group), gates=counts)


def gates_of(
    anatomy: ModelAnatomy,
    granularity: Granularity,
    shut: Bool[Tensor, "rows gates"],
    *,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> Gates:
    """Gates whose rows differ: 0 where ``shut``."""
    values = (~shut).to(device=device, dtype=dtype)
    opened = Gates.ones(anatomy, batch=len(shut), dtype=dtype, device=device)
    if granularity is Granularity.LAYER:
        return Gates(layer=values, head=opened.head, channel=opened.channel)
    parts = values.split(anatomy.units(granularity), dim=1)
    if granularity is Granularity.CHANNEL:
        return Gates(layer=opened.layer, head=opened.head, channel=parts)
    return Gates(layer=opened.layer, head=parts, channel=opened.channel)
