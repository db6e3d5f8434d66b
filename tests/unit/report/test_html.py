from __future__ import annotations

import json
import math
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

from cascade_ops.results import CompressionReport
from tests.unit.report.factory import (
    CLASSES,
    bearing_report,
    classified,
    example,
    figures,
    huge_report,
    language_report,
    stage,
    units,
)
from workflows.report import render_html, write_report

VOID = {"meta", "link", "br", "hr", "img", "input"}
ARTIFACTS = {"model": "model"}


class Page(HTMLParser):
    """Checks nesting, and collects ids, addresses and visible words."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.references: list[str] = []
        self.addresses: list[str] = []
        self.headings: list[str] = []
        self.words: list[str] = []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        self.ids += [v for k, v in attrs if k == "id" and v]
        self.references += [v for k, v in attrs if k == "aria-labelledby" and v]
        self.addresses += [v for k, v in attrs if k in ("src", "href", "xlink:href", "action", "data") and v]
        if tag == "svg" and found.get("role") == "img":
            assert found.get("aria-label")
        if re.fullmatch(r"h[1-6]", tag):
            self.headings.append(tag)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        pass

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if not {"style", "script"} & set(self.open):
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join("".join(self.words).split())


def page_of(report: CompressionReport) -> Page:
    return Page(render_html(report, artifacts=ARTIFACTS, examples=(example(),)))


def section(html: str, number: int) -> str:
    """The map of one stage."""
    start = html.index(f'data-stage="{number}"')
    ends = [html.find(f'data-stage="{number + 1}"', start), html.find("</section>", start)]
    return html[start : min(end for end in ends if end > 0)]


REPORTS = {"bearing": bearing_report(), "language": language_report(), "huge": huge_report()}


@pytest.mark.parametrize("name", REPORTS)
def test_well_formed_and_self_contained(name: str) -> None:
    html = render_html(REPORTS[name], artifacts=ARTIFACTS, examples=(example(),))
    page = Page(html)
    assert page.open == []
    assert page.addresses == ["data:,"]
    assert not re.search(r"https?://|@import|url\(|<script[^>]+src", html)
    assert len(page.ids) == len(set(page.ids))
    assert set(page.references) <= set(page.ids)
    assert page.headings.count("h1") == 1
    assert page.headings[0] == "h1"
    assert not re.search(r"\bnan\b|\binf\b|None", page.text)
    assert not re.search(r'="[^"]*\b(nan|inf)\b[^"]*"', html)


def test_headline_says_what_was_won_and_lost() -> None:
    text = page_of(bearing_report()).text
    assert "13.8× smaller backbone accuracy 87.1 % → 85.4 %, 3.1× faster" in text
    assert "accuracy went from 87.1 % (95 % CI 86.1–88.1 %) to 85.4 % (95 % CI 84.3–86.5 %)" in text
    assert "The two intervals overlap." in text
    assert "−1.7 points" in text
    assert "11.9× smaller" in text
    assert "1.61 MB → 139 kB" in text


def test_a_worse_model_is_not_dressed_up() -> None:
    report = replace(bearing_report(), final=figures(500_000, 7.5, classified(0.6)))
    text = page_of(report).text
    assert "1.26× larger backbone accuracy 87.1 % → 60.0 %, 1.33× slower" in text
    assert "The two intervals do not overlap." in text


def test_every_stage_is_told() -> None:
    text = page_of(bearing_report()).text
    for title in ("1. Layers", "2. Attention heads", "3. FFN channels"):
        assert title in text
    for value in ("53.3 %", "71.1 %", "41.2 %", "4 of 8", "12 of 32", "104 of 1,024", "28,750"):
        assert value in text
    assert "layers −50 % → attention heads −62.5 % → FFN channels −89.8 %" in text


def test_maps_draw_exactly_the_kept_units() -> None:
    html = render_html(bearing_report(), artifacts=ARTIFACTS)
    bars = section(html, 1).split("</ul>", 1)[1]
    assert len(re.findall(r'class="kept s', bars)) == 4
    assert len(re.findall(r'class="hollow removed"', bars)) == 4
    heads = section(html, 2).split("</ul>", 1)[1]
    assert len(re.findall(r'class="kept s', heads)) == 12
    assert len(re.findall(r'class="removed s', heads)) == 20
    assert "whole layer removed in stage 1" in heads
    channels = section(html, 3).split("</ul>", 1)[1]
    drawn = {"kept": 0, "removed": 0}
    for data, state in re.findall(r'<path d="([^"]*)" class="(kept|removed) s\d"', channels):
        drawn[state] += data.count("M")
    assert drawn == {"kept": 104, "removed": 920}


def test_structural_independence_is_told() -> None:
    words = " ".join(Page(render_html(bearing_report(), artifacts=ARTIFACTS)).words)
    assert "violated (κ=4): K/V are shared." in words
    assert "Removed one by one: head." in words, "among the notes, since this run did so"
    older = replace(bearing_report(), independence=())
    assert "judged one by one" not in " ".join(Page(render_html(older, artifacts=ARTIFACTS)).words)


def test_a_layer_stage_with_one_score_missing_still_draws() -> None:
    layers = tuple(replace(layer, scores=(math.nan, *layer.scores[1:])) for layer in units([0, 1], 8, 4, 1))
    html = render_html(replace(bearing_report(), stages=(stage(0, "head", layers, 9),)), artifacts={})
    assert 'class="sx' in html or ' sx"' in html
    Page(html)


def test_language_model_has_no_confusion_matrix() -> None:
    html = render_html(language_report(), artifacts=ARTIFACTS)
    text = Page(html).text
    assert "perplexity 28.40 → 41.70, as fast as before" in text
    assert "not finite" in text
    assert "KV groups" in text
    assert 'class="matrix"' not in html
    assert "Which faults" not in text
    assert "One seed" not in text


def test_only_nonfinite_losses_are_said_so() -> None:
    first = language_report().stages[0]
    broken = replace(first, recovery=replace(first.recovery, losses=(math.nan, math.inf)))
    text = page_of(replace(language_report(), stages=(broken,))).text
    assert "No finite loss was recorded." in text


def test_a_class_absent_from_the_test_side_is_named() -> None:
    whole = classified(0.87)
    rows = ((0,) * len(CLASSES), *whole.confusion[1:])
    recall = {name: value for name, value in whole.per_class.items() if name != "normal"}
    recall["ball 0.007 in"] = math.nan
    partial = replace(whole, confusion=rows, per_class=recall)
    text = page_of(replace(bearing_report(), final=figures(28_750, 1.8, partial))).text
    assert text.count("not on the test side") == 2


@pytest.mark.parametrize("where", ["dataset", "model", "split"])
def test_hostile_names_are_escaped(where: str) -> None:
    evil = "\"><script>alert('x')</script>"
    report = replace(
        bearing_report(),
        **{where: evil},
        data={evil: [evil], "notes": [evil]},
        config={evil: evil},
        provenance={"command": evil},
    )
    diagnosis = replace(
        example(evil),
        truth=evil,
        note=evil,
        characteristic_hz={evil: 100.0},
        expected=(evil,),
        final={evil: 1.0},
    )
    html = render_html(report, artifacts={evil: evil}, examples=(diagnosis,))
    assert "<script>alert" not in html
    assert html.count("<script>") == 1
    assert Page(html).open == []


def test_a_huge_model_is_binned_and_says_so() -> None:
    html = render_html(huge_report(), artifacts=ARTIFACTS)
    assert len(html.encode()) < 2_000_000
    assert "Binned: one cell stands for 43 neighbouring units" in html
    assert html.count("5,504 of 11,008 kept") == 32
    assert "Binned" not in render_html(bearing_report(), artifacts={})


def test_simulated_data_are_announced() -> None:
    text = page_of(replace(bearing_report(), data={"source": "simulated"})).text
    assert "The data are simulated" in text


def test_the_diagnosis_is_judged_against_the_truth() -> None:
    assert "✓ Diagnosed right: outer 0.007 in" in page_of(bearing_report()).text
    wrong = replace(example(), final={"normal": 0.7, "outer 0.007 in": 0.3})
    text = Page(render_html(bearing_report(), artifacts={}, examples=(wrong,))).text
    assert "✗ Diagnosed wrong: normal, truly outer 0.007 in" in text
    assert "compressed says normal (70 %)" in text


def test_the_expected_line_stands_out_of_the_envelope() -> None:
    text = page_of(bearing_report()).text
    found = re.search(r"BPFO \(expected\)\s*103\.4 Hz\s*([\d.]+)×", text)
    assert found
    assert float(found[1]) > 10


def test_a_run_without_stages_renders() -> None:
    text = page_of(replace(bearing_report(), stages=())).text
    assert "This run has no stages." in text


def test_both_files_are_written_whole_and_replaced(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    write_report(language_report(), folder, artifacts={})
    as_json, as_html = write_report(bearing_report(), folder, artifacts=ARTIFACTS)
    assert sorted(path.name for path in folder.iterdir()) == ["report.html", "report.json"]
    assert json.loads(as_json.read_text(encoding="utf-8"))["dataset"] == "CWRU"
    assert "CWRU" in as_html.read_text(encoding="utf-8")


def test_a_failed_write_leaves_the_old_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, page = write_report(bearing_report(), tmp_path, artifacts={})
    before = page.read_bytes()

    def fail(source: object, target: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("os.replace", fail)
    with pytest.raises(OSError, match="disk full"):
        write_report(language_report(), tmp_path, artifacts={})
    assert page.read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["report.html", "report.json"]
