"""The cascade: score, cut, recover, evaluate; again on what is left."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import nn

from cascade_ops.anatomy import ModelAnatomy, anatomy_of
from cascade_ops.augment import varied
from cascade_ops.batches import sequential
from cascade_ops.compensation import compensate
from cascade_ops.criteria import CRITERIA
from cascade_ops.distillation import TeacherCache
from cascade_ops.errors import ConfigError, PlanError, UnsupportedFamilyError, UsageError
from cascade_ops.evaluation import evaluate
from cascade_ops.granularity import Granularity
from cascade_ops.plan import PruningPlan
from cascade_ops.planning import plan_ratio, plan_target
from cascade_ops.progress import Progress, silent
from cascade_ops.recovery import Recoverer, recover
from cascade_ops.results import LayerScores, StageResult
from cascade_ops.schedule import CascadeSchedule, Recovery, Stage
from cascade_ops.scoring import ImportanceScores, Scorer, Scores, score
from cascade_ops.surgery import prune
from cascade_ops.tasks import TaskData

CALIBRATION_BATCH = 32


def default_schedule(
    target: float, anatomy: ModelAnatomy | None = None, *, recovery: Recovery | None = None
) -> CascadeSchedule:
    """Layers, then heads, then channels, to a backbone compression of ``target``.

    Channels alone are fine enough to hit the target within 1 %, so they take what the others leave, and
    most of the recovery: what is mended before a cut is partly cut away again (docs/benchmarks.md).
    With an ``anatomy``, whole KV groups go instead of heads where query heads share K/V, and a coarse
    stage that would remove nothing, or leave nothing for the channels to do, is left out.
    """
    shared = anatomy is not None and any(max(layer.heads_per_kv) > 1 for layer in anatomy.layers)
    heads = Granularity.KV_GROUP if shared else Granularity.HEAD
    coarse: tuple[Stage, ...] = (
        Stage(granularity=Granularity.LAYER, ratio=1 - target**-0.40, share=1.0),
        Stage(granularity=heads, ratio=1 - target**-0.35, share=1.0),
    )
    if anatomy is not None:
        coarse = _worthwhile(coarse, anatomy, target)
    last = Stage(granularity=Granularity.CHANNEL, target=target, share=6.0)
    return CascadeSchedule(stages=(*coarse, last), recovery=recovery or Recovery())


def _worthwhile(stages: tuple[Stage, ...], anatomy: ModelAnatomy, target: float) -> tuple[Stage, ...]:
    """The stages that remove something and stay above the target's parameters."""
    left, chosen = anatomy, []
    for stage in stages:
        try:
            after = left.after(plan_stage(stage, _all_alike(stage, left), left, anatomy))
        except (PlanError, UnsupportedFamilyError):
            continue
        if after.backbone_params > anatomy.backbone_params / target:
            chosen.append(stage)
            left = after
    return tuple(chosen)


def _all_alike(stage: Stage, anatomy: ModelAnatomy) -> ImportanceScores:
    """Equal scores for every unit: how much a stage removes hardly depends on which units go."""
    rows = tuple(torch.zeros(n) for n in anatomy.units(stage.granularity))
    return ImportanceScores(
        granularity=stage.granularity, criterion=stage.criterion, per_layer=rows, samples=0
    )


