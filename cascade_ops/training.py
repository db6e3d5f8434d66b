"""The training loop: AdamW on a cosine schedule, deterministic for a seed."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from cascade_ops.augment import Augment, augmented
from cascade_ops.batches import Batch, on_device, sequential, shuffled
from cascade_ops.errors import CascadeError, ConfigError
from cascade_ops.loss import per_sample_loss
from cascade_ops.progress import Progress, silent
from cascade_ops.results import RecoveryResult

LossOf = Callable[[nn.Module, Batch], Tensor]
"""Model and batch → the loss of each sample."""


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
        patience: stop when so many checks in a row have not lowered the validation loss; None: never.
        check_every: steps from one check to the next.
    """

    steps: int = 900
    batch_size: int = 64
    learning_rate: float = 2e-3
    warmup: float = 0.05
    weight_decay: float = 0.01
    clip: float = 1.0
    patience: int | None = None
    check_every: int = 25

    def __post_init__(self) -> None:
        if self.steps < 0:
            raise ConfigError(f"steps: must be ≥ 0, got {self.steps}")
        if self.batch_size < 1:
            raise ConfigError(f"batch_size: must be ≥ 1, got {self.batch_size}")
        if not self.learning_rate > 0:
            raise ConfigError(f"learning_rate: must be > 0, got {self.learning_rate:g}")
        if self.patience is not None and self.patience < 1:
            raise ConfigError(f"patience: must be ≥ 1, got {self.patience}")
        if self.check_every < 1:
            raise ConfigError(f"check_every: must be ≥ 1, got {self.check_every}")


@runtime_checkable
class Engine(Protocol):
    """What carries out an optimizer step: plain torch here, DeepSpeed elsewhere."""

    def step(self, batch: Batch, loss_of: LossOf, rate: float) -> float:
        """One optimizer step at learning rate ``rate`` on the samples of ``batch``; their mean loss before it."""
        ...

    def loss(self, data: Batch) -> float:
        """Mean per-sample loss, nothing learnt."""
        ...


@dataclass(slots=True, kw_only=True)
class Plain:
    """Steps in this process."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    trainable: list[nn.Parameter]
    clip: float

    def step(self, batch: Batch, loss_of: LossOf, rate: float) -> float:
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        loss = loss_of(self.model, on_device(batch, self.model)).mean()
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(self.trainable, self.clip)
        self.optimizer.step()
        return loss.item()

    def loss(self, data: Batch) -> float:
        return mean_loss(self.model, data)


def fit(
    model: nn.Module,
    train: Batch,
    config: TrainConfig,
    *,
    seed: int,
    validation: Batch | None = None,
    loss_of: LossOf = per_sample_loss,
    augment: Augment | None = None,
    engine: Engine | None = None,
    progress: Progress = silent,
    phase: str = "train",
) -> RecoveryResult:
    """Train the parameters that require gradients, in place; the model is left in evaluation mode.

    Args:
        validation: what early stopping (``config.patience``) looks at.
        loss_of: per-sample losses; ``train`` may hold whatever it asks for.
        engine: carries out the steps; plain torch in this process by default.

    Raises:
        CascadeError: the loss became NaN or infinite.
        ConfigError: early stopping without validation data.
    """
    if config.patience is not None and validation is None:
        raise ConfigError("patience: early stopping needs validation data")
    began = time.perf_counter()
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    losses: list[float] = []
    checks: list[tuple[int, float]] = []
    if config.steps and trainable:
        engine = engine or Plain(
            model=model, optimizer=adamw(model, config), trainable=trainable, clip=config.clip
        )
        batches = shuffled(train, config.batch_size, seed)
        variation = torch.Generator().manual_seed(seed)
        model.train()
        with torch.random.fork_rng():
            torch.manual_seed(seed)  # dropout
            for step in range(config.steps):
                batch = augmented(next(batches), augment, variation)
                losses.append(engine.step(batch, loss_of, config.learning_rate * cosine(step, config)))
                if not math.isfinite(losses[-1]):
                    raise CascadeError(
                        f"{phase}: the loss became {losses[-1]} at step {step + 1} of {config.steps}; "
                        f"try a learning rate below {config.learning_rate:g}"
                    )
                progress(phase, step + 1, config.steps, loss=losses[-1])
                if config.patience is not None and (step + 1) % config.check_every == 0:
                    assert validation is not None  # refused above
                    model.eval()
                    checks.append((step + 1, engine.loss(validation)))
                    model.train()
                    if _stalled([loss for _, loss in checks], config.patience):
                        break
    model.eval()
    return RecoveryResult(
        steps=config.steps,
        batch_size=config.batch_size,
        trainable_params=sum(parameter.numel() for parameter in trainable),
        losses=tuple(losses),
        seconds=time.perf_counter() - began,
        validation=tuple(checks),
    )


def deterministic(threads: int | None) -> None:
    """The same bits each time: deterministic kernels, and ``threads`` of them where that is given.

    Memory is not filled before use, as torch would in this mode: it makes bugs visible and allocation slow.
    """
    if threads is not None:
        torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(True, warn_only=True)
    flags: Any = torch.utils.deterministic  # a module whose attributes are properties
    flags.fill_uninitialized_memory = False


def _stalled(losses: list[float], patience: int) -> bool:
    """The last ``patience`` checks have not gone below the best before them."""
    return len(losses) > patience and min(losses[-patience:]) >= min(losses[:-patience])


@torch.no_grad()
def mean_loss(model: nn.Module, data: Batch, batch_size: int = 64) -> float:
    """Mean per-sample loss over all of ``data``, in nats."""
    losses = [
        per_sample_loss(model, on_device(batch, model)).double() for batch in sequential(data, batch_size)
    ]
    return torch.cat(losses).mean().item()


def adamw(model: nn.Module, config: TrainConfig) -> torch.optim.AdamW:
    """The optimizer of what requires gradients: matrices decay, vectors (biases, norms) do not."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.dim() > 1], "weight_decay": config.weight_decay},
        {"params": [p for p in parameters if p.dim() <= 1], "weight_decay": 0.0},
    ]
    # One pass over memory for each parameter instead of a dozen.
    return torch.optim.AdamW(
        [group for group in groups if group["params"]], lr=config.learning_rate, fused=True
    )


def cosine(step: int, config: TrainConfig) -> float:
    """Learning-rate factor: linear warm-up, then a half cosine down to 0."""
    warmup = max(1, round(config.warmup * config.steps))
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, config.steps - warmup)))
