"""The cascade end to end on a tiny classifier of tones."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from pathlib import Path

import pytest
from transformers import PreTrainedModel

from cascade_ops.anatomy import anatomy_of
from cascade_ops.cascade import (
    default_schedule,
    dense_scores,
    plan_of,
    run_cascade,
    run_stage,
    validate_schedule,
)
from cascade_ops.checkpoint import load_pruned, save_pruned
from cascade_ops.errors import PlanError, UnknownNameError, UsageError
from cascade_ops.evaluation import evaluate
from cascade_ops.granularity import Granularity
from cascade_ops.results import StageResult
from cascade_ops.schedule import CascadeSchedule, Recovery, Stage
from cascade_ops.serde import from_jsonable, to_jsonable
from cascade_ops.surgery import prune
from tests.factories import assert_same_weights, classifier, gpt2, llama_like, tones

LAYER, HEAD, KV_GROUP, CHANNEL = Granularity
RECOVERY = Recovery(steps=8, batch_size=8, rank=4)
TARGET = 4.0


def dense(backbone: str = "gpt2") -> PreTrainedModel:
    """Channels are fine enough here for 1 % at the target."""
    if backbone == "llama":
        return classifier(
            lambda **kw: llama_like(heads=4, kv_heads=2, **kw), num_hidden_layers=4, intermediate_size=96
        )
    return classifier(gpt2, n_layer=4, n_inner=128)


def compression(model: PreTrainedModel, before: int) -> float:
    return before / anatomy_of(model).backbone_params


@pytest.mark.parametrize("backbone", ["gpt2", "llama"])
def test_the_default_schedule_hits_its_target(backbone: str) -> None:
    model, data = dense(backbone), tones()
    start = anatomy_of(model)
    schedule = default_schedule(TARGET, start, recovery=RECOVERY)
    middle = HEAD if backbone == "gpt2" else KV_GROUP
    assert [stage.granularity for stage in schedule.stages] == [LAYER, middle, CHANNEL]
    results = run_cascade(model, schedule, data, seed=0)
    assert TARGET <= compression(model, start.backbone_params) <= 1.01 * TARGET
    assert [result.index for result in results] == [0, 1, 2]
    assert sum(result.recovery.steps for result in results) == RECOVERY.steps
    assert results[-1].params == anatomy_of(model).backbone_params
    assert results[-1].params_total == sum(p.numel() for p in model.parameters())
    # Compared as JSON, where an unknown interval (NaN) equals itself.
    again = evaluate(model, data.test, task="diagnosis", classes=data.classes)
    assert to_jsonable(results[-1].after_recovery) == to_jsonable(again)
    for result in results:
        document = json.loads(json.dumps(to_jsonable(result), allow_nan=False))
        assert to_jsonable(from_jsonable(StageResult, document)) == document


def test_results_say_what_was_removed() -> None:
    """Replaying the reported plans on a dense model gives the same shapes; sources are the dense indices."""
    model, data = dense(), tones()
    start = anatomy_of(model)
    results = run_cascade(model, default_schedule(TARGET, recovery=RECOVERY), data, seed=0)
    anatomy = start
    for result in results:
        plan = plan_of(result)
        assert [layer.source for layer in result.layers] == [layer.source for layer in anatomy.layers]
        units = sum(anatomy.units(plan.granularity))
        assert result.ratio == pytest.approx(1 - sum(map(len, plan.keep)) / units)
        for layer in result.layers:
            lost = [s for i, s in enumerate(layer.scores) if i not in layer.kept]
            if plan.granularity is not LAYER:
                assert all(score <= min(layer.scores[i] for i in layer.kept) for score in lost)
        anatomy = anatomy.after(plan)
        assert result.params == anatomy.backbone_params
    assert anatomy == anatomy_of(model)


@pytest.mark.parametrize("order", list(itertools.permutations((LAYER, HEAD, CHANNEL))), ids="-".join)
@pytest.mark.parametrize("rescore", [True, False], ids=["cascade", "one-shot"])
def test_every_order_reaches_the_target(order: tuple[Granularity, ...], rescore: bool) -> None:
    model, data = dense(), tones()
    before = anatomy_of(model)
    parts = {LAYER: 0.5, HEAD: 0.25, CHANNEL: 0.5}
    stages = tuple(
        Stage(granularity=one, ratio=parts[one]) if one is not CHANNEL else Stage(granularity=one, target=1.9)
        for one in order[:-1]
    )
    last = Stage(granularity=order[-1], target=3.5)
    if order[-1] is HEAD:
        last = Stage(granularity=HEAD, ratio=0.5)
    schedule = CascadeSchedule(stages=(*stages, last), recovery=replace(RECOVERY, steps=3), rescore=rescore)
    if order[-1] is not CHANNEL and order.index(CHANNEL) == 1 and order[0] is LAYER:
        # Half of the layers alone already give 2×: the channels' target must lie beyond.
        stages = (stages[0], Stage(granularity=CHANNEL, target=3.0))
        schedule = replace(schedule, stages=(*stages, last))
    results = run_cascade(model, schedule, data, seed=0)
    assert [result.granularity for result in results] == list(order)
    reached = compression(model, before.backbone_params)
    if order[-1] is CHANNEL:
        assert 3.5 <= reached <= 3.5 * 1.01
    elif order[-1] is LAYER:
        assert reached >= 3.5
        layers = anatomy_of(model).layers
        with_one_more = anatomy_of(model).backbone_params + max(layer.params for layer in layers)
        assert before.backbone_params / (with_one_more * 1.05) < 3.5, "a layer too many went"


def test_one_shot_uses_the_scores_of_the_dense_model() -> None:
    data = tones()
    schedule = replace(default_schedule(TARGET, recovery=RECOVERY), rescore=False)
    reference = dense_scores(dense(), schedule, data, seed=0)
    results = run_cascade(dense(), schedule, data, seed=0)
    channels = reference["taylor", CHANNEL].per_layer
    for layer in results[2].layers:
        assert layer.scores == tuple(channels[layer.source].tolist())
    rescored = run_cascade(dense(), replace(schedule, rescore=True), data, seed=0)
    assert rescored[0].layers == results[0].layers
    assert rescored[2].layers != results[2].layers


def test_two_rounds_of_one_granularity() -> None:
    data, before = tones(), anatomy_of(dense()).backbone_params
    stages = (
        Stage(granularity=CHANNEL, target=1.5),
        Stage(granularity=LAYER, ratio=0.25),
        Stage(granularity=CHANNEL, target=3.0),
        Stage(granularity=HEAD, ratio=0.25),
        Stage(granularity=LAYER, ratio=0.3),
        Stage(granularity=CHANNEL, target=6.0),
    )
    for rescore in (True, False):
        model = dense()
        run_cascade(model, CascadeSchedule(stages=stages, recovery=RECOVERY, rescore=rescore), data)
        assert 6.0 <= compression(model, before) <= 6.06


def test_the_same_seed_gives_the_same_bits() -> None:
    def run(seed: int) -> tuple[PreTrainedModel, tuple[StageResult, ...]]:
        model = dense()
        return model, run_cascade(model, default_schedule(TARGET, recovery=RECOVERY), tones(), seed=seed)

    one, results = run(3)
    two, again = run(3)
    assert_same_weights(one, two)
    for left, right in zip(results, again, strict=True):
        timeless = replace(left, seconds=0.0, recovery=replace(left.recovery, seconds=0.0))
        assert timeless == replace(right, seconds=0.0, recovery=replace(right.recovery, seconds=0.0))
    other, _ = run(4)
    assert any(
        left.shape != right.shape or not (left == right).all()
        for left, right in zip(one.state_dict().values(), other.state_dict().values(), strict=True)
    )


@pytest.mark.parametrize("rescore", [True, False], ids=["cascade", "one-shot"])
@pytest.mark.parametrize("backbone", ["gpt2", "llama"])
def test_stage_by_stage_through_disk_is_an_undisturbed_run(
    backbone: str, rescore: bool, tmp_path: Path
) -> None:
    """What resuming rests on."""
    from cascade_ops.cascade import carry_over

    data, start = tones(), anatomy_of(dense(backbone))
    schedule = replace(default_schedule(TARGET, start, recovery=RECOVERY), rescore=rescore)
    whole = dense(backbone)
    results = run_cascade(whole, schedule, data, seed=1)
    save_pruned(dense(backbone), tmp_path / "0")
    scores = None if rescore else dense_scores(dense(backbone), schedule, data, seed=1)
    for index in range(3):
        model = load_pruned(tmp_path / str(index))
        result = run_stage(model, schedule, index, data=data, dense=start, seed=1, scores=scores)
        if scores is not None:
            scores = carry_over(scores, plan_of(result))
        assert result.layers == results[index].layers
        assert result.recovery.losses == results[index].recovery.losses
        assert result.after_recovery == results[index].after_recovery
        save_pruned(model, tmp_path / str(index + 1))
    assert_same_weights(load_pruned(tmp_path / "3"), whole)


def test_recovery_helps() -> None:
    """A dense model that was trained, cut to a quarter, mended."""
    from cascade_ops.training import TrainConfig, fit

    model, data = dense(), tones(samples=192)
    fit(model, data.train, TrainConfig(steps=80, batch_size=32, learning_rate=5e-3), seed=0)
    accuracy = evaluate(model, data.test, task="diagnosis", classes=data.classes).metric.value
    assert accuracy > 0.9
    recovery = replace(RECOVERY, steps=60, batch_size=32, learning_rate=1e-2)
    results = run_cascade(model, default_schedule(TARGET, recovery=recovery), data, seed=0)
    assert results[-1].after_recovery.loss < results[-1].before_recovery.loss
    assert results[-1].after_recovery.metric.value > 0.8


# ------------------------------------------------------------------------------------------ refusals


@pytest.mark.parametrize(
    ("stages", "error", "message"),
    [
        ([Stage(granularity=HEAD, ratio=0.5, criterion="tailor")], UnknownNameError, "Did you mean 'taylor'"),
        (
            [
                Stage(granularity=LAYER, ratio=0.5),
                Stage(granularity=HEAD, ratio=0.5, criterion="block_influence"),
            ],
            UsageError,
            r"stages\.1\.criterion: 'block_influence' scores layer, not head",
        ),
        (
            [Stage(granularity=LAYER, ratio=0.5), Stage(granularity=CHANNEL, target=1000.0)],
            PlanError,
            r"stages\.1: .*cannot be met",
        ),
        ([Stage(granularity=LAYER, ratio=0.01)], PlanError, r"stages\.0: .*rounds to none"),
        (
            [Stage(granularity=LAYER, ratio=0.5), Stage(granularity=CHANNEL, target=1.1)],
            PlanError,
            r"stages\.1: .*already",
        ),
    ],
    ids=["criterion", "granularity", "unreachable", "rounds to none", "already met"],
)
@pytest.mark.parametrize("rescore", [True, False], ids=["cascade", "one-shot"])
def test_a_schedule_that_cannot_be_carried_out_is_refused_untouched(
    stages: list[Stage], error: type[UsageError], message: str, rescore: bool
) -> None:
    model = dense()
    schedule = CascadeSchedule(stages=tuple(stages), recovery=RECOVERY, rescore=rescore)
    with pytest.raises(error, match=message):
        run_cascade(model, schedule, tones())
    assert_same_weights(model, dense())
    with pytest.raises(error, match=message):
        validate_schedule(schedule, anatomy_of(model))


def test_one_shot_cannot_mix_heads_and_groups() -> None:
    """Their scores do not carry over: said before any work, with the stage's number."""
    model = dense("llama")
    stages = (Stage(granularity=HEAD, ratio=0.25), Stage(granularity=KV_GROUP, ratio=0.5))
    with pytest.raises(UsageError, match=r"stages\.1"):
        run_cascade(model, CascadeSchedule(stages=stages, recovery=RECOVERY, rescore=False), tones())
    assert_same_weights(model, dense("llama"))
    run_cascade(model, CascadeSchedule(stages=stages, recovery=RECOVERY), tones())