def validate_schedule(schedule: CascadeSchedule, anatomy: ModelAnatomy) -> None:
    """Refuse before any work what would fail later: the schedule is rehearsed on the anatomy alone.

    Raises:
        UnknownNameError: no such criterion.
        UsageError: a criterion cannot score its stage's granularity, or one-shot scores cannot serve a stage.
        PlanError: a ratio or target that no plan meets.
        ConfigError: low-rank updates of a higher rank than any matrix.
    """
    check_recovery(schedule.recovery, anatomy)
    left = anatomy
    for index, stage in enumerate(schedule.stages):
        criterion = CRITERIA[stage.criterion]
        if stage.granularity not in criterion.granularities:
            possible = ", ".join(sorted(criterion.granularities))
            raise UsageError(
                f"schedule.stages.{index}.criterion: {stage.criterion!r} scores {possible}, "
                f"not {stage.granularity}"
            )
        both = {stage.granularity, *(earlier.granularity for earlier in schedule.stages[:index])}
        if not schedule.rescore and {Granularity.HEAD, Granularity.KV_GROUP} <= both:
            raise UsageError(
                f"schedule.stages.{index}.granularity: one-shot scores of heads and of KV groups cannot be carried "
                "over to each other; use one of them throughout, or rescore"
            )
        try:
            left = left.after(plan_stage(stage, _all_alike(stage, left), left, anatomy))
        except PlanError as error:
            raise PlanError(f"schedule.stages.{index}: {error}") from None


def check_recovery(recovery: Recovery, anatomy: ModelAnatomy) -> None:
    """Raises ConfigError where low-rank updates would not be of low rank."""
    if recovery.method == "lora" and recovery.rank > anatomy.hidden_size:
        raise ConfigError(
            f"recovery.rank: {recovery.rank} exceeds the smaller side of every matrix (hidden size "
            f"{anatomy.hidden_size}); give at most that, or method full"
        )


def plan_stage(
    stage: Stage, scores: ImportanceScores, anatomy: ModelAnatomy, dense: ModelAnatomy
) -> PruningPlan:
    """The plan of one stage. Raises PlanError."""
    if stage.ratio is not None:
        return plan_ratio(scores, stage.ratio, allocation=stage.allocation)
    assert stage.target is not None  # Stage has one of the two
    return plan_target(
        scores, anatomy, int(dense.backbone_params / stage.target), allocation=stage.allocation
    )


def dense_scores(
    model: nn.Module, schedule: CascadeSchedule, data: TaskData, *, seed: int, scorer: Scorer = score
) -> Scores:
    """All scores that a one-shot schedule (``rescore=False``) will need, on the model as it is now."""
    names = tuple(dict.fromkeys(stage.criterion for stage in schedule.stages))
    return scorer(model, sequential(data.calibration, CALIBRATION_BATCH), names, seed=seed)


def run_stage(
    model: nn.Module,
    schedule: CascadeSchedule,
    index: int,
    *,
    data: TaskData,
    dense: ModelAnatomy,
    seed: int,
    scores: Scores | None = None,
    scorer: Scorer = score,
    recoverer: Recoverer = recover,
    teacher: Callable[[], TeacherCache] | None = None,
    progress: Progress = silent,
) -> StageResult:
    """Carry out stage ``index`` in place.

    Randomness depends on ``seed`` and ``index`` only, so a stage that is run again after an
    interruption gives the same weights.

    Args:
        model: what the stages before have left.
        schedule: the whole cascade.
        index: which of its stages.
        data: what to calibrate, recover and measure on.
        dense: the anatomy that targets are relative to.
        seed: of the run.
        scores: estimates to use instead of scoring the model now (one-shot).
        scorer: what scores the model, if that is not ``cascade_ops.score`` in this process.
        recoverer: what mends it, if that is not ``cascade_ops.recovery.recover`` in this process.
        teacher: gives the outputs of the model to learn from; asked only if the schedule distils.
        progress: told about scoring and recovery steps.
    """
    began = time.perf_counter()
    stage, steps = schedule.stages[index], schedule.steps()[index]
    anatomy = anatomy_of(model)
    progress("score", 0, 1)
    batches = partial(sequential, data.calibration, CALIBRATION_BATCH)
    if scores is None:
        scores = scorer(model, batches(), (stage.criterion,), seed=seed)
    chosen = scores[stage.criterion, stage.granularity]
    plan = plan_stage(stage, chosen, anatomy, dense)
    progress("score", 1, 1)
    if schedule.recovery.compensation:
        compensate(model, plan, batches(), ridge=schedule.recovery.ridge, progress=progress)
    after = prune(model, plan)
    before_recovery = evaluate(model, data.test, task=data.task, classes=data.classes)
    distils = schedule.recovery.distillation is not None and steps > 0
    recovery = recoverer(
        model,
        data.train,
        schedule.recovery,
        steps=steps,
        seed=seed * 1000 + index,
        validation=data.validation if schedule.recovery.patience is not None else None,
        teacher=teacher() if distils and teacher is not None else None,
        augment=data.augment,
        progress=progress,
    )
    measured = partial(evaluate, model, task=data.task, classes=data.classes)
    after_recovery = measured(data.test) if steps else before_recovery
    units, kept = sum(anatomy.units(plan.granularity)), sum(len(row) for row in plan.keep)
    return StageResult(
        index=index,
        granularity=stage.granularity.value,
        criterion=stage.criterion,
        allocation=stage.allocation,
        ratio=1 - kept / units,
        params=after.backbone_params,
        params_total=after.total_params,
        layers=_layer_scores(chosen, plan, anatomy),
        before_recovery=before_recovery,
        after_recovery=after_recovery,
        recovery=recovery,
        validation=measured(varied(data.validation, data.augment)),
        seconds=time.perf_counter() - began,
    )


