"""The page of a search: everything is on it, nothing breaks it, nothing is fetched."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from typing import Any

import pytest

from workflows.report.search_page import render_search
from workflows.search.record import (
    BoundRecord,
    ObjectiveRecord,
    SearchRecord,
    StageRecord,
    TrialRecord,
)

HOSTILE = '</script><script>alert("x")</script><img src=http://evil.example/x>'
MODES: dict[str, Any] = {"loss": "min", "params": "min", "latency": "min", "accuracy": "max"}


def trial(number: int, state: Any = "complete", **changes: Any) -> TrialRecord:
    outcome = {
        "loss": 0.02 + 0.001 * ((7 * number) % 5),
        "accuracy": 0.99,
        "test_loss": 0.03,
        "test_accuracy": 0.985,
        "params": 20000.0 + 100 * number,
        "compression": 13.8,
        "latency": 0.4 + 0.01 * number,
    }
    one = TrialRecord(
        number=number,
        state=state,
        origin="drawn",
        params={"order": "layer head channel", "rank": 4 + 4 * (number % 2), "layers": 2 + number % 3},
        values=dict(outcome) if state == "complete" else {},
        rungs=() if state == "failed" else (("no recovery", 0.2), ("full recovery", outcome["loss"])),
        outcome={} if state == "failed" else outcome,
        stages=(
            StageRecord(
                granularity="layer",
                ratio=0.5,
                criterion="taylor",
                allocation="uniform",
                steps=30,
                compression=2.0,
                cached=False,
                seconds=1.0,
            ),
        ),
        requested=6,
        computed=4,
        seconds=10.0,
        saved=3.0,
        error="DataError: odd" if state == "failed" else None,
    )
    return replace(one, **changes)


def record(
    objectives: tuple[str, ...] = ("loss",), trials: tuple[TrialRecord, ...] | None = None, **changes: Any
):
    found = (
        trials
        if trials is not None
        else (*(trial(n) for n in range(4)), trial(4, "pruned"), trial(5, "failed"))
    )
    one = SearchRecord(
        model="gpt2",
        data="cwru, split load:3",
        task="diagnosis",
        target=13.8,
        reach=40.0,
        objectives=tuple(ObjectiveRecord(name=name, mode=MODES[name], unit="units") for name in objectives),
        limits={},
        bounds=(BoundRecord(unit="layer", safe=0.5, loss=None, ratio=0.5, least=1, units=6),),
        rounds=3,
        sampler="TPE",
        scheduler="ASHA",
        ignored_sia=False,
        trials=found,
        winner=0 if any(one.state == "complete" for one in found) else None,
        front=tuple(one.number for one in found if one.state == "complete")[:2],
        dense={"loss": 0.01, "params": 300000.0},
        reference={"loss": 0.025, "params": 21000.0, "latency": 0.5},
        reference_name="the configuration's own schedule",
        importances={"loss": {"order": 0.7, "rank": 0.3}},
        agreement={"no recovery": (0.4, 4)},
        foresight=0.6,
        wall=100.0,
        slots=2,
        overhead=0.03,
    )
    return replace(one, **changes)


def visible(page: str) -> str:
    """The page's text without scripts, styles and attributes."""
    page = re.sub(r"<(script|style).*?</\1>", " ", page, flags=re.S)
    return re.sub(r"\s+", " ", re.sub(r"<[^>]*>", " ", page))


@pytest.mark.parametrize("objectives", [("loss",), ("loss", "params"), ("accuracy", "params", "latency")])
def test_every_trial_is_drawn_and_listed(objectives: tuple[str, ...]) -> None:
    page = render_search(record(objectives))
    for number in range(6):
        assert f'<tr data-trial="{number}">' in page
    drawn = set(re.findall(r'<circle[^>]*data-trial="(-?\d+)"', page))
    assert drawn >= {"0", "1", "2", "3", "4"}
    assert "5" not in drawn  # it failed: there is nothing to draw
    assert "DataError: odd" in page
    text = visible(page)
    for word in (" nan", "None", "NaN", "inf ", "undefined"):
        assert word not in text, word
    assert all(
        len(re.findall(f'aria-labelledby="{name}"', page)) == 1 for name in ("winner", "tradeoff", "cost")
    )


def test_names_cannot_break_out() -> None:
    page = render_search(record(model=HOSTILE, data=HOSTILE, trials=(trial(0, origin=HOSTILE), trial(1))))
    assert HOSTILE not in page
    assert "<img" not in page
    data = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, flags=re.S)
    assert data is not None
    assert set(json.loads(data[1])["trials"]) == {"0", "1", "-1"}


def test_nothing_is_fetched() -> None:
    page = render_search(record(("loss", "params")))
    assert not re.search(r'(src|href)="(?!data:|#)', page)
    assert "url(" not in page
    assert "@import" not in page


def test_without_a_winner() -> None:
    page = render_search(
        record(trials=(trial(0, "failed"), trial(1, "pruned")), importances={}, agreement={})
    )
    assert "There is no winner: no trial was completed." in visible(page)
    limited = record(
        trials=(trial(0, violations={"latency": 0.2}),), winner=None, front=(), limits={"latency": 0.3}
    )
    page = render_search(limited)
    assert "no complete trial is within every limit" in visible(page)
    assert "latency exceeded" in visible(page)


def test_without_any_trial() -> None:
    assert "0 schedules: none" in visible(render_search(record(trials=(), importances={}, agreement={})))


def test_what_must_be_known_first() -> None:
    same = {"loss": 0.5}
    alike = tuple(trial(n, values=same) for n in range(3))
    text = visible(render_search(record(trials=alike, foresight=0.1, ignored_sia=True)))
    assert "hardly ranks these schedules as the test side does" in text
    assert "this objective does not tell them apart" in text
    assert "bounds of the SIA check were ignored" in text
    assert "Read this first" not in visible(render_search(record()))


def test_the_price_of_the_bounds() -> None:
    trials = (trial(0), trial(1, beyond=("layer",), values={"loss": 0.001}, outcome={"loss": 0.001}))
    text = visible(render_search(record(trials=trials)))
    assert re.search(r"within the bounds 0 0\.0200", text)
    assert re.search(r"beyond them 1 0\.00100", text)
