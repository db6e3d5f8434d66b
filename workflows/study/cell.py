"""One cell of the study: train, check SIA, then cut in every way and see what it costs."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch

from cascade_ops.evaluation import evaluate
from cascade_ops.recovery import recover
from cascade_ops.schedule import Recovery
from cascade_ops.sia.check import check
from cascade_ops.sia.results import Verdict
from cascade_ops.tasks import TaskData
from cascade_ops.training import deterministic, fit
from workflows.config import JobConfig, default_document, resolve
from workflows.prepare import build_dense, prepare_data
from workflows.study.arms import ARMS, Arm, Judged, Part, cut, judged, kind_of
from workflows.study.grid import Architecture

RATIOS = (0.5, 0.7, 0.9)
PARTS: tuple[tuple[Part, ...], ...] = (("heads",), ("channels",), ("heads", "channels"))
RECOVERED = (0.7, 0.9)


@dataclass(frozen=True, slots=True, kw_only=True)
class StudyOptions:
    """What every cell does.

    Attributes:
        data: a dataset's name; steps: of dense training; recovery: optimizer steps after a cut.
        budget: ablations of the check.
    """

    data: str = "cwru"
    steps: int = 400
    recovery: int = 30
    budget: int = 200
    ratios: tuple[float, ...] = RATIOS
    options: dict[str, Any] | None = None


def job_config(cell: Architecture, seed: int, options: StudyOptions) -> JobConfig:
    """The default job with the cell's architecture."""
    document = default_document()
    length, patch = document["data"]["length"], document["model"]["patch"]
    document["seed"] = seed
    document["model"]["config"] = cell.config(length // patch)
    document["data"] |= {"name": options.data, "calibration": 256, "options": options.options or {}}
    document["train"]["steps"] = options.steps
    return resolve(document)


def run_cell(cell: Architecture, seed: int, options: StudyOptions) -> list[dict[str, Any]]:
    """One row for each cut."""
    deterministic(1)
    config = job_config(cell, seed, options)
    data = prepare_data(config).data
    torch.manual_seed(seed)
    dense = build_dense(config, data)
    fit(dense, data.train, config.train, seed=seed, augment=data.augment)
    before = evaluate(dense, data.test, task=data.task, classes=data.classes)
    found = check(dense, data.calibration, budget=options.budget, seed=seed, stability=False)
    one = judged(dense, data.calibration)
    common = {
        "architecture": cell.name,
        "attention": cell.attention,
        "mlp": cell.mlp,
        "seed": seed,
        "params": one.anatomy.backbone_params,
        "dense_accuracy": before.metric.value,
        "dense_loss": before.loss,
        "tolerance": found.tolerance,
    }
    rows = []
    for parts in PARTS:
        for arm in ARMS:
            for ratio in options.ratios:
                told = [foretold(found[kind_of(one, arm, part)], ratio) for part in parts]
                worst = max(told, key=lambda each: float(each["gap"]))
                rows.append(
                    {
                        **common,
                        "parts": "+".join(parts),
                        "arm": arm,
                        "ratio": ratio,
                        **worst,
                        "predicted_loss": sum(float(each["predicted_loss"]) for each in told),
                        **_outcome(one, arm, parts, ratio, data, options, seed),
                    }
                )
    return rows


def foretold(verdict: Verdict, ratio: float) -> dict[str, Any]:
    """What the check says beforehand about cutting ``ratio`` of one unit set."""
    if not verdict.curves:
        return {"structural": verdict.structural, "gap": 0.0, "safe": 1.0, "predicted_loss": 0.0}
    curve = verdict.curves[0]
    xs = (0.0, *curve.ratios)
    return {
        "structural": verdict.structural,
        "gap": between(xs, (0.0, *(one.value for one in curve.gap)), ratio),
        "safe": curve.safe.value,
        "predicted_loss": between(xs, (0.0, *(one.value for one in curve.loss)), ratio),
    }


def between(xs: tuple[float, ...], ys: tuple[float, ...], x: float) -> float:
    """Piecewise linear; constant beyond the ends."""
    if x >= xs[-1]:
        return ys[-1]
    index = max(i for i, left in enumerate(xs) if left <= x)
    share = (x - xs[index]) / (xs[index + 1] - xs[index])
    return ys[index] + share * (ys[index + 1] - ys[index])


def _outcome(
    one: Judged,
    arm: Arm,
    parts: tuple[Part, ...],
    ratio: float,
    data: TaskData,
    options: StudyOptions,
    seed: int,
) -> dict[str, Any]:
    from cascade_ops.anatomy import anatomy_of

    model = cut(one, arm, parts, ratio)
    after = evaluate(model, data.test, task=data.task, classes=data.classes)
    row: dict[str, Any] = {
        "kept_params": anatomy_of(model).backbone_params,
        "accuracy": after.metric.value,
        "loss": after.loss,
        "recovered_accuracy": None,
    }
    if len(parts) > 1 and ratio in RECOVERED and options.recovery:
        recovery = replace(Recovery(), steps=options.recovery, batch_size=64)
        recover(
            model,
            data.train,
            recovery,
            steps=options.recovery,
            seed=seed,
            validation=None,
            teacher=None,
            augment=data.augment,
        )
        row["recovered_accuracy"] = evaluate(
            model, data.test, task=data.task, classes=data.classes
        ).metric.value
    return row
