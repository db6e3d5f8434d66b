"""What a run found: frozen, JSON-able, schema-versioned records.

They hold plain Python values only, so that a report can be read back without torch.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from cascade_ops.granularity import Granularity

REPORT_SCHEMA = "cascade.report/1"


@dataclass(frozen=True, slots=True, kw_only=True)
class Metric:
    """One figure with its 95 % confidence interval (NaN where none is known) and the samples behind it."""

    name: str
    value: float
    low: float
    high: float
    samples: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """A model measured on one side of a split.

    ``metric`` is the headline. Classifiers also fill ``classes``, ``confusion`` (rows: truth,
    columns: prediction, in the order of ``classes``) and ``per_class`` (recall; a class absent from
    this side is absent here). ``extra`` holds further figures by name.
    """

    metric: Metric
    loss: float
    classes: tuple[str, ...] = ()
    per_class: dict[str, float] = field(default_factory=dict)
    confusion: tuple[tuple[int, ...], ...] = ()
    extra: dict[str, Metric] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class RecoveryResult:
    """A recovery fit: its budget and its loss curve (one training loss per optimizer step).

    ``steps`` were allowed; an early stop leaves fewer ``losses``. ``validation`` has (steps done, loss) of each
    check. ``workers`` shared the work (0: the job's own process); ``peak_bytes`` is the first
    one's memory at its highest, ``held_bytes`` what it holds between steps (weights, gradients, optimizer states).
    """

    steps: int
    batch_size: int
    trainable_params: int
    losses: tuple[float, ...]
    seconds: float
    validation: tuple[tuple[int, float], ...] = ()
    workers: int = 0
    peak_bytes: int = 0
    held_bytes: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerScores:
    """Scores and decision for the units of one layer (or, for granularity ``layer``, one per layer).

    ``source`` is the layer's index in the dense model; ``kept`` are sorted unit indices, counted
    before this stage's cut.
    """

    source: int
    scores: tuple[float, ...]
    kept: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class StageResult:
    """One stage: score, cut, recover, evaluate.

    ``ratio`` is the fraction of units of this granularity that the stage removed, ``params`` the
    backbone parameters left and ``params_total`` all parameters left. For granularity ``layer``,
    ``layers`` holds one entry per layer with one score each; ``kept`` is (0,) or (). Evaluations are on the test
    side, which no decision may see, but ``validation``, after recovery, from which schedules are chosen: that side
    varied as in training.
    """

    index: int
    granularity: str
    criterion: str
    allocation: str
    ratio: float
    params: int
    params_total: int
    layers: tuple[LayerScores, ...]
    before_recovery: Evaluation
    after_recovery: Evaluation
    recovery: RecoveryResult
    seconds: float
    validation: Evaluation | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Latency:
    """Single-sample latency of one forward, in milliseconds: median, 5th and 95th percentile."""

    median: float
    p5: float
    p95: float
    runs: int
    threads: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFigures:
    """What a model weighs and how fast it answers. ``size_bytes`` is its safetensors on disk."""

    backbone_params: int
    total_params: int
    size_bytes: int
    latency_ms: Latency
    evaluation: Evaluation


@dataclass(frozen=True, slots=True, kw_only=True)
class SIAVerdict:
    """What a granularity's units share, by the architecture alone.

    Attributes:
        kappa: the most units that share one weight element.
        pi: input projections that meet multiplicatively inside a unit.
        holds: κ = 1 and π = 1.
        reason: in words, with what to do where it fails.
    """

    granularity: Granularity
    kappa: int
    pi: int
    holds: bool
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class CompressionReport:
    """A whole run. ``provenance`` and ``data`` are free-form but JSON-able; ``independence`` is the dense model's."""

    task: str
    dataset: str
    split: str
    seeds: tuple[int, ...]
    model: str
    dense: ModelFigures
    final: ModelFigures
    stages: tuple[StageResult, ...]
    dense_training: RecoveryResult | None
    seconds: float
    data: dict[str, Any]
    config: dict[str, Any]
    provenance: dict[str, Any]
    independence: tuple[SIAVerdict, ...] = ()

    @property
    def backbone_compression(self) -> float:
        """Transformer-block parameters, before ÷ after."""
        return self.dense.backbone_params / self.final.backbone_params

    @property
    def total_compression(self) -> float:
        """All parameters, before ÷ after."""
        return self.dense.total_params / self.final.total_params
