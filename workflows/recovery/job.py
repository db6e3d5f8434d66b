"""``cascade recover`` as a function: a model by name, data, a mended model on disk."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from cascade_ops.anatomy import anatomy_of
from cascade_ops.cascade import check_recovery
from cascade_ops.checkpoint import load_pruned, read_config, save_pruned
from cascade_ops.data.readers.base import sha256_of
from cascade_ops.distillation import TeacherCache, cache_teacher
from cascade_ops.errors import UsageError
from cascade_ops.evaluation import evaluate
from cascade_ops.files import written_whole
from cascade_ops.progress import Progress, silent
from cascade_ops.recovery import train_config
from cascade_ops.results import Evaluation, RecoveryResult
from cascade_ops.schedule import Recovery
from cascade_ops.serde import to_jsonable
from cascade_ops.tasks import TaskData, check_disjoint, lm_data
from cascade_ops.tokenizers import tokenizer_in
from cascade_ops.training import deterministic
from cascade_ops.zero import deepspeed_document
from workflows.config import RecoveringConfig, ScoringConfig
from workflows.hub import locate
from workflows.means import cluster_for, recoverer_for
from workflows.models import check_classes, model_folder, run_config
from workflows.prepare import prepare_data, with_data
from workflows.provenance import provenance
from workflows.rundir import refuse_existing

SCHEMA = "cascade.recovery/1"
RECORD = "recovery.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class RecoverOptions:
    """What ``cascade recover`` was asked for.

    Attributes:
        data: a dataset's name, or a text file; None: the data of the model's run.
        test: a text file to measure on, with a text file as data.
        length, sequences: tokens of each sequence, and how many at most (texts).
        teacher: a model folder or run to learn from, where ``recovery.distillation`` is on.
    """

    recovery: Recovery
    recovering: RecoveringConfig = field(default_factory=RecoveringConfig)
    data: str | None = None
    data_path: str | None = None
    split: str | None = None
    test: str | None = None
    length: int = 128
    sequences: int | None = None
    teacher: str | None = None
    threads: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if self.recovery.steps < 1:
            raise UsageError(f"--steps: must be ≥ 1, got {self.recovery.steps}: nothing would be learnt")
        if self.recovery.compensation:
            raise UsageError(
                "recovery.compensation: happens at a cut (cascade compress), not afterwards; leave it out"
            )
        if (self.recovery.distillation is None) != (self.teacher is None):
            raise UsageError("--teacher and distillation belong together: give a teacher's model, or neither")


@dataclass(frozen=True, slots=True, kw_only=True)
class RecoverReport:
    """What a recovery found."""

    model: str
    task: str
    params: int
    before: Evaluation
    after: Evaluation
    recovery: RecoveryResult
    settings: dict[str, Any]
    data: dict[str, Any]
    provenance: dict[str, Any]


def run_recovery(
    model: str, options: RecoverOptions, out: Path, *, progress: Progress = silent
) -> RecoverReport:
    """Mend ``model`` and write the folder ``out`` (model/ and recovery.json), whole or not at all.

    Raises:
        CascadeError: see the messages; nothing was written. What can be refused is refused before weights are read.
    """
    refuse_existing(out)
    recovery, recovering = options.recovery, options.recovering
    if recovering.workers:
        deepspeed_document(recovering.zero, train_config(recovery, recovery.steps), recovering.workers)
    folder = locate(str(model_folder(Path(model)))).absolute()
    check_recovery(recovery, anatomy_of(read_config(folder)))
    data, description, fingerprint = _data(model, folder, options)
    if recovery.patience is not None:
        check_disjoint(data.train, data.validation)
    deterministic(options.threads)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    with written_whole(out) as scratch, cluster_for(ScoringConfig(), recovering):
        loaded: PreTrainedModel = load_pruned(folder)
        loaded.to(device)  # type: ignore[arg-type]  # transformers wraps nn.Module.to
        before = evaluate(loaded, data.test, task=data.task, classes=data.classes)
        result = recoverer_for(recovering, scratch / "scratch", device=device)(
            loaded,
            data.train,
            recovery,
            steps=recovery.steps,
            seed=options.seed,
            validation=data.validation if recovery.patience is not None else None,
            teacher=_teacher(loaded, options, data, scratch / "scratch" / "teacher", progress),
            augment=data.augment,
            progress=progress,
        )
        report = RecoverReport(
            model=str(model),
            task=data.task,
            params=anatomy_of(loaded).backbone_params,
            before=before,
            after=evaluate(loaded, data.test, task=data.task, classes=data.classes),
            recovery=result,
            settings={"recovery": to_jsonable(recovery), "recovering": to_jsonable(recovering)},
            data=description,
            provenance=provenance(
                seed=options.seed, threads=torch.get_num_threads(), data_fingerprint=fingerprint
            ),
        )
        _write(loaded, report, scratch)
    return report


def _write(model: PreTrainedModel, report: RecoverReport, folder: Path) -> None:
    shutil.rmtree(folder / "scratch", ignore_errors=True)
    save_pruned(model, folder / "model")
    (folder / RECORD).write_text(json.dumps(machine_view(report), indent=1, ensure_ascii=False) + "\n")


def machine_view(report: RecoverReport) -> dict[str, Any]:
    """The report as JSON-able data."""
    return {"schema": SCHEMA, **to_jsonable(report)}


def _teacher(
    student: PreTrainedModel, options: RecoverOptions, data: TaskData, folder: Path, progress: Progress
) -> TeacherCache | None:
    distillation = options.recovery.distillation
    if distillation is None or options.teacher is None:
        return None
    teacher = load_pruned(locate(str(model_folder(Path(options.teacher)))))
    check_classes(teacher.config, data.classes)
    sources = [layer.source for layer in anatomy_of(student).layers]
    return cache_teacher(teacher, data.train, folder, distillation, keep_layers=sources, progress=progress)


def _data(model: str, folder: Path, options: RecoverOptions) -> tuple[TaskData, dict[str, Any], str]:
    """The data, what the report says about them, and their fingerprint."""
    if options.data is not None and Path(options.data).is_file():
        if options.test is None:
            raise UsageError(
                f"--test: is required with a text file as --data ({options.data}): a text to measure on"
            )
        data = lm_data(
            options.data,
            options.test,
            tokenizer_in(folder),
            length=options.length,
            max_sequences=options.sequences,
            seed=options.seed,
        )
        fingerprint = "-".join(sha256_of(Path(file)) for file in (options.data, options.test))
        return data, {"name": Path(options.data).stem, "source": "recorded", **data.metadata}, fingerprint
    config = run_config(Path(model))
    given = {"name": options.data, "path": options.data_path, "split": options.split}
    if any(given.values()):
        config = with_data(config, **given)
    prepared = prepare_data(config)
    check_classes(read_config(folder), prepared.data.classes)
    return prepared.data, prepared.description, prepared.fingerprint
