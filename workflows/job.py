"""The main job: dense model, then stage by stage, then the report. Killed, it goes on where it was.

Every step starts from the files of the step before it and seeds itself from the run's seed and its own
number, so a run that was interrupted ends with the same weights as one that was not. A step that is there
already is taken only if it was made from the same inputs and is whole (``workflows.artifacts``).
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from cascade_ops.anatomy import ModelAnatomy, anatomy_of
from cascade_ops.cascade import carry_over, dense_scores, plan_of, run_stage, validate_schedule
from cascade_ops.checkpoint import load_pruned, save_pruned
from cascade_ops.distillation import TeacherCache
from cascade_ops.errors import CheckpointError, ConfigError, RunExistsError
from cascade_ops.evaluation import evaluate
from cascade_ops.files import written_whole
from cascade_ops.progress import Progress, silent
from cascade_ops.results import Evaluation, StageResult
from cascade_ops.schedule import CascadeSchedule
from cascade_ops.scoring import Scores
from cascade_ops.serde import from_jsonable, to_jsonable
from cascade_ops.training import deterministic, fit
from workflows.artifacts import (
    Inputs,
    Manifest,
    dense_inputs,
    final_inputs,
    is_sound,
    read_manifest,
    seal,
    stage_inputs,
    step_names,
    verified,
)
from workflows.config import JobConfig, differences
from workflows.examples import diagnose_examples
from workflows.means import check_fits, cluster_for, recoverer_for, scorer_for, taught
from workflows.origin import Origin, key_of, origin_of, recorded_origin, same_origin
from workflows.prepare import Prepared, build_dense, prepare_data
from workflows.provenance import provenance
from workflows.report import write_report
from workflows.rundir import (
    CONFIG,
    DENSE,
    RESULT,
    RunDir,
    create,
    open_run,
    refuse_existing,
)
from workflows.rundir import write_json as write_json_file
from workflows.status import Tracker
from workflows.store import Store, give, open_store, take
from workflows.summary import report_of
from workflows.tracking import check_trackers, tracking

ARTIFACTS = {"model": "model", "dense_model": f"steps/{DENSE}/model", "report": "report.html"}

Say = Callable[[str], None]
Done = tuple[PreTrainedModel, dict[str, Any], str]
"""A step's model, its record, and what to say about it."""


def _mute(message: str) -> None:
    """A Say that says nothing."""


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


def start(config: JobConfig, out: Path, *, progress: Progress = silent, say: Say = _mute) -> RunDir:
    """Run ``config`` into the folder ``out``, which is new or holds a run of the same configuration.

    Everything that can be refused is refused before the folder is made.

    Raises:
        RunExistsError: ``out`` holds something else; the keys that differ are named.
        CascadeError: see the messages.
        OSError: the disk is full; finished steps stay, and the run can be resumed.
    """
    if (out / CONFIG).is_file():
        return _continue(out, config, progress, say)
    refuse_existing(out)
    store = None if config.store is None else open_store(config.store)
    config = replace(
        _on_this_machine(config), out=str(out), threads=config.threads or torch.get_num_threads()
    )
    deterministic(config.threads)
    prepared = _load_data(config, say)
    schedule = config.schedule.build()
    check_trackers(config.tracking)
    check_fits(config, schedule, prepared.data)
    dense = _seeded_dense(config, prepared)
    validate_schedule(schedule, anatomy_of(dense))
    del dense
    origin = origin_of(config, prepared.fingerprint, progress=progress)
    job = Job(
        config=config,
        run=create(out, config, _described(config, origin)),
        prepared=prepared,
        schedule=schedule,
        origin=origin,
        store=store,
        status=(status := _status(out, config, schedule, progress)),
        progress=status,
        say=say,
    )
    return _carry_out(job)


def _continue(out: Path, config: JobConfig, progress: Progress, say: Say) -> RunDir:
    """The same command once more: the run that is there goes on."""
    changed = _changes(RunDir(path=out).config(), config)
    if changed:
        raise RunExistsError(
            f"{out}: a run of another configuration is there already ({'; '.join(changed)}). Continue it as it "
            f"was (cascade compress --resume {out}), or give another --out."
        )
    return resume(out, requested=config, progress=progress, say=say)