def test_progress_is_reported() -> None:
    seen: list[str] = []
    run_cascade(
        dense(),
        default_schedule(TARGET, recovery=RECOVERY),
        tones(),
        progress=lambda phase, done, total, **figures: seen.append(phase),
    )
    assert list(dict.fromkeys(seen)) == ["score", "recover"]
    assert seen.count("recover") == RECOVERY.steps


def test_plans_can_be_read_back_from_results() -> None:
    data = tones()
    results = run_cascade(dense(), default_schedule(TARGET, recovery=replace(RECOVERY, steps=0)), data)
    replay, direct = dense(), dense()
    for result in results:
        prune(replay, plan_of(result))
        assert result.before_recovery == result.after_recovery
    run_cascade(direct, default_schedule(TARGET, recovery=replace(RECOVERY, steps=0)), data)
    assert_same_weights(replay, direct)


@pytest.mark.parametrize("backbone", ["gpt2", "llama"])
@pytest.mark.parametrize("target", [1.02, 1.1, 1.25, 1.5, 2.0, 2.1, 3.0, 5.0])
def test_the_default_schedule_is_feasible_at_any_target(backbone: str, target: float) -> None:
    anatomy = anatomy_of(dense(backbone))
    schedule = default_schedule(target, anatomy)
    validate_schedule(schedule, anatomy)
    assert schedule.stages[-1].granularity is Granularity.CHANNEL
    shared = any(max(layer.heads_per_kv) > 1 for layer in anatomy.layers)
    refused = Granularity.HEAD if shared else Granularity.KV_GROUP
    assert refused not in [stage.granularity for stage in schedule.stages]
