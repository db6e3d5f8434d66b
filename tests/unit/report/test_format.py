from __future__ import annotations

import math

import pytest

from workflows.report import format as fmt


@pytest.mark.parametrize(
    ("value", "written"),
    [(13.84, "13.8×"), (1.04, "1.04×"), (1.998, "2.0×"), (138.2, "138×"), (math.inf, "–")],
)
def test_factor(value: float, written: str) -> None:
    assert fmt.factor(value) == written


@pytest.mark.parametrize(
    ("value", "written"),
    [
        (0, "0"),
        (0.0312, "0.0312"),
        (5.624, "5.62"),
        (123_456, "123,456"),
        (3e-7, "3.00e−07"),
        (-2.5, "−2.50"),
        (math.nan, "not finite"),
    ],
)
def test_significant(value: float, written: str) -> None:
    assert fmt.significant(value) == written


@pytest.mark.parametrize(
    ("seconds", "written"),
    [(0.84, "0.8 s"), (42, "42 s"), (192, "3 min 12 s"), (3840, "1 h 04 min"), (59.7, "1 min 00 s")],
)
def test_duration(seconds: float, written: str) -> None:
    assert fmt.duration(seconds).replace(fmt.NBSP, " ") == written


@pytest.mark.parametrize(
    ("dense", "final", "written"),
    [
        (5.62, 1.81, "3.1× faster"),
        (10, 12, "1.20× slower"),
        (10, 10.2, "as fast as before"),
        (10, 0, "speed unknown"),
    ],
)
def test_speed_never_calls_slower_faster(dense: float, final: float, written: str) -> None:
    assert fmt.speed(dense, final) == written


@pytest.mark.parametrize(
    ("name", "title", "value", "change", "higher"),
    [
        ("accuracy", "accuracy", "85.4 %", "−1.7 points", True),
        ("macro_auroc", "macro AUROC", "0.854", "−0.017", True),
        ("perplexity", "perplexity", "0.854", "−0.017", False),
    ],
)
def test_metric_style(name: str, title: str, value: str, change: str, higher: bool) -> None:
    style = fmt.metric_style(name)
    assert style.title == title
    assert style.value(0.854).replace(fmt.NBSP, " ") == value
    assert style.change(0.871, 0.854).replace(fmt.NBSP, " ") == change
    assert style.higher_is_better is higher


def test_a_removed_share_is_not_rounded_to_a_whole_percent() -> None:
    assert fmt.ratio(0.625) == f"62.5{fmt.NBSP}%"
    assert fmt.ratio(0.5) == f"50{fmt.NBSP}%"


def test_acronyms_keep_their_capitals_inside_a_sentence() -> None:
    assert [fmt.inside(fmt.granularity(g)) for g in ("layer", "kv_group", "channel", "neuron_block")] == [
        "layers",
        "KV groups",
        "FFN channels",
        "neuron block",
    ]
