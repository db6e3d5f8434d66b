"""The page of a search on records as real searches leave them: conditional choices, odd figures, no winner."""

from __future__ import annotations

import json
import math
import random
import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from workflows.report.search_charts import steps
from workflows.report.search_page import render_search
from workflows.search.record import (
    BoundRecord,
    Mode,
    ObjectiveRecord,
    SearchRecord,
    StageRecord,
    TrialRecord,
)

HOSTILE = '</script><script>alert("x")</script><img src=http://evil.example/x>&"\''
OBJECTIVES: dict[str, tuple[Mode, str]] = {
    "loss": ("min", "nats, on the validation side"),
    "params": ("min", "backbone parameters"),
    "latency": ("min", "share of the dense model's"),
}
ORDERS = ("layer head channel", "layer kv_group channel", "channel layer head")
DENSE = {
    "accuracy": 0.991,
    "loss": 0.031,
    "test_accuracy": 0.982,
    "test_loss": 0.058,
    "compression": 1.0,
    "params": 303104.0,
    "memory_mb": 1.21,
    "latency_ms": 8.4,
    "latency": 1.0,
}


def objectives(*names: str) -> tuple[ObjectiveRecord, ...]:
    return tuple(ObjectiveRecord(name=n, mode=OBJECTIVES[n][0], unit=OBJECTIVES[n][1]) for n in names)


def stages(chance: random.Random, order: str) -> tuple[StageRecord, ...]:
    reached, found = 1.0, []
    for place, unit in enumerate(order.split()):
        ratio = chance.uniform(0.3, 0.7)
        reached /= 1 - 0.8 * ratio
        found.append(
            StageRecord(
                granularity=unit,
                ratio=ratio,
                criterion=chance.choice(("taylor", "magnitude")),
                allocation="uniform",
                steps=chance.choice((60, 120, 240)),
                compression=reached,
                cached=place == 0,
                seconds=chance.uniform(4, 30),
            )
        )
    return tuple(found)


def trial(number: int, state: Any = "complete", *, names: Sequence[str] = ("loss",)) -> TrialRecord:
    chance = random.Random(number)
    order = chance.choice(ORDERS)
    params: dict[str, Any] = {
        "order": order,
        "layer_ratio": chance.uniform(0.2, 0.6),
        "channel_ratio": chance.uniform(0.3, 0.8),
        "criterion": chance.choice(("taylor", "magnitude", "variance")),
        "recovery_steps": chance.choice((60, 120, 240)),
        "learning_rate": 10 ** chance.uniform(-4, -2.5),
    }
    if "kv_group" in order:
        params["kv_rounds"] = chance.choice((1, 2))
    loss = abs(params["layer_ratio"] - 0.35) + 0.3 * abs(params["channel_ratio"] - 0.5) + 0.05
    compression = chance.uniform(8.0, 18.0)
    outcome = {
        "accuracy": 1 - loss / 3,
        "loss": loss,
        "test_accuracy": 0.97 - loss / 3,
        "test_loss": loss + chance.uniform(0.0, 0.1),
        "compression": compression,
        "params": DENSE["params"] / compression,
        "memory_mb": DENSE["memory_mb"] / compression,
        "latency_ms": 8.4 * (0.2 + 0.6 * chance.random()),
    }
    outcome["latency"] = outcome["latency_ms"] / 8.4
    rungs = (("no recovery", loss * 2.5), ("15 % of the recovery", loss * 1.4), ("full recovery", loss))
    done = state == "complete"
    return TrialRecord(
        number=number,
        state=state,
        origin="paper" if number == 0 else "drawn" if number % 3 else f"branch of {number // 2}",
        params=params,
        values={name: outcome[name] for name in names} if done else {},
        rungs=() if state == "failed" else rungs if done else rungs[:2],
        outcome={} if state == "failed" else outcome if done else outcome | {"loss": loss * 1.4},
        violations={"latency": outcome["latency"] - 0.7} if done else {},
        stages=() if state == "failed" else stages(chance, order),
        requested=9,
        computed=chance.randint(2, 9),
        seconds=chance.uniform(20, 140),
        saved=chance.uniform(0, 60),
        error="DataError: channel 3: expected 12 units, found 11" if state == "failed" else None,
    )


def trials(count: int = 24, names: Sequence[str] = ("loss",)) -> tuple[TrialRecord, ...]:
    states = ("complete", "pruned", "complete", "complete", "pruned", "complete", "complete", "failed")
    return tuple(trial(n, states[n % 8], names=names) for n in range(count))