def resume(
    path: Path, *, requested: JobConfig | None = None, progress: Progress = silent, say: Say = _mute
) -> RunDir:
    """Continue the run in ``path`` at its first step that is unfinished, damaged or out of date.

    Args:
        requested: the configuration asked for, if any; it must be the recorded one.

    Raises:
        ConfigError: it is not, naming the keys that differ; or the data or weights have changed.
        CheckpointError: no run is there.
    """
    run = open_run(path)
    config = run.config()
    if requested is not None:
        changed = _changes(config, requested)
        if changed:
            raise ConfigError(
                f"{path}: was started with another configuration ({'; '.join(changed)}). "
                "Resume it without changes, or start a new run."
            )
        config = replace(
            config,
            scoring=requested.scoring,
            recovering=requested.recovering,
            tracking=requested.tracking,
            store=requested.store,
        )
    schedule, recorded = config.schedule.build(), recorded_origin(run)
    if requested is None and is_sound(run, config, schedule, recorded, progress):
        say(f"{path}: is complete already")
        return run
    store = None if config.store is None else open_store(config.store)
    deterministic(config.threads)
    prepared = _load_data(config, say)
    origin = same_origin(run, config, recorded, prepared.fingerprint, progress)
    if requested is not None and is_sound(run, config, schedule, recorded, progress):
        say(f"{path}: is complete already")
        return run
    job = Job(
        config=config,
        run=run,
        prepared=prepared,
        schedule=schedule,
        origin=origin,
        store=store,
        status=(status := _status(path, config, schedule, progress)),
        progress=status,
        say=say,
    )
    return _carry_out(job)


def _changes(recorded: JobConfig, requested: JobConfig) -> list[str]:
    threads = requested.threads or recorded.threads
    return differences(recorded, replace(_on_this_machine(requested), threads=threads))


def _status(out: Path, config: JobConfig, schedule: CascadeSchedule, progress: Progress) -> Tracker:
    work = (config.train.steps, *schedule.steps())
    return Tracker(out, tuple(zip(step_names(schedule), work, strict=True)), progress)


def _described(config: JobConfig, origin: Origin) -> dict[str, Any]:
    """The run's provenance, with what it starts from."""
    assert config.threads is not None  # start() has made it definite
    found = provenance(seed=config.seed, threads=config.threads, data_fingerprint=origin.data)
    return {
        **found,
        # torch's own word: its package's version does not always say which build it is
        "versions": {**found["versions"], **origin.versions},
        "weights_fingerprint": origin.weights,
        "tokenizer_fingerprint": origin.tokenizer,
    }


def _on_this_machine(config: JobConfig) -> JobConfig:
    """``device: auto`` made definite. Raises ConfigError where CUDA is asked for and not there."""
    if config.device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("device: cuda was asked for, but torch sees no CUDA device; use auto or cpu")
    if config.device != "auto":
        return config
    return replace(config, device="cuda" if torch.cuda.is_available() else "cpu")


def _loaded(job: Job, folder: Path) -> PreTrainedModel:
    """A saved model on the run's device, in evaluation mode."""
    model = load_pruned(folder)
    model.to(job.config.device)  # type: ignore[arg-type]  # transformers wraps nn.Module.to
    return model


def _load_data(config: JobConfig, say: Say) -> Prepared:
    prepared = prepare_data(config)
    about = prepared.description
    what = "simulated signals" if about["source"] == "simulated" else "recordings"
    counts = about.get("windows") or about.get("sequences") or {}
    say(
        f"data: {about['name']} ({what}), split {about['split']}: "
        + ", ".join(f"{count} {side}" for side, count in counts.items())
    )
    return prepared


def _seeded_dense(config: JobConfig, prepared: Prepared) -> PreTrainedModel:
    torch.manual_seed(config.seed)
    return build_dense(config, prepared.data)


