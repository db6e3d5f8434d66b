"""From calibration batches to importance scores, for all granularities in one sweep."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from cascade_ops.anatomy import ModelAnatomy, anatomy_of, base_of, blocks_of, family_of
from cascade_ops.batches import Batch, on_device
from cascade_ops.criteria import CRITERIA, Columns, LayerView
from cascade_ops.errors import DataError, PlanError
from cascade_ops.granularity import Granularity
from cascade_ops.plan import PruningPlan
from cascade_ops.shards import Piece
from cascade_ops.statistics import Need, Statistics
from cascade_ops.sweep import collect


@dataclass(frozen=True, slots=True, kw_only=True)
class ImportanceScores:
    """Scores of all units of one granularity, higher = keep.

    ``per_layer`` has one tensor per layer; for LAYER a single tensor with one score per layer.
    """

    granularity: Granularity
    criterion: str
    per_layer: tuple[Float[Tensor, " _units"], ...]
    samples: int

    def restrict(self, plan: PruningPlan) -> ImportanceScores:
        """The scores of what ``plan`` leaves, for pruning several granularities from one estimate."""
        if plan.granularity is self.granularity:
            rows = tuple(row[list(keep)] for row, keep in zip(self.per_layer, plan.keep, strict=True))
        elif plan.granularity is Granularity.LAYER:
            rows = tuple(self.per_layer[i] for i in plan.keep[0])
        elif {plan.granularity, self.granularity} == {Granularity.HEAD, Granularity.KV_GROUP}:
            raise PlanError(
                "scores of heads and of KV groups cannot be carried over to each other: score again"
            )
        else:
            return self
        return ImportanceScores(
            granularity=self.granularity, criterion=self.criterion, per_layer=rows, samples=self.samples
        )


Scores = dict[tuple[str, Granularity], ImportanceScores]


@runtime_checkable
class Scorer(Protocol):
    """``score``, or another way to the same scores."""

    def __call__(
        self, model: nn.Module, batches: Iterable[Batch], criteria: Sequence[str], *, seed: int
    ) -> Scores: ...


def score(
    model: nn.Module, batches: Iterable[Batch], criteria: Sequence[str] = ("taylor",), *, seed: int = 0
) -> Scores:
    """Score every layer, head, KV group and channel by each criterion.

    Args:
        model: a transformers model of a known family, or a SignalClassifier.
        batches: calibration batches (``loss.per_sample_loss`` says what they hold).
        criteria: names; all of them come from the same sweep.
        seed: for the ``random`` criterion only.

    Returns:
        (criterion, granularity) → scores, for each granularity that the criterion can score.

    Raises:
        UnknownNameError: no such criterion.
        DataError: no calibration data, or the model's outputs on it are not finite.
        UnsupportedFamilyError: no FamilySpec describes the model.
    """
    statistics = gather(model, batches, needs_of(criteria))
    return scores_from(model, anatomy_of(model), statistics, criteria, seed=seed)


def gather(model: nn.Module, batches: Iterable[Batch], needs: frozenset[Need]) -> Statistics:
    """The statistics of calibration batches, all from one sweep. Raises DataError."""
    piece, statistics = Piece.whole(model), Statistics.zero()
    for batch in batches if needs else ():
        statistics = statistics + collect(piece, on_device(batch, model), needs)
    check_statistics(statistics, piece.anatomy, needs)
    return statistics


def needs_of(criteria: Sequence[str]) -> frozenset[Need]:
    """What these criteria need from the sweep. Raises UnknownNameError."""
    return frozenset(need for name in criteria for need in CRITERIA[name].needs)


def check_statistics(statistics: Statistics, anatomy: ModelAnatomy, needs: Collection[Need]) -> None:
    """Raises DataError where there are none, or some are not finite (naming the layer as in the dense model)."""
    if needs and statistics.samples == 0:
        raise DataError("scoring needs calibration data, got no batch")
    for (name, granularity, layer), value in statistics.sums.items():
        if not torch.isfinite(value).all():
            raise DataError(
                f"layer {anatomy.layers[layer].source}: {name} ({granularity}) is not finite on the calibration "
                "data. Check the data for NaN, or load the model in float32 or bfloat16."
            )


def scores_from(
    model: nn.Module, anatomy: ModelAnatomy, statistics: Statistics, criteria: Sequence[str], *, seed: int = 0
) -> Scores:
    """Scores from statistics already collected."""
    spec = family_of(base_of(model).config)
    columns: list[dict[Granularity, Columns]] = [{} for _ in anatomy.layers]
    scores: Scores = {}
    for name in criteria:
        criterion = CRITERIA[name]
        for granularity in Granularity:
            if granularity not in criterion.granularities:
                continue
            rows = tuple(
                criterion.score(
                    LayerView(
                        granularity=granularity,
                        index=index,
                        layer=layer,
                        block=block,
                        spec=spec,
                        statistics=statistics,
                        seed=seed,
                        columns=columns[index],
                    )
                ).cpu()
                for index, (block, layer) in enumerate(zip(blocks_of(model), anatomy.layers, strict=True))
            )
            scores[name, granularity] = ImportanceScores(
                granularity=granularity,
                criterion=name,
                per_layer=(torch.cat(rows),) if granularity is Granularity.LAYER else rows,
                samples=statistics.samples,
            )
    return scores


def joined(parts: Sequence[Scores]) -> Scores:
    """Scores of consecutive shards as those of the whole model."""
    return {
        key: ImportanceScores(
            granularity=one.granularity,
            criterion=one.criterion,
            per_layer=_together(one.granularity, [part[key].per_layer for part in parts]),
            samples=one.samples,
        )
        for key, one in parts[0].items()
    }


def _together(granularity: Granularity, parts: Sequence[tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
    rows = tuple(row for part in parts for row in part)
    return (torch.cat(rows),) if granularity is Granularity.LAYER else rows
