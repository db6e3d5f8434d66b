"""What the study says: do figures known before pruning tell what pruning costs?"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np
from scipy import stats

Row = dict[str, Any]
COLLAPSE = 0.2
"""Accuracy lost, as a share, from which a cut counts as a collapse."""
RESAMPLES = 1000
AFTERWARDS = "(known only afterwards: rise of the test loss)"
"""How well a perfect knowledge of the loss would do."""
PREDICTORS: dict[str, Callable[[Row], float]] = {
    "A(r)": lambda row: float(row["gap"]),
    "r − r*": lambda row: float(row["ratio"]) - float(row["safe"]),
    "ΔL(S_r) by shutting": lambda row: float(row["predicted_loss"]),
    "structural (κ, π)": lambda row: float(not row["structural"]),
    "r alone": lambda row: float(row["ratio"]),
    AFTERWARDS: lambda row: float(row["loss"]) - float(row["dense_loss"]),
}


def lost(row: Row) -> float:
    """Accuracy lost by the cut, as a share."""
    return float(row["dense_accuracy"]) - float(row["accuracy"])


def analyse(rows: Sequence[Row]) -> dict[str, Any]:
    """Predictive power, thresholds left one architecture out, and the arms side by side."""
    single = [row for row in rows if row["parts"] != "heads+channels"]
    right = [row for row in single if row["arm"] != "error"]
    return {
        "models": len({(row["architecture"], row["seed"]) for row in rows}),
        "cuts": len(rows),
        "collapses": sum(lost(row) > COLLAPSE for row in right),
        "judged": len(right),
        "predictors": {
            name: {
                "spearman": _interval(right, partial(_spearman, predictor=f)),
                "auc": _interval(right, partial(_auc, predictor=f)),
            }
            for name, f in PREDICTORS.items()
        },
        "left_out": {name: _left_out(right, PREDICTORS[name]) for name in ("A(r)", "r − r*")},
    }


def _spearman(rows: Sequence[Row], predictor: Callable[[Row], float]) -> float:
    given, outcome = [predictor(row) for row in rows], [lost(row) for row in rows]
    if np.ptp(given) == 0 or np.ptp(outcome) == 0:
        return math.nan
    return float(stats.spearmanr(given, outcome).statistic)


def _auc(rows: Sequence[Row], predictor: Callable[[Row], float]) -> float:
    """How often a collapse has the larger figure than a cut without; ties count half."""
    ranks = stats.rankdata([predictor(row) for row in rows])
    fell = np.array([lost(row) > COLLAPSE for row in rows])
    positive, negative = int(fell.sum()), int((~fell).sum())
    if not positive or not negative:
        return math.nan
    return float((ranks[fell].sum() - positive * (positive + 1) / 2) / (positive * negative))


def _interval(rows: Sequence[Row], figure: Callable[[Sequence[Row]], float]) -> dict[str, float]:
    """With its 95 % bootstrap over models: cuts of one model are not independent."""
    by_model: dict[tuple[str, int], list[Row]] = {}
    for row in rows:
        by_model.setdefault((row["architecture"], row["seed"]), []).append(row)
    models = list(by_model.values())
    generator = np.random.default_rng(0)
    draws = []
    for _ in range(RESAMPLES):
        chosen = generator.integers(0, len(models), len(models))
        draws.append(figure([row for index in chosen for row in models[index]]))
    usable = [value for value in draws if not math.isnan(value)]
    low, high = np.quantile(usable, [0.025, 0.975]).tolist() if usable else (math.nan, math.nan)
    return {"value": figure(rows), "low": low, "high": high, "n": len(rows)}


def _left_out(rows: Sequence[Row], predictor: Callable[[Row], float]) -> dict[str, float]:
    """Balanced accuracy of telling collapses by a threshold chosen on the other architectures."""
    hits: list[tuple[bool, bool]] = []
    thresholds = []
    names = sorted({row["architecture"] for row in rows})
    if len(names) < 2:
        return dict.fromkeys(("balanced_accuracy", "threshold_low", "threshold_high"), math.nan)
    for held in names:
        others = [row for row in rows if row["architecture"] != held]
        threshold = _threshold(others, predictor)
        thresholds.append(threshold)
        hits += [
            (lost(row) > COLLAPSE, predictor(row) > threshold) for row in rows if row["architecture"] == held
        ]
    return {
        "balanced_accuracy": _balanced(hits),
        "threshold_low": min(thresholds),
        "threshold_high": max(thresholds),
    }


def _threshold(rows: Sequence[Row], predictor: Callable[[Row], float]) -> float:
    values = sorted({predictor(row) for row in rows})
    borders = [(a + b) / 2 for a, b in pairwise(values)] or values
    scored = [(_balanced([(lost(row) > COLLAPSE, predictor(row) > t) for row in rows]), t) for t in borders]
    best = max(score for score, _ in scored)
    return float(np.median([t for score, t in scored if score == best]))


def _balanced(hits: Sequence[tuple[bool, bool]]) -> float:
    shares = []
    for truth in (True, False):
        told = [said == truth for fell, said in hits if fell == truth]
        if told:
            shares.append(sum(told) / len(told))
    return sum(shares) / len(shares)


def page(rows: Sequence[Row], found: dict[str, Any]) -> str:
    """The tables as Markdown."""
    predictors = [
        (name, _ends(one["spearman"]), _ends(one["auc"])) for name, one in found["predictors"].items()
    ]
    left = [
        (
            name,
            f"{one['balanced_accuracy']:.2f}",
            f"{one['threshold_low']:.2f} to {one['threshold_high']:.2f}",
        )
        for name, one in found["left_out"].items()
    ]
    dense = [float(row["dense_accuracy"]) for row in rows]
    parts = [
        f"{found['models']} models, dense accuracy {100 * np.mean(dense):.1f} % (lowest {100 * min(dense):.1f}); "
        f"{found['judged']} cuts of one part (heads or channels; regrouped and apart), {found['collapses']} of them "
        f"collapses (more than {COLLAPSE:.0%} of accuracy lost). Intervals: 95 % bootstrap over models.",
        _table(("known before", "Spearman with accuracy lost", "AUC for collapse"), predictors),
        "Threshold chosen on fifteen architectures, judged on the sixteenth:",
        _table(("known before", "balanced accuracy", "threshold"), left),
        "Accuracy lost, in points, by cutting 90 % (mean ± half-width of the 95 % interval over seeds):",
        _table(("architecture", *_columns()), _lines(rows, "accuracy", 0.9)),
        "The same after heads and channels both lost 90 %, before and after the recovery:",
        _table(
            (
                "architecture",
                "regrouped",
                "apart",
                "error",
                "regrouped, recovered",
                "apart, recovered",
                "error, recovered",
            ),
            _both(rows, 0.9),
        ),
    ]
    return "\n\n".join(parts)


ARMS = ("regrouped", "apart", "error")


def _columns() -> tuple[str, ...]:
    return tuple(f"{part}, {arm}" for part in ("heads", "channels") for arm in ARMS)


def _lines(rows: Sequence[Row], column: str, ratio: float) -> list[tuple[str, ...]]:
    lines = []
    for name in dict.fromkeys(row["architecture"] for row in rows):
        cells = [
            _mean([row for row in rows if _is(row, name, part, arm, ratio)], column)
            for part in ("heads", "channels")
            for arm in ARMS
        ]
        lines.append((name, *cells))
    return lines


def _both(rows: Sequence[Row], ratio: float) -> list[tuple[str, ...]]:
    lines = []
    for name in dict.fromkeys(row["architecture"] for row in rows):
        some = {arm: [row for row in rows if _is(row, name, "heads+channels", arm, ratio)] for arm in ARMS}
        before = [_mean(some[arm], "accuracy") for arm in ARMS]
        after = [_mean(some[arm], "recovered_accuracy") for arm in ARMS]
        lines.append((name, *before, *after))
    return lines


def _is(row: Row, name: str, parts: str, arm: str, ratio: float) -> bool:
    return (row["architecture"], row["parts"], row["arm"], row["ratio"]) == (name, parts, arm, ratio)


def _mean(rows: Sequence[Row], column: str) -> str:
    values = [100 * (row["dense_accuracy"] - row[column]) for row in rows if row[column] is not None]
    if not values:
        return "–"
    if len(values) == 1:
        return f"{values[0]:.1f}"
    half = float(stats.t.ppf(0.975, len(values) - 1)) * float(np.std(values, ddof=1)) / math.sqrt(len(values))
    return f"{np.mean(values):.1f} ± {half:.1f}"


def _ends(one: dict[str, float]) -> str:
    return f"{one['value']:.2f} [{one['low']:.2f}, {one['high']:.2f}]"


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
