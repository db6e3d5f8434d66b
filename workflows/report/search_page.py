"""A search as one page: the winner, the trade-off, what was chosen, what bound it, and what it cost."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from markupsafe import Markup

from cascade_ops.serde import to_jsonable
from workflows.report import format as fmt
from workflows.report.render import environment
from workflows.report.search_charts import (
    Line,
    Point,
    axis_of,
    importance_bars,
    parallel,
    scatter,
    shown,
)
from workflows.report.view import flattened

if TYPE_CHECKING:
    from workflows.search.record import SearchRecord, TrialRecord

LITTLE_FORESIGHT = 0.3
UNITS = {"layer": "Layers", "head": "Heads", "kv_group": "KV groups", "channel": "Feed-forward channels"}
SHARES = ("accuracy", "test_accuracy")
PLOTTED = ("trial", "seconds")
"""Figures beside the outcome that the trade-off can be drawn over."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """A model in a line of the comparison."""

    name: str
    cells: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Price:
    """The best trials on both sides of the check's bounds."""

    name: str
    number: int | None
    value: str
    test: str


def render_search(record: SearchRecord) -> str:
    """The whole page as one string."""
    winner = None if record.winner is None else record.trial(record.winner)
    columns = [name for name in _outcome_columns(record) if not name.startswith("total")]
    groups = (("Search", _facts(record)), ("Versions and machine", record.provenance))
    return (
        environment()
        .get_template("search.html.j2")
        .render(
            record=record,
            winner=winner,
            counts=_counts(record.trials),
            notes=_notes(record),
            columns=[label(name) for name in columns],
            outcomes=_outcomes(record, winner, columns),
            tradeoff=_tradeoff(record),
            figures=[(name, label(name)) for name in _plottable(record)],
            axes=_default_axes(record),
            data=_data(record),
            choices=_choices(record),
            importances=[
                (label(name), importance_bars(found)) for name, found in record.importances.items() if found
            ],
            prices=_prices(record),
            agreement=[(name, fmt.significant(rho), n) for name, (rho, n) in record.agreement.items()],
            shared=1 - record.computed / record.requested if record.requested else 0.0,
            seconds=sum(trial.seconds for trial in record.trials),
            saved=sum(trial.saved for trial in record.trials),
            stopped=sum(trial.state == "pruned" for trial in record.trials),
            provenance=[(title, tuple(flattened("", to_jsonable(values)))) for title, values in groups],
            units=UNITS,
            label=label,
            value=value_of,
            shown=shown,
            fmt=fmt,
        )
    )


def label(name: str) -> str:
    """A figure's name in words."""
    words = {
        "memory_mb": "weights, MB",
        "latency_ms": "latency, ms",
        "latency": "latency ÷ dense",
        "params": "backbone parameters",
        "seconds": "trial seconds",
        "trial": "trial",
        "compression": "compression",
    }
    if name in words:
        return words[name]
    return name.replace("test_", "test ") if name.startswith("test_") else f"validation {name}"


def value_of(name: str, value: float | None) -> str:
    """A figure as people write it."""
    if value is None or not math.isfinite(value):
        return "–"
    if name in SHARES:
        return fmt.percent(value, 2)
    if name == "compression":
        return fmt.factor(value)
    if name in ("params", "total_params"):
        return fmt.integer(round(value))
    return fmt.significant(value)


def _counts(trials: Sequence[TrialRecord]) -> str:
    words = {"complete": "complete", "pruned": "stopped early", "failed": "failed"}
    found = [(sum(trial.state == state for trial in trials), word) for state, word in words.items()]
    return ", ".join(f"{count} {word}" for count, word in found if count) or "none"


def _notes(record: SearchRecord) -> list[str]:
    notes = []
    complete = [trial for trial in record.trials if trial.state == "complete"]
    if record.winner is None:
        why = "no trial was completed" if not complete else "no complete trial is within every limit"
        notes.append(f"There is no winner: {why}.")
    if record.ignored_sia:
        notes.append(
            "The bounds of the SIA check were ignored; what that bought is under “What bound the search”."
        )
    if record.foresight is not None and record.foresight < LITTLE_FORESIGHT:
        notes.append(
            f"The validation side hardly ranks these schedules as the test side does (Spearman's ρ "
            f"{record.foresight:.2f} over complete trials): the best trial here need not be the best elsewhere."
        )
    first = record.objectives[0].name
    if len(complete) > 2 and len({trial.values[first] for trial in complete}) == 1:
        notes.append(
            f"Every complete trial has the same {label(first)}: this objective does not tell them apart."
        )
    return notes


def _outcome_columns(record: SearchRecord) -> list[str]:
    known: dict[str, None] = {}
    for outcome in (record.dense, record.reference, *(trial.outcome for trial in record.trials)):
        known |= dict.fromkeys(outcome)
    first = [name for name in ("accuracy", "perplexity", "loss") if name in known]
    rest = [name for name in known if name not in first and not name.startswith("test_")]
    tests = [f"test_{name}" for name in first if f"test_{name}" in known]
    return [*first, *tests, *rest]


def _outcomes(record: SearchRecord, winner: TrialRecord | None, columns: Sequence[str]) -> list[Outcome]:
    rows = [("Dense", record.dense)]
    if record.reference:
        rows.append((fmt.capital(record.reference_name), record.reference))
    if winner is not None:
        rows.append((f"Winner, trial {winner.number}", winner.outcome))
    return [
        Outcome(name=name, cells=tuple(value_of(column, outcome.get(column)) for column in columns))
        for name, outcome in rows
    ]


def _plottable(record: SearchRecord) -> list[str]:
    shared = [name for name in _outcome_columns(record) if not name.startswith("total")]
    return [*PLOTTED, *shared]


