"""Compensation: least squares against an oracle that keeps every activation, and never worse than cutting alone."""

from __future__ import annotations

import copy
import weakref
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import PreTrainedModel

from cascade_ops import cascade as stages
from cascade_ops import sweep
from cascade_ops.anatomy import anatomy_of, base_of, blocks_of, family_of
from cascade_ops.batches import Batch
from cascade_ops.cascade import plan_of, run_cascade, run_stage
from cascade_ops.compensation import compensate
from cascade_ops.errors import DataError, PlanError
from cascade_ops.gates import masked
from cascade_ops.granularity import Granularity
from cascade_ops.linear import linear, weight_of
from cascade_ops.plan import PruningPlan
from cascade_ops.reduce import gram
from cascade_ops.schedule import CascadeSchedule, Recovery, Stage
from cascade_ops.scoring import gather, score
from cascade_ops.statistics import XX, X
from cascade_ops.surgery import prune
from tests.factories import (
    assert_same_weights,
    batch_for,
    classifier,
    gpt2,
    gpt_neox,
    llama_like,
    logits_of,
    opt,
    tones,
    varied_plan,
)

NEEDS = frozenset({"head_covariance", "channel_covariance"})
BUILDS = {"gpt2": gpt2, "llama": llama_like, "neox": gpt_neox, "opt": opt}
PARTS = (Granularity.HEAD, Granularity.KV_GROUP, Granularity.CHANNEL)


def activations(model: PreTrainedModel, data: Batch, granularity: Granularity) -> list[Tensor]:
    """Inputs of the output projections, tokens × columns, layer by layer."""
    spec = family_of(base_of(model).config)
    path = spec.mlp_output if granularity is Granularity.CHANNEL else spec.attention_output
    seen: list[Tensor] = []
    hooks = [
        linear(block, path).register_forward_pre_hook(lambda _, x: seen.append(x[0].detach().flatten(0, -2)))
        for block in blocks_of(model)
    ]
    with torch.no_grad():
        model(**{name: tensor for name, tensor in data.items() if name != "labels"})
    for hook in hooks:
        hook.remove()
    mask = data.get("attention_mask")
    return seen if mask is None else [x[mask.flatten() != 0] for x in seen]


def projections(model: PreTrainedModel, granularity: Granularity) -> list[tuple[Tensor, Tensor | None]]:
    spec = family_of(base_of(model).config)
    path = spec.mlp_output if granularity is Granularity.CHANNEL else spec.attention_output
    found = [linear(block, path) for block in blocks_of(model)]
    return [
        (weight_of(p).detach().clone(), None if p.bias is None else p.bias.detach().clone()) for p in found
    ]


def kept_columns(model: PreTrainedModel, plan: PruningPlan) -> list[list[int]]:
    columns = []
    for layer, kept in zip(anatomy_of(model).layers, plan.keep, strict=True):
        if plan.granularity is Granularity.CHANNEL:
            columns.append(list(kept))
            continue
        heads = layer.heads_of(kept) if plan.granularity is Granularity.KV_GROUP else kept
        columns.append([head * layer.head_dim + d for head in heads for d in range(layer.head_dim)])
    return columns


def padded(model: PreTrainedModel) -> dict[str, Tensor]:
    data = batch_for(model, samples=12, tokens=10)
    data["attention_mask"] = torch.ones_like(data["input_ids"])
    data["attention_mask"][::2, 7:] = 0
    return data


@pytest.mark.parametrize("granularity", PARTS)
@pytest.mark.parametrize("name", BUILDS)
def test_it_is_the_ridge_regression_on_the_dense_output(name: str, granularity: Granularity) -> None:
    model = BUILDS[name]().double()
    data, plan, ridge = padded(model), varied_plan(anatomy_of(model), granularity), 1e-2
    before, inputs = projections(model, granularity), activations(model, data, granularity)
    compensate(model, plan, [data], ridge=ridge)
    after, columns = projections(model, granularity), kept_columns(model, plan)
    for (old, bias), (new, shift), x, keep in zip(before, after, inputs, columns, strict=True):
        if len(keep) == x.shape[1]:
            assert torch.equal(old, new)
            continue
        removed = [c for c in range(x.shape[1]) if c not in keep]
        centre = x.mean(dim=0) if bias is not None else torch.zeros(x.shape[1], dtype=x.dtype)
        own, gone = (x - centre)[:, keep], (x - centre)[:, removed]
        damping = ridge * own.square().mean()
        # Ridge as least squares with √(nλ)·I below: the change is fitted to what the removed columns gave.
        tall = torch.cat([own, (len(x) * damping).sqrt() * torch.eye(len(keep), dtype=x.dtype)])
        wanted = torch.cat([gone @ old[:, removed].T, x.new_zeros(len(keep), len(old))])
        change = torch.linalg.lstsq(tall, wanted).solution.T
        torch.testing.assert_close(new[:, keep], old[:, keep] + change, rtol=1e-7, atol=1e-9)
        assert torch.equal(new[:, removed], old[:, removed])
        if bias is not None and shift is not None:
            expected = bias + old[:, removed] @ centre[removed] - change @ centre[keep]
            torch.testing.assert_close(shift, expected, rtol=1e-7, atol=1e-9)