def _layer_scores(
    scores: ImportanceScores, plan: PruningPlan, anatomy: ModelAnatomy
) -> tuple[LayerScores, ...]:
    sources = [layer.source for layer in anatomy.layers]
    if plan.granularity is Granularity.LAYER:
        kept = set(plan.keep[0])
        return tuple(
            LayerScores(source=source, scores=(value,), kept=(0,) if position in kept else ())
            for position, (source, value) in enumerate(
                zip(sources, scores.per_layer[0].tolist(), strict=True)
            )
        )
    return tuple(
        LayerScores(source=source, scores=tuple(row.tolist()), kept=keep)
        for source, row, keep in zip(sources, scores.per_layer, plan.keep, strict=True)
    )


def plan_of(result: StageResult) -> PruningPlan:
    """The plan that a finished stage carried out."""
    if result.granularity == Granularity.LAYER:
        keep = [[position for position, layer in enumerate(result.layers) if layer.kept]]
    else:
        keep = [list(layer.kept) for layer in result.layers]
    return PruningPlan.from_keep(result.granularity, keep)


def carry_over(scores: Scores, plan: PruningPlan) -> Scores:
    """One-shot estimates after a cut: those of the units that are left. Estimates that cannot be carried
    over (heads ↔ KV groups) are dropped."""
    carried: Scores = {}
    for key, one in scores.items():
        if {plan.granularity, one.granularity} != {Granularity.HEAD, Granularity.KV_GROUP}:
            carried[key] = one.restrict(plan)
    return carried


def iterate_cascade(
    model: nn.Module,
    schedule: CascadeSchedule,
    data: TaskData,
    *,
    seed: int = 0,
    progress: Progress = silent,
) -> Iterator[StageResult]:
    """Run the stages one by one, in place, yielding after each."""
    dense = anatomy_of(model)
    validate_schedule(schedule, dense)
    scores = None if schedule.rescore else dense_scores(model, schedule, data, seed=seed)
    for index in range(len(schedule.stages)):
        result = run_stage(
            model, schedule, index, data=data, dense=dense, seed=seed, scores=scores, progress=progress
        )
        if scores is not None:
            scores = carry_over(scores, plan_of(result))
        yield result


def run_cascade(
    model: nn.Module,
    schedule: CascadeSchedule,
    data: TaskData,
    *,
    seed: int = 0,
    progress: Progress = silent,
) -> tuple[StageResult, ...]:
    """Compress ``model`` in place by the whole schedule.

    Raises:
        UsageError: the schedule cannot be carried out on this model; nothing was changed.
    """
    return tuple(iterate_cascade(model, schedule, data, seed=seed, progress=progress))