def _figure(trial: TrialRecord, name: str) -> float | None:
    if name == "trial":
        return float(trial.number)
    return trial.seconds if name == "seconds" else trial.outcome.get(name)


def _default_axes(record: SearchRecord) -> tuple[str, str]:
    names = [one.name for one in record.objectives]
    return (names[1], names[0]) if len(names) > 1 else ("trial", names[0])


def _kind(record: SearchRecord, trial: TrialRecord) -> str:
    if trial.number == record.winner:
        return "winner"
    if trial.state != "complete":
        return "pruned"
    if not trial.feasible:
        return "beyond"
    return "front" if trial.number in record.front else "complete"


def _tradeoff(record: SearchRecord) -> Markup | None:
    """All trials that have both figures of the default axes."""
    x_name, y_name = _default_axes(record)
    points = []
    for trial in record.trials:
        x, y = _figure(trial, x_name), _figure(trial, y_name)
        if x is not None and y is not None and math.isfinite(x) and math.isfinite(y):
            told = f"trial {trial.number} ({trial.state}): {value_of(y_name, y)}, {label(x_name)} {value_of(x_name, x)}"
            points.append(Point(number=trial.number, x=x, y=y, kind=_kind(record, trial), told=told))
    if not points:
        return None
    if record.reference and x_name in record.reference and y_name in record.reference:
        x, y = record.reference[x_name], record.reference[y_name]
        told = f"{record.reference_name}: {value_of(y_name, y)}"
        points.append(Point(number=-1, x=x, y=y, kind="reference", told=told))
    ends = [point for point in points if point.number in record.front or len(record.objectives) == 1]
    line = _front_line(record, [point for point in ends if point.number >= 0])
    level = record.reference.get(y_name) if x_name == "trial" else None
    return scatter(points, line, label(x_name), label(y_name), level)


def _front_line(record: SearchRecord, points: Sequence[Point]) -> list[tuple[float, float]]:
    """The best so far with one objective, the front's trials in order with several."""
    if len(record.objectives) > 1:
        return sorted((point.x, point.y) for point in points)
    feasible = {trial.number for trial in record.trials if trial.feasible}
    better = min if record.objectives[0].mode == "min" else max
    best: float | None = None
    line: list[tuple[float, float]] = []
    for point in sorted(points, key=lambda one: one.x):
        if point.number in feasible:
            now = point.y if best is None else better(best, point.y)
            if best is not None and now != best:
                line.append((point.x, best))
            line.append((point.x, now))
            best = now
    if best is not None:
        line.append((max(point.x for point in points), best))
    return line


def _data(record: SearchRecord) -> Markup:
    """For the page's script; ``<`` is escaped, so that no name can end the element."""
    names = _plottable(record)
    document = {
        "names": {name: label(name) for name in names},
        "modes": {one.name: one.mode for one in record.objectives},
        "trials": {str(t.number): {name: _figure(t, name) for name in names} for t in record.trials}
        | ({"-1": {name: record.reference.get(name) for name in names}} if record.reference else {}),
        "front": list(record.front),
    }
    return Markup(json.dumps(to_jsonable(document)).replace("<", "\\u003c"))


def _choices(record: SearchRecord) -> Markup | None:
    """Parallel coordinates of complete and stopped trials."""
    first = record.objectives[0]
    judged = [trial for trial in record.trials if trial.rungs]
    names = list(dict.fromkeys(name for trial in judged for name in trial.params))
    if len(judged) < 2 or not names:
        return None
    sign = 1 if first.mode == "min" else -1
    ranked = sorted(judged, key=lambda trial: (trial.state != "complete", sign * trial.rungs[-1][1]))
    ranks = {trial.number: index / len(ranked) for index, trial in enumerate(ranked)}
    axes, heights = [], []
    for name in names:
        axis, height = axis_of(name.replace("_", " "), [t.params[name] for t in judged if name in t.params])
        axes.append(axis)
        heights.append([height.get(trial.params.get(name)) for trial in judged])
    axis, height = axis_of(label(first.name), [trial.rungs[-1][1] for trial in judged])
    axes.append(axis)
    heights.append([height[trial.rungs[-1][1]] for trial in judged])
    lines = [
        Line(
            number=trial.number,
            heights=tuple(column[index] for column in heights),
            rank=ranks[trial.number],
            told=f"trial {trial.number}",
        )
        for index, trial in enumerate(judged)
    ]
    return parallel(axes, lines)


def _prices(record: SearchRecord) -> list[Price]:
    """The best feasible trial that obeys the bounds, and the best that does not."""
    first = record.objectives[0]
    better = min if first.mode == "min" else max
    found = []
    for name, beyond in (("within the bounds", False), ("beyond them", True)):
        some = [trial for trial in record.trials if trial.feasible and bool(trial.beyond) == beyond]
        best = better(some, key=lambda trial: trial.values[first.name]) if some else None
        outcome: dict[str, float] = {} if best is None else best.outcome
        found.append(
            Price(
                name=name,
                number=None if best is None else best.number,
                value=value_of(first.name, outcome.get(first.name)),
                test=value_of(f"test_{first.name}", outcome.get(f"test_{first.name}")),
            )
        )
    return found


def _facts(record: SearchRecord) -> dict[str, Any]:
    return {
        "model": record.model,
        "data": record.data,
        "task": record.task,
        "target": "none" if record.target is None else fmt.factor(record.target),
        "objectives": ", ".join(f"{one.name} ({one.mode}, {one.unit})" for one in record.objectives),
        "limits": ", ".join(f"{name} ≤ {value:g}" for name, value in record.limits.items()) or "none",
        "sampler": record.sampler,
        "scheduler": record.scheduler,
    }