@given(
    name=st.sampled_from(sorted(BUILDS)),
    granularity=st.sampled_from(PARTS),
    seed=st.integers(0, 50),
    ridge=st.sampled_from([1e-6, 1e-3, 0.1, 10.0]),
)
@settings(deadline=None, max_examples=40)
def test_the_output_comes_no_farther_from_the_dense_one(
    name: str, granularity: Granularity, seed: int, ridge: float
) -> None:
    model = BUILDS[name]()
    data, plan = batch_for(model, samples=9, tokens=8), varied_plan(anatomy_of(model), granularity, seed)
    before, inputs = projections(model, granularity), activations(model, data, granularity)
    compensate(model, plan, [data], ridge=ridge)
    pairs = zip(before, projections(model, granularity), inputs, kept_columns(model, plan), strict=True)
    for (old, bias), (new, shift), x, keep in pairs:
        zero = torch.zeros(len(old))
        dense = x @ old.T + (zero if bias is None else bias)
        cut = x[:, keep] @ old[:, keep].T + (zero if bias is None else bias)
        refitted = x[:, keep] @ new[:, keep].T + (zero if shift is None else shift)
        assert (refitted - dense).square().sum() <= (cut - dense).square().sum() * (1 + 1e-4) + 1e-6
        if shift is not None:
            torch.testing.assert_close(refitted.mean(0), dense.mean(0), rtol=1e-3, atol=1e-4)


def test_a_channel_that_others_can_give_is_not_missed() -> None:
    model = gpt2()
    with torch.no_grad():
        for block in blocks_of(model):  # channels 1 and 3 say what channel 0 says
            for tensor in (block.mlp.c_fc.weight.T, block.mlp.c_fc.bias):
                tensor[1] = tensor[3] = tensor[0]
    data = batch_for(model, samples=8, tokens=8)
    dense = logits_of(model, data)
    channels = anatomy_of(model).layers[0].channels
    plan = PruningPlan.from_keep("channel", [[c for c in range(channels) if c not in (1, 3)]] * 3)
    plain = copy.deepcopy(model)
    prune(plain, plan)
    compensate(model, plan, [data], ridge=1e-7)
    prune(model, plan)
    assert (logits_of(model, data) - dense).abs().max() < 1e-3 < (logits_of(plain, data) - dense).abs().max()


@pytest.mark.parametrize("granularity", PARTS)
def test_cutting_afterwards_is_masking_afterwards(granularity: Granularity) -> None:
    model = llama_like()
    data, plan = batch_for(model, samples=5, tokens=8), varied_plan(anatomy_of(model), granularity)
    compensate(model, plan, [data], ridge=1e-2)
    with masked(model, plan):
        expected = logits_of(model, data)
    prune(model, plan)
    torch.testing.assert_close(logits_of(model, data), expected, rtol=1e-4, atol=1e-5)


