"""The ``search`` section of a configuration: what may be drawn, what is wanted, and how long to look."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from itertools import pairwise, permutations
from typing import Any, Literal

from pydantic import TypeAdapter, ValidationError

from cascade_ops.anatomy import ModelAnatomy
from cascade_ops.criteria import CRITERIA
from cascade_ops.errors import ConfigError, UsageError
from cascade_ops.export import TARGETS, refusals
from cascade_ops.granularity import Granularity
from cascade_ops.plan import PruningPlan
from cascade_ops.schedule import Allocation, Recovery
from cascade_ops.search import Bound, Space
from cascade_ops.search.bounds import LOSS, heads_unit
from cascade_ops.search.drawing import scores
from cascade_ops.search.space import ROUNDS, Order
from cascade_ops.sia.check import BUDGET
from workflows.config import FORBID, JobConfig, validate
from workflows.located import located_message
from workflows.search.objectives import LIMITS, objectives_for

Part = Literal["layer", "head", "channel"]
Sampler = Literal["auto", "tpe", "nsga2", "random"]
Scheduler = Literal["auto", "asha", "median", "none"]


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchConfig:
    """What ``cascade search`` looks for.

    Attributes:
        trials: schedules in all, those stopped early included.
        objectives: what to improve; the first decides where one is needed.
        limits: figure → the largest value that the winner may have.
        runtime: an export target that must be able to run the winner.
        granularities: what may be cut. ``head`` means whole KV groups where query heads share K/V.
        orders: such as ``layer head channel``; None: every order.
        rounds: of one granularity, at most.
        criteria, allocations, compensation, ranks, last_share: choices (``cascade_ops.search.Space``).
        ignore_sia: no bounds on what a round may remove, and single query heads where they share K/V.
        loss_bound: share of the usable information that shutting one round's units may cost.
        budget: ablations of the SIA check.
        sampler: ``auto`` is TPE for one objective and NSGA-II for several.
        scheduler: ``auto`` is ASHA for one objective and none for several, where there is no order to stop by.
        fidelities: shares of the recovery budget at which a schedule is tried first, in increasing order.
        reduction: one in so many goes on at each rung.
        branch: share of trials, after the first third, that keep the first stages of a good earlier trial.
        reference: run the configuration's own schedule too, for comparison.
        warm_start: folders of earlier searches, whose complete trials are known beforehand.
        storage: URL of Optuna's database; None: ``optuna.db`` in the folder of the search.
        slots: trials at a time; None: as many as the cluster holds.
        seed: of the sampler; the runs have the configuration's own.
    """

    __pydantic_config__ = FORBID

    trials: int = 40
    objectives: tuple[str, ...] = ("loss",)
    limits: dict[str, float] = field(default_factory=dict)
    runtime: str | None = None
    granularities: tuple[Part, ...] = ("layer", "head", "channel")
    orders: tuple[str, ...] | None = None
    rounds: int = ROUNDS
    criteria: tuple[str, ...] = ("taylor", "fisher", "magnitude")
    allocations: tuple[Allocation, ...] = ("uniform", "global")
    compensation: tuple[bool, ...] = (True, False)
    ranks: tuple[int, ...] = (4, 8, 16)
    last_share: tuple[float, ...] = (0.4, 0.6, 0.75, 0.9)
    ignore_sia: bool = False
    loss_bound: float = LOSS
    budget: int = BUDGET
    sampler: Sampler = "auto"
    scheduler: Scheduler = "auto"
    fidelities: tuple[float, ...] = (0.0, 0.15)
    reduction: float = 2.0
    branch: float = 0.8
    reference: bool = True
    warm_start: tuple[str, ...] = ()
    storage: str | None = None
    slots: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("trials", "rounds", "budget", "slots"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"search.{name}: must be ≥ 1, got {value}")
        for name in ("objectives", "granularities", "criteria", "allocations", "compensation", "ranks"):
            values = getattr(self, name)
            if not values or len(set(values)) < len(values):
                raise ConfigError(f"search.{name}: must name each choice once, got {list(values)}")
        if not self.last_share or not all(0 < one < 1 for one in self.last_share):
            raise ConfigError(f"search.last_share: must be in (0, 1), got {list(self.last_share)}")
        rising = (-1.0, *self.fidelities, 1.0)
        if any(after <= before for before, after in pairwise(rising)):
            raise ConfigError(f"search.fidelities: must increase within [0, 1), got {list(self.fidelities)}")
        if any(one < 0 for one in self.fidelities):
            raise ConfigError(f"search.fidelities: must be ≥ 0, got {list(self.fidelities)}")
        if not self.reduction > 1:
            raise ConfigError(f"search.reduction: must be > 1, got {self.reduction:g}")
        if not 0 <= self.branch <= 1:
            raise ConfigError(f"search.branch: must be in [0, 1], got {self.branch:g}")
        if not self.loss_bound > 0:
            raise ConfigError(f"search.loss_bound: must be > 0, got {self.loss_bound:g}")
        if len(self.objectives) > 1 and self.scheduler in ("asha", "median"):
            raise ConfigError(
                f"search.scheduler: {self.scheduler} compares one figure, and there are "
                f"{len(self.objectives)} objectives; use none"
            )
        self._check_names()

    def _check_names(self) -> None:
        for name in self.criteria:
            CRITERIA[name]
        if self.runtime is not None:
            TARGETS[self.runtime]
        for name, value in self.limits.items():
            LIMITS[name]
            if not value > 0:
                raise ConfigError(f"search.limits.{name}: must be > 0, got {value:g}")

    @property
    def uses_rungs(self) -> bool:
        """Trials are compared, and stopped, before they are complete."""
        return self.scheduler in ("asha", "median") or (
            self.scheduler == "auto" and len(self.objectives) == 1
        )

    def identity(self) -> dict[str, Any]:
        """All but what may change when a search goes on."""
        free = ("trials", "slots", "warm_start", "reference")
        return {name: getattr(self, name) for name in self.__dataclass_fields__ if name not in free}


def split_document(document: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """A configuration file's part for runs, and its ``search`` section."""
    section = document.get("search")
    if section is not None and not isinstance(section, dict):
        raise ConfigError(f"search: must be a mapping of keys to values, got {section!r}")
    return {key: value for key, value in document.items() if key != "search"}, dict(section or {})


