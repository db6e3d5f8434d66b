"""DeepSpeed as an engine: its settings, the document it is given, and optimizer steps shared by workers.

``deepspeed`` is imported only when an engine is made: it takes seconds, and prints.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import sys
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from cascade_ops.anatomy import base_of
from cascade_ops.batches import Batch, length_of, on_device, sequential, take
from cascade_ops.errors import ConfigError
from cascade_ops.loss import per_sample_loss
from cascade_ops.training import LossOf, TrainConfig, adamw

OURS = {
    "optimizer": "the recovery's learning rate and weight decay",
    "scheduler": "the recovery's learning rate and warm-up",
    "fp16": "zero.dtype (float32 or bfloat16)",
    "load_universal": "the job, which resumes by itself",
}
"""Keys of a DeepSpeed document that would take over what the job decides, and what decides it."""
BUCKETS = {"reduce_bucket_size": 2**22, "allgather_bucket_size": 2**22}
"""Elements exchanged at once; DeepSpeed's own 5·10⁸ are 2 GB in float32, whatever the model's size."""
LIVE = {
    "stage3_max_live_parameters": 2**24,
    "stage3_max_reuse_distance": 2**24,
    "stage3_prefetch_bucket_size": 2**22,
}
"""Weights that a worker holds whole at stage 3; DeepSpeed's own 10⁹ would be all of a small model."""
TUNING = frozenset(
    {
        "activation_checkpointing", "aio", "comms_logger", "communication_data_type", "compile", "data_types",
        "disable_allgather", "dump_state", "flops_profiler", "gradient_allreduce_op", "gradient_predivide_factor",
        "log_level", "memory_breakdown", "prescale_gradients", "steps_per_print", "torch_autocast",
        "wall_clock_breakdown", "zero_allow_untested_optimizer", "zero_force_ds_cpu_optimizer",
    }
)  # fmt: skip
"""Keys that change how DeepSpeed works, not what it computes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Zero:
    """How DeepSpeed holds a model that is being mended (ZeRO; Rajbhandari et al. 2020, arXiv 1910.02054).

    Attributes:
        stage: what is divided among the workers: 0 nothing, 1 optimizer states, 2 gradients too, 3 weights too.
        offload: keep optimizer states (at stage 3 weights too) in the host's memory.
        dtype: of weights and activations; optimizer states are float32.
        accumulation: micro-batches of each worker in a step.
        checkpointing: recompute each block's activations on the way back instead of keeping them.
        config: a JSON file with further DeepSpeed settings.
    """

    stage: Literal[0, 1, 2, 3] = 2
    offload: bool = False
    dtype: Literal["float32", "bfloat16"] = "float32"
    accumulation: int = 1
    checkpointing: bool = False
    config: str | None = None

    def __post_init__(self) -> None:
        if self.accumulation < 1:
            raise ConfigError(f"accumulation: must be ≥ 1, got {self.accumulation}")
        if self.offload and self.stage == 0:
            raise ConfigError(
                "offload: stage 0 divides nothing that could be offloaded; give stage 1, 2 or 3"
            )


def fitting(zero: Zero, workers: int) -> Zero:
    """Without dividing, where one worker has nobody to divide with: the same sums, fewer copies."""
    alone = workers == 1 and not zero.offload and zero.dtype == "float32" and zero.config is None
    return replace(zero, stage=0) if alone else zero


def deepspeed_document(zero: Zero, fit: TrainConfig, workers: int) -> dict[str, Any]:
    """DeepSpeed's configuration, with the user's file merged in.

    Raises:
        ConfigError: the batch cannot be divided; or the file is not JSON, has unknown keys, or contradicts
            what the job decides.
    """
    parts = workers * zero.accumulation
    if fit.batch_size % parts:
        raise ConfigError(
            f"batch_size: {fit.batch_size} samples cannot be divided by {workers} workers × {zero.accumulation} "
            f"micro-batches; give a multiple of {parts}"
        )
    document: dict[str, Any] = {
        "train_batch_size": fit.batch_size,
        "train_micro_batch_size_per_gpu": fit.batch_size // parts,
        "gradient_accumulation_steps": zero.accumulation,
        "gradient_clipping": fit.clip,
        "bf16": {"enabled": zero.dtype == "bfloat16"},
        "zero_optimization": {"stage": zero.stage},
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": 10**9,
    }
    if zero.offload:
        document["zero_optimization"]["offload_optimizer"] = {"device": "cpu"}
        if zero.stage == 3:
            document["zero_optimization"]["offload_param"] = {"device": "cpu"}
    if zero.config is not None:
        document = _merged(document, Path(zero.config))
    defaults = BUCKETS | LIVE if zero.stage == 3 else BUCKETS
    document["zero_optimization"] = defaults | document["zero_optimization"]
    return document


def _merged(document: dict[str, Any], path: Path) -> dict[str, Any]:
    """The user's settings over ours. Raises ConfigError."""
    try:
        given = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: expected DeepSpeed settings in JSON: {error}") from None
    if not isinstance(given, dict):
        raise ConfigError(f"{path}: expected a JSON object, found {type(given).__name__}")
    for key, value in given.items():
        if key in OURS:
            raise ConfigError(f"{path}: {key}: is decided by {OURS[key]}; leave it out")
        if key in document and key not in TUNING:
            document[key] = _agreeing(f"{path}: {key}", document[key], value)
        elif key in TUNING:
            document[key] = value
        else:
            known = ", ".join(sorted(TUNING | document.keys()))
            raise ConfigError(
                f"{path}: {key}: no such DeepSpeed setting, or none for a recovery; known: {known}"
            )
    _check_zero(path, document["zero_optimization"])
    return document


