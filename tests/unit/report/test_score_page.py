from __future__ import annotations

import math
import re
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from cascade_ops.results import LayerScores
from tests.unit.report import chromium
from tests.unit.report.test_html import Page
from workflows.report import score_maps
from workflows.report.score_page import render_scores
from workflows.scoring.record import ScoredUnits, ScoreReport, ShardRecord, WorkerRecord

Draw = Callable[[int], Sequence[float]]
WIDTHS = ("magnitude", "wanda", "random")


def scored(criterion: str, granularity: str, layers: int, units: int, draw: Draw) -> ScoredUnits:
    rows = (LayerScores(source=i, scores=tuple(map(float, draw(units))), kept=()) for i in range(layers))
    return ScoredUnits(criterion=criterion, granularity=granularity, layers=tuple(rows))


def score_report(
    layers: int = 6,
    heads: int = 4,
    groups: int = 4,
    channels: int = 40,
    criteria: Sequence[str] = (*WIDTHS, "block_influence"),
    draw: Draw | None = None,
) -> ScoreReport:
    """A language model scored on two workers; lognormal scores unless ``draw`` gives others."""
    generator = np.random.default_rng(7)

    def lognormal(size: int) -> Sequence[float]:
        return generator.lognormal(-6, 1, size).tolist()

    sizes = {"layer": 1, "head": heads, "kv_group": groups, "channel": channels}
    return ScoreReport(
        model="someone/some-model",
        family="qwen2",
        model_type="qwen2",
        params=494_032_768,
        heads_per_kv=((heads // groups,) * groups,) * layers,
        task="lm",
        samples=128,
        tokens=61_234,
        length=512,
        criteria=tuple(criteria),
        scores=tuple(
            scored(criterion, granularity, layers, size, draw or lognormal)
            for criterion in criteria
            for granularity, size in sizes.items()
            if granularity == "layer" or criterion != "block_influence"
        ),
        shards=(
            ShardRecord(first=0, stop=layers, bytes=3 * 2**20, seconds=8.5),
            ShardRecord(first=layers, stop=layers + 1, bytes=2**20, seconds=2.0),
        ),
        workers=(
            WorkerRecord(name="w0", node="n0", items=9, busy_seconds=30.0, peak_bytes=3 * 2**29, lost=False),
            WorkerRecord(name="w1", node="n1", items=3, busy_seconds=10.0, peak_bytes=2**29, lost=False),
        ),
        threads=2,
        dtype="bfloat16",
        device="cpu",
        seconds=40.0,
        tokens_per_second=1530.85,
        object_store_bytes=56 * 2**20,
        data={"name": "wikitext-2", "seed": 0},
        provenance={"command": "cascade score", "versions": {"torch": "2.13.0"}},
    )


def part(html: str, granularity: str) -> str:
    """The maps of one granularity, without the legend's swatches."""
    start = html.index(f'data-granularity="{granularity}"')
    return html[start : html.index("</section>", start)].rpartition("</ul>")[2]


def boxes(drawn: str) -> int:
    """Cells drawn, alone or in a path."""
    paths = re.findall(r'<path d="([^"]*)" class="cell s[\dx]"', drawn)
    return len(re.findall(r'<rect [^>]*class="cell s[\dx]"', drawn)) + sum(d.count("M") for d in paths)


def unlike(values: Sequence[float]) -> Draw:
    """The same values for every layer, repeated as far as needed."""
    return lambda size: [values[i % len(values)] for i in range(size)]


REPORTS = {
    "plain": score_report(),
    "grouped": score_report(heads=8, groups=2),
    "one layer": score_report(layers=1),
    "one criterion": score_report(criteria=("wanda",)),
    "one unit": score_report(layers=1, heads=1, groups=1, channels=1, criteria=("random",)),
    "equal": score_report(draw=unlike([0.5])),
    "zero": score_report(draw=unlike([0.0])),
    "signs": score_report(draw=unlike([-1.0, 0.0, 2.0, 1e-300])),
    "tiny": score_report(draw=unlike([5e-324])),
    "extremes": score_report(draw=unlike([5e-324, 1.7e308, 1.0])),
    "not finite": score_report(draw=unlike([math.nan, math.inf, 1.0, -math.inf, 0.0])),
    "nothing finite": score_report(draw=unlike([math.nan])),
    "no scores": replace(score_report(), scores=()),
    "nobody": replace(score_report(), workers=(), shards=(), seconds=0.0, tokens_per_second=0.0),
    "bare": replace(score_report(), data={}, provenance={}),
}


@pytest.mark.parametrize("name", REPORTS)
def test_well_formed_and_self_contained(name: str) -> None:
    html = render_scores(REPORTS[name])
    page = Page(html)
    assert page.open == []
    anchors = [address[1:] for address in page.addresses if address.startswith("#")]
    assert sorted(page.addresses) == sorted(["data:,", *(f"#{anchor}" for anchor in anchors)])
    assert set(anchors) <= set(page.ids)
    assert not re.search(r"https?://|@import|url\(|<script[^>]+src", html)
    assert len(page.ids) == len(set(page.ids))
    assert set(page.references) <= set(page.ids)
    assert page.headings.count("h1") == 1
    assert page.headings[0] == "h1"
    assert not re.search(r"\bnan\b|\binf\b|None", page.text)
    assert not re.search(r'="[^"]*\b(nan|inf)\b[^"]*"', html)


def test_the_headline_says_what_was_done() -> None:
    text = Page(render_scores(score_report())).text
    assert "some-model 494 M parameters, 4 criteria, 40 s" in text
    assert "Scored: 6 layers, 24 attention heads, 240 FFN channels." in text
    for said in (
        "wikitext-2 128 samples of up to 512 tokens 61,234 tokens without padding",
        "1,531 tokens/s",
        "1.50 GiB 2.00 GiB in all workers",
        "56.0 MiB",
        "2 shards × 2 workers 2 threads each, on cpu",
        "computed in bfloat16, summed in float64",
    ):
        assert said in text


def test_sections_come_in_order() -> None:
    html = render_scores(score_report(heads=8, groups=2))
    ids = ("layer", "head", "kv_group", "channel", "agreement", "lowest", "work", "provenance")
    found = [html.index(f'<h2 id="{name}">') for name in ids]
    assert found == sorted(found)


def test_layers_are_ranked_within_each_criterion() -> None:
    values = iter([3.0, 1.0, 2.0, 2.0, 7.0, 9.0])
    report = score_report(criteria=("wanda",))
    layers = tuple(LayerScores(source=i, scores=(next(values),), kept=()) for i in range(6))
    report = replace(report, scores=(ScoredUnits(criterion="wanda", granularity="layer", layers=layers),))
    drawn = part(render_scores(report), "layer")
    cells = re.findall(r'<td class="(m\d)" title="([^"]*)">([^<]*)</td>', drawn)
    assert [text for _, _, text in cells] == ["4", "1", "2.5", "2.5", "5", "6"]
    assert [colour for colour, _, _ in cells] == ["m4", "m0", "m2", "m2", "m6", "m7"]
    assert cells[0][1] == "wanda, layer 0: score 3.00"


def test_every_head_and_group_is_a_cell() -> None:
    html = render_scores(score_report(heads=8, groups=2))
    assert boxes(part(html, "head")) == len(WIDTHS) * 6 * 8
    assert boxes(part(html, "kv_group")) == len(WIDTHS) * 6 * 2
    assert "layer 0, KV group 1: score" in part(html, "kv_group")


def test_many_heads_are_drawn_without_titles() -> None:
    drawn = part(render_scores(score_report(layers=40, heads=32, groups=32, channels=4)), "head")
    assert boxes(drawn) == len(WIDTHS) * 40 * 32
    assert "<title>" not in drawn


def test_without_shared_keys_groups_are_heads() -> None:
    html = render_scores(score_report())
    assert "each KV group is one head" in part(html, "kv_group")
    assert "KV groups" not in html[html.index('id="agreement"') :]
    assert "KV groups" in Page(render_scores(score_report(groups=2))).text


def test_channels_share_cells() -> None:
    report = score_report(channels=1000, criteria=("wanda",))
    drawn = part(render_scores(report), "channel")
    assert "stands for 8 neighbouring channels" in drawn
    wide = [float(w) for w in re.findall(r"h([\d.]+)v", drawn)]
    assert sum(wide) == pytest.approx(6 * 1000, rel=1e-3)
    assert len(re.findall(r'class="half s\d"', drawn)) == 6


def test_bins_average_their_neighbours() -> None:
    values = np.array([0.0, 1.0, math.nan, 0.5, math.nan, math.nan, 0.25])
    found = score_maps.binned(values, 2)
    np.testing.assert_allclose(found, [0.5, 0.5, math.nan, 0.25])
    assert score_maps.units_per_cell([np.zeros(129), np.zeros(4)]) == 2


def test_layers_of_different_width_keep_their_proportion() -> None:
    rows = [score_maps.RankRow(label=str(n), cells=np.full(n, 0.1)) for n in (100, 50)]
    drawn = score_maps.rank_map(rows, unit="channel", units=100, label="two")
    assert re.findall(r"h([\d.]+)v", drawn) == ["1000", "500"]


def test_percentiles_of_each_layer() -> None:
    layers = [np.arange(101.0), np.full(3, math.nan), np.array([1.0, math.inf, 3.0])]
    found = score_maps.spreads(layers)
    np.testing.assert_allclose(found[0], [1, 25, 50, 75, 99])
    assert np.isnan(found[1]).all()
    assert found[2, 2] == 2


def test_the_axis_follows_the_scores() -> None:
    positive = score_maps.axis_of(np.array([[1e-6, 1e-4, 1e-3, 1e-2, 10.0]]))
    assert positive.log
    assert 0 < positive(1e-6) < positive(1e-4) < positive(10.0) < 100
    zeros = score_maps.axis_of(np.array([[0.0, 0.0, 1.0, 2.0, 3.0]]))
    assert zeros.log
    assert zeros(0.0) == 0
    signed = score_maps.axis_of(np.array([[-1.0, 0.0, 1.0, 2.0, 3.0]]))
    assert not signed.log
    assert 0 < signed(-1.0) < signed(3.0) < 100
    bent = score_maps.axis_of(np.array([[-1.0, 1e-3, 2e-3, 3e-3, 500.0]]))
    assert bent(-1.0) < bent(0.0) < bent(3e-3) < bent(500.0)
    assert bent(3e-3) - bent(1e-3) > 2
    for axis in (positive, zeros, signed, bent):
        assert axis.marks
        assert all(0 <= axis(mark) <= 100 for mark, _ in axis.marks)


@pytest.mark.parametrize("distinct", [5, 10_000])
def test_agreement_is_spearmans(distinct: int) -> None:
    generator = np.random.default_rng(distinct)
    columns = [generator.integers(0, distinct, 300).astype(float) for _ in range(3)]
    columns[1] += columns[0]
    found = score_maps.agreement(columns)
    np.testing.assert_allclose(found, stats.spearmanr(np.stack(columns, axis=1)).statistic)
    np.testing.assert_allclose(score_maps.ranks(columns[0]), stats.rankdata(columns[0]))


def test_agreement_leaves_out_what_is_not_finite() -> None:
    generator = np.random.default_rng(3)
    first, second = generator.normal(size=200), generator.normal(size=200)
    first[:20], second[10:40] = math.nan, math.inf
    expected = stats.spearmanr(first[40:], second[40:]).statistic
    assert score_maps.agreement([first, second])[0, 1] == pytest.approx(expected)


def test_agreement_may_be_undefined() -> None:
    constant, rising = np.ones(5), np.arange(5.0)
    found = score_maps.agreement([constant, rising, np.full(5, math.nan), rising[:1]])
    assert np.isnan(np.delete(found.ravel(), 5)[:-1]).all()
    assert found[1, 1] == 1
    inside = score_maps.mean_agreement([[constant, rising], [rising, -rising], [rising, rising]])
    assert inside[0, 1] == 0


def test_equal_scores_show_no_agreement() -> None:
    html = render_scores(REPORTS["equal"])
    assert "Median rank correlation" not in html
    assert html.count('<td class="m-none" title="magnitude and wanda">–</td>') == 5


def test_the_agreement_of_two_known_criteria() -> None:
    rising = scored("wanda", "head", 4, 8, lambda size: range(size))
    falling = replace(rising, criterion="flap", layers=tuple(
        replace(layer, scores=layer.scores[::-1]) for layer in rising.layers
    ))  # fmt: skip
    report = replace(score_report(layers=4), criteria=("wanda", "flap"), scores=(falling, rising))
    html = render_scores(report)
    assert html.count('<td class="opposed" title="wanda and flap">−1.00</td>') == 2
    assert "random left out: −1.00 for attention heads" not in html
    assert "between two criteria: −1.00 for attention heads" in html


def test_the_lowest_units_are_named() -> None:
    report = score_report(layers=3, heads=4, groups=4, criteria=("wanda",), draw=unlike([4.0, 1.0, 3.0, 2.0]))
    html = render_scores(report)
    heads = html[html.index('aria-label="Lowest attention heads"') :]
    assert re.findall(r"<td><b>([^<]*)</b><small>([^<]*)", heads)[:5] == [
        ("0.1", "1.0"),
        ("1.1", "1.0"),
        ("2.1", "1.0"),
        ("0.3", "2.0"),
        ("1.3", "2.0"),
    ]


def test_the_work_is_told() -> None:
    html = render_scores(score_report())
    rows = [
        re.sub(r"(<[^>]*>|\s)+", " ", row).strip() for row in re.findall(r"<tr>.*?</tr>", html, re.DOTALL)
    ]
    assert "w0 n0 9 30.0 75 % 1.50 GiB no" in rows
    assert "w1 n1 3 10.0 25 % 512 MiB no" in rows
    assert "0–5 3.0 8.5" in rows
    assert "6 1.0 2.0" in rows
    assert "<dt>versions.torch</dt><dd>2.13.0</dd>" in html


def test_what_went_wrong_is_said_first() -> None:
    report = REPORTS["not finite"]
    lost = replace(report.workers[1], lost=True)
    report = replace(report, workers=(report.workers[0], lost), data={"source": "simulated"})
    text = Page(render_scores(report)).text
    start = text.index("Read this first")
    assert "simulated" in text[start:]
    assert "1 worker of 2 got lost" in text[start:]
    assert "outlined in red: 18 of 24 head scores by wanda" in text[start:]
    assert "Read this first" not in Page(render_scores(score_report())).text


def test_hostile_names_are_escaped() -> None:
    evil = "\"><script>alert('x')</script>"
    report = score_report(criteria=(evil, "wanda"))
    worker = replace(report.workers[0], name=evil, node=evil)
    report = replace(
        report,
        **dict.fromkeys(("model", "family", "model_type", "task", "dtype", "device"), evil),
        workers=(worker,),
        data={evil: [evil], "name": evil, "notes": [evil]},
        provenance={"command": evil},
    )
    html = render_scores(report)
    assert "<script>alert" not in html
    assert html.count("<script>") == 1
    assert Page(html).open == []


@pytest.fixture(scope="module")
def large() -> str:
    criteria = [f"criterion {i}" for i in range(8)]
    return render_scores(score_report(34, 32, 8, 14_336, criteria))


def test_a_large_model_makes_a_bounded_page(large: str) -> None:
    assert len(large.encode()) < 3_000_000
    assert boxes(part(large, "head")) == 8 * 34 * 32
    assert Page(large).open == []


def test_the_page_needs_no_torch() -> None:
    code = "import sys, workflows.report.score_page; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[chromium.Browser]:
    executable = chromium.find()
    if executable is None:
        pytest.skip("no Chromium on the PATH")
    opened = chromium.Browser(executable, tmp_path_factory.mktemp("profile"))
    yield opened
    opened.close()


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [360, 1440])
def test_quiet_and_within_the_window(
    browser: chromium.Browser, tmp_path: Path, large: str, width: int, dark: bool
) -> None:
    long = "x" * 200
    report = score_report(criteria=(long, "wanda"))
    worker = replace(report.workers[0], name=long, node=long)
    named = replace(report, model=long, family=long, workers=(worker,), data={"name": long, long: long})
    pages = {"large": large, "long": render_scores(named), "odd": render_scores(REPORTS["not finite"])}
    for name, html in pages.items():
        page = tmp_path / f"{name}.html"
        page.write_text(html, encoding="utf-8")
        browser.open(page, width, dark=dark)
        over = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
        assert browser.evaluate(over) <= 0, name
        assert browser.complaints() == []
        assert browser.requested() == [page.as_uri()]
