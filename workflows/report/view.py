"""A report as the page's template needs it: finished strings, charts and rows, no arithmetic left to do."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from markupsafe import Markup

from cascade_ops.results import (
    CompressionReport,
    Evaluation,
    Metric,
    ModelFigures,
    RecoveryResult,
    SIAVerdict,
    StageResult,
)
from cascade_ops.serde import to_jsonable
from workflows.report import charts
from workflows.report import format as fmt
from workflows.report.diagnosis import ExampleDiagnosis, ExampleView, example_view
from workflows.report.heatmap import UnitMap, levels, unit_map


@dataclass(frozen=True, slots=True, kw_only=True)
class Tile:
    """A headline figure."""

    title: str
    value: str
    before: str
    after: str
    note: str


@dataclass(frozen=True, slots=True, kw_only=True)
class StageView:
    """A stage as a table row, a map and a loss curve."""

    number: int
    title: str
    result: StageResult
    kept: int
    units: int
    params: str
    compression: str
    cut: str
    cut_interval: str
    recovered: str
    recovered_interval: str
    recovery: str
    time: str
    bars: Markup | None
    map: UnitMap | None
    curve: Markup | None


@dataclass(frozen=True, slots=True, kw_only=True)
class MatrixCell:
    count: int
    level: str


@dataclass(frozen=True, slots=True, kw_only=True)
class MatrixView:
    """One confusion matrix; ``mistakes`` are its most frequent wrong answers."""

    title: str
    classes: tuple[str, ...]
    rows: tuple[tuple[str, tuple[MatrixCell, ...]], ...]
    mistakes: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class RecallRow:
    name: str
    dense: float | None
    final: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class PageView:
    """Everything on the page."""

    title: str
    headline: tuple[str, ...]
    summary: tuple[str, ...]
    notes: tuple[str, ...]
    metric: str
    tiles: tuple[Tile, ...]
    measured: tuple[tuple[str, str, str, str], ...]
    stage_chart: Markup
    stages: tuple[StageView, ...]
    independence: tuple[tuple[SIAVerdict, bool], ...]
    matrices: tuple[MatrixView, ...]
    recalls: tuple[RecallRow, ...]
    examples: tuple[ExampleView, ...]
    dense_curve: Markup | None
    dense_training: str
    provenance: tuple[tuple[str, tuple[tuple[str, str], ...]], ...]
    config: str
    keys: dict[str, Markup] = field(default_factory=dict)


def page_view(
    report: CompressionReport, *, artifacts: Mapping[str, str], examples: Sequence[ExampleDiagnosis] = ()
) -> PageView:
    """Turn a report into what the template prints."""
    dense, final = report.dense, report.final
    style = fmt.metric_style(final.evaluation.metric.name)
    training = report.dense_training
    return PageView(
        title=f"{report.dataset} · {report.model}",
        headline=_headline(report, style),
        summary=_summary(report, style),
        notes=_notes(report),
        metric=style.title,
        tiles=_tiles(report, style),
        measured=_measured(dense, final, style),
        stage_chart=charts.stage_chart(_points(report), style),
        stages=tuple(_stage(report, stage, style) for stage in report.stages),
        independence=tuple(
            (verdict, verdict.granularity.value in {stage.granularity for stage in report.stages})
            for verdict in report.independence
        ),
        matrices=_matrices(report),
        recalls=_recalls(dense.evaluation, final.evaluation),
        examples=tuple(example_view(example) for example in examples),
        dense_curve=charts.loss_curve(training.losses, "Loss of the dense training") if training else None,
        dense_training=_recovery_text(training) if training else "",
        provenance=_provenance(report, artifacts),
        config=json.dumps(to_jsonable(report.config), indent=2, ensure_ascii=False, default=str),
        keys={
            "ramp": charts.swatches(),
            **{name: charts.key_square(name) for name in ("kept", "removed", "share")},
            **{name: charts.dot_key(name) for name in ("dense", "cut", "final")},
        },
    )


def _headline(report: CompressionReport, style: fmt.MetricStyle) -> tuple[str, ...]:
    before, after = report.dense.evaluation.metric, report.final.evaluation.metric
    return (
        f"{fmt.smaller(report.dense.backbone_params, report.final.backbone_params)} backbone",
        f"{style.title} {style.value(before.value)} → {style.value(after.value)}",
        fmt.speed(report.dense.latency_ms.median, report.final.latency_ms.median),
    )


def _summary(report: CompressionReport, style: fmt.MetricStyle) -> tuple[str, ...]:
    before, after = report.dense.evaluation.metric, report.final.evaluation.metric
    sentences = [
        f"On the test side of split {report.split} ({fmt.integer(after.samples)} samples), "
        f"{style.title} went from "
        f"{style.value(before.value)} (95 % CI {style.interval(before.low, before.high)}) to "
        f"{style.value(after.value)} (95 % CI {style.interval(after.low, after.high)})."
    ]
    if all(map(math.isfinite, (before.low, before.high, after.low, after.high))):
        apart = before.high < after.low or after.high < before.low
        sentences.append(f"The two intervals {'do not overlap' if apart else 'overlap'}.")
    cuts = " → ".join(
        f"{fmt.inside(fmt.granularity(s.granularity))} −{fmt.ratio(s.ratio)}" for s in report.stages
    )
    if cuts:
        always = all(stage.recovery.steps > 0 for stage in report.stages)
        sentences.append(f"Removed in order: {cuts}{'; recovery training after each cut' if always else ''}.")
    return tuple(sentences)


def _notes(report: CompressionReport) -> tuple[str, ...]:
    """What a reader must know before believing the figures."""
    notes = []
    if report.data.get("source") == "simulated":
        notes.append("The data are simulated: these figures say nothing about a real machine.")
    given = report.data.get("notes", ())
    notes += [given] if isinstance(given, str) else [str(note) for note in given]
    used = {stage.granularity for stage in report.stages}
    notes += [
        f"Removed one by one: {one.granularity.value}. The independence this assumes is {one.reason}"
        for one in report.independence
        if one.kappa > 1 and one.granularity.value in used
    ]
    if len(report.seeds) == 1:
        notes.append(f"One seed ({report.seeds[0]}): the spread over seeds is unknown.")
    return tuple(notes)


def _tiles(report: CompressionReport, style: fmt.MetricStyle) -> tuple[Tile, ...]:
    dense, final = report.dense, report.final
    before, after = dense.evaluation.metric, final.evaluation.metric
    latency = final.latency_ms
    threads = f"{latency.threads} thread{'s' if latency.threads != 1 else ''}"
    return (
        Tile(
            title="Backbone parameters",
            value=fmt.smaller(dense.backbone_params, final.backbone_params),
            before=fmt.count(dense.backbone_params),
            after=fmt.count(final.backbone_params),
            note=f"all parameters: {fmt.smaller(dense.total_params, final.total_params)}",
        ),
        Tile(
            title=fmt.capital(style.title),
            value=style.change(before.value, after.value),
            before=style.value(before.value),
            after=style.value(after.value),
            note=f"95 % CI {style.interval(after.low, after.high)}",
        ),
        Tile(
            title="Latency, one sample",
            value=fmt.speed(dense.latency_ms.median, latency.median),
            before=fmt.milliseconds(dense.latency_ms.median),
            after=fmt.milliseconds(latency.median),
            note=f"median of {fmt.integer(latency.runs)} runs, {threads}",
        ),
        Tile(
            title="Size on disk",
            value=fmt.smaller(dense.size_bytes, final.size_bytes),
            before=fmt.size(dense.size_bytes),
            after=fmt.size(final.size_bytes),
            note="safetensors",
        ),
    )


def _measured(
    dense: ModelFigures, final: ModelFigures, style: fmt.MetricStyle
) -> tuple[tuple[str, str, str, str], ...]:
    """(figure, dense, compressed, ratio or change)."""
    a, b = dense.latency_ms, final.latency_ms

    rows = [
        _metric_row(dense.evaluation.metric, final.evaluation.metric),
        *(
            _metric_row(dense.evaluation.extra[name], metric)
            for name, metric in final.evaluation.extra.items()
            if name in dense.evaluation.extra
        ),
        (
            "loss",
            fmt.significant(dense.evaluation.loss),
            fmt.significant(final.evaluation.loss),
            fmt.metric_style("loss").change(dense.evaluation.loss, final.evaluation.loss),
        ),
        (
            "backbone parameters",
            fmt.integer(dense.backbone_params),
            fmt.integer(final.backbone_params),
            fmt.smaller(dense.backbone_params, final.backbone_params),
        ),
        (
            "all parameters",
            fmt.integer(dense.total_params),
            fmt.integer(final.total_params),
            fmt.smaller(dense.total_params, final.total_params),
        ),
        (
            "size on disk",
            fmt.size(dense.size_bytes),
            fmt.size(final.size_bytes),
            fmt.smaller(dense.size_bytes, final.size_bytes),
        ),
        (
            "latency, median",
            fmt.milliseconds(a.median),
            fmt.milliseconds(b.median),
            fmt.speed(a.median, b.median),
        ),
        ("latency, 5th to 95th percentile", _span(a.p5, a.p95), _span(b.p5, b.p95), ""),
    ]
    return tuple(rows)


def _metric_row(before: Metric, after: Metric) -> tuple[str, str, str, str]:
    how = fmt.metric_style(after.name)
    change = how.change(before.value, after.value)
    if not all(math.isfinite(end) for metric in (before, after) for end in (metric.low, metric.high)):
        return (how.title, how.value(before.value), how.value(after.value), change)
    dense, final = (f"{how.value(m.value)} ({how.interval(m.low, m.high)})" for m in (before, after))
    return (f"{how.title} (95 % CI)", dense, final, change)


def _span(low: float, high: float) -> str:
    return f"{fmt.significant(low)}–{fmt.milliseconds(high)}"


def _points(report: CompressionReport) -> list[charts.StagePoint]:
    points = [
        charts.StagePoint(
            title="Dense",
            subtitle="before",
            params=report.dense.backbone_params,
            cut=None,
            recovered=report.dense.evaluation.metric,
        )
    ]
    short = {"head": "Heads", "channel": "Channels"}
    for stage in report.stages:
        points.append(
            charts.StagePoint(
                title=short.get(stage.granularity, fmt.granularity(stage.granularity)),
                subtitle=f"{fmt.MINUS}{fmt.ratio(stage.ratio)}",
                params=stage.params,
                cut=stage.before_recovery.metric,
                recovered=stage.after_recovery.metric,
            )
        )
    return points


def _stage(report: CompressionReport, stage: StageResult, style: fmt.MetricStyle) -> StageView:
    before, after = stage.before_recovery.metric, stage.after_recovery.metric
    by_layer = stage.granularity == "layer"
    title = fmt.granularity(stage.granularity)
    return StageView(
        number=report.stages.index(stage) + 1,
        title=title,
        result=stage,
        kept=sum(len(layer.kept) for layer in stage.layers),
        units=len(stage.layers) if by_layer else sum(len(layer.scores) for layer in stage.layers),
        params=fmt.integer(stage.params),
        compression=fmt.factor(report.dense.backbone_params / max(1, stage.params)),
        cut=style.value(before.value),
        cut_interval=style.interval(before.low, before.high),
        recovered=style.value(after.value),
        recovered_interval=style.interval(after.low, after.high),
        recovery=_recovery_text(stage.recovery),
        time=fmt.duration(stage.seconds),
        bars=charts.layer_bars(stage.layers, levels(stage)) if by_layer else None,
        map=None if by_layer else unit_map(stage, _gone(report, stage)),
        curve=charts.loss_curve(stage.recovery.losses, f"Recovery loss after the cut of {fmt.inside(title)}"),
    )


def _gone(report: CompressionReport, stage: StageResult) -> dict[int, str]:
    """Dense layers that an earlier stage removed, with which one did."""
    gone: dict[int, str] = {}
    for number, earlier in enumerate(report.stages, start=1):
        if earlier is stage:
            break
        if earlier.granularity == "layer":
            gone |= {
                layer.source: f"whole layer removed in stage {number}"
                for layer in earlier.layers
                if not layer.kept
            }
    return gone


def _recovery_text(fit: RecoveryResult) -> str:
    stopped = f" (stopped after {fmt.integer(len(fit.losses))})" if 0 < len(fit.losses) < fit.steps else ""
    shared = f" on {fit.workers} workers" if fit.workers else ""
    return f"{fmt.integer(fit.steps)} steps of {fit.batch_size}{stopped}{shared}, {fmt.duration(fit.seconds)}"


def _matrices(report: CompressionReport) -> tuple[MatrixView, ...]:
    pairs = (("Dense", report.dense.evaluation), ("Compressed", report.final.evaluation))
    return tuple(_matrix(title, evaluation) for title, evaluation in pairs if evaluation.confusion)


def _matrix(title: str, evaluation: Evaluation) -> MatrixView:
    names = evaluation.classes
    rows = []
    for name, counts in zip(names, evaluation.confusion, strict=True):
        total = sum(counts)
        rows.append((name, tuple(MatrixCell(count=n, level=_share_level(n, total)) for n in counts)))
    wrong = sorted(
        (
            (n, names[i], names[j])
            for i, counts in enumerate(evaluation.confusion)
            for j, n in enumerate(counts)
            if i != j and n
        ),
        key=lambda item: -item[0],
    )
    mistakes = tuple(f"{truth} taken for {answer}: {fmt.integer(n)}" for n, truth, answer in wrong[:3])
    return MatrixView(title=title, classes=names, rows=tuple(rows), mistakes=mistakes)


def _share_level(count: int, total: int) -> str:
    """Eight steps by the share of the true class; an empty cell has none."""
    return f"m{min(7, math.floor(8 * count / total))}" if count else "m-none"


def _recalls(dense: Evaluation, final: Evaluation) -> tuple[RecallRow, ...]:
    names = list(dict.fromkeys((*dense.classes, *final.classes)))
    if not (dense.per_class or final.per_class):
        return ()
    return tuple(RecallRow(name=n, dense=_known(dense, n), final=_known(final, n)) for n in names)


def _known(evaluation: Evaluation, name: str) -> float | None:
    value = evaluation.per_class.get(name)
    return value if value is not None and math.isfinite(value) else None


def _provenance(
    report: CompressionReport, artifacts: Mapping[str, str]
) -> tuple[tuple[str, tuple[tuple[str, str], ...]], ...]:
    """Rows by group; a group without rows is left out."""
    run = {
        "task": report.task,
        "dataset": report.dataset,
        "split": report.split,
        "seeds": list(report.seeds),
        "model": report.model,
        "duration": fmt.duration(report.seconds),
    }
    groups = (
        ("Run", run),
        ("Data", report.data),
        ("Versions and machine", report.provenance),
        ("Artifacts", dict(artifacts)),
    )
    flat = ((title, tuple(flattened("", to_jsonable(values)))) for title, values in groups)
    return tuple((title, rows) for title, rows in flat if rows)


def flattened(prefix: str, value: Any) -> list[tuple[str, str]]:
    """Nested mappings as dotted rows; lists of plain values on one line."""
    if isinstance(value, dict):
        dot = f"{prefix}." if prefix else ""
        return [row for key, item in value.items() for row in flattened(f"{dot}{key}", item)]
    if isinstance(value, list):
        if any(isinstance(item, (dict, list)) for item in value):
            return [(prefix, json.dumps(value, ensure_ascii=False, default=str))]
        return [(prefix, ", ".join(map(str, value)) or fmt.MISSING)]
    return [(prefix, fmt.MISSING if value in (None, "") else str(value))]
