"""The steps of a run: each starts from the files of the one before, and is done, kept or taken from a store."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from transformers import PreTrainedModel

from cascade_ops.anatomy import ModelAnatomy, anatomy_of
from cascade_ops.cascade import carry_over, dense_scores, plan_of, run_stage
from cascade_ops.checkpoint import load_pruned, save_pruned
from cascade_ops.distillation import TeacherCache
from cascade_ops.errors import CheckpointError
from cascade_ops.evaluation import evaluate
from cascade_ops.files import written_whole
from cascade_ops.progress import Progress
from cascade_ops.results import Evaluation, StageResult
from cascade_ops.schedule import CascadeSchedule
from cascade_ops.scoring import Scorer, Scores
from cascade_ops.serde import from_jsonable, to_jsonable
from cascade_ops.shards import layout_of
from cascade_ops.training import fit
from workflows.artifacts import (
    Inputs,
    Manifest,
    dense_inputs,
    final_inputs,
    read_manifest,
    seal,
    stage_inputs,
    step_names,
    verified,
)
from workflows.config import JobConfig
from workflows.examples import diagnose_examples
from workflows.means import recoverer_for, scorer_for, taught
from workflows.origin import Origin, key_of
from workflows.prepare import Prepared, build_dense
from workflows.remembered import remembered
from workflows.report import write_report
from workflows.rundir import (
    DENSE,
    RESULT,
    RunDir,
)
from workflows.rundir import write_json as write_json_file
from workflows.status import Tracker
from workflows.store import Store, give, take
from workflows.summary import report_of

ARTIFACTS = {"model": "model", "dense_model": f"steps/{DENSE}/model", "report": "report.html"}

Say = Callable[[str], None]
Done = tuple[PreTrainedModel, dict[str, Any], str]
"""A step's model, its record, and what to say about it."""
Until = Literal["dense", "stages", "report"]
"""How far a run goes: to the dense model, through all stages, or to the report, which completes it."""
Source = Literal["computed", "kept", "taken"]
"""A step was done now, was there already, or came from the store."""
Told = Callable[[int, StageResult, Source], None]
"""Called after each stage with its index and result. What it raises ends the run, which can be resumed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One run under way."""

    config: JobConfig
    run: RunDir
    prepared: Prepared
    schedule: CascadeSchedule
    origin: Origin
    store: Store | None
    status: Tracker
    progress: Progress
    say: Say
    until: Until = "report"
    told: Told | None = None
    scores: Path | None = None
    teachers: Path


def carry_out_steps(job: Job) -> None:
    """All that the run lacks, up to ``job.until``."""
    job.say(f"run: {job.run.path} (if interrupted: cascade compress --resume {job.run.path})")
    job.run.reopen()
    names = step_names(job.schedule)
    inputs = dense_inputs(job.config, job.origin)
    dense_content = content = _step(job, DENSE, inputs, partial(_train_dense, job))[0].content
    if job.until == "dense":
        return
    folder = job.run.step(DENSE) / "model"
    dense, scores = layout_of(folder).anatomy, None
    if not job.schedule.rescore:
        data, seed = job.prepared.data, job.config.seed
        scorer = _scorer(job, folder, content)
        scores = dense_scores(_loaded(job, folder), job.schedule, data, seed=seed, scorer=scorer)
    for index, name in enumerate(names[1:]):
        inputs = stage_inputs(
            job.config, job.schedule, index, job.origin, dense=dense_content, previous=content
        )
        work = partial(_run_stage, job, index, names, dense, scores, content)
        manifest, source = _step(job, name, inputs, work)
        content = manifest.content
        if scores is not None or job.told is not None:
            result = from_jsonable(StageResult, job.run.result(name))
            scores = None if scores is None else carry_over(scores, plan_of(result))
            if job.told is not None:
                job.told(index, result, source)
    if job.until == "report":
        _finish(job, names, content)


def _step(job: Job, name: str, inputs: Inputs, work: Callable[[], Done]) -> tuple[Manifest, Source]:
    """Step ``name``: done before, taken from the store, or done now."""
    job.status.begin(name)
    manifest, told = _done_before(job, job.run.step(name), name, inputs), "done before"
    source: Source = "kept"
    key = key_of(inputs)
    with nullcontext() if job.store is None or manifest is not None else job.store.claimed(key):
        if manifest is None and job.store is not None:
            manifest = take(job.store, key, job.run, name, say=job.say, progress=job.progress)
            source, told = "taken", "taken from the store"
        cached = manifest is not None
        if manifest is None:
            source = "computed"
            model, record, told = work()
            with job.run.writing(name) as folder:
                save_pruned(model, folder / "model")
                write_json_file(folder / RESULT, record)
                manifest = seal(folder, inputs, progress=job.progress)
        if job.store is not None:
            give(job.store, job.run.step(name), manifest, say=job.say)
    job.status.finish(name, cached=cached, seconds=job.run.result(name)["seconds"])
    job.say(f"{name}: {told}")
    return manifest, source