def search(*names: str, found: tuple[TrialRecord, ...] | None = None, **changes: Any) -> SearchRecord:
    """A search over the named objectives (all smaller is better), with its front and winner worked out."""
    names = names or ("loss",)
    found = trials(names=names) if found is None else found
    points = {t.number: tuple(t.values[n] for n in names) for t in found if t.feasible}
    front = tuple(
        n
        for n, one in sorted(points.items(), key=lambda pair: pair[1])
        if not any(all(a <= b for a, b in zip(p, one, strict=True)) and p != one for p in points.values())
    )
    record = SearchRecord(
        model="meta-llama/Llama-3.2-1B",
        data="cwru, split load:3",
        task="diagnosis",
        target=13.8,
        reach=41.3,
        objectives=objectives(*names),
        limits={"latency": 0.7},
        bounds=(
            BoundRecord(unit="layer", safe=0.5, loss=0.42, ratio=0.42, least=1, units=12),
            BoundRecord(unit="kv_group", safe=None, loss=None, ratio=1.0, least=1, units=4),
            BoundRecord(unit="channel", safe=0.63, loss=0.8, ratio=0.63, least=16, units=1024),
        ),
        rounds=3,
        sampler="TPE",
        scheduler="ASHA",
        ignored_sia=False,
        trials=found,
        winner=front[0] if front else None,
        front=front,
        dense=DENSE,
        reference=DENSE
        | {"loss": 0.21, "test_loss": 0.3, "accuracy": 0.93, "test_accuracy": 0.901}
        | {"compression": 13.8, "params": 21964.0, "memory_mb": 0.088, "latency": 0.5, "latency_ms": 4.2},
        reference_name="the configuration's own schedule",
        importances={
            name: {"layer_ratio": 0.52, "channel_ratio": 0.21, "order": 0.17, "learning_rate": 0.1}
            for name in names
        },
        agreement={"no recovery": (0.41, 12), "15 % of the recovery": (0.83, 12)},
        foresight=0.62,
        wall=1512.0,
        slots=2,
        overhead=0.034,
        provenance={"python": "3.11.7", "torch": "2.9.0", "machine": {"cpu": "x86", "cores": 2}},
    )
    return replace(record, **changes)


def body(page: str) -> str:
    """The page without scripts and styles."""
    return re.sub(r"<(script|style).*?</\1>", " ", page, flags=re.S)


def visible(page: str) -> str:
    return re.sub(r"\s+", " ", re.sub(r"<[^>]*>", " ", body(page)))


def island(page: str) -> dict[str, Any]:
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, flags=re.S)
    assert found is not None
    data: dict[str, Any] = json.loads(found[1])
    return data


def drawn(page: str) -> dict[int, str]:
    """Trial → kind of its mark in the trade-off."""
    marks = re.findall(r'<(?:circle|svg)[^>]*class="trial (\w+)"[^>]*data-trial="(-?\d+)"', page)
    return {int(number): kind for kind, number in marks}


@pytest.mark.parametrize("names", [("loss",), ("loss", "params"), ("loss", "params", "latency")])
def test_every_trial_has_its_mark_and_its_row(names: tuple[str, ...]) -> None:
    record = search(*names)
    page = render_search(record)
    marks = drawn(page)
    for one in record.trials:
        row = re.search(rf'<tr data-trial="{one.number}">.*?</tr>', page, flags=re.S)
        assert row is not None
        if one.state == "failed":
            assert one.number not in marks
            assert "DataError: channel 3" in row[0]
        elif one.state == "pruned":
            assert marks[one.number] == "pruned"
            assert "stopped early" in row[0]
        elif not one.feasible:
            assert marks[one.number] == "beyond"
            assert "latency exceeded by" in row[0]
    assert marks[record.winner if record.winner is not None else -2] == "winner"
    assert {n for n, kind in marks.items() if kind in ("front", "winner")} == set(record.front)
    assert (-1 in marks) == (len(names) > 1)  # the reference has no number to stand over
    assert set(island(page)["feasible"]) == {one.number for one in record.trials if one.feasible}


@pytest.mark.parametrize("names", [("loss",), ("loss", "params")])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_figures_that_are_not_finite(names: tuple[str, ...], bad: float) -> None:
    odd = tuple(
        replace(
            one,
            outcome={name: bad if one.number % 5 == 1 else value for name, value in one.outcome.items()},
            rungs=(("no recovery", bad),) if one.number == 1 else one.rungs,
            violations={"latency": bad} if one.number == 2 else one.violations,
        )
        for one in trials(names=names)
    )
    page = render_search(
        search(*names, found=odd, reference=DENSE | {"loss": bad}, dense=DENSE | {"loss": bad}, foresight=bad)
    )
    assert not re.search(r'="[^"]*\b(nan|inf)\b', body(page), flags=re.I)
    assert not re.search(r"\b(nan|NaN|inf|Infinity|undefined|None)\b", visible(page))
    assert island(page)["trials"]["1"]["loss"] is None


