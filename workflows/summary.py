"""What a finished run says of itself: its report, from what its steps have recorded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from cascade_ops.measure import latency, model_figures
from cascade_ops.progress import Progress
from cascade_ops.results import CompressionReport, Evaluation, RecoveryResult, StageResult
from cascade_ops.serde import from_jsonable, to_jsonable
from cascade_ops.sia.structural import check_sia
from workflows.config import JobConfig
from workflows.prepare import Prepared
from workflows.rundir import DENSE, PROVENANCE, RunDir, read_json


def report_of(
    run: RunDir,
    config: JobConfig,
    prepared: Prepared,
    stages: tuple[StageResult, ...],
    *,
    dense: PreTrainedModel,
    final: PreTrainedModel,
    progress: Progress,
) -> CompressionReport:
    """The report; ``seconds`` are those of the steps. Both models' latency is measured here, in turn."""
    record = run.result(DENSE)
    progress("latency", 0, 1)
    times = latency([dense, final], prepared.data.test)
    progress("latency", 1, 1)
    recorded: dict[str, Any] = read_json(run.path / PROVENANCE)
    return CompressionReport(
        task=config.task,
        dataset=prepared.description["name"],
        split=prepared.description["split"],
        seeds=(config.seed,),
        model=model_name(config),
        dense=model_figures(dense, times[0], from_jsonable(Evaluation, record["evaluation"])),
        final=model_figures(final, times[1], stages[-1].after_recovery),
        stages=stages,
        dense_training=from_jsonable(RecoveryResult, record["training"]) if config.train.steps else None,
        seconds=record["seconds"] + sum(stage.seconds for stage in stages),
        data=prepared.description,
        config=to_jsonable(config),
        provenance={**recorded, "split": prepared.data.metadata.get("split")},
        independence=check_sia(dense).verdicts,
    )


def model_name(config: JobConfig) -> str:
    """What the report calls the model."""
    if config.model.path is not None:
        return Path(config.model.path).name
    assert config.model.config is not None  # ModelConfig has one of the two
    return str(config.model.config["model_type"])
