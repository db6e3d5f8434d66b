"""The main job: dense model, then stage by stage, then the report. Killed, it goes on where it was.

Every step starts from the files of the step before it and seeds itself from the run's seed and its own
number, so a run that was interrupted ends with the same weights as one that was not. A step that is there
already is taken only if it was made from the same inputs and is whole (``workflows.artifacts``).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from cascade_ops.anatomy import anatomy_of
from cascade_ops.cascade import validate_schedule
from cascade_ops.errors import ConfigError, RunExistsError
from cascade_ops.progress import Progress, silent
from cascade_ops.schedule import CascadeSchedule
from cascade_ops.training import deterministic
from workflows.artifacts import (
    is_sound,
    step_names,
)
from workflows.config import JobConfig, differences
from workflows.means import check_fits, cluster_for
from workflows.origin import Origin, origin_of, recorded_origin, same_origin
from workflows.prepare import Prepared, prepare_data
from workflows.provenance import provenance
from workflows.rundir import (
    CONFIG,
    RunDir,
    create,
    open_run,
    refuse_existing,
)
from workflows.status import Tracker
from workflows.steps import Job, Say, Told, Until, carry_out_steps, seeded_dense
from workflows.store import Store, open_store
from workflows.tracking import check_trackers, tracking


def _mute(message: str) -> None:
    """A Say that says nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shared:
    """What many runs that differ only in their schedules have in common, so that it is loaded once.

    ``scores`` and ``teachers`` are folders where estimates of importance and teachers' outputs are kept, by the model
    that they are of.
    """

    prepared: Prepared
    origin: Origin
    store: Store | None = None
    scores: Path | None = None
    teachers: Path | None = None


def start(
    config: JobConfig,
    out: Path,
    *,
    shared: Shared | None = None,
    until: Until = "report",
    told: Told | None = None,
    progress: Progress = silent,
    say: Say = _mute,
) -> RunDir:
    """Run ``config`` into the folder ``out``, which is new or holds a run of the same configuration.

    Everything that can be refused is refused before the folder is made.

    Args:
        shared: what has been loaded already, for runs of a search.
        until: where to stop; a run that stopped early can be resumed.
        told: called after each stage.

    Raises:
        RunExistsError: ``out`` holds something else; the keys that differ are named.
        CascadeError: see the messages.
        OSError: the disk is full; finished steps stay, and the run can be resumed.
    """
    if (out / CONFIG).is_file():
        return _continue(out, config, shared, until, told, progress, say)
    refuse_existing(out)
    store = shared.store if shared else None if config.store is None else open_store(config.store)
    config = replace(on_this_machine(config), out=str(out), threads=config.threads or torch.get_num_threads())
    assert config.threads is not None
    deterministic(config.threads)
    prepared = shared.prepared if shared else _load_data(config, say)
    schedule = config.schedule.build()
    check_trackers(config.tracking)
    check_fits(config, schedule, prepared.data)
    if shared is None:  # the schedules of a search are made to fit
        validate_schedule(schedule, anatomy_of(seeded_dense(config, prepared)))
    origin = shared.origin if shared else origin_of(config, prepared.fingerprint, progress=progress)
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
        until=until,
        told=told,
        scores=shared.scores if shared else None,
        teachers=(shared.teachers if shared else None) or RunDir(path=out).teachers,
    )
    return _carry_out(job)


def _continue(
    out: Path,
    config: JobConfig,
    shared: Shared | None,
    until: Until,
    told: Told | None,
    progress: Progress,
    say: Say,
) -> RunDir:
    """The same command once more: the run that is there goes on."""
    changed = _changes(RunDir(path=out).config(), config)
    if changed:
        raise RunExistsError(
            f"{out}: a run of another configuration is there already ({'; '.join(changed)}). Continue it as it "
            f"was (cascade compress --resume {out}), or give another --out."
        )
    return resume(out, requested=config, shared=shared, until=until, told=told, progress=progress, say=say)


def resume(
    path: Path,
    *,
    requested: JobConfig | None = None,
    shared: Shared | None = None,
    until: Until = "report",
    told: Told | None = None,
    progress: Progress = silent,
    say: Say = _mute,
) -> RunDir:
    """Continue the run in ``path`` at its first step that is unfinished, damaged or out of date.

    Args:
        requested: the configuration asked for, if any; it must be the recorded one.
        shared, until, told: as for ``start``.

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
    store = shared.store if shared else None if config.store is None else open_store(config.store)
    deterministic(config.threads)
    prepared = shared.prepared if shared else _load_data(config, say)
    now = shared.origin if shared else None
    origin = same_origin(run, config, recorded, prepared.fingerprint, progress, now=now)
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
        until=until,
        told=told,
        scores=shared.scores if shared else None,
        teachers=(shared.teachers if shared else None) or run.teachers,
    )
    return _carry_out(job)


def _changes(recorded: JobConfig, requested: JobConfig) -> list[str]:
    threads = requested.threads or recorded.threads
    return differences(recorded, replace(on_this_machine(requested), threads=threads))


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


def on_this_machine(config: JobConfig) -> JobConfig:
    """``device: auto`` made definite. Raises ConfigError where CUDA is asked for and not there."""
    if config.device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("device: cuda was asked for, but torch sees no CUDA device; use auto or cpu")
    if config.device != "auto":
        return config
    return replace(config, device="cuda" if torch.cuda.is_available() else "cpu")


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


def _carry_out(job: Job) -> RunDir:
    run, config = job.run, job.config
    with run.held(), tracking(config.tracking, run.path, run.path.name, job.status) as progress:
        job = replace(job, progress=progress)
        run.sweep()
        with job.status.following(), cluster_for(job.config.scoring, job.config.recovering):
            carry_out_steps(job)
    return run