def _loaded(job: Job, folder: Path) -> PreTrainedModel:
    """A saved model on the run's device, in evaluation mode."""
    model = load_pruned(folder)
    model.to(job.config.device)  # type: ignore[arg-type]  # transformers wraps nn.Module.to
    return model


def seeded_dense(config: JobConfig, prepared: Prepared) -> PreTrainedModel:
    """The untrained (or pretrained) dense model of the run's seed."""
    torch.manual_seed(config.seed)
    return build_dense(config, prepared.data)


def _scorer(job: Job, folder: Path, content: str) -> Scorer:
    scorer = scorer_for(job.config, folder)
    return scorer if job.scores is None else remembered(scorer, job.scores, weights=content)


def _done_before(job: Job, folder: Path, name: str, inputs: Inputs) -> Manifest | None:
    """A step that can be taken as it is; one that cannot is removed."""
    if not folder.exists():
        return None
    try:
        return verified(folder, inputs, progress=job.progress)
    except CheckpointError as error:
        job.say(f"{name}: {error}; done again")
    shutil.rmtree(folder)
    return None


def _train_dense(job: Job) -> Done:
    began = time.perf_counter()
    config, data = job.config, job.prepared.data
    model = seeded_dense(config, job.prepared)
    model.to(config.device)  # type: ignore[arg-type]  # transformers wraps nn.Module.to
    training = fit(
        model,
        data.train,
        config.train,
        seed=config.seed,
        augment=data.augment,
        progress=job.progress,
        phase="dense training",
    )
    evaluation = evaluate(model, data.test, task=data.task, classes=data.classes)
    record = {
        "training": to_jsonable(training),
        "evaluation": to_jsonable(evaluation),
        "seconds": time.perf_counter() - began,
    }
    return model, record, f"{_told(evaluation)}, {anatomy_of(model).backbone_params:,} backbone parameters"


def _run_stage(
    job: Job,
    index: int,
    names: tuple[str, ...],
    dense: ModelAnatomy,
    scores: Scores | None,
    previous: str,
) -> Done:
    model = _loaded(job, job.run.step(names[index]) / "model")
    torch.manual_seed(job.config.seed * 1000 + index + 1)
    result = run_stage(
        model,
        job.schedule,
        index,
        data=job.prepared.data,
        dense=dense,
        seed=job.config.seed,
        scores=scores,
        scorer=_scorer(job, job.run.step(names[index]) / "model", previous),
        recoverer=recoverer_for(job.config.recovering, job.run.scratch, device=job.config.device),
        teacher=partial(_teacher, job, index, names),
        progress=job.progress,
    )
    told = (
        f"{_told(result.after_recovery)} ({result.before_recovery.metric.value:.4g} before recovery), "
        f"{result.params:,} backbone parameters ({dense.backbone_params / result.params:.4g}×)"
    )
    return model, to_jsonable(result), told


def _teacher(job: Job, index: int, names: tuple[str, ...]) -> TeacherCache:
    """The outputs that stage ``index`` learns from; kept until the run, or the search, is complete."""
    distillation = job.schedule.recovery.distillation
    assert distillation is not None  # it is asked for only then
    name = DENSE if distillation.teacher == "dense" else names[index]
    key = key_of({"teacher": read_manifest(job.run.step(name)).content, **to_jsonable(distillation)})
    return taught(
        job.run.step(name) / "model",
        job.teachers / key[:16],
        distillation,
        job.prepared.data,
        device=job.config.device,
        progress=job.progress,
    )


def _told(evaluation: Evaluation) -> str:
    metric = evaluation.metric
    return f"{metric.name} {metric.value:.4g} [{metric.low:.4g}, {metric.high:.4g}]"


def _finish(job: Job, names: tuple[str, ...], content: str) -> None:
    """The final model and the report, whose JSON form marks the run as complete."""
    inputs = final_inputs(content, job.origin)
    if _done_before(job, job.run.model, "model", inputs) is None:
        with written_whole(job.run.model) as folder:
            shutil.copytree(job.run.step(names[-1]) / "model", folder, dirs_exist_ok=True)
            seal(folder, inputs, progress=job.progress)
    dense_model, final_model = _loaded(job, job.run.step(DENSE) / "model"), _loaded(job, job.run.model)
    report = report_of(
        job.run,
        job.config,
        job.prepared,
        tuple(from_jsonable(StageResult, job.run.result(name)) for name in names[1:]),
        dense=dense_model,
        final=final_model,
        progress=job.progress,
    )
    examples = diagnose_examples(dense_model, final_model, job.prepared)
    shutil.rmtree(job.run.teachers, ignore_errors=True)
    write_report(report, job.run.path, artifacts=ARTIFACTS, examples=examples)