def _agreeing(where: str, ours: Any, given: Any) -> Any:
    """What is given, if it says nothing else than what we have said. Raises ConfigError."""
    if given == "auto" or given == ours:
        return ours
    if isinstance(ours, dict) and isinstance(given, dict):
        both = {key: _agreeing(f"{where}.{key}", ours[key], given[key]) for key in ours.keys() & given.keys()}
        return {**ours, **given, **both}
    raise ConfigError(f"{where}: {given!r} contradicts {ours!r}, which follows from the job's configuration")


def _check_zero(path: Path, settings: dict[str, Any]) -> None:
    deepspeed = quiet_deepspeed()
    try:
        deepspeed.runtime.zero.config.DeepSpeedZeroConfig(**settings)
    except ValueError as error:  # pydantic's, which lists what it found
        first = error.errors()[0]  # type: ignore[attr-defined]
        where = ".".join(map(str, ("zero_optimization", *first["loc"])))
        raise ConfigError(f"{path}: {where}: {first['msg']}") from None


def quiet_deepspeed() -> Any:
    """The package, imported without its messages on stdout, which belongs to data.

    ``shm_comm`` serves inference only, and would be compiled at first use.
    """
    os.environ.setdefault("DS_ACCELERATOR", "cuda" if torch.cuda.is_available() else "cpu")
    with contextlib.redirect_stdout(sys.stderr if os.environ.get("CASCADE_DEBUG") else _Nowhere()):
        import deepspeed
        import deepspeed.ops
        import deepspeed.runtime.zero.config

        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"torch\.distributed")
    return deepspeed


class _Nowhere:
    def write(self, text: str) -> int:
        return len(text)

    def flush(self) -> None:
        """Nothing to do."""


class ZeroEngine:
    """Optimizer steps of one of ``workers`` processes, which torch.distributed has brought together.

    Every worker is given the whole batch and takes its part, so the samples of a step do not depend on how many
    workers there are.
    """

    def __init__(
        self, model: nn.Module, fit: TrainConfig, zero: Zero, *, rank: int = 0, workers: int = 1
    ) -> None:
        document = deepspeed_document(zero, fit, workers)
        deepspeed = quiet_deepspeed()
        if zero.checkpointing:
            _recompute_activations(model)
        self._zero, self._rank, self._workers = zero, rank, workers
        self._share = fit.batch_size // workers
        self._micro = self._share // zero.accumulation
        with contextlib.redirect_stdout(_Nowhere()):
            self._engine, *_ = deepspeed.initialize(
                model=model, optimizer=adamw(model, fit), config=document, dist_init_required=False
            )
        self._kind = next(p.dtype for p in self._engine.parameters() if p.is_floating_point())

    def step(self, batch: Batch, loss_of: LossOf, rate: float) -> float:
        for group in self._engine.optimizer.param_groups:
            group["lr"] = rate
        mine = take(batch, slice(self._rank * self._share, (self._rank + 1) * self._share))
        total = torch.zeros((), dtype=torch.float64)
        for micro in sequential(mine, self._micro):
            loss = loss_of(self._engine, self._here(micro)).mean()
            self._engine.backward(loss)
            self._engine.step()
            total += loss.detach().double().cpu() / self._zero.accumulation
        return float(self._summed(total)) / self._workers

    @torch.no_grad()
    def loss(self, data: Batch) -> float:
        """The mean over all samples; every worker takes each its part of the same number of batches."""
        size, total = length_of(data), torch.zeros((), dtype=torch.float64)
        for start in range(0, size, self._micro * self._workers):
            first = start + self._rank * self._micro
            part = take(data, slice(first, first + self._micro))
            # At ZeRO 3 all workers must run each forward: one that has nothing left repeats, and counts nothing.
            count = len(next(iter(part.values())))
            losses = per_sample_loss(self._engine, self._here(part if count else take(data, slice(0, 1))))
            total += losses.double().sum().cpu() * bool(count)
        return float(self._summed(total)) / size

    def trained(self) -> dict[str, Tensor]:
        """What was trained, whole and in float32, by parameter name; every worker must ask."""
        from deepspeed.utils import safe_get_full_fp32_param

        found: dict[str, Tensor] = {}
        for name, parameter in self._engine.module.named_parameters():
            if parameter.requires_grad:
                whole = safe_get_full_fp32_param(parameter)
                whole = parameter.detach() if whole is None else whole
                if self._rank == 0:
                    found[name] = whole.float().cpu().clone().view(_shape(parameter))
        return found

    def _here(self, batch: Batch) -> dict[str, Tensor]:
        moved = on_device(batch, self._engine)
        return {name: t.to(self._kind) if t.is_floating_point() else t for name, t in moved.items()}

    def _summed(self, value: Tensor) -> Tensor:
        if self._workers > 1:
            device = next(self._engine.parameters()).device
            value = value.to(device)
            torch.distributed.all_reduce(value)
        return value


def _shape(parameter: nn.Parameter) -> torch.Size:
    return getattr(parameter, "ds_shape", parameter.shape)  # ZeRO 3 leaves the parameter itself empty


def _recompute_activations(model: nn.Module) -> None:
    base: Any = base_of(model)
    base.config.use_cache = False
    base.activation_checkpointing_enable({"use_reentrant": False})


def install(model: nn.Module, trained: Mapping[str, Tensor]) -> None:
    """Put trained values in the place of a model's own. Raises KeyError where the model has no such parameter."""
    own = dict(model.named_parameters())
    with torch.no_grad():
        for name, value in trained.items():
            own[name].copy_(value)
