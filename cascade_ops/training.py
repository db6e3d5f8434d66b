"""The training loop: AdamW on a cosine schedule, deterministic for a seed."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import nn

from cascade_ops.augment import Augment, augmented
from cascade_ops.batches import Batch, on_device, shuffled
from cascade_ops.errors import CascadeError, ConfigError
from cascade_ops.loss import per_sample_loss
from cascade_ops.progress import Progress, silent
from cascade_ops.results import RecoveryResult


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainConfig:
    """How a dense model is trained.

    Attributes:
        steps: optimizer steps.
        batch_size: samples per step.
        learning_rate: peak of a cosine schedule with warm-up.
        warmup: fraction of the steps.
        weight_decay: AdamW's, on matrices only.
        clip: gradient norm limit.
    """

    steps: int = 900
    batch_size: int = 64
    learning_rate: float = 2e-3
    warmup: float = 0.05
    weight_decay: float = 0.01
    clip: float = 1.0

    def __post_init__(self) -> None:
        if self.steps < 0:
            raise ConfigError(f"steps: must be ≥ 0, got {self.steps}")
        if self.batch_size < 1:
            raise ConfigError(f"batch_size: must be ≥ 1, got {self.batch_size}")
        if not self.learning_rate > 0:
            raise ConfigError(f"learning_rate: must be > 0, got {self.learning_rate:g}")


def fit(
    model: nn.Module,
    train: Batch,
    config: TrainConfig,
    *,
    seed: int,
    augment: Augment | None = None,
    progress: Progress = silent,
    phase: str = "train",
) -> RecoveryResult:
    """Train the parameters that require gradients, in place; the model is left in evaluation mode.

    Raises:
        CascadeError: the loss became NaN or infinite.
    """
    began = time.perf_counter()
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    losses: list[float] = []
    if config.steps and trainable:
        optimizer = torch.optim.AdamW(_groups(trainable, config.weight_decay), lr=config.learning_rate)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _cosine(step, config))
        batches = shuffled(train, config.batch_size, seed)
        variation = torch.Generator().manual_seed(seed)
        model.train()
        with torch.random.fork_rng():
            torch.manual_seed(seed)  # dropout
            for step in range(config.steps):
                batch = augmented(next(batches), augment, variation)
                loss = per_sample_loss(model, on_device(batch, model)).mean()
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                nn.utils.clip_grad_norm_(trainable, config.clip)
                optimizer.step()
                schedule.step()
                losses.append(loss.item())
                if not math.isfinite(losses[-1]):
                    raise CascadeError(
                        f"{phase}: the loss became {losses[-1]} at step {step + 1} of {config.steps}; "
                        f"try a learning rate below {config.learning_rate:g}"
                    )
                progress(phase, step + 1, config.steps, loss=losses[-1])
    model.eval()
    return RecoveryResult(
        steps=config.steps,
        batch_size=config.batch_size,
        trainable_params=sum(parameter.numel() for parameter in trainable),
        losses=tuple(losses),
        seconds=time.perf_counter() - began,
    )


def _groups(parameters: Iterable[nn.Parameter], weight_decay: float) -> list[dict[str, object]]:
    """Decay matrices, not vectors (biases, norms)."""
    parameters = list(parameters)
    return [
        {"params": [p for p in parameters if p.dim() > 1], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.dim() <= 1], "weight_decay": 0.0},
    ]


def _cosine(step: int, config: TrainConfig) -> float:
    """Learning-rate factor: linear warm-up, then a half cosine down to 0."""
    warmup = max(1, round(config.warmup * config.steps))
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, config.steps - warmup)))
