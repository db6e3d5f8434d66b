"""What a trial is measured by: figures of its outcome, which way is better, and which can be limited."""

from __future__ import annotations

from dataclasses import dataclass

from cascade_ops.errors import ConfigError, UnknownNameError
from cascade_ops.registry import Registry
from cascade_ops.tasks import TASKS
from workflows.search.record import Mode, ObjectiveRecord


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """A figure of an outcome. ``timed``: it takes a measurement of its own."""

    name: str
    mode: Mode
    unit: str
    timed: bool = False


OBJECTIVES: Registry[Figure] = Registry("objective")
for _one in (
    Figure(name="accuracy", mode="max", unit="share of the validation side"),
    Figure(name="perplexity", mode="min", unit="on the validation side"),
    Figure(name="loss", mode="min", unit="nats, on the validation side"),
    Figure(name="params", mode="min", unit="backbone parameters"),
    Figure(name="memory_mb", mode="min", unit="MB of weights"),
    Figure(name="latency", mode="min", unit="share of the dense model's", timed=True),
    Figure(name="latency_ms", mode="min", unit="ms for one sample", timed=True),
):
    OBJECTIVES.add(_one.name, _one)

LIMITS: Registry[Figure] = Registry("limit")
for _one in OBJECTIVES.values():
    if _one.mode == "min":
        LIMITS.add(_one.name, _one)


def objectives_for(names: tuple[str, ...], task: str) -> tuple[ObjectiveRecord, ...]:
    """The objectives of a search.

    Raises:
        UnknownNameError: no such objective.
        ConfigError: one that the task does not measure, or one twice.
    """
    measured, others = TASKS[task].metric, {one.metric for one in TASKS.values()}
    for name in names:
        if name not in OBJECTIVES:
            raise UnknownNameError("objective", name, OBJECTIVES)
        if name in others - {measured}:
            raise ConfigError(f"search.objectives: task {task} measures {measured}, not {name}")
    if len(set(names)) < len(names):
        raise ConfigError(f"search.objectives: must name each once, got {', '.join(names)}")
    figures = [OBJECTIVES[name] for name in names]
    return tuple(ObjectiveRecord(name=one.name, mode=one.mode, unit=one.unit) for one in figures)


def timed(names: tuple[str, ...]) -> bool:
    """Whether any of these figures takes a latency measurement."""
    return any(OBJECTIVES[name].timed for name in names if name in OBJECTIVES)
