"""``cascade sia`` as a function."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import nn

from cascade_ops.anatomy import ModelAnatomy, anatomy_of
from cascade_ops.batches import Batch, length_of, subset
from cascade_ops.checkpoint import load_pruned, read_config
from cascade_ops.criteria import CRITERIA
from cascade_ops.errors import CheckpointError, UsageError
from cascade_ops.files import written_whole
from cascade_ops.progress import Progress, silent
from cascade_ops.shards import layout_of
from cascade_ops.sia.check import BUDGET, GRANULARITY, TAU, check, passes, per_ablation
from cascade_ops.sia.depth import information_by_depth
from cascade_ops.sia.interactions import MOST, interactions
from cascade_ops.sia.results import Interactions, SIACheck
from cascade_ops.sia.structural import check_sia
from cascade_ops.sia.units import Kind, kinds_of, unit_set
from cascade_ops.training import deterministic
from workflows.hub import CONFIG_ONLY, locate
from workflows.models import model_folder, run_config
from workflows.provenance import provenance
from workflows.rundir import refuse_existing
from workflows.scoring.job import ScoreOptions, calibration_for
from workflows.sia.record import PAGE, SIARecord, write_record

PAIRED, PAIRED_TOKENS = 16, 256
"""Samples of the interaction matrices: so many, or of so many tokens."""
PROFILED = 256
"""Samples of the profile by depth, at most."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SIAOptions:
    """What ``cascade sia`` was asked for.

    Attributes:
        data, data_path, split, samples, length: calibration data, as ``cascade score`` takes them.
        budget: ablations in all; tau: the largest A that counts as adding up.
        criterion: orders the units; criteria: whose fidelity is measured besides.
        workers: Ray actors; 0: this process alone.
    """

    data: str | None = None
    data_path: str | None = None
    split: str | None = None
    samples: int = 256
    length: int = 128
    criterion: str = "taylor"
    criteria: tuple[str, ...] = ("taylor", "fisher", "wanda", "flap", "magnitude")
    budget: int = BUDGET
    tau: float = TAU
    workers: int = 0
    threads: int | None = None
    address: str | None = None
    device: str = "auto"
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("samples", "length", "budget", "threads"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UsageError(f"--{name}: must be ≥ 1, got {value}")
        if self.workers < 0:
            raise UsageError(f"--workers: must be ≥ 0 (0: this process alone), got {self.workers}")
        if not self.tau > 0:
            raise UsageError(f"--tau: must be > 0, got {self.tau:g}")
        if self.device not in ("auto", "cpu", "cuda"):
            raise UsageError(f"--device: must be auto, cpu or cuda; got {self.device!r}")
        for name in (self.criterion, *self.criteria):
            CRITERIA[name]


def structural(model: str) -> SIARecord:
    """What the config alone tells.

    Raises:
        UsageError, CheckpointError: no such model.
        UnsupportedFamilyError: no FamilySpec describes it.
    """
    path = Path(model)
    if path.name == "config.json" and path.is_file():
        path = path.parent
    return _structural(model, anatomy_of(read_config(locate(str(model_folder(path)), files=CONFIG_ONLY))))


def has_data(model: str, data: str | None) -> bool:
    """Calibration data were given, or the model comes from a run that knows its own."""
    if data is not None:
        return True
    try:
        run_config(Path(model))
    except CheckpointError:
        return False
    return True


def _structural(model: str, anatomy: ModelAnatomy) -> SIARecord:
    return SIARecord(
        model=model,
        family=anatomy.family,
        model_type=anatomy.model_type,
        params=anatomy.total_params,
        heads_per_kv=tuple(layer.heads_per_kv for layer in anatomy.layers),
        gated=anatomy.gated,
        structural=check_sia(anatomy).verdicts,
    )


def run_sia(
    model: str,
    options: SIAOptions,
    out: Path,
    *,
    progress: Progress = silent,
    told: Callable[[str], None] = lambda _: None,
) -> SIARecord:
    """Check ``model`` and write ``out``, whole or not at all. ``told`` gets the expected cost before it is spent.

    Raises:
        CascadeError: see the messages; nothing was written.
    """
    refuse_existing(out)
    folder = locate(str(model_folder(Path(model)))).absolute()
    layout = layout_of(folder)
    device = options.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    threads = options.threads or torch.get_num_threads()
    deterministic(threads)
    calibration = calibration_for(
        model,
        folder,
        layout,
        ScoreOptions(
            data=options.data,
            data_path=options.data_path,
            split=options.split,
            samples=options.samples,
            length=options.length,
            seed=options.seed,
        ),
    )
    with written_whole(out) as scratch:  # before the work: a place that cannot be written is found out now
        told(_cost(layout.anatomy, calibration.batch, options.budget))
        loaded: nn.Module = load_pruned(folder).to(device)  # type: ignore[arg-type]
        found = _checked(
            loaded, calibration.batch, folder, replace(options, device=device, threads=threads), progress
        )
        record = replace(
            _structural(model, layout.anatomy),
            check=found,
            data=calibration.description,
            provenance=provenance(
                seed=options.seed, threads=threads, data_fingerprint=calibration.fingerprint
            ),
        )
        write_record(record, scratch)
        from workflows.report.sia_page import render_sia

        (scratch / PAGE).write_text(render_sia(record), encoding="utf-8")
    return record


def _cost(anatomy: ModelAnatomy, data: Batch, budget: int) -> str:
    """In forward passes over the data; a product with the Hessian counts as four."""
    samples = length_of(data)
    pairs = sum(
        4 * min(MOST, len(unit_set(anatomy, kind))) * _paired(data) / samples for kind in _drawn(anatomy)
    )
    return (
        f"at most {budget} ablations of {per_ablation(samples)} samples; with scores, about "
        f"{passes(samples, budget):.1f} forward passes over {samples} samples, and {pairs:.1f} for the "
        f"interaction matrices"
    )


def _checked(
    model: nn.Module, data: Batch, folder: Path, options: SIAOptions, progress: Progress
) -> SIACheck:
    if options.workers:
        from workflows.sia.cluster import ablating

        assert options.threads is not None
        means = ablating(
            folder,
            workers=options.workers,
            threads=options.threads,
            device=options.device,
            address=options.address,
        )
    else:
        means = nullcontext()  # type: ignore[assignment]
    with means as ablate:
        found = check(
            model,
            data,
            criterion=options.criterion,
            criteria=options.criteria,
            budget=options.budget,
            tau=options.tau,
            seed=options.seed,
            ablate=ablate,
            progress=progress,
        )
    some = subset(data, _paired(data), options.seed)
    matrices: tuple[Interactions, ...] = tuple(
        interactions(model, some, kind, progress=progress) for kind in _drawn(anatomy_of(model))
    )
    depth = information_by_depth(model, subset(data, PROFILED, options.seed))
    return replace(found, interactions=matrices, depth=depth)


def _paired(data: Batch) -> int:
    """Samples of the interaction matrices."""
    tokens = data["input_ids"].shape[1] if "input_ids" in data else 1
    return min(length_of(data), max(1, min(PAIRED, PAIRED_TOKENS // tokens)))


def _drawn(anatomy: ModelAnatomy) -> list[Kind]:
    """Disjoint unit sets: those with an interaction matrix."""
    return [kind for kind in kinds_of(anatomy) if kind in GRANULARITY]
