"""By what a job scores, mends and learns: this process, or workers on one cluster for all of it."""

from __future__ import annotations

import shutil
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

from cascade_ops.anatomy import anatomy_of
from cascade_ops.checkpoint import load_pruned
from cascade_ops.distillation import TeacherCache, cache_teacher
from cascade_ops.errors import CheckpointError, ConfigError
from cascade_ops.progress import Progress
from cascade_ops.recovery import Recoverer, recover, train_config
from cascade_ops.schedule import CascadeSchedule, Distillation
from cascade_ops.scoring import Scorer, score
from cascade_ops.tasks import TaskData, check_disjoint
from cascade_ops.zero import deepspeed_document
from workflows.config import JobConfig, RecoveringConfig, ScoringConfig


def check_fits(config: JobConfig, schedule: CascadeSchedule, data: TaskData) -> None:
    """Refuse before any work what a recovery fit would refuse later.

    Raises:
        ConfigError: the batch cannot be divided among the workers, or DeepSpeed's settings contradict the job's.
        DataError: early stopping would watch training samples.
    """
    recovery, recovering = schedule.recovery, config.recovering
    if recovering.workers:
        deepspeed_document(recovering.zero, train_config(recovery, recovery.steps), recovering.workers)
    if recovery.patience is not None:
        check_disjoint(data.train, data.validation)


def cluster_for(scoring: ScoringConfig, recovering: RecoveringConfig) -> AbstractContextManager[object]:
    """The cluster that scoring and fits use by turns; nothing where neither has workers.

    Raises:
        ConfigError: they name different clusters.
        UsageError: none answers.
    """
    addresses = {one.address for one in (scoring, recovering) if one.workers}
    if not addresses:
        return nullcontext()
    if len(addresses) > 1:
        raise ConfigError(
            f"scoring.address, recovering.address: must be the same cluster, got {scoring.address} and "
            f"{recovering.address}"
        )
    from workflows.scoring.cluster import connected

    address = addresses.pop()
    # Ray Train's controller wants a core's share beside its workers.
    fits = recovering.workers * recovering.threads + 1 if recovering.workers else 0
    cpus = max(scoring.workers * scoring.threads, fits)
    return connected(address, cpus=None if address else cpus)


def scorer_for(config: JobConfig, folder: Path) -> Scorer:
    """What scores the model in ``folder``: this process, or workers that read it from there."""
    if config.scoring.workers == 0:
        return score
    from workflows.scoring.job import cluster_scorer

    return cluster_scorer(config.scoring, folder, device=config.device)


def recoverer_for(config: RecoveringConfig, scratch: Path, *, device: str) -> Recoverer:
    """What carries out recovery fits: this process, or workers, to whom models pass through ``scratch``."""
    if config.workers == 0:
        return recover
    from workflows.recovery.trainer import cluster_recoverer

    return cluster_recoverer(config, scratch, device=device)


def taught(
    model: Path, folder: Path, distillation: Distillation, data: TaskData, *, device: str, progress: Progress
) -> TeacherCache:
    """What the model in ``model`` says about the training data: kept in ``folder``, from before or from now on.

    Outputs of every block are kept, if hidden states are wanted, so that one cache serves all stages.
    """
    try:
        return TeacherCache.open(folder)
    except CheckpointError:  # not there, or damaged: it is only a cache
        shutil.rmtree(folder, ignore_errors=True)
    teacher = load_pruned(model)
    teacher.to(device)  # type: ignore[arg-type]  # transformers wraps nn.Module.to
    sources = [layer.source for layer in anatomy_of(teacher).layers]
    return cache_teacher(teacher, data.train, folder, distillation, keep_layers=sources, progress=progress)
