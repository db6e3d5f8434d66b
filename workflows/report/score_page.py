"""A score run as one page: how units rank by each criterion, whether the criteria agree, who did the work."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import PurePath
from typing import TYPE_CHECKING

import numpy as np
from markupsafe import Markup

from cascade_ops.serde import to_jsonable
from workflows.report import charts
from workflows.report import format as fmt
from workflows.report.render import environment
from workflows.report.score_sections import (
    CONTROL,
    Agreement,
    AgreementView,
    Criterion,
    LowestView,
    MapSection,
    agreement_view,
    correlation_text,
    criteria_of,
    lowest_view,
    map_section,
)
from workflows.report.view import flattened

if TYPE_CHECKING:
    from workflows.scoring.record import ScoreReport, WorkerRecord

GRANULARITIES = ("layer", "head", "kv_group", "channel")


@dataclass(frozen=True, slots=True, kw_only=True)
class Tile:
    title: str
    value: str
    detail: str
    note: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardRow:
    blocks: str
    mebibytes: str
    seconds: str
    share: float


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerRow:
    worker: WorkerRecord
    busy: str
    utilisation: float
    peak: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ScorePage:
    """Everything on the page."""

    name: str
    subtitle: str
    summary: tuple[str, ...]
    notes: tuple[str, ...]
    tiles: tuple[Tile, ...]
    sections: tuple[MapSection, ...]
    agreements: tuple[AgreementView, ...]
    lowest: tuple[LowestView, ...]
    shards: tuple[ShardRow, ...]
    workers: tuple[WorkerRow, ...]
    provenance: tuple[tuple[str, tuple[tuple[str, str], ...]], ...]
    ramp: Markup


def render_scores(report: ScoreReport) -> str:
    """The whole page as one string.

    From ``data`` it understands ``name``, ``source`` ("simulated" is announced at the top) and ``notes``; the
    rest is listed as it is.
    """
    page = score_view(report)
    return environment().get_template("scores.html.j2").render(page=page, report=report, fmt=fmt)


def score_view(report: ScoreReport) -> ScorePage:
    """Turn a score run into what the template prints."""
    shared = any(heads > 1 for layer in report.heads_per_kv for heads in layer)
    found = {name: criteria_of(report, name) for name in GRANULARITIES}
    if not shared:
        found["kv_group"] = ()
    agreements = {name: Agreement(criteria) for name, criteria in found.items() if criteria}
    return ScorePage(
        name=PurePath(report.model.rstrip("/")).name or report.model,
        subtitle=f"{fmt.count(report.params)} parameters, {_many(len(report.criteria), 'criterion')}, "
        f"{fmt.duration(report.seconds)}",
        summary=_summary(report, found, agreements),
        notes=_notes(report, found),
        tiles=_tiles(report),
        sections=tuple(map_section(name, criteria, shared=shared) for name, criteria in found.items()),
        agreements=tuple(agreement_view(name, one) for name, one in agreements.items()),
        lowest=tuple(lowest_view(name, found[name]) for name in GRANULARITIES[:3] if found[name]),
        shards=_shards(report),
        workers=tuple(_worker(report, worker) for worker in report.workers),
        provenance=_provenance(report),
        ramp=charts.swatches(),
    )


def _many(count: int, noun: str) -> str:
    plurals = {"criterion": "criteria", "is": "are", "was": "were"}
    return f"{fmt.integer(count)} {noun if count == 1 else plurals.get(noun, noun + 's')}"


def _memory(value: float) -> str:
    """Bytes in binary units, as memory is counted."""
    for limit, unit in ((2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB")):
        if value >= limit:
            return f"{fmt.significant(value / limit)}{fmt.NBSP}{unit}"
    return f"{value:,.0f}{fmt.NBSP}B"


def _summary(
    report: ScoreReport, found: dict[str, tuple[Criterion, ...]], agreements: dict[str, Agreement]
) -> tuple[str, ...]:
    units = [
        f"{fmt.integer(len(criteria[0].all))} {fmt.inside(fmt.granularity(name))}"
        for name, criteria in found.items()
        if criteria
    ]
    if not units:
        return ("No scores were recorded.",)
    sentences = [f"Scored: {', '.join(units)}. Nothing was removed: low scores are candidates."]
    medians = {name: one.median() for name, one in agreements.items()}
    told = [
        f"{correlation_text(value)} for {fmt.inside(fmt.granularity(name))}"
        for name, value in medians.items()
        if math.isfinite(value)
    ]
    if told:
        control = ", random left out" if CONTROL in report.criteria else ""
        sentences.append(
            f"Median rank correlation between two criteria{control}: {', '.join(told)} (1: the same order, 0: "
            "unrelated)."
        )
    return tuple(sentences)


def _notes(report: ScoreReport, found: dict[str, tuple[Criterion, ...]]) -> tuple[str, ...]:
    """What a reader must know before believing the page."""
    notes = []
    if report.data.get("source") == "simulated":
        notes.append("The calibration data are simulated.")
    given = report.data.get("notes", ())
    notes += [given] if isinstance(given, str) else [str(note) for note in given]
    lost = sum(worker.lost for worker in report.workers)
    if lost:
        notes.append(f"{_many(lost, 'worker')} of {len(report.workers)} got lost on the way.")
    for granularity, criteria in found.items():
        for one in criteria:
            wrong = int((~np.isfinite(one.all)).sum())
            if wrong:
                notes.append(
                    f"Not finite, so without a rank and outlined in red: {fmt.integer(wrong)} of "
                    f"{fmt.integer(len(one.all))} {fmt.unit(granularity)} scores by {one.name}."
                )
    return tuple(notes)


def _tiles(report: ScoreReport) -> tuple[Tile, ...]:
    peaks = [worker.peak_bytes for worker in report.workers]
    used = _memory(report.object_store_bytes)
    return (
        Tile(
            title="Calibrated on",
            value=str(report.data.get("name") or report.task),
            detail=f"{_many(report.samples, 'sample')} of up to {_many(report.length, 'token')}",
            note=f"{_many(report.tokens, 'token')} without padding",
        ),
        Tile(
            title="Time",
            value=fmt.duration(report.seconds),
            detail=f"{fmt.significant(report.tokens_per_second)} tokens/s",
            note="start of the cluster not counted",
        ),
        Tile(
            title="Peak memory of one worker",
            value=_memory(max(peaks)) if peaks else fmt.MISSING,
            detail=f"{_memory(sum(peaks))} in all workers",
            note=f"activations between shards took {used}",
        ),
        Tile(
            title="Division",
            value=f"{_many(len(report.shards), 'shard')} × {_many(len(report.workers), 'worker')}",
            detail=f"{_many(report.threads, 'thread')} each, on {report.device}",
            note=f"computed in {report.dtype}, summed in {report.accumulation}",
        ),
    )


def _shards(report: ScoreReport) -> tuple[ShardRow, ...]:
    longest = max((shard.seconds for shard in report.shards), default=0.0)
    return tuple(
        ShardRow(
            blocks=f"{shard.first}–{shard.stop - 1}" if shard.stop - shard.first > 1 else str(shard.first),
            mebibytes=f"{shard.bytes / 2**20:,.1f}",
            seconds=f"{shard.seconds:,.1f}",
            share=shard.seconds / longest if longest > 0 else 0.0,
        )
        for shard in report.shards
    )


def _worker(report: ScoreReport, worker: WorkerRecord) -> WorkerRow:
    return WorkerRow(
        worker=worker,
        busy=f"{worker.busy_seconds:,.1f}",
        utilisation=worker.busy_seconds / report.seconds if report.seconds > 0 else math.nan,
        peak=_memory(worker.peak_bytes),
    )


def _provenance(report: ScoreReport) -> tuple[tuple[str, tuple[tuple[str, str], ...]], ...]:
    """Rows by group; a group without rows is left out."""
    run = {
        "model": report.model,
        "family": report.family,
        "model type": report.model_type,
        "parameters": fmt.integer(report.params),
        "task": report.task,
        "criteria": list(report.criteria),
        "dtype": report.dtype,
        "sums in": report.accumulation,
        "device": report.device,
        "threads per worker": report.threads,
    }
    groups = (("Run", run), ("Data", report.data), ("Versions and machine", report.provenance))
    flat = ((title, tuple(flattened("", to_jsonable(values)))) for title, values in groups)
    return tuple((title, rows) for title, rows in flat if rows)
