"""The page of a benchmark: what it says, what it leaves out, and that it holds in a narrow and a dark window."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from cascade_ops.loadtest import Bench, Ratio
from tests.unit.loadtest.factory import DENSE, SMALL, bench, language_bench, load, processes
from tests.unit.report import chromium
from workflows.report.bench_page import render_bench
from workflows.report.bench_table import loads_table, processes_table, ratios_table
from workflows.report.bench_words import good, in_words, name_of, value_of


@pytest.fixture(scope="module")
def page() -> str:
    return render_bench(bench())


def words(html: str) -> str:
    return re.sub(r"\s+", " ", re.sub(r"<[^>]*>", " ", html)).replace("\u00a0", " ")


def test_says_what_changed_under_load_alone_and_at_which_cost(page: str) -> None:
    text = words(page)
    for expected in (
        "side by side with dense",
        "latency p50 68 % less",
        "Latency against load",
        "capacity of small",
        "objective 50 ms",
        "ONNX, no PyTorch",
        "Accuracy against cost",
        "small divided by dense in the same round",
        "RAPL: no processor package",
        "one replica, all models",
    ):
        assert expected in text, expected
    assert page.count("<svg") == page.count("</svg>")
    charts = re.findall(r'<svg class="chart"[^>]*>', page)
    assert len(charts) == 7
    assert all('aria-label="' in chart for chart in charts)


def test_nothing_is_fetched_and_nothing_is_not_a_number(page: str) -> None:
    assert not re.search(r'(src|href)="(?!data:,)[^"]*"|url\(|@import', page)
    assert not re.search(r"\bnan\b|\binf\b|not finite|None", page)


def test_every_load_has_its_row_with_errors_and_untold_percentiles() -> None:
    columns, rows = loads_table(bench())
    assert len(rows) == 14
    assert {len(row) for row in rows} == {len(columns)}
    dense = rows[8]
    assert dense[:2] == ("open loop, 100/s", DENSE)
    assert dense[6] == "–"  # 390 requests do not tell p99.9
    refused = next(row for row in rows if "503" in row[-1])
    assert re.search(r"\d+ × 503", refused[-1])


def test_a_process_that_failed_is_told() -> None:
    first, *rest = processes()
    failed = replace(first, rounds=(), parity=None, failed="engine 'eager' cannot run this model")
    found = bench(offline=(failed, *rest), notes=("dense on eager was not measured: …",))
    assert "not measured" in words(render_bench(found))
    _, rows = processes_table(found)
    assert any("not measured" in row for row in rows)


@pytest.mark.parametrize(
    ("found", "absent"),
    [
        (bench(online=None), "Latency against load"),
        (bench(offline=()), "One process, no server"),
        (bench(variants=(SMALL,)), "divided by"),
        (bench(variants=(DENSE,)), "divided by"),
        (language_bench(), "Accuracy against cost"),
        (bench(rounds=1), "too uncertain"),
    ],
    ids=["offline only", "online only", "no baseline", "baseline alone", "language model", "one round"],
)
def test_what_was_not_measured_is_left_out(found: Bench, absent: str) -> None:
    text = words(render_bench(found))
    assert absent not in text
    assert "Where these figures come from" in text


def test_a_language_models_figures_are_told() -> None:
    text = words(render_bench(language_bench()))
    for expected in ("Time to first token", "per token, ms", "keys and values kept", "75 % less"):
        assert expected in text, expected


def test_names_are_escaped() -> None:
    nasty = "<script>alert(1)</script>"
    found = bench()
    models = (found.models[0], replace(found.models[1], title=nasty))
    html = render_bench(replace(found, models=models, notes=(nasty,)))
    assert nasty not in html
    assert "&lt;script&gt;" in html


def test_a_load_that_answered_nothing_still_renders() -> None:
    dead = load(DENSE, "open", 100.0)
    whole = replace(dead.whole, answered=0, throughput=0.0, goodput=0.0, within=0.0, errors={"503": 1500})
    dead = replace(dead, whole=replace(whole, p50_ms=None, p90_ms=None, p95_ms=None, p99_ms=None))
    found = bench()
    assert found.online is not None
    html = render_bench(replace(found, online=replace(found.online, loads=(dead,)), ratios=()))
    assert "1,500 × 503" in words(html)


def test_ratios_in_words() -> None:
    assert in_words(Ratio(value=0.33, low=0.3, high=0.36)) == "67\u00a0% less"
    assert in_words(Ratio(value=1.2, low=1.1, high=1.3)) == "20\u00a0% more"
    assert in_words(Ratio(value=3.1, low=3.0, high=3.2)) == "3.1× as much"
    assert in_words(Ratio(value=0.9, low=0.7, high=1.1)) == "no clear difference"
    assert in_words(Ratio(value=0.9, low=0.1, high=9.0)) == "too uncertain to tell"
    assert in_words(Ratio(value=1.0, low=1.0, high=1.0)) == "the same"
    assert good("p50_ms", Ratio(value=0.5, low=0.4, high=0.6)) is True
    assert good("throughput", Ratio(value=0.5, low=0.4, high=0.6)) is False
    assert good("p50_ms", Ratio(value=0.5)) is None  # one round shows nothing
    assert good("size_bytes", Ratio(value=0.5)) is True
    assert name_of("batch_throughput[8]") == "samples/s in batches of 8"
    assert value_of("above_bytes", 31e6) == "31.0\u00a0MB"
    assert value_of("load_s", 0.5) == "0.5\u00a0s"


def test_the_ratio_table_names_each_place_once() -> None:
    _, rows = ratios_table(bench())
    places = [row[0] for row in rows if row[0]]
    assert len(places) == len(set(places))


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[chromium.Browser]:
    executable = chromium.find()
    if executable is None:
        pytest.skip("no Chromium on the PATH")
    opened = chromium.Browser(executable, tmp_path_factory.mktemp("profile"))
    yield opened
    opened.close()


@pytest.mark.parametrize(("width", "dark"), [(360, True), (1200, False)])
def test_quiet_and_within_the_window(
    browser: chromium.Browser, page: str, tmp_path: Path, width: int, dark: bool
) -> None:
    path = tmp_path / "bench.html"
    path.write_text(page, encoding="utf-8")
    browser.open(path, width, dark=dark)
    assert (
        browser.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth") <= 0
    )
    assert browser.complaints() == []
    assert browser.requested() == [path.as_uri()]
    # every mark lies within its chart
    outside = """[...document.querySelectorAll('svg.chart')].filter(chart => {
      const box = chart.getBoundingClientRect();
      return [...chart.querySelectorAll('.point, .fill')].some(mark => {
        const at = mark.getBoundingClientRect();
        return at.left < box.left - 8 || at.right > box.right + 8 || at.top < box.top || at.bottom > box.bottom;
      });
    }).length"""
    assert browser.evaluate(outside) == 0