def search_config(section: dict[str, Any], task: str) -> SearchConfig:
    """Check types, ranges and names. Raises ConfigError that starts with where, UnknownNameError."""
    try:
        found = TypeAdapter(SearchConfig).validate_python(section)
    except ValidationError as error:
        message = located_message(error, SearchConfig)
        raise ConfigError(message if message.startswith("search.") else f"search.{message}") from None
    objectives_for(found.objectives, task)
    return found


def target_of(document: dict[str, Any]) -> float | None:
    """The compression that a configuration asks for; None where it lists stages."""
    return validate(document).schedule.target


def make_space(
    anatomy: ModelAnatomy,
    recovery: Recovery,
    target: float | None,
    search: SearchConfig,
    bounds: dict[Granularity, Bound] | None = None,
) -> Space:
    """The space of one search.

    Raises:
        ConfigError: orders that make no sense.
        UsageError: the family or the runtime lets nothing be cut, or nothing lands on the target.
    """
    units = _units(anatomy, search)
    orders = tuple(permutations(units)) if search.orders is None else _orders(search, units)
    shared = heads_unit(anatomy) is Granularity.KV_GROUP
    if target is not None:
        if Granularity.CHANNEL not in units:
            raise UsageError(
                "search.granularities: landing on a target takes channels, the finest unit; "
                f"got {', '.join(search.granularities)}"
            )
        if shared and Granularity.HEAD in units:
            # How many K/V heads go with single query heads is not known beforehand.
            orders = tuple(order for order in orders if order[-1] is Granularity.CHANNEL)
    ranks = tuple(rank for rank in search.ranks if rank <= anatomy.hidden_size) or (anatomy.hidden_size,)
    return Space(
        anatomy=anatomy,
        recovery=recovery,
        target=target,
        orders=orders,
        bounds={} if search.ignore_sia else dict(bounds or {}),
        rounds=search.rounds,
        criteria=search.criteria,
        allocations=search.allocations,
        compensation=search.compensation,
        ranks=ranks if recovery.method == "lora" else (recovery.rank,),
        shares=search.last_share,
        uniform=search.runtime is not None and not _takes_uneven(anatomy, search.runtime),
    )


def _units(anatomy: ModelAnatomy, search: SearchConfig) -> Order:
    """What may be cut, as units that share nothing, of a family and for a runtime that let it."""
    attention = Granularity.HEAD if search.ignore_sia else heads_unit(anatomy)
    named = {"layer": Granularity.LAYER, "head": attention, "channel": Granularity.CHANNEL}
    units = []
    for part in search.granularities:
        unit = named[part]
        if not any(scores(criterion, unit) for criterion in search.criteria):
            raise ConfigError(
                f"search.criteria: none of {', '.join(search.criteria)} can score {unit.value}s"
            )
        possible = unit not in dict(anatomy.refused) and min(anatomy.units(unit)) > 1
        if possible and (search.runtime is None or _takes_cut(anatomy, unit, search.runtime)):
            units.append(unit)
    if not units:
        raise UsageError(
            f"nothing may be cut: {anatomy.family} and {search.runtime or 'the family'} allow none of "
            f"{', '.join(search.granularities)}"
        )
    return tuple(units)


def _orders(search: SearchConfig, units: Order) -> tuple[Order, ...]:
    named = {unit.value: unit for unit in units}
    attention = {Granularity.HEAD, Granularity.KV_GROUP} & set(units)
    named |= {name: unit for unit in attention for name in ("head", "kv_group")}
    found: list[Order] = []
    for text in search.orders or ():
        words = text.split()
        order = tuple(named[word] for word in words if word in named)
        if len(order) < len(words) or sorted(order) != sorted(units):
            raise ConfigError(f"search.orders: each must name {', '.join(units)} once, got {text!r}")
        found.append(order)
    return tuple(dict.fromkeys(found))


def _takes_cut(anatomy: ModelAnatomy, unit: Granularity, runtime: str) -> bool:
    """Whether a runtime that takes the dense model takes it with one unit less in every layer."""
    keep = [range(count - 1) for count in anatomy.units(unit)]
    cut = anatomy.after(PruningPlan.from_keep(unit, keep))
    return bool(refusals(anatomy, runtime)) or not refusals(cut, runtime)


def _takes_uneven(anatomy: ModelAnatomy, runtime: str) -> bool:
    """Whether a runtime takes layers of different widths."""
    counts = anatomy.units(Granularity.CHANNEL)
    keep = [range(count - (index == 0)) for index, count in enumerate(counts)]
    return not refusals(anatomy.after(PruningPlan.from_keep(Granularity.CHANNEL, keep)), runtime)


def at_fidelity(config: JobConfig, fraction: float) -> JobConfig:
    """The same run with a share of the recovery budget."""
    recovery = config.schedule.recovery
    steps = round(recovery.steps * fraction)
    return replace(config, schedule=replace(config.schedule, recovery=replace(recovery, steps=steps)))
