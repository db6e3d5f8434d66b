"""``cascade search`` as a function: dense model, SIA check, trials, and what came of them.

    OUT/search.yaml        the resolved configuration
    OUT/optuna.db          the study: every trial, as soon as it is finished
    OUT/reference/         a run of the configuration's own schedule; its dense model is everybody's
    OUT/sia.json           the check that bounds the search
    OUT/store/, scores/    stages and estimates that trials share
    OUT/trials/NNNN/       the runs of a trial, one for each fidelity
    OUT/tune/              Ray Tune's logs, TensorBoard's among them
    OUT/winner/            a run of the winner, with its report
    OUT/schedule.yaml      its configuration
    OUT/search.json, trials.parquet, report.html

Everything is done once: a search that was interrupted finds what is there and goes on.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from cascade_ops.batches import length_of, sequential
from cascade_ops.cascade import CALIBRATION_BATCH
from cascade_ops.checkpoint import load_pruned
from cascade_ops.errors import CheckpointError, RunExistsError, UsageError
from cascade_ops.granularity import Granularity
from cascade_ops.progress import Progress, silent
from cascade_ops.search import Bound, bounds_of, check_reach
from cascade_ops.serde import from_jsonable, to_jsonable
from cascade_ops.shards import layout_of
from cascade_ops.sia.check import FEWEST, check
from cascade_ops.sia.results import SIACheck
from cascade_ops.training import deterministic
from workflows import job
from workflows.artifacts import read_manifest
from workflows.config import JobConfig, override, read_document, resolve
from workflows.means import scorer_for
from workflows.origin import key_of, origin_of
from workflows.prepare import Prepared, dense_anatomy, prepare_data
from workflows.remembered import remembered
from workflows.report.render import write_page
from workflows.rundir import DENSE, RunDir, refuse_existing
from workflows.search.config import SearchConfig, make_space, search_config, split_document, target_of
from workflows.search.objectives import timed
from workflows.search.record import SearchRecord
from workflows.search.trial import REFERENCE, Plan, shared_in

CONFIG, SIA, SPACE = "search.yaml", "sia.json", "space.json"

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """A search as it was asked for. ``config`` has its stages written out; ``target`` is what they came from."""

    config: JobConfig
    search: SearchConfig
    target: float | None


def request_of(document: dict[str, Any], settings: list[str]) -> Request:
    """A request from a configuration file's content and ``a.b=c`` overrides. Raises ConfigError."""
    document = override(document, settings)
    runs, section = split_document(document)
    target = target_of(runs)
    config = resolve(runs)
    return Request(config=config, search=search_config(section, config.task), target=target)


def run_search(
    request: Request,
    out: Path,
    *,
    address: str | None = None,
    progress: Progress = silent,
    say: Say = lambda _: None,
) -> SearchRecord:
    """Search, or continue the search in ``out``.

    Everything that can be refused is refused before the folder is made; a target that the check puts out of reach,
    before any trial.

    Raises:
        Unreachable: no schedule within the bounds reaches the target; the message shows what does.
        RunExistsError: ``out`` holds something else, or another process works there.
        CascadeError: see the messages.
        OSError: the disk is full; what is finished stays.
    """
    out = out.absolute()
    request = _definite(request)
    anatomy = dense_anatomy(request.config)
    free = make_space(anatomy, request.config.schedule.recovery, request.target, request.search)
    check_reach(free)
    _refuse_other(out, request)
    deterministic(request.config.threads)
    prepared = prepare_data(request.config)
    with _held(out, request):
        return _search(request, prepared, out, address, progress, say)


def reread(out: Path, settings: list[str]) -> Request:
    """The request of the search in ``out``, with changes that a search may have when it goes on.

    Raises:
        CheckpointError: no search is there.
    """
    if not (out / CONFIG).is_file():
        raise CheckpointError(
            f"{out}: expected a search with {CONFIG}, found none. Give a folder of cascade search."
        )
    return request_of(read_document(out / CONFIG), [f"search.{one}" for one in settings])


def _definite(request: Request) -> Request:
    """Device and threads as trials will have them: one thread each, unless they were given."""
    config = job.on_this_machine(request.config)
    return replace(request, config=replace(config, threads=config.threads or 1, out=None, store=None))


def _document(request: Request) -> dict[str, Any]:
    """What ``request_of`` reads back to the same."""
    document = to_jsonable(request.config)
    if request.target is not None:
        document["schedule"] |= {"target": request.target, "stages": None}
    section = to_jsonable(request.search)
    return {**document, "search": section}


def _refuse_other(out: Path, request: Request) -> None:
    if not (out / CONFIG).is_file():
        refuse_existing(out)
        return
    there = request_of(read_document(out / CONFIG), [])
    if not (out / "optuna.db").exists() and there.search.storage is None:
        return  # no trial yet: it may still become another search
    old, new = ({**to_jsonable(one.config), "target": one.target} for one in (there, request))
    old["search"], new["search"] = (to_jsonable(one.search.identity()) for one in (there, request))
    changed = [name for name in new if old.get(name) != new[name]]
    if changed:
        raise RunExistsError(
            f"{out}: a search of another configuration is there already ({', '.join(changed)} differ). Continue it as "
            f"it was (cascade search --resume {out}), or give another --out."
        )