def test_moments_add_up_over_batches_and_bring_their_means() -> None:
    model = gpt2()
    data = padded(model)
    halves = [{name: t[part] for name, t in data.items()} for part in (slice(0, 5), slice(5, None))]
    whole, parts = gather(model, [data], NEEDS), gather(model, halves, NEEDS)
    assert whole.sums.keys() == parts.sums.keys()
    for key, value in whole.sums.items():
        assert value.dtype == torch.float64
        torch.testing.assert_close(parts.sums[key], value, rtol=1e-5, atol=1e-4)
    x = activations(model, data, Granularity.HEAD)[1].double()
    torch.testing.assert_close(whole.sums[XX, Granularity.HEAD, 1], x.T @ x, rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(whole.sums[X, Granularity.HEAD, 1], x.sum(0), rtol=1e-5, atol=1e-4)
    assert whole.tokens == int(data["attention_mask"].sum())


def test_columns_that_never_move_are_left_alone() -> None:
    model = llama_like()
    with torch.no_grad():
        for block in blocks_of(model):
            block.mlp.up_proj.weight.zero_()
    data, twin = batch_for(model, samples=3, tokens=6), copy.deepcopy(model)
    compensate(model, varied_plan(anatomy_of(model), Granularity.CHANNEL), [data], ridge=1e-2)
    assert_same_weights(model, twin)
    compensate(model, varied_plan(anatomy_of(model), Granularity.LAYER), [data], ridge=1e-2)
    assert_same_weights(model, twin)


@pytest.mark.parametrize("name", [*BUILDS, "classifier"])
def test_one_matrix_is_in_memory_at_a_time(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if name == "classifier":
        model, batches = classifier(gpt2), list(stages.sequential(tones().calibration, 8))
    else:
        model = BUILDS[name]()
        batches = [batch_for(model, samples=n, tokens=8) for n in (3, 2)]
    living: list[weakref.ref[Tensor]] = []
    most = 0

    def counted(x: Tensor) -> Tensor:
        nonlocal most
        living.append(weakref.ref(found := gram(x)))
        most = max(most, sum(one() is not None for one in living))
        return found

    monkeypatch.setattr(sweep, "gram", counted)
    compensate(model, varied_plan(anatomy_of(model), Granularity.CHANNEL), batches, ridge=1e-2)
    assert len(living) > 3
    assert most <= 2, "a batch's own, and the sum before it"


@pytest.mark.parametrize("moving", [0.0, 1e-4, 1e-3, 1e-2])
@pytest.mark.parametrize("ridge", [1e-6, 1e-2])
def test_columns_that_hardly_move_around_a_large_mean(moving: float, ridge: float) -> None:
    """Their covariance is a small difference of large numbers, which must not make the solve fail or run wild."""
    model, kept = gpt2(), 10
    with torch.no_grad():
        for block in blocks_of(model):
            block.mlp.c_fc.weight[:, :kept] *= moving
            block.mlp.c_fc.bias[:kept] = 30 * torch.linspace(0.7, 1.3, kept)
    data = batch_for(model, samples=64, tokens=30)
    plan = PruningPlan.from_keep("channel", [range(kept)] * 3)
    before, inputs = projections(model, Granularity.CHANNEL), activations(model, data, Granularity.CHANNEL)
    compensate(model, plan, [data], ridge=ridge)
    for (old, bias), (new, shift), x in zip(
        before, projections(model, Granularity.CHANNEL), inputs, strict=True
    ):
        assert bias is not None
        assert shift is not None
        old, bias, new, shift, x = (t.double() for t in (old, bias, new, shift, x))
        dense, cut = x @ old.T + bias, x[:, :kept] @ old[:, :kept].T + bias
        refitted = x[:, :kept] @ new[:, :kept].T + shift
        assert (refitted - dense).square().sum() <= (cut - dense).square().sum()
        torch.testing.assert_close(refitted.mean(0), dense.mean(0), rtol=1e-3, atol=1e-3)


def test_what_does_not_fit_is_refused_and_changes_nothing() -> None:
    model = llama_like()
    twin, plan = copy.deepcopy(model), varied_plan(anatomy_of(model), Granularity.CHANNEL)
    with pytest.raises(DataError, match="needs calibration data, got no batch"):
        compensate(model, plan, [], ridge=1e-2)
    with pytest.raises(PlanError):
        compensate(model, PruningPlan.from_keep("channel", [[0]]), [], ridge=1e-2)
    assert_same_weights(model, twin)
    with torch.no_grad():
        blocks_of(model)[1].mlp.gate_proj.weight[3] = torch.inf
    with pytest.raises(DataError, match=r"layer 1: xx \(channel\) is not finite"):
        compensate(model, plan, [batch_for(model, samples=2, tokens=4)], ridge=1e-2)


def test_a_stage_compensates_where_it_cuts() -> None:
    data = tones()
    dense = classifier(gpt2, n_inner=16)
    stage = Stage(granularity=Granularity.CHANNEL, ratio=0.5, criterion="wanda")
    schedule = CascadeSchedule(stages=(stage,), recovery=Recovery(steps=0, compensation=True))
    swept, given, plain, by_hand = (copy.deepcopy(dense) for _ in range(4))
    (result,) = run_cascade(swept, schedule, data)
    batches = list(stages.sequential(data.calibration, stages.CALIBRATION_BATCH))
    scores = score(given, batches, ("wanda",))
    run_stage(given, schedule, 0, data=data, dense=anatomy_of(given), seed=0, scores=scores)
    assert_same_weights(swept, given)
    compensate(by_hand, plan_of(result), batches, ridge=schedule.recovery.ridge)
    prune(by_hand, plan_of(result))
    assert_same_weights(swept, by_hand)
    run_cascade(plain, replace(schedule, recovery=Recovery(steps=0)), data)
    for one, other in zip(blocks_of(swept), blocks_of(plain), strict=True):
        assert not torch.equal(weight_of(linear(one, "mlp.c_proj")), weight_of(linear(other, "mlp.c_proj")))
