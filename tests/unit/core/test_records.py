"""Results as JSON, the registry, and what errors say."""

from __future__ import annotations

import ast
import inspect
import json
import random
import re
from dataclasses import dataclass, replace
from typing import Any

import pytest

import cascade_ops
from cascade_ops import errors
from cascade_ops.errors import CascadeError, UnknownNameError, UsageError
from cascade_ops.granularity import Granularity
from cascade_ops.registry import Registry
from cascade_ops.results import (
    CompressionReport,
    Evaluation,
    Latency,
    LayerScores,
    Metric,
    ModelFigures,
    RecoveryResult,
    StageResult,
)
from cascade_ops.serde import from_jsonable, to_jsonable


def made_up_report(draw: random.Random) -> CompressionReport:
    """A report with hard cases among its numbers and names."""

    def number() -> float:
        return draw.choice([0.0, -0.0, 0.1, 1e-308, 5e-324, 1.7e308, draw.random(), draw.gauss(0, 1e9)])

    def count() -> int:
        return draw.choice([0, 1, 2**53 + 1, draw.randrange(10**6)])

    def name() -> str:
        return draw.choice(["", "N", "outer 0.007 in", '×"\\\n', "\u2028", "轴承"])

    def metric() -> Metric:
        return Metric(name=name(), value=number(), low=number(), high=number(), samples=count())

    def evaluation() -> Evaluation:
        return Evaluation(
            metric=metric(),
            loss=number(),
            classes=tuple(name() for _ in range(draw.randrange(3))),
            per_class={name(): number() for _ in range(draw.randrange(3))},
            confusion=tuple((count(), count()) for _ in range(draw.randrange(3))),
            extra={name(): metric() for _ in range(draw.randrange(2))},
        )

    def recovery() -> RecoveryResult:
        losses = tuple(number() for _ in range(draw.randrange(4)))
        return RecoveryResult(
            steps=count(), batch_size=count(), trainable_params=count(), losses=losses, seconds=number()
        )

    def layer() -> LayerScores:
        return LayerScores(source=count(), scores=(number(), number()), kept=draw.choice([(), (0,), (0, 1)]))

    def stage() -> StageResult:
        return StageResult(
            index=count(),
            granularity=draw.choice(list(Granularity)).value,
            criterion=name(),
            allocation="uniform",
            ratio=number(),
            params=count(),
            params_total=count(),
            layers=tuple(layer() for _ in range(draw.randrange(3))),
            before_recovery=evaluation(),
            after_recovery=evaluation(),
            recovery=recovery(),
            seconds=number(),
        )

    def figures() -> ModelFigures:
        latency = Latency(median=number(), p5=number(), p95=number(), runs=count(), threads=count())
        return ModelFigures(
            backbone_params=count(),
            total_params=count(),
            size_bytes=count(),
            latency_ms=latency,
            evaluation=evaluation(),
        )

    return CompressionReport(
        task=name(),
        dataset=name(),
        split=name(),
        seeds=(count(),),
        model=name(),
        dense=figures(),
        final=figures(),
        stages=tuple(stage() for _ in range(draw.randrange(4))),
        dense_training=draw.choice([None, recovery()]),
        seconds=number(),
        data={name(): [count(), None, {"a": number()}]},
        config={},
        provenance={"python": "3.11"},
    )


@pytest.mark.parametrize("seed", range(20))
def test_reports_survive_json_exactly(seed: int) -> None:
    report = made_up_report(random.Random(seed))
    text = json.dumps(to_jsonable(report), allow_nan=False)
    assert from_jsonable(CompressionReport, json.loads(text)) == report


def test_compression_is_before_over_after() -> None:
    report = made_up_report(random.Random(0))
    dense = replace(report.dense, backbone_params=1380, total_params=1500)
    final = replace(report.final, backbone_params=100, total_params=200)
    report = replace(report, dense=dense, final=final)
    assert (report.backbone_compression, report.total_compression) == (13.8, 7.5)


@dataclass(frozen=True)
class Sample:
    kinds: dict[Granularity, float]
    pair: tuple[int, str]
    maybe: int | None = None
    anything: Any = None


