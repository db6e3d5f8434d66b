from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from cascade_ops.errors import CheckpointError
from tests.unit.report.factory import bearing_report, example, language_report
from workflows.report import machine_view, read_machine_view

PATHS = (
    "task",
    "dataset",
    "split",
    "seeds",
    "compression.backbone",
    "compression.total",
    "metric.name",
    "metric.dense",
    "metric.final",
    "metric.dense_ci",
    "metric.final_ci",
    "stages.0.granularity",
    "stages.0.ratio",
    "stages.0.params",
    "stages.0.metric_before_recovery",
    "stages.0.metric_after_recovery",
    "stages.0.metric_after_recovery_ci",
    "stages.0.seconds",
    "latency_ms.dense",
    "latency_ms.final",
    "artifacts.model",
)


def at(document: Any, path: str) -> Any:
    for key in path.split("."):
        document = document[int(key)] if isinstance(document, list) else document[key]
    return document


@pytest.fixture(scope="module")
def document() -> dict[str, Any]:
    view = machine_view(bearing_report(), artifacts={"model": "model"}, examples=(example(),))
    parsed: dict[str, Any] = json.loads(json.dumps(view, allow_nan=False))
    return parsed


def test_schema_is_named(document: dict[str, Any]) -> None:
    assert document["schema"] == "cascade.report/1"


@pytest.mark.parametrize("path", PATHS)
def test_every_promised_path_is_there(document: dict[str, Any], path: str) -> None:
    assert at(document, path) is not None


def test_values_are_the_records_own(document: dict[str, Any]) -> None:
    report = bearing_report()
    assert document["compression"]["backbone"] == pytest.approx(396_800 / 28_750)
    assert document["compression"]["total"] == pytest.approx(401_800 / 33_750)
    assert (document["metric"]["dense"], document["metric"]["final"]) == (0.871, 0.854)
    assert (document["latency_ms"]["dense"], document["latency_ms"]["final"]) == (5.62, 1.81)
    assert [s["granularity"] for s in document["stages"]] == ["layer", "head", "channel"]
    assert [s["params"] for s in document["stages"]] == [s.params for s in report.stages]
    assert all(type(s["params"]) is int for s in document["stages"])
    for shown, stage in zip(document["stages"], report.stages, strict=True):
        assert shown["metric_before_recovery"] == stage.before_recovery.metric.value
        low, high = shown["metric_after_recovery_ci"]
        assert low < shown["metric_after_recovery"] < high


def test_model_artifact_is_null_when_there_is_none() -> None:
    assert machine_view(bearing_report(), artifacts={})["artifacts"] == {"model": None}


@pytest.mark.parametrize("report", [bearing_report(), language_report()], ids=["bearing", "language"])
def test_the_record_survives_the_way_through_json(report: Any) -> None:
    text = json.dumps(machine_view(report, artifacts={}, examples=(example(),)), allow_nan=False)
    back, examples = read_machine_view(json.loads(text))
    # repr, since NaN differs from itself
    assert repr(back) == repr(report)
    assert examples == (example(),)


def test_a_diverged_metric_is_null_not_nan() -> None:
    document = machine_view(language_report(), artifacts={})
    assert document["stages"][0]["metric_before_recovery"] is None
    assert document["stages"][0]["metric_before_recovery_ci"] == [None, None]
    assert document["metric"]["higher_is_better"] is False


def test_another_schema_is_refused(document: dict[str, Any]) -> None:
    with pytest.raises(CheckpointError, match=r"cascade\.report/1.*cascade\.report/9"):
        read_machine_view(document | {"schema": "cascade.report/9"})


def test_an_incomplete_record_is_refused(document: dict[str, Any]) -> None:
    details = {key: value for key, value in document["details"].items() if key != "stages"}
    with pytest.raises(CheckpointError, match="incomplete or corrupt"):
        read_machine_view(document | {"details": details})


def test_several_seeds_are_listed() -> None:
    report = replace(bearing_report(), seeds=(3, 4))
    assert machine_view(report, artifacts={})["seeds"] == [3, 4]
