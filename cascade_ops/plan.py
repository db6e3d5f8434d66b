"""Pruning plans: which units stay."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from cascade_ops.errors import PlanError
from cascade_ops.granularity import Granularity


@runtime_checkable
class HasUnits(Protocol):
    """What a plan asks of an anatomy."""

    def units(self, granularity: Granularity) -> tuple[int, ...]: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class PruningPlan:
    """The kept units of one granularity.

    ``keep`` has one tuple of sorted unit indices per layer; for granularity LAYER a single tuple
    with the indices of the kept layers.
    """

    granularity: Granularity
    keep: tuple[tuple[int, ...], ...]

    @classmethod
    def from_keep(cls, granularity: Granularity | str, keep: Iterable[Iterable[int]]) -> PruningPlan:
        """Build a plan from kept indices in any order. Raises PlanError on duplicates and negatives."""
        rows = tuple(tuple(sorted(row)) for row in keep)
        for index, row in enumerate(rows):
            if len(set(row)) != len(row):
                raise PlanError(f"keep[{index}]: every unit may be named once, got {list(row)}")
            if row and row[0] < 0:
                raise PlanError(f"keep[{index}]: units count from 0, got {row[0]}")
        return cls(granularity=Granularity(granularity), keep=rows)

    @classmethod
    def identity(cls, granularity: Granularity | str, anatomy: HasUnits) -> PruningPlan:
        """The plan that removes nothing."""
        return cls.from_keep(granularity, (range(n) for n in anatomy.units(Granularity(granularity))))

    def validate(self, anatomy: HasUnits) -> None:
        """Raises PlanError if the plan does not fit the anatomy or would empty a layer."""
        units = anatomy.units(self.granularity)
        if len(self.keep) != len(units):
            what = (
                "one list of kept layers" if self.granularity is Granularity.LAYER else "one list per layer"
            )
            raise PlanError(f"{self.granularity} plan: expected {what} ({len(units)}), got {len(self.keep)}")
        for index, (row, n) in enumerate(zip(self.keep, units, strict=True)):
            if not row:
                hint = (
                    "keep at least one layer"
                    if self.granularity is Granularity.LAYER
                    else "keep at least one unit, or remove the whole layer by a layer plan"
                )
                raise PlanError(f"{self.granularity} plan, layer {index}: nothing would be left; {hint}")
            if row[-1] >= n:
                raise PlanError(f"{self.granularity} plan, layer {index}: has units 0…{n - 1}, got {row[-1]}")

    def compose(self, later: PruningPlan) -> PruningPlan:
        """The single plan that does the same as this one followed by ``later`` (of the same granularity,
        indices counted after this one's cut)."""
        if later.granularity is not self.granularity or len(later.keep) != len(self.keep):
            raise PlanError(
                f"only plans of one granularity and depth compose: {self.granularity} × {len(self.keep)} "
                f"and {later.granularity} × {len(later.keep)}"
            )
        for index, (row, further) in enumerate(zip(self.keep, later.keep, strict=True)):
            if further and further[-1] >= len(row):
                raise PlanError(
                    f"layer {index}: {len(row)} units are left to choose from, got index {further[-1]}"
                )
        rows = zip(self.keep, later.keep, strict=True)
        return PruningPlan.from_keep(self.granularity, ([row[i] for i in further] for row, further in rows))

    def to_json(self) -> dict[str, Any]:
        return {"granularity": self.granularity.value, "keep": [list(row) for row in self.keep]}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> PruningPlan:
        return cls.from_keep(data["granularity"], data["keep"])
