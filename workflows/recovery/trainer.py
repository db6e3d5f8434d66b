"""A recovery fit by DeepSpeed on Ray Train's workers: the same steps as in one process, shared."""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import ray
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from cascade_ops.augment import Augment
from cascade_ops.batches import Batch
from cascade_ops.checkpoint import load_pruned, save_pruned
from cascade_ops.distillation import TeacherCache
from cascade_ops.errors import CascadeError
from cascade_ops.progress import Progress, silent
from cascade_ops.recovery import Recoverer, prepare, recovery_fit, train_config, trainable, unmended
from cascade_ops.results import RecoveryResult
from cascade_ops.schedule import Recovery
from cascade_ops.serde import from_jsonable, to_jsonable
from cascade_ops.training import TrainConfig, deterministic
from cascade_ops.zero import Zero, ZeroEngine, deepspeed_document, fitting, install
from workflows.config import RecoveringConfig
from workflows.recovery.board import Messages, shown
from workflows.scoring.sizing import ClusterTooSmallError
from workflows.scoring.worker import memory, memory_held

TRAINED, RESULT = "trained.safetensors", "result.json"
REFUSED = "refused.pickle"
FAILURES = 3
"""Times that a fit is begun anew when workers die."""
HEALTH_CHECK = ("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.1")
"""Ray Train looks after its workers every two seconds by default: as long as a small fit takes."""


class FitFailedError(CascadeError):
    """The workers of a fit could not be started, or died again and again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fit:
    """All that a worker is told. ``folder`` must be the same to all workers."""

    folder: str
    recovery: Recovery
    zero: Zero
    steps: int
    seed: int
    threads: int
    augment: Augment | None
    teacher: str | None
    data: Any
    board: Any


def cluster_recoverer(config: RecoveringConfig, scratch: Path, *, device: str) -> Recoverer:
    """``cascade_ops.recovery.recover``, carried out by ``config.workers`` workers.

    ``scratch`` is where the model passes from and to the workers: a folder that all of them see.
    """

    def recoverer(
        model: nn.Module,
        train: Batch,
        recovery: Recovery,
        *,
        steps: int,
        seed: int,
        validation: Batch | None,
        teacher: TeacherCache | None,
        augment: Augment | None,
        progress: Progress,
    ) -> RecoveryResult:
        fitted = train_config(recovery, steps)
        deepspeed_document(config.zero, fitted, config.workers)  # refused here rather than on the workers
        if steps == 0:
            return unmended(recovery)
        _check_room(config, device)
        scratch.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".fit-", dir=scratch) as folder, shown(progress) as board:
            save_pruned(model, Path(folder) / "model")  # type: ignore[arg-type]
            fit = Fit(
                folder=folder,
                recovery=recovery,
                zero=fitting(config.zero, config.workers),
                steps=steps,
                seed=seed,
                threads=config.threads,
                augment=augment,
                teacher=None if teacher is None else str(teacher.folder),
                data=ray.put((_on_cpu(train), None if validation is None else _on_cpu(validation))),
                board=board,
            )
            result = _run(fit, config, device=device)
            trained = load_file(Path(folder) / TRAINED)
        with torch.random.fork_rng(), trainable(model, recovery, seed):
            install(model, trained)
        model.eval()
        return result

    return recoverer


def _check_room(config: RecoveringConfig, device: str) -> None:
    """Ray Train would wait for ever. Raises ClusterTooSmallError."""
    have, kind = ray.cluster_resources(), "GPU" if device == "cuda" else "CPU"
    needed = config.workers * (1 if kind == "GPU" else config.threads)
    if have.get(kind, 0) < needed:
        raise ClusterTooSmallError(
            f"recovering.workers: {config.workers} need {needed} {kind}s, the cluster has {have.get(kind, 0):g}. Give "
            "fewer workers or threads, or a larger cluster."
        )


def _on_cpu(data: Batch) -> dict[str, torch.Tensor]:
    return {name: tensor.cpu() for name, tensor in data.items()}


def _run(fit: Fit, config: RecoveringConfig, *, device: str) -> RecoveryResult:
    """Raises FitFailedError, or what a worker found wrong."""
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer
    from ray.train.v2.api.exceptions import TrainingFailedError

    trainer = TorchTrainer(
        _worker,
        train_loop_config={"fit": fit},
        scaling_config=ScalingConfig(
            num_workers=config.workers,
            use_gpu=device == "cuda",
            resources_per_worker={"CPU": config.threads} | ({"GPU": 1} if device == "cuda" else {}),
        ),
        run_config=RunConfig(
            name="fit",
            storage_path=f"{fit.folder}/train",
            failure_config=FailureConfig(max_failures=FAILURES),
        ),
    )
    try:
        with _quiet():
            trainer.fit()
    except TrainingFailedError as error:
        raise _explained(error) from None
    refused = Path(fit.folder) / REFUSED
    if refused.is_file():
        raise pickle.loads(refused.read_bytes())
    return from_jsonable(RecoveryResult, json.loads((Path(fit.folder) / RESULT).read_text(encoding="utf-8")))


def _explained(error: Exception) -> FitFailedError:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return FitFailedError(
        f"the workers of a recovery fit failed {FAILURES + 1} times; the last: {lines[-1] if lines else type(error)}. "
        "If memory ran out: more workers, zero.stage 3, zero.offload, zero.checkpointing or more zero.accumulation."
    )


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Ray Train prints to stdout, which belongs to data."""
    before = os.environ.get(HEALTH_CHECK[0])
    os.environ.setdefault(*HEALTH_CHECK)
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    finally:
        if before is None:
            os.environ.pop(HEALTH_CHECK[0], None)


def _worker(config: dict[str, Any]) -> None:
    """What each worker does. What would go wrong again is told, and ends the fit; the rest is begun anew."""
    fit: Fit = config["fit"]
    try:
        _fitted(fit)
    except CascadeError as error:
        (Path(fit.folder) / REFUSED).write_bytes(pickle.dumps(error))


def _fitted(fit: Fit) -> None:
    import ray.train

    context = ray.train.get_context()
    rank, workers = context.get_world_rank(), context.get_world_size()
    deterministic(fit.threads)
    folder, device = Path(fit.folder), "cuda" if torch.cuda.is_available() else "cpu"
    model = load_pruned(folder / "model")
    if device == "cuda":
        model.to(f"cuda:{torch.cuda.current_device()}")  # type: ignore[arg-type]
    train, validation = ray.get(fit.data)
    engines: list[ZeroEngine] = []

    def engine(model: nn.Module, settings: TrainConfig) -> ZeroEngine:
        engines.append(ZeroEngine(model, settings, fit.zero, rank=rank, workers=workers))
        return engines[0]

    prepare(model, fit.recovery, fit.seed)
    result = recovery_fit(
        model,
        train,
        fit.recovery,
        steps=fit.steps,
        seed=fit.seed,
        validation=validation,
        teacher=None if fit.teacher is None else TeacherCache.open(Path(fit.teacher)),
        augment=fit.augment,
        engine=engine,
        progress=Messages(fit.board) if rank == 0 else silent,
    )
    _, peak = memory(device)
    held = memory_held(device)
    trained = engines[0].trained()
    if rank == 0:
        result = replace(result, workers=workers, peak_bytes=peak, held_bytes=held)
        save_file(trained, folder / TRAINED)
        (folder / RESULT).write_text(json.dumps(to_jsonable(result)), encoding="utf-8")
