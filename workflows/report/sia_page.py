"""An SIA check as one page: the verdicts, how far losses add up, which units are coupled."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import PurePath
from typing import TYPE_CHECKING

from markupsafe import Markup

from cascade_ops.serde import to_jsonable
from cascade_ops.sia.results import Interactions, Verdict
from workflows.report import charts
from workflows.report import format as fmt
from workflows.report.render import environment
from workflows.report.sia_charts import depth_chart, gap_chart, interval_text, pair_map, strongest
from workflows.report.view import flattened

if TYPE_CHECKING:
    from workflows.sia.record import SIARecord

TITLES = {
    "layer": "Layers",
    "head": "Heads",
    "kv_group": "KV groups",
    "channel": "Feed-forward channels",
    "head_apart": "Query and K/V heads, ranked apart",
    "channel_apart": "Gate and up rows, ranked apart",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class VerdictView:
    """One unit set: its sentence, its figures and its picture."""

    verdict: Verdict
    title: str
    state: str
    safe: str
    stability: str
    fidelity: tuple[tuple[str, str], ...]
    chart: Markup | None
    samples: int


@dataclass(frozen=True, slots=True, kw_only=True)
class PairView:
    title: str
    map: Markup
    strongest: tuple[tuple[str, str, str], ...]
    units: int
    samples: int


def render_sia(record: SIARecord) -> str:
    """The whole page as one string. The record must have a check."""
    check = record.check
    if check is None:
        raise ValueError("nothing was measured: a page needs a check")
    notes = [
        f"{TITLES[one.kind]}: the interval of the safe ratio is wide. A larger --budget narrows it."
        for one in check.verdicts
        if not one.certain
    ]
    facts = {
        "model": record.model,
        "family": record.family,
        "model type": record.model_type,
        "parameters": fmt.integer(record.params),
        "criterion": check.criterion,
        "ablations": f"{check.ablations} of {check.budget}, {check.per_ablation} samples each",
        "calibration samples": check.samples,
        "τ": check.tau,
        "ε, nats": check.tolerance,
        "dense loss, nats": check.dense_loss,
        "seed": check.seed,
        "seconds": round(check.seconds, 1),
    }
    groups = (("Check", facts), ("Data", record.data), ("Versions and machine", record.provenance))
    flat = ((title, tuple(flattened("", to_jsonable(values)))) for title, values in groups)
    return (
        environment()
        .get_template("sia.html.j2")
        .render(
            name=PurePath(record.model.rstrip("/")).name or record.model,
            record=record,
            check=check,
            notes=notes,
            verdicts=[_view(one, check.tau) for one in check.verdicts],
            pairs=[_pairs(one) for one in check.interactions],
            depth=None if check.depth is None else depth_chart(check.depth),
            provenance=[(title, rows) for title, rows in flat if rows],
            ramp=charts.swatches(),
            fmt=fmt,
        )
    )


def _view(one: Verdict, tau: float) -> VerdictView:
    return VerdictView(
        verdict=one,
        title=TITLES[one.kind],
        state="holds" if one.holds else "violated" if not one.structural else "does not add up",
        safe=interval_text(one.safe, share=True),
        stability=interval_text(one.stability, share=True),
        fidelity=tuple((each.criterion, interval_text(each.rho)) for each in one.fidelity),
        chart=gap_chart(one.curves, tau) if one.curves else None,
        samples=one.curves[0].safe.n if one.curves else 0,
    )


def _pairs(found: Interactions) -> PairView:
    return PairView(
        title=TITLES[found.kind],
        map=pair_map(found),
        strongest=tuple((a, b, fmt.significant(value)) for a, b, value in strongest(found)),
        units=len(found.units),
        samples=found.samples,
    )