@contextmanager
def _held(out: Path, request: Request) -> Iterator[None]:
    """The folder, described, and nobody else's meanwhile."""
    out.mkdir(parents=True, exist_ok=True)
    folder = os.open(out, os.O_RDONLY)
    try:
        try:
            fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RunExistsError(
                f"{out}: another process is working on this search. Wait, or stop it."
            ) from None
        text = yaml.safe_dump(_document(request), sort_keys=False, allow_unicode=True)
        write_page(out / CONFIG, text)
        yield
    finally:
        os.close(folder)


def _search(
    request: Request, prepared: Prepared, out: Path, address: str | None, progress: Progress, say: Say
) -> SearchRecord:
    from workflows.search.results import conclude
    from workflows.search.tuning import run_trials

    say(f"search: {out} (if interrupted: cascade search --resume {out})")
    shared, reference = _begin(request, prepared, out, progress, say)
    dense = layout_of(reference.step(DENSE) / "model").anatomy
    bounds = _bounds(request, out, shared, reference, progress, say)
    space = make_space(dense, request.config.schedule.recovery, request.target, request.search, bounds)
    reach = check_reach(space)
    _score_dense(request, shared, reference, progress)
    if request.search.reference:
        job.resume(reference.path, requested=request.config, shared=shared, progress=progress, say=say)
    plan = _plan(request, out, shared, bounds)
    signals = replace(prepared, dataset=None, split=None)  # recordings are for reports only
    timing = run_trials(request, plan, space, signals, address=address, progress=progress, say=say)
    return conclude(request, plan, shared, space, bounds, reach, timing, progress=progress, say=say)


def _begin(
    request: Request, prepared: Prepared, out: Path, progress: Progress, say: Say
) -> tuple[job.Shared, RunDir]:
    """What all runs share, and the dense model as the first step of the reference run."""
    config = request.config
    origin = origin_of(config, prepared.fingerprint, progress=progress)
    shared = shared_in(out, prepared, origin)
    path = out / REFERENCE
    run = job.start(request.config, path, shared=shared, until="dense", progress=progress, say=say)
    return shared, run


def _bounds(
    request: Request, out: Path, shared: job.Shared, reference: RunDir, progress: Progress, say: Say
) -> dict[Granularity, Bound]:
    """What the SIA check allows a round to remove; measured even where it will be ignored, to tell the price."""
    folder = reference.step(DENSE) / "model"
    model, data = load_pruned(folder), shared.prepared.data.calibration
    if length_of(data) < FEWEST:
        raise UsageError(
            f"data.calibration: the SIA check takes at least {FEWEST} samples, found {length_of(data)}"
        )
    key = key_of({"dense": read_manifest(reference.step(DENSE)).content, "budget": request.search.budget})
    place = out / SIA
    found = _read_check(place, key)
    if found is None:
        model.to(request.config.device)  # type: ignore[arg-type]  # transformers wraps nn.Module.to
        found = check(
            model,
            data,
            budget=request.search.budget,
            seed=request.config.seed,
            stability=False,
            progress=progress,
        )
        write_page(place, json.dumps({"key": key, "check": to_jsonable(found)}, allow_nan=False) + "\n")
    bounds = bounds_of(found, loss=request.search.loss_bound)
    told = ", ".join(f"{one.value} {bound.ratio:.0%}" for one, bound in bounds.items())
    say(f"sia: a round may remove {told}" + (" (ignored)" if request.search.ignore_sia else ""))
    return bounds


def _read_check(place: Path, key: str) -> SIACheck | None:
    try:
        document = json.loads(place.read_text(encoding="utf-8"))
        return from_jsonable(SIACheck, document["check"]) if document["key"] == key else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _score_dense(request: Request, shared: job.Shared, reference: RunDir, progress: Progress) -> None:
    """Every criterion on the dense model, in one sweep, for all trials."""
    assert shared.scores is not None
    folder = reference.step(DENSE) / "model"
    content = read_manifest(reference.step(DENSE)).content
    scorer = remembered(scorer_for(request.config, folder), shared.scores, weights=content)
    model: Any = load_pruned(folder)
    model.to(request.config.device)
    progress("score", 0, 1)
    batches = sequential(shared.prepared.data.calibration, CALIBRATION_BATCH)
    scorer(model, batches, request.search.criteria, seed=request.config.seed)
    progress("score", 1, 1)


def _plan(request: Request, out: Path, shared: job.Shared, bounds: dict[Granularity, Bound]) -> Plan:
    search, config = request.search, request.config
    schedule = (
        replace(config.schedule, target=request.target, stages=None) if request.target else config.schedule
    )
    return Plan(
        folder=out,
        config=replace(config, schedule=schedule),
        origin=shared.origin,
        bounds={one: bound.ratio for one, bound in bounds.items()},
        fidelities=search.fidelities if search.uses_rungs else (),
        objectives=search.objectives,
        reduction=search.reduction,
        limits=search.limits,
        runtime=search.runtime,
        timed=timed((*search.objectives, *search.limits)),
    )