def test_enums_pairs_and_optionals_are_rebuilt() -> None:
    sample = Sample(kinds={Granularity.HEAD: 1.0}, pair=(1, "a"), anything={"x": [1]})
    data = json.loads(json.dumps(to_jsonable(sample)))
    assert data == {"kinds": {"head": 1.0}, "pair": [1, "a"], "maybe": None, "anything": {"x": [1]}}
    assert from_jsonable(Sample, data) == sample
    whole = from_jsonable(Sample, {"kinds": {"head": 1}, "pair": [1, "a"]})
    assert isinstance(whole.kinds[Granularity.HEAD], float), "JSON may have lost the point"


@pytest.mark.parametrize(
    ("data", "error"),
    [
        ({"kinds": {}, "pair": [1, "a"], "spare": 1}, ValueError),
        ({"kinds": {"heads": 1.0}, "pair": [1, "a"]}, ValueError),
        ({"kinds": {}, "pair": [1]}, ValueError),
        ({"kinds": {}}, TypeError),
    ],
    ids=["unknown field", "unknown enum value", "short pair", "missing field"],
)
def test_data_that_is_not_a_sample_is_refused(data: dict[str, Any], error: type[Exception]) -> None:
    with pytest.raises(error):
        from_jsonable(Sample, data)


# ------------------------------------------------------------------------------------------ registry


def test_a_registry_keeps_order_and_suggests_names() -> None:
    registry: Registry[int] = Registry("fruit")
    registry.add("pear", 1)
    assert registry.register("apple")(2) == 2
    assert list(registry) == ["pear", "apple"]
    assert registry.values() == (1, 2)
    assert len(registry) == 2
    assert "pear" in registry
    assert registry["apple"] == 2
    with pytest.raises(
        UnknownNameError, match=r"unknown fruit 'aple'\. Did you mean 'apple'\? Known: apple, pear\."
    ):
        registry["aple"]
    with pytest.raises(UnknownNameError) as caught:
        registry["zzzz"]
    assert "Did you mean" not in str(caught.value)
    with pytest.raises(ValueError, match="fruit 'pear' is registered twice"):
        registry.add("pear", 3)
    assert "Known: none." in str(UnknownNameError("fruit", "x", []))


# ------------------------------------------------------------------------------------------ errors


def error_classes() -> dict[str, type[CascadeError]]:
    return {
        name: value
        for name, value in vars(errors).items()
        if inspect.isclass(value) and issubclass(value, CascadeError)
    }


def test_the_tree_in_the_docstring_is_the_tree() -> None:
    """Names, parents and order of the drawing are those of the classes."""
    drawn: dict[str, str] = {}
    path: list[str] = []
    for line in (errors.__doc__ or "").splitlines():
        found = re.match(r"^([│├└─ ]*)(\w+Error)\b", line)
        if found:
            depth = len(found[1]) // 4
            path = [*path[:depth], found[2]]
            drawn[found[2]] = path[-2] if depth else "Exception"
    actual = {name: cls.__bases__[0].__name__ for name, cls in error_classes().items()}
    assert drawn == actual


def test_usage_errors_exit_with_2_and_the_others_with_1() -> None:
    for cls in error_classes().values():
        assert cls.exit_code == (2 if issubclass(cls, UsageError) else 1)


# ------------------------------------------------------------------------------------------ the package


@pytest.mark.parametrize("name", cascade_ops.__all__)
def test_every_public_name_can_be_imported(name: str) -> None:
    assert getattr(cascade_ops, name) is not None
    assert name in dir(cascade_ops)


def test_type_checkers_see_the_same_names() -> None:
    tree = ast.parse(inspect.getsource(cascade_ops))
    block = next(node for node in tree.body if isinstance(node, ast.If))
    imported = {
        alias.name: str(node.module)
        for node in ast.walk(block)
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert imported == {name: f"cascade_ops.{home}" for name, home in cascade_ops._HOME.items()}


def test_an_absent_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'prunee'"):
        _ = cascade_ops.prunee  # type: ignore[attr-defined]
