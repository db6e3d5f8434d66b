"""The page in a real browser: silent console, no request beyond itself, no sideways scrolling."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.unit.report import chromium
from tests.unit.report.factory import bearing_report, example, huge_report, language_report
from workflows.report import render_html

OVERFLOW = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
BACKGROUND = "getComputedStyle(document.body).backgroundColor"

pytestmark = pytest.mark.skipif(chromium.find() is None, reason="no Chromium on the PATH")


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[chromium.Browser]:
    executable = chromium.find()
    assert executable is not None
    opened = chromium.Browser(executable, tmp_path_factory.mktemp("profile"))
    yield opened
    opened.close()


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("reports")
    reports = {"bearing": bearing_report(), "language": language_report(), "huge": huge_report()}
    examples = {"bearing": (example(),)}
    pages = {name: folder / f"{name}.html" for name in reports}
    for name, page in pages.items():
        html = render_html(reports[name], artifacts={}, examples=examples.get(name, ()))
        page.write_text(html, encoding="utf-8")
    return pages


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [360, 1440])
@pytest.mark.parametrize("name", ["bearing", "language", "huge"])
def test_quiet_and_within_the_window(
    browser: chromium.Browser, pages: dict[str, Path], name: str, width: int, dark: bool
) -> None:
    browser.open(pages[name], width, dark=dark)
    assert browser.evaluate(OVERFLOW) <= 0
    assert browser.complaints() == []
    assert browser.requested() == [pages[name].as_uri()]
    red = int(browser.evaluate(BACKGROUND).split("(")[1].split(",")[0])
    assert (red < 60) is dark


def test_the_button_switches_the_theme(browser: chromium.Browser, pages: dict[str, Path]) -> None:
    browser.open(pages["bearing"], 1440, dark=False)
    before = browser.evaluate(BACKGROUND)
    browser.evaluate("document.querySelector('button.theme').click()")
    assert browser.evaluate(BACKGROUND) != before
    browser.evaluate("document.querySelector('button.theme').click()")
    assert browser.evaluate(BACKGROUND) == before


def test_readable_without_scripts(browser: chromium.Browser, pages: dict[str, Path]) -> None:
    browser.open(pages["bearing"], 1440, dark=False, scripts=False)
    browser.call("Emulation.setScriptExecutionDisabled", value=False)
    assert browser.evaluate("document.querySelector('button.theme')") is None
    assert "13.8× smaller backbone" in browser.evaluate("document.body.innerText")
    assert browser.evaluate("document.querySelectorAll('svg.chart').length") >= 6


def test_paper_stays_white(browser: chromium.Browser, pages: dict[str, Path]) -> None:
    browser.open(pages["bearing"], 1440, dark=True)
    browser.print_colours()
    assert browser.evaluate(BACKGROUND) == "rgb(255, 255, 255)"
    assert browser.evaluate("getComputedStyle(document.querySelector('.card')).backgroundColor") == (
        "rgb(255, 255, 255)"
    )


def test_names_without_a_break_do_not_widen_the_page(browser: chromium.Browser, tmp_path: Path) -> None:
    long = "x" * 200
    report = replace(bearing_report(), dataset=long, model=long, config={long: long}, data={long: long})
    diagnosis = replace(example(long), truth=long, note=long)
    page = tmp_path / "report.html"
    page.write_text(render_html(report, artifacts={}, examples=(diagnosis,)), encoding="utf-8")
    browser.open(page, 360, dark=False)
    assert browser.evaluate(OVERFLOW) <= 0
