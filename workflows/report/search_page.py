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
    key_mark,
    parallel,
    plain,
    scatter,
    shown,
    steps,
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
    """The best trials on both sides of the check's bounds, and the reference."""

    name: str
    number: str
    value: str
    test: str
    compression: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Choices:
    """What each judged trial chose: a picture, and the same as rows."""

    picture: Markup
    names: tuple[str, ...]
    rows: tuple[tuple[int, tuple[str, ...]], ...]


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
            compared="" if winner is None else _compared(record, winner),
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
            tested=_tested(record),
            label=label,
            value=value_of,
            sortable=_sortable,
            remarks=_remarks,
            key_mark=key_mark,
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


def _sortable(value: float | None) -> str:
    """For the page's script, which takes an empty text for missing."""
    return "" if value is None or not math.isfinite(value) else repr(value)


def _remarks(trial: TrialRecord) -> str:
    over = [
        f"{name} exceeded by {fmt.significant(by)}" for name, by in trial.violations.items() if not by <= 0
    ]
    beyond = [f"beyond the bound: {', '.join(trial.beyond)}"] if trial.beyond else []
    return trial.error or "; ".join([*over, *beyond])


def _tested(record: SearchRecord) -> str:
    """The test figure that speaks for a trial: the first objective's, else the task's."""
    names = (record.objectives[0].name, "accuracy", "perplexity", "loss")
    known = {name for one in (record.dense, *(trial.outcome for trial in record.trials)) for name in one}
    return next((f"test_{name}" for name in names if f"test_{name}" in known), f"test_{names[0]}")


def _compared(record: SearchRecord, winner: TrialRecord) -> str:
    """The winner's test figure beside the reference's and the dense model's, as a sentence."""
    name = _tested(record)
    own = _finite(winner.outcome.get(name))
    if own is None:
        return ""
    others = ((record.reference_name, record.reference), ("the dense model", record.dense))
    found = [(who, _finite(outcome.get(name))) for who, outcome in others]
    beside = " and ".join(f"{who} {value_of(name, one)}" for who, one in found if one is not None)
    return f"On the test side its {name.removeprefix('test_')} is {value_of(name, own)}" + (
        f"; {beside}." if beside else "."
    )


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
    return _finite(trial.seconds if name == "seconds" else trial.outcome.get(name))


def _finite(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else value


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
        if x is not None and y is not None:
            told = f"trial {trial.number} ({trial.state}): {value_of(y_name, y)}, {label(x_name)} {value_of(x_name, x)}"
            points.append(Point(number=trial.number, x=x, y=y, kind=_kind(record, trial), told=told))
    if not points:
        return None
    feasible = {trial.number for trial in record.trials if trial.feasible}
    modes = {one.name: one.mode for one in record.objectives} | {"trial": "min"}
    ends = [(point.x, point.y) for point in points if point.number in feasible]
    line = steps(ends, modes[x_name], modes[y_name])
    if line and x_name == "trial":  # the best so far lasts
        line.append((max(point.x for point in points), line[-1][1]))
    x, y = _finite(record.reference.get(x_name)), _finite(record.reference.get(y_name))
    if x is not None and y is not None:
        told = f"{record.reference_name}: {value_of(y_name, y)}, {label(x_name)} {value_of(x_name, x)}"
        points.append(Point(number=-1, x=x, y=y, kind="reference", told=told))
    return scatter(points, line, label(x_name), label(y_name), y if x_name == "trial" else None)


def _data(record: SearchRecord) -> Markup:
    """For the page's script; ``<`` is escaped, so that no name can end the element."""
    names = _plottable(record)
    document = {
        "names": {name: label(name) for name in names},
        "modes": {one.name: one.mode for one in record.objectives} | {"trial": "min"},
        "reference": record.reference_name,
        "trials": {str(t.number): {name: _figure(t, name) for name in names} for t in record.trials}
        | ({"-1": {n: _finite(record.reference.get(n)) for n in names}} if record.reference else {}),
        "feasible": [trial.number for trial in record.trials if trial.feasible],
    }
    return Markup(json.dumps(to_jsonable(document)).replace("<", "\\u003c"))


def _choices(record: SearchRecord) -> Choices | None:
    """Parallel coordinates of complete and stopped trials."""
    first = record.objectives[0]
    judged = [trial for trial in record.trials if trial.rungs and math.isfinite(trial.rungs[-1][1])]
    names = list(dict.fromkeys(name for trial in judged for name in trial.params))
    if len(judged) < 2 or not names:
        return None
    sign = 1 if first.mode == "min" else -1
    ranked = sorted(judged, key=lambda trial: (trial.state != "complete", sign * trial.rungs[-1][1]))
    ranks = {trial.number: index / len(ranked) for index, trial in enumerate(ranked)}
    axes, heights = [], []
    for name in names:
        chosen = [plain(trial.params[name]) if name in trial.params else None for trial in judged]
        axis, height = axis_of(name.replace("_", " "), [one for one in chosen if one is not None])
        axes.append(axis)
        heights.append([None if one is None else height[one] for one in chosen])
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
    rows = tuple(
        (trial.number, tuple(shown(trial.params[n]) if n in trial.params else "–" for n in names))
        for trial in sorted(judged, key=lambda one: ranks[one.number])
    )
    return Choices(
        picture=parallel(axes, lines), names=tuple(name.replace("_", " ") for name in names), rows=rows
    )


def _prices(record: SearchRecord) -> list[Price]:
    """The best feasible trial that obeys the bounds, the best that does not, and the reference."""
    first = record.objectives[0]
    better = min if first.mode == "min" else max
    rows: list[tuple[str, str, dict[str, float]]] = []
    for name, beyond in (("within the bounds", False), ("beyond them", True)):
        some = [trial for trial in record.trials if trial.feasible and bool(trial.beyond) == beyond]
        best = better(some, key=lambda trial: trial.values[first.name]) if some else None
        rows.append((name, "none", {}) if best is None else (name, str(best.number), best.outcome))
    if record.reference:
        rows.append((record.reference_name, "–", record.reference))
    tested = _tested(record)
    return [
        Price(
            name=name,
            number=number,
            value=value_of(first.name, outcome.get(first.name)),
            test=value_of(tested, outcome.get(tested)),
            compression=value_of("compression", outcome.get("compression")),
        )
        for name, number, outcome in rows
    ]


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
