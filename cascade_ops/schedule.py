"""A cascade as data: which cuts, in which order, how far, and how much recovery after each.

Any order, any number of rounds and one-shot pruning are all values of ``CascadeSchedule``.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise
from typing import Literal

from cascade_ops.errors import ConfigError
from cascade_ops.granularity import Granularity

Allocation = Literal["uniform", "global"]
RecoveryMethod = Literal["lora", "full"]
Teacher = Literal["dense", "previous"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """One cut followed by recovery. Give ``ratio`` or ``target``, not both.

    Attributes:
        granularity: the units to remove.
        ratio: fraction of the units present to remove, in (0, 1).
        target: backbone compression to reach by the end of this stage, relative to the dense
            model (parameters before ÷ after), > 1.
        criterion: name of an importance criterion.
        allocation: ``uniform`` removes the same fraction in every layer, ``global`` lets the
            layers compete.
        share: this stage's weight when the recovery steps are divided; 0 means none.
    """

    granularity: Granularity
    ratio: float | None = None
    target: float | None = None
    criterion: str = "taylor"
    allocation: Allocation = "uniform"
    share: float = 1.0

    def __post_init__(self) -> None:
        if (self.ratio is None) == (self.target is None):
            raise ConfigError(f"ratio, target: give exactly one, got {self.ratio} and {self.target}")
        if self.ratio is not None and not 0 < self.ratio < 1:
            raise ConfigError(f"ratio: must be in (0, 1), got {self.ratio:g}")
        if self.target is not None and not self.target > 1:
            raise ConfigError(f"target: must be a compression > 1, got {self.target:g}")
        if not self.share >= 0:
            raise ConfigError(f"share: must be ≥ 0, got {self.share:g}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Distillation:
    """What a pruned model learns from its teacher beside the labels.

    Attributes:
        teacher: ``dense``, the model before any cut, or ``previous``, the model before this stage's cut.
        weight: α of ``(1 − α)·cross-entropy + α·T²·KL(teacher ‖ student)``, in (0, 1].
        temperature: T > 0, which divides both models' logits.
        hidden: weight of the mean squared distance, relative to the teacher's mean square, between the outputs
            of blocks that both models have; 0 leaves it out.
        top: classes or tokens of each position whose logits are cached, the most likely ones; the rest count
            as one.
    """

    teacher: Teacher = "dense"
    weight: float = 0.5
    temperature: float = 2.0
    hidden: float = 0.0
    top: int = 64

    def __post_init__(self) -> None:
        if not 0 < self.weight <= 1:
            raise ConfigError(f"weight: must be in (0, 1], got {self.weight:g}")
        if not self.temperature > 0:
            raise ConfigError(f"temperature: must be > 0, got {self.temperature:g}")
        if not self.hidden >= 0:
            raise ConfigError(f"hidden: must be ≥ 0, got {self.hidden:g}")
        if self.top < 1:
            raise ConfigError(f"top: must be ≥ 1, got {self.top}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Recovery:
    """The recovery budget and how it is spent. Steps are divided over the stages by their shares.

    Attributes:
        steps: optimizer steps of all stages together.
        batch_size: samples per step.
        method: ``lora`` trains low-rank updates of the backbone and merges them; ``full`` trains
            every parameter.
        rank: LoRA rank, capped for each matrix at its smaller side.
        alpha: LoRA scale; an update is multiplied by alpha / rank.
        learning_rate: peak of a cosine schedule with warm-up.
        warmup: fraction of a stage's steps.
        weight_decay: AdamW's, on matrices only.
        unfreeze: parts trained beside the low-rank updates: ``norms``, ``biases``, ``rest`` (all
            that is outside the backbone's blocks: front end, embeddings, head).
        compensation: refit the output projections to the dense outputs in closed form when heads or channels
            go (``cascade_ops.compensation``), before any training.
        ridge: its λ, relative to the mean second moment of the kept columns.
        distillation: learn from a teacher too; None: from the labels alone.
        patience: stop a stage when so many checks in a row have not lowered the validation loss; None: never.
        check_every: steps from one check to the next.
    """

    steps: int = 900
    batch_size: int = 64
    method: RecoveryMethod = "lora"
    rank: int = 16
    alpha: float = 32.0
    learning_rate: float = 2e-3
    warmup: float = 0.05
    weight_decay: float = 0.01
    unfreeze: tuple[str, ...] = ("norms", "biases", "rest")
    compensation: bool = False
    ridge: float = 1e-2
    distillation: Distillation | None = None
    patience: int | None = None
    check_every: int = 25

    def __post_init__(self) -> None:
        if self.steps < 0:
            raise ConfigError(f"steps: must be ≥ 0, got {self.steps}")
        if self.batch_size < 1:
            raise ConfigError(f"batch_size: must be ≥ 1, got {self.batch_size}")
        if self.rank < 1:
            raise ConfigError(f"rank: must be ≥ 1, got {self.rank}")
        if not self.learning_rate > 0:
            raise ConfigError(f"learning_rate: must be > 0, got {self.learning_rate:g}")
        unknown = set(self.unfreeze) - {"norms", "biases", "rest"}
        if unknown:
            raise ConfigError(f"unfreeze: knows norms, biases and rest, got {sorted(unknown)}")
        if not self.ridge > 0:
            raise ConfigError(f"ridge: must be > 0, got {self.ridge:g}")
        if self.patience is not None and self.patience < 1:
            raise ConfigError(f"patience: must be ≥ 1, got {self.patience}")
        if self.check_every < 1:
            raise ConfigError(f"check_every: must be ≥ 1, got {self.check_every}")


@dataclass(frozen=True, slots=True, kw_only=True)
class CascadeSchedule:
    """The stages, in order.

    Attributes:
        stages: at least one.
        recovery: the whole budget.
        rescore: estimate importance anew before each stage, on the recovered model (the cascade).
            False scores every granularity once, on the dense model (one-shot).
    """

    stages: tuple[Stage, ...]
    recovery: Recovery = field(default_factory=Recovery)
    rescore: bool = True

    def __post_init__(self) -> None:
        if not self.stages:
            raise ConfigError("stages: at least one stage is needed, got none")
        reached = 1.0
        for index, stage in enumerate(self.stages):
            if stage.target is not None and stage.target <= reached:
                raise ConfigError(
                    f"stages.{index}.target: must exceed the stage before it ({reached:g}×), "
                    f"got {stage.target:g}×"
                )
            reached = stage.target or reached

    def steps(self) -> tuple[int, ...]:
        """Recovery steps of each stage: ``recovery.steps`` divided by share, summing to it exactly."""
        total = sum(stage.share for stage in self.stages)
        if total == 0:
            return (0,) * len(self.stages)
        edges, done = [0], 0.0
        for stage in self.stages:
            done += stage.share
            edges.append(round(self.recovery.steps * done / total))
        return tuple(after - before for before, after in pairwise(edges))