def test_choices_of_every_kind() -> None:
    found = tuple(
        replace(
            one, params=one.params | {"ratios": [0.5, 0.25], "mask": None, "rescore": bool(one.number % 2)}
        )
        for one in trials()
    )
    text = visible(render_search(search(found=found)))
    assert "0.500, 0.250" in text
    assert "None" not in text
    assert "l›h›c" in text
    # A choice that did not arise in a trial is a dash in the table and passed over by the line.
    page = render_search(search(found=tuple(trial(n) for n in (1, 0))))
    assert ["kv_rounds" in trial(n).params for n in (1, 0)] == [False, True]
    table = re.search(r'aria-label="Choices as a table".*?</table>', page, flags=re.S)
    assert table is not None
    assert re.search(r">1</th>.*?<td>–</td>", table[0], flags=re.S)


def test_hostile_names_are_escaped() -> None:
    found = tuple(
        replace(one, origin=HOSTILE, error=HOSTILE, params=one.params | {HOSTILE: HOSTILE})
        for one in trials()
    )
    page = render_search(
        search(
            found=found,
            model=HOSTILE,
            data=HOSTILE,
            sampler=HOSTILE,
            reference_name=HOSTILE,
            importances={"loss": {HOSTILE: 1.0}},
            agreement={HOSTILE: (0.5, 7)},
            provenance={HOSTILE: HOSTILE},
        )
    )
    assert "<img" not in page
    assert "alert(" not in body(page).replace("alert(&#34;x&#34;)", "")
    assert island(page)["reference"] == HOSTILE


@pytest.mark.parametrize("names", [("loss",), ("loss", "params", "latency")])
def test_nothing_is_fetched(names: tuple[str, ...]) -> None:
    page = render_search(search(*names))
    assert not re.search(r'\b(?:src|href)="(?!data:|#)', page)
    assert not re.search(r"url\(|@import|fetch\(|XMLHttpRequest|import\(", page)
    assert set(re.findall(r"https?://[^\"'\s]+", page)) <= {"http://www.w3.org/2000/svg"}


def test_no_complete_trial() -> None:
    found = tuple(trial(n, "pruned" if n % 2 else "failed") for n in range(5))
    page = render_search(search(found=found, importances={}, agreement={}, foresight=None))
    text = visible(page)
    assert "There is no winner: no trial was completed." in text
    assert "cascade compress" not in text
    assert "2 stopped early, 3 failed" in text
    assert set(drawn(page).values()) == {"pruned"}


def test_no_feasible_trial() -> None:
    found = tuple(replace(one, violations={"latency": 0.1}) for one in trials())
    record = search(found=found)
    assert record.winner is None
    page = render_search(record)
    assert "no complete trial is within every limit" in visible(page)
    assert set(drawn(page).values()) == {"beyond", "pruned"}
    assert island(page)["feasible"] == []


def test_the_winner_is_set_beside_the_reference_and_the_dense_model() -> None:
    record = search()
    assert record.winner is not None
    own = record.trial(record.winner).outcome["test_loss"]
    text = visible(render_search(record))
    assert (
        f"On the test side its loss is {own:.3f}; the configuration's own schedule 0.300 and "
        "the dense model 0.0580." in text.replace("&#39;", "'")
    )
    # An objective that has no test side leaves the task's own figure to speak.
    assert "On the test side its accuracy is" in visible(render_search(search("params")))


def test_the_price_names_the_reference() -> None:
    text = visible(render_search(search())).replace("&#39;", "'")
    assert re.search(r"beyond them none – – –", text)
    assert re.search(r"the configuration's own schedule – 0\.210 0\.300 13\.8×", text)


@pytest.mark.parametrize(
    ("modes", "points", "wanted"),
    [
        (("min", "min"), [(1, 3), (2, 4), (3, 1)], [(1, 3), (3, 3), (3, 1)]),
        (("min", "max"), [(1, 3), (2, 4), (3, 1)], [(1, 3), (2, 3), (2, 4)]),
        (("max", "min"), [(1, 1), (2, 4), (3, 3)], [(3, 3), (1, 3), (1, 1)]),
        (("min", "min"), [(1, 3), (1, 2)], [(1, 2)]),
        (("min", "min"), [], []),
    ],
)
def test_the_stair(
    modes: tuple[Mode, Mode], points: list[tuple[float, float]], wanted: list[tuple[float, float]]
) -> None:
    assert steps(points, *modes) == wanted
