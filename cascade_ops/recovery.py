"""Low-rank recovery between stages: LoRA on the pruned shapes, merged before the next scoring."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol, cast, runtime_checkable

import peft
import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn
from transformers.pytorch_utils import Conv1D

from cascade_ops.anatomy import anatomy_of, blocks_of
from cascade_ops.augment import Augment
from cascade_ops.batches import Batch
from cascade_ops.distillation import TeacherCache, numbered
from cascade_ops.errors import ConfigError
from cascade_ops.linear import in_features, linear, out_features
from cascade_ops.loss import per_sample_loss
from cascade_ops.progress import Progress, silent
from cascade_ops.results import RecoveryResult
from cascade_ops.schedule import Recovery
from cascade_ops.training import Engine, LossOf, TrainConfig, fit


@runtime_checkable
class Recoverer(Protocol):
    """``recover``, or another way to the same weights."""

    def __call__(
        self,
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
    ) -> RecoveryResult: ...


def recover(
    model: nn.Module,
    train: Batch,
    recovery: Recovery,
    *,
    steps: int,
    seed: int,
    validation: Batch | None = None,
    teacher: TeacherCache | None = None,
    augment: Augment | None = None,
    progress: Progress = silent,
) -> RecoveryResult:
    """Mend a pruned model in place; plain weights remain (every adapter is merged).

    Args:
        steps: this stage's part of the budget; 0 returns at once.
        validation: what early stopping looks at.
        teacher: cached outputs to learn from, where ``recovery.distillation`` asks for it.
    """
    if steps == 0:
        return unmended(recovery)
    with torch.random.fork_rng(), trainable(model, recovery, seed):
        return recovery_fit(
            model,
            train,
            recovery,
            steps=steps,
            seed=seed,
            validation=validation,
            teacher=teacher,
            augment=augment,
            progress=progress,
        )


def unmended(recovery: Recovery) -> RecoveryResult:
    """The result of no step at all."""
    return RecoveryResult(steps=0, batch_size=recovery.batch_size, trainable_params=0, losses=(), seconds=0.0)


def recovery_fit(
    model: nn.Module,
    train: Batch,
    recovery: Recovery,
    *,
    steps: int,
    seed: int,
    validation: Batch | None = None,
    teacher: TeacherCache | None = None,
    augment: Augment | None = None,
    engine: Callable[[nn.Module, TrainConfig], Engine] | None = None,
    progress: Progress = silent,
) -> RecoveryResult:
    """The fit of what ``prepare`` has made trainable.

    Args:
        engine: makes what carries out the steps; plain torch in this process by default.

    Raises:
        ConfigError: distillation without a teacher's outputs.
    """
    config = train_config(recovery, steps)
    loss_of: LossOf = per_sample_loss
    if recovery.distillation is not None:
        if teacher is None:
            raise ConfigError("distillation: needs a teacher's cached outputs")
        train, loss_of = numbered(train), teacher.loss(recovery.distillation)
    return fit(
        model,
        train,
        config,
        seed=seed,
        validation=validation,
        loss_of=loss_of,
        augment=augment,
        engine=engine(model, config) if engine is not None else None,
        progress=progress,
        phase="recover",
    )


def train_config(recovery: Recovery, steps: int) -> TrainConfig:
    """A stage's fit."""
    return TrainConfig(
        steps=steps,
        batch_size=recovery.batch_size,
        learning_rate=recovery.learning_rate,
        warmup=recovery.warmup,
        weight_decay=recovery.weight_decay,
        patience=recovery.patience,
        check_every=recovery.check_every,
    )


@contextmanager
def trainable(model: nn.Module, recovery: Recovery, seed: int) -> Iterator[None]:
    """Within this context what the method trains requires gradients; on leaving, the adapters are merged exactly
    and everything requires gradients."""
    paths = prepare(model, recovery, seed)
    try:
        yield
    finally:
        merge(model, paths)


def prepare(model: nn.Module, recovery: Recovery, seed: int) -> tuple[str, ...]:
    """Make what the method trains require gradients, and nothing else.

    For ``lora`` the backbone gets adapters (Hu et al. 2022, arXiv 2106.09685): ``W + (α/r)·BA``, A random by
    ``seed``, B zero.

    Returns:
        Full paths of the adapted linear maps; ``merge`` wants them.
    """
    torch.manual_seed(seed)
    if recovery.method == "full":
        model.requires_grad_(True)
        return ()
    targets = lora_paths(model)
    ranks = {path: min(recovery.rank, _smaller_side(model, path)) for path in targets}
    config = peft.LoraConfig(
        r=recovery.rank,
        lora_alpha=recovery.alpha,  # type: ignore[arg-type]  # PEFT divides it; a float is fine
        target_modules=list(targets),
        rank_pattern={f"^{path}$": rank for path, rank in ranks.items()},
        alpha_pattern={f"^{path}$": recovery.alpha * rank / recovery.rank for path, rank in ranks.items()},
        fan_in_fan_out=isinstance(model.get_submodule(targets[0]), Conv1D),
    )
    peft.inject_adapter_in_model(config, model)
    _unfreeze(model, recovery.unfreeze)
    return targets


def merge(model: nn.Module, paths: tuple[str, ...]) -> None:
    """Merge the adapters at ``paths`` into their linear maps, and let everything require gradients."""
    for path in paths:
        layer = cast(BaseTunerLayer, model.get_submodule(path))
        layer.merge()
        parent, _, name = path.rpartition(".")
        setattr(model.get_submodule(parent), name, layer.get_base_layer())
    if hasattr(model, "peft_config"):
        del model.peft_config
    model.requires_grad_(True)


def lora_paths(model: nn.Module) -> tuple[str, ...]:
    """Full paths of the linear maps to adapt, derived from the anatomy."""
    blocks = {id(block) for block in blocks_of(model)}
    inside = anatomy_of(model).lora_targets()
    return tuple(
        f"{name}.{path}" for name, module in model.named_modules() if id(module) in blocks for path in inside
    )


def _smaller_side(model: nn.Module, path: str) -> int:
    module = linear(model, path)
    return min(in_features(module), out_features(module))


def _unfreeze(model: nn.Module, parts: tuple[str, ...]) -> None:
    backbone = {id(parameter) for parameter in blocks_of(model).parameters()}
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if id(parameter) not in backbone:
                parameter.requires_grad_("rest" in parts)
            elif ("norms" in parts and "norm" in type(module).__name__.lower()) or (
                "biases" in parts and name == "bias"
            ):
                parameter.requires_grad_(True)
