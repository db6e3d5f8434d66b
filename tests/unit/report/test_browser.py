"""The page in a real browser: silent console, no request beyond itself, no sideways scrolling."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.unit.report import chromium
from tests.unit.report.factory import bearing_report, example, huge_report, language_report
from workflows.report import write_report

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
    return {
        name: write_report(report, folder / name, artifacts={}, examples=examples.get(name, ()))[1]
        for name, report in reports.items()
    }


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
