"""The machine's view of a run: one JSON document with stable, schema-versioned paths."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from cascade_ops.errors import CheckpointError
from cascade_ops.results import REPORT_SCHEMA, CompressionReport, Metric, StageResult
from cascade_ops.serde import from_jsonable, to_jsonable
from workflows.report.diagnosis import ExampleDiagnosis
from workflows.report.format import metric_style


def machine_view(
    report: CompressionReport, *, artifacts: Mapping[str, str], examples: Sequence[ExampleDiagnosis] = ()
) -> dict[str, Any]:
    """What ``cascade report RUN --json`` prints.

    Figures at the stable paths are plain numbers, or null where the run found none (a diverged loss).
    ``details`` is the whole record and ``examples`` the diagnosed recordings; there, where types must
    survive the way back, such numbers are the strings "NaN", "Infinity" and "-Infinity".
    """
    dense, final = report.dense, report.final
    document = {
        "schema": REPORT_SCHEMA,
        "task": report.task,
        "dataset": report.dataset,
        "split": report.split,
        "seeds": list(report.seeds),
        "model": report.model,
        "compression": {"backbone": report.backbone_compression, "total": report.total_compression},
        "metric": _metric(report),
        "stages": [_stage(stage) for stage in report.stages],
        "latency_ms": {
            "dense": dense.latency_ms.median,
            "final": final.latency_ms.median,
            "dense_p5_p95": [dense.latency_ms.p5, dense.latency_ms.p95],
            "final_p5_p95": [final.latency_ms.p5, final.latency_ms.p95],
            "runs": final.latency_ms.runs,
            "threads": final.latency_ms.threads,
        },
        "size_bytes": {"dense": dense.size_bytes, "final": final.size_bytes},
        "params": {
            "backbone": {"dense": dense.backbone_params, "final": final.backbone_params},
            "total": {"dense": dense.total_params, "final": final.total_params},
        },
        "artifacts": {"model": None, **artifacts},
        "seconds": report.seconds,
        "data": to_jsonable(report.data),
        "provenance": to_jsonable(report.provenance),
    }
    return {
        **_finite_or_null(document),
        "details": to_jsonable(report),
        "examples": to_jsonable(list(examples)),
    }


def read_machine_view(document: Mapping[str, Any]) -> tuple[CompressionReport, tuple[ExampleDiagnosis, ...]]:
    """The record and the examples back from ``machine_view``'s document.

    Raises:
        CheckpointError: another schema, or a document that does not describe a run.
    """
    found = document.get("schema")
    if found != REPORT_SCHEMA:
        raise CheckpointError(
            f"expected a report of schema {REPORT_SCHEMA!r}, found {found!r}; "
            "read it with the version of cascade-ops that wrote it"
        )
    try:
        report = from_jsonable(CompressionReport, document["details"])
        examples = tuple(from_jsonable(ExampleDiagnosis, item) for item in document.get("examples", ()))
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"the report's details are incomplete or corrupt: {error}") from error
    return report, examples


def _metric(report: CompressionReport) -> dict[str, Any]:
    dense, final = report.dense.evaluation.metric, report.final.evaluation.metric
    return {
        "name": final.name,
        "dense": dense.value,
        "final": final.value,
        "dense_ci": _interval(dense),
        "final_ci": _interval(final),
        "samples": final.samples,
        "higher_is_better": metric_style(final.name).higher_is_better,
    }


def _stage(stage: StageResult) -> dict[str, Any]:
    before, after = stage.before_recovery.metric, stage.after_recovery.metric
    return {
        "index": stage.index,
        "granularity": stage.granularity,
        "criterion": stage.criterion,
        "allocation": stage.allocation,
        "ratio": stage.ratio,
        "params": stage.params,
        "params_total": stage.params_total,
        "metric_before_recovery": before.value,
        "metric_before_recovery_ci": _interval(before),
        "metric_after_recovery": after.value,
        "metric_after_recovery_ci": _interval(after),
        "recovery_steps": stage.recovery.steps,
        "recovery_steps_done": len(stage.recovery.losses),
        "recovery_workers": stage.recovery.workers,
        "seconds": stage.seconds,
    }


def _interval(metric: Metric) -> list[float]:
    return [metric.low, metric.high]


def _finite_or_null(value: Any) -> Any:
    """Strict JSON knows no NaN and no infinity."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {key: _finite_or_null(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_finite_or_null(item) for item in value]
    return value
