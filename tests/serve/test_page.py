"""The page in a real browser: a recording in, both models' answers out; errors beside their field; any width; dark."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from tests.serve.chromium import Browser, executable
from tests.serve.conftest import TOKEN, Served

RESULT = "!document.getElementById('result').hidden"


@pytest.fixture(scope="module")
def tab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    program = executable()
    if program is None:
        pytest.skip("no Chromium here")
    browser = Browser(program, tmp_path_factory.mktemp("profile"))
    yield browser
    browser.close()


@pytest.fixture
def browser(tab: Browser) -> Browser:
    tab.look_like(1200, 900)
    return tab


def fill(browser: Browser, **values: object) -> None:
    for name, value in values.items():
        browser.evaluate(f"document.getElementById('{name}').value = '{value}'")


def submit(browser: Browser) -> None:
    browser.evaluate("document.querySelector('#ask .main').click()")


def shot(browser: Browser, name: str) -> None:
    """A picture for whoever wants to look: CASCADE_SCREENSHOTS names a folder."""
    folder = os.environ.get("CASCADE_SCREENSHOTS")
    if folder:
        Path(folder).mkdir(parents=True, exist_ok=True)
        browser.screenshot(Path(folder) / f"{name}.png")


def ready(browser: Browser, served: Served) -> None:
    browser.open(f"{served.url}/")
    browser.wait_for("!document.getElementById('ask').hidden")


def diagnosed(browser: Browser, served: Served, recording: Path) -> None:
    ready(browser, served)
    browser.choose_file("#file", recording)
    fill(browser, fs_hz=12000, rpm=1750)
    submit(browser)
    browser.wait_for(RESULT)


def test_a_recording_is_diagnosed_by_both(browser: Browser, served: Served, recording_npy: Path) -> None:
    diagnosed(browser, served, recording_npy)
    cards = browser.evaluate("[...document.querySelectorAll('.side')].map(card => card.innerText)")
    assert len(cards) == 2
    assert cards[0].startswith("Dense")
    assert "Compressed: small" in cards[1]
    for card in cards:
        assert "Confidence" in card
        assert "Time in the model" in card
        assert " kB" in card
    assert "× smaller" in cards[1]
    curve = browser.evaluate("document.querySelector('#waveform path').getAttribute('d').length")
    assert curve > 10_000
    assert browser.evaluate("[...document.querySelectorAll('#spectrum text')].map(t => t.textContent)")[
        :1
    ] == ["BPFO"]
    assert browser.evaluate("document.querySelectorAll('#spectrum .mark.strongest').length") == 1
    assert browser.evaluate("document.querySelector('#lines .strongest th').textContent") == "BPFO"
    assert "BPFO stands out" in browser.text()
    assert browser.evaluate("document.activeElement.id") == "result"
    assert browser.log == []
    assert all(url.startswith((served.url, "data:")) for url in browser.asked)
    shot(browser, "result")


def test_a_simulated_recording_says_that_it_is(browser: Browser, served: Served) -> None:
    ready(browser, served)
    browser.evaluate("document.getElementById('simulated').click()")
    browser.wait_for(RESULT)
    assert "Simulated recording" in browser.text()
    assert browser.evaluate("document.querySelector('#lines .strongest th').textContent") == "BPFO"


def test_a_wrong_file_is_told_beside_its_field(browser: Browser, served: Served, tmp_path: Path) -> None:
    ready(browser, served)
    path = tmp_path / "words<b>.npy"
    path.write_text("not an array")
    browser.choose_file("#file", path)
    fill(browser, fs_hz=12000)
    submit(browser)
    browser.wait_for("document.getElementById('file-error').textContent !== ''")
    assert "expected" in browser.evaluate("document.getElementById('file-error').textContent").lower()
    assert browser.evaluate("document.getElementById('file').getAttribute('aria-invalid')") == "true"
    assert browser.evaluate("document.getElementById('file-name').innerHTML").startswith("words&lt;b&gt;.npy")
    assert browser.evaluate("document.getElementById('result').hidden")
    shot(browser, "error")


def test_a_missing_rate_is_told_beside_its_field(
    browser: Browser, served: Served, recording_npy: Path
) -> None:
    ready(browser, served)
    submit(browser)
    assert (
        browser.evaluate("document.getElementById('file-error').textContent") == "Choose a recording first."
    )
    browser.choose_file("#file", recording_npy)
    submit(browser)
    browser.wait_for("document.getElementById('fs_hz-error').textContent !== ''")
    assert browser.evaluate("document.activeElement.id") == "fs_hz"


def test_without_a_speed_it_says_what_is_missing(
    browser: Browser, served: Served, recording_npy: Path
) -> None:
    ready(browser, served)
    browser.choose_file("#file", recording_npy)
    fill(browser, fs_hz=12000)
    submit(browser)
    browser.wait_for(RESULT)
    assert "No fault frequencies" in browser.text()
    assert browser.evaluate("document.querySelectorAll('#spectrum .mark').length") == 0


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_narrow_and_dark(browser: Browser, served: Served, recording_npy: Path, scheme: str) -> None:
    browser.look_like(320, 700, scheme)
    diagnosed(browser, served, recording_npy)
    assert browser.evaluate("document.documentElement.scrollWidth") <= 320
    background, ink, muted = browser.evaluate(
        "['--page', '--ink', '--muted'].map(n => getComputedStyle(document.documentElement).getPropertyValue(n))"
    )
    painted = browser.evaluate("getComputedStyle(document.body).backgroundColor")
    assert painted == f"rgb({', '.join(str(int(background[at : at + 2], 16)) for at in (1, 3, 5))})"
    assert (luminance(background) < 0.1) == (scheme == "dark")
    assert contrast(ink, background) >= 7
    assert contrast(muted, background) >= 4.5
    shot(browser, f"narrow-{scheme}")


def luminance(colour: str) -> float:
    parts = np.array([int(colour[at : at + 2], 16) for at in (1, 3, 5)]) / 255
    linear = np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4)
    return float(linear @ [0.2126, 0.7152, 0.0722])


def contrast(one: str, other: str) -> float:
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def test_by_keyboard(browser: Browser, served: Served, recording_npy: Path) -> None:
    ready(browser, served)
    browser.press("Tab", 9)
    assert browser.evaluate("document.activeElement.id") == "file"
    browser.choose_file("#file", recording_npy)
    browser.press("Tab", 9)
    assert browser.evaluate("document.activeElement.id") == "fs_hz"
    fill(browser, fs_hz=12000)
    browser.press("Enter", 13, "\r")
    browser.wait_for(RESULT)


def test_a_token_is_asked_for_and_kept_in_the_page_only(browser: Browser, guarded: Served) -> None:
    browser.open(f"{guarded.url}/")
    browser.wait_for("!document.getElementById('token-form').hidden")
    for value, selector in (("wrong", "document.getElementById('token-error').textContent !== ''"),
                            (TOKEN, "!document.getElementById('ask').hidden")):  # fmt: skip
        fill(browser, token=value)
        browser.evaluate("document.querySelector('#token-form button').click()")
        browser.wait_for(selector)
    browser.evaluate("document.getElementById('simulated').click()")
    browser.wait_for(RESULT)
    assert browser.evaluate("localStorage.length + sessionStorage.length") == 0
    assert browser.evaluate("document.cookie") == ""


def test_what_is_not_reached_is_told(browser: Browser, served: Served) -> None:
    ready(browser, served)
    browser.evaluate("window.fetch = () => Promise.reject(new TypeError('gone'))")
    browser.evaluate("document.getElementById('simulated').click()")
    browser.wait_for("!document.getElementById('error').hidden")
    assert "cannot be reached" in browser.text()


def writing(browser: Browser, language: Served) -> None:
    browser.open(f"{language.url}/")
    browser.wait_for("!document.getElementById('write').hidden")
    fill(browser, prompt="w3 w14 w15")


def write(browser: Browser) -> None:
    browser.evaluate("document.querySelector('#write button').click()")
    browser.wait_for("!document.querySelector('#write button').disabled")


def test_a_language_model_writes(browser: Browser, language: Served) -> None:
    writing(browser, language)
    write(browser)
    told = browser.evaluate("document.querySelector('#texts .written').textContent")
    assert told.startswith("w3 w14 w15 w")
    assert "first token after" in browser.evaluate("document.querySelector('#texts .hint').textContent")
    assert browser.evaluate("document.getElementById('write-error').hidden")
    assert browser.log == []
    shot(browser, "writing")


@pytest.mark.parametrize("end", ["controller.close()", "controller.error(new Error('reset'))"])
def test_a_text_that_breaks_off_says_so(browser: Browser, language: Served, end: str) -> None:
    writing(browser, language)
    piece = "data: " + json.dumps({"choices": [{"text": " w7", "finish_reason": None}]}) + "\n\n"
    browser.evaluate(
        f"""window.fetch = () => {{
          let sent = false;
          const pull = (controller) => {{
            if (sent) {end};
            else controller.enqueue(new TextEncoder().encode({json.dumps(piece)}));
            sent = true;
          }};
          return Promise.resolve(new Response(new ReadableStream({{ pull }})));
        }}"""
    )
    write(browser)
    assert "broke off" in browser.evaluate("document.getElementById('write-error').textContent")
    assert browser.evaluate("document.querySelector('#texts .written').textContent") == "w3 w14 w15 w7"


def test_busy_is_told_with_when_to_come_back(browser: Browser, served: Served) -> None:
    ready(browser, served)
    answer = "new Response('busy', {status: 503, headers: {'Retry-After': '1'}})"
    browser.evaluate(f"window.fetch = () => Promise.resolve({answer})")
    browser.evaluate("document.getElementById('simulated').click()")
    browser.wait_for("!document.getElementById('error').hidden")
    assert "Try again in a second" in browser.text()