def _carry_out(job: Job) -> RunDir:
    run, config = job.run, job.config
    with run.held(), tracking(config.tracking, run.path, run.path.name, job.status) as progress:
        job = replace(job, progress=progress)
        run.sweep()
        with job.status.following(), cluster_for(job.config.scoring, job.config.recovering):
            _unfinished_steps(job)
    return run


def _unfinished_steps(job: Job) -> None:
    job.say(f"run: {job.run.path} (if interrupted: cascade compress --resume {job.run.path})")
    job.run.reopen()
    names = step_names(job.schedule)
    inputs = dense_inputs(job.config, job.origin)
    dense_content = content = _step(job, DENSE, inputs, partial(_train_dense, job)).content
    dense_model = _loaded(job, job.run.step(DENSE) / "model")
    dense = anatomy_of(dense_model)
    scores = None
    if not job.schedule.rescore:
        scorer = scorer_for(job.config, job.run.step(DENSE) / "model")
        scores = dense_scores(
            dense_model, job.schedule, job.prepared.data, seed=job.config.seed, scorer=scorer
        )
    for index, name in enumerate(names[1:]):
        inputs = stage_inputs(
            job.config, job.schedule, index, job.origin, dense=dense_content, previous=content
        )
        content = _step(job, name, inputs, partial(_run_stage, job, index, names, dense, scores)).content
        if scores is not None:
            scores = carry_over(scores, plan_of(from_jsonable(StageResult, job.run.result(name))))
    _finish(job, names, dense_model, content)


def _step(job: Job, name: str, inputs: Inputs, work: Callable[[], Done]) -> Manifest:
    """Step ``name``: done before, taken from the store, or done now."""
    job.status.begin(name)
    manifest, told = _done_before(job, job.run.step(name), name, inputs), "done before"
    if manifest is None and job.store is not None:
        manifest = take(job.store, key_of(inputs), job.run, name, say=job.say, progress=job.progress)
        told = "taken from the store"
    cached = manifest is not None
    if manifest is None:
        model, record, told = work()
        with job.run.writing(name) as folder:
            save_pruned(model, folder / "model")
            write_json_file(folder / RESULT, record)
            manifest = seal(folder, inputs, progress=job.progress)
    job.status.finish(name, cached=cached, seconds=job.run.result(name)["seconds"])
    job.say(f"{name}: {told}")
    if job.store is not None:
        give(job.store, job.run.step(name), manifest, say=job.say)
    return manifest


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
    model = _seeded_dense(config, job.prepared)
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
    job: Job, index: int, names: tuple[str, ...], dense: ModelAnatomy, scores: Scores | None
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
        scorer=scorer_for(job.config, job.run.step(names[index]) / "model"),
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
    """The outputs that stage ``index`` learns from; kept in the run until it is complete."""
    distillation = job.schedule.recovery.distillation
    assert distillation is not None  # it is asked for only then
    name = DENSE if distillation.teacher == "dense" else names[index]
    key = key_of({"teacher": read_manifest(job.run.step(name)).content, **to_jsonable(distillation)})
    return taught(
        job.run.step(name) / "model",
        job.run.teachers / key[:16],
        distillation,
        job.prepared.data,
        device=job.config.device,
        progress=job.progress,
    )


def _told(evaluation: Evaluation) -> str:
    metric = evaluation.metric
    return f"{metric.name} {metric.value:.4g} [{metric.low:.4g}, {metric.high:.4g}]"


def _finish(job: Job, names: tuple[str, ...], dense_model: PreTrainedModel, content: str) -> None:
    """The final model and the report, whose JSON form marks the run as complete."""
    inputs = final_inputs(content, job.origin)
    if _done_before(job, job.run.model, "model", inputs) is None:
        with written_whole(job.run.model) as folder:
            shutil.copytree(job.run.step(names[-1]) / "model", folder, dirs_exist_ok=True)
            seal(folder, inputs, progress=job.progress)
    final_model = _loaded(job, job.run.model)
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
