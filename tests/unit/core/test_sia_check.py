"""The empirical check: exact where losses add up, loud where they do not, and the pieces it is made of."""

from __future__ import annotations

import json
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from transformers import PreTrainedModel

from cascade_ops.anatomy import anatomy_of, blocks_of
from cascade_ops.errors import DataError, UnknownNameError, UsageError
from cascade_ops.gates import masked
from cascade_ops.granularity import Granularity
from cascade_ops.loss import per_sample_loss
from cascade_ops.plan import PruningPlan
from cascade_ops.serde import from_jsonable, to_jsonable
from cascade_ops.sia import Kind, check, information_by_depth, interactions, kinds_of, unit_set
from cascade_ops.sia.ablation import ROWS, Cut, ablate, here
from cascade_ops.sia.additivity import chain, curve, safe_ratio
from cascade_ops.sia.apart import row_taylor
from cascade_ops.sia.results import SIACheck
from cascade_ops.training import TrainConfig, fit
from tests.factories import batch_for, bert, classifier, gpt2, gpt_neox, llama_like, opt, tones

MODELS = {
    "gpt2": gpt2,
    "llama": llama_like,
    "mqa": lambda: llama_like("qwen3", heads=4, kv_heads=1),
    "arcee": lambda: llama_like("arcee", heads=6, kv_heads=2),
    "neox": gpt_neox,
    "opt": opt,
    "bert": bert,
    "classifier": lambda: classifier(llama_like),
}
DISJOINT = (Kind.LAYER, Kind.HEAD, Kind.KV_GROUP, Kind.CHANNEL)
TOKENS, SAMPLES = 8, 360


def experts(copies: int) -> tuple[PreTrainedModel, dict[str, Tensor]]:
    """A ReLU network whose channels are experts for one token each, ``copies`` of every expert.

    A sequence repeats one token, so each sample's loss depends on its own experts alone. The final norm
    saturates: one expert is enough.
    """
    kinds = 36 // copies
    model = llama_like(
        "arcee",
        heads=20,
        kv_heads=20,
        vocab_size=kinds,
        intermediate_size=36,
        num_hidden_layers=1,
        hidden_act="relu",
    )
    (block,) = blocks_of(model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        for norm in (block.input_layernorm, block.post_attention_layernorm, model.model.norm):
            norm.weight.fill_(1.0)
        for token in range(kinds):
            model.model.embed_tokens.weight[token, token] = 1.0
            model.lm_head.weight[token, 40 + token] = (
                1.0  # reads what the experts write, not the token itself
            )
            for copy in range(copies):
                channel = token * copies + copy
                block.mlp.up_proj.weight[channel, token] = 1.0 + 0.01 * channel
                block.mlp.down_proj.weight[40 + token, channel] = 4.0
    ids = torch.arange(kinds).repeat(SAMPLES // kinds)[:, None].expand(-1, TOKENS).contiguous()
    return exact(model), {"input_ids": ids}


def test_disjoint_experts_add_up() -> None:
    """Each sample loses by its own expert alone, so the mean is a sum over experts."""
    model, batch = experts(copies=1)
    units = unit_set(anatomy_of(model), Kind.CHANNEL)
    one = chain("order", torch.randperm(len(units), generator=torch.Generator().manual_seed(0)))
    assert one is not None
    nothing = torch.zeros(0, dtype=torch.long)
    losses = ablate(model, batch, _cut(units, [nothing, *one.rows]))
    rises = losses[1:] - losses[:1]
    found = curve(one, rises, tau=0.5, tolerance=1e-9, seed=0)
    assert max(step.value for step in found.loss) > 0.01, "nothing was lost, nothing was tested"
    assert max(step.value for step in found.gap) < 1e-6
    assert found.safe.value == one.ratios[-1]
    singles = torch.eye(len(units), dtype=torch.bool)
    alone = (
        ablate(model, batch, Cut(granularity=Granularity.CHANNEL, shut=singles)).mean(1) - losses[0].mean()
    )
    for row, removed in zip(rises.mean(dim=1), one.rows, strict=True):
        assert float(row) == pytest.approx(float(alone[removed].sum()), abs=1e-9)
    verdict = check(model, batch, kinds=(Kind.CHANNEL,), budget=120, stability=False)[Kind.CHANNEL]
    assert verdict.holds
    assert verdict.words.startswith("holds")


def test_duplicates_do_not_add_up() -> None:
    """One of two copies goes unnoticed, both are missed: the sum of single losses says nothing."""
    model, batch = experts(copies=2)
    units = unit_set(anatomy_of(model), Kind.CHANNEL)
    first, second = torch.tensor([4]), torch.tensor([5])
    losses = ablate(
        model,
        batch,
        _cut(units, [torch.zeros(0, dtype=torch.long), first, second, torch.cat([first, second])]),
    )
    dense, *rises = losses.mean(dim=1)
    one, other, both = (float(rise - dense) for rise in rises)
    assert both > 4 * (one + other) > 0
    verdict = check(model, batch, kinds=(Kind.CHANNEL,), budget=120, stability=False)[Kind.CHANNEL]
    assert verdict.structural
    assert not verdict.holds
    assert verdict.words.startswith("violated: losses do not add up")


def _cut(units: object, rows: list[Tensor]) -> Cut:
    return Cut(
        granularity=Granularity.CHANNEL,
        shut=torch.stack([units.shut(row) for row in rows]),  # type: ignore[attr-defined]
    )


@pytest.mark.parametrize("name", MODELS)
def test_an_ablation_is_a_mask(name: str) -> None:
    """Every set of a batch of sets gives the losses of that set alone."""
    model = MODELS[name]()
    batch = batch_for(model, samples=4, tokens=9)
    if name == "bert":
        batch["labels"] = batch["input_ids"].clone()
    anatomy = anatomy_of(model)
    for kind in (kind for kind in DISJOINT if kind in (*kinds_of(anatomy), Kind.HEAD)):
        units = unit_set(anatomy, kind)
        generator = torch.Generator().manual_seed(1)
        first = units.group.diff(prepend=torch.tensor([-1])) != 0  # a plan leaves a unit to every layer
        free = (~first).nonzero().flatten()
        chosen = [
            free[torch.randperm(len(free), generator=generator)[: min(1 + n, len(free))]] for n in range(3)
        ]
        cut = Cut(granularity=kind.gates, shut=torch.stack([units.shut(row) for row in chosen]))
        found = ablate(model, batch, cut)
        assert found.dtype == torch.float64
        for row, losses in zip(chosen, found, strict=True):
            with torch.no_grad(), masked(model, plan_without(model, kind, row)):
                expected = per_sample_loss(model, batch).double()
            torch.testing.assert_close(losses, expected, rtol=1e-5, atol=1e-6)


def plan_without(model: PreTrainedModel, kind: Kind, gone: Tensor) -> PruningPlan:
    granularity = Granularity(kind.value)
    counts = anatomy_of(model).units(granularity)
    removed, first, keep = set(gone.tolist()), 0, []
    for count in counts:
        keep.append([unit for unit in range(count) if first + unit not in removed])
        first += count
    return PruningPlan.from_keep(granularity, keep)


def test_sets_do_not_depend_on_how_they_are_batched() -> None:
    model = classifier(gpt2)
    batch = batch_for(model, samples=9)
    units = unit_set(anatomy_of(model), Kind.HEAD)
    sets = ROWS // 9 + 3
    shut = torch.rand(sets, len(units), generator=torch.Generator().manual_seed(2)) < 0.4
    whole = ablate(model, batch, Cut(granularity=Granularity.HEAD, shut=shut))
    parts = here(model)(batch, [Cut(granularity=Granularity.HEAD, shut=row[None]) for row in shut])
    torch.testing.assert_close(whole, torch.cat(parts), rtol=1e-5, atol=1e-6)


def test_unit_sets_share_gates_only_where_they_are_taken_apart() -> None:
    anatomy = anatomy_of(llama_like(heads=6, kv_heads=2))
    for kind in Kind:
        units = unit_set(anatomy, kind)
        apart = kind in (Kind.HEAD_APART, Kind.CHANNEL_APART)
        assert units.overlap == (2 if apart else 1)
        assert units.shut(torch.arange(len(units))).all()
        assert not units.shut(torch.zeros(0, dtype=torch.long)).any()
    apart = unit_set(anatomy, Kind.HEAD_APART)
    heads = 6
    assert apart.shut(torch.tensor([heads])).nonzero().flatten().tolist() == [0, 1, 2], (
        "K/V head 0 of layer 0"
    )
    assert apart.shut(torch.tensor([heads + 2 + 1])).nonzero().flatten().tolist() == [heads + 1]
    assert kinds_of(anatomy_of(gpt2())) == (Kind.LAYER, Kind.HEAD, Kind.CHANNEL)


def test_lowest_first_takes_the_same_share_of_every_group() -> None:
    units = unit_set(anatomy_of(gpt2()), Kind.CHANNEL)
    generator = torch.Generator().manual_seed(3)
    scores = torch.rand(len(units), generator=generator) + 10.0 * units.group
    order = units.lowest_first(scores)
    half = order[: len(units) // 2]
    counts = torch.bincount(units.group[half])[::2]
    assert int(counts.max() - counts.min()) <= 1
    for number in units.group.unique():
        own = order[units.group[order] == number]
        assert (scores[own].diff() >= 0).all()


@given(
    units=st.integers(3, 90),
    coupling=st.floats(-2, 2),
    seed=st.integers(0, 99),
)
@settings(deadline=None, max_examples=60)
def test_parts_stand_for_all_pairs(units: int, coupling: float, seed: int) -> None:
    """Where every pair interacts alike, the gap found by parts is exactly that of all single units."""
    generator = torch.Generator().manual_seed(seed)
    alone = torch.rand(units, generator=generator, dtype=torch.float64) + 0.1

    def rise(members: Tensor) -> Tensor:
        pairs = len(members) * (len(members) - 1) / 2
        return (alone[members].sum() + coupling * pairs).expand(4)

    one = chain("order", torch.randperm(units, generator=generator))
    assert one is not None
    assert all(set(a.tolist()) < set(b.tolist()) for a, b in pairwise(one.sets))
    assert sorted(torch.cat(one.parts).tolist()) == sorted(one.sets[-1].tolist())
    found = curve(one, torch.stack([rise(row) for row in one.rows]), tau=0.5, tolerance=1e-6, seed=0)
    for members, gap in zip(one.sets, found.gap, strict=True):
        whole = float(rise(members)[0])
        expected = abs(whole - float(alone[members].sum())) / max(abs(whole), 1e-6)
        assert gap.value == pytest.approx(expected, rel=1e-9, abs=1e-9)
        assert gap.low <= gap.value <= gap.high


@given(
    gaps=st.lists(st.floats(0, 3), min_size=1, max_size=6),
    tau=st.floats(0.05, 2),
)
def test_the_safe_ratio_is_where_the_gap_first_exceeds_tau(gaps: list[float], tau: float) -> None:
    ratios = tuple((n + 1) / 10 for n in range(len(gaps)))
    column = torch.tensor(gaps, dtype=torch.float64)[:, None]
    safe = float(safe_ratio(ratios, column, tau))
    assert 0 <= safe <= ratios[-1]
    if max(gaps) <= tau:
        assert safe == ratios[-1]
    else:
        first = next(n for n, gap in enumerate(gaps) if gap > tau)
        assert (ratios[first - 1] if first else 0.0) <= safe <= ratios[first]
        assert float(safe_ratio(ratios, column, 2 * tau)) >= safe


@pytest.mark.parametrize("name", MODELS)
def test_interactions_are_finite_differences(name: str) -> None:
    """Mixed second differences of the loss by two gates, in float64."""
    model = exact(MODELS[name]())
    batch = batch_for(model, samples=3, tokens=6)
    if name == "bert":
        batch["labels"] = batch["input_ids"].clone()
    anatomy = anatomy_of(model)
    for kind in (Kind.LAYER, Kind.KV_GROUP, Kind.CHANNEL):
        units = torch.tensor([0, len(unit_set(anatomy, kind)) - 1])
        found = interactions(model, batch, kind, units=units)
        matrix = torch.tensor(found.matrix)
        torch.testing.assert_close(matrix, matrix.T, rtol=1e-6, atol=1e-9)
        expected = _mixed_difference(model, batch, kind, units)
        assert float(matrix[0, 1]) == pytest.approx(expected, rel=2e-3, abs=1e-6)
    assert all(parameter.requires_grad for parameter in model.parameters())


def exact(model: PreTrainedModel) -> PreTrainedModel:
    """In float64 throughout: RMSNorm as transformers has it rounds to float32 whatever comes in."""
    for parent in list(model.modules()):
        for name, norm in list(parent.named_children()):
            if type(norm).__name__.endswith("RMSNorm"):
                own = nn.RMSNorm(norm.weight.shape, eps=norm.variance_epsilon)
                own.weight = norm.weight
                setattr(parent, name, own)
    return model.double()


def _mixed_difference(model: PreTrainedModel, batch: dict[str, Tensor], kind: Kind, units: Tensor) -> float:
    from cascade_ops.gates import gated
    from cascade_ops.sia.interactions import _opened

    every, step = unit_set(anatomy_of(model), kind), 1e-3

    def loss(first: float, second: float) -> float:
        values = torch.tensor([1 + first, 1 + second], dtype=torch.float64)
        with torch.no_grad(), gated(model, _opened(model, every, units, values)):
            return float(per_sample_loss(model, batch).mean())

    corners = loss(step, step) - loss(step, -step) - loss(-step, step) + loss(-step, -step)
    return corners / (4 * step**2)


def test_row_scores_are_weight_times_gradient() -> None:
    model = llama_like()
    batch = batch_for(model, samples=4)
    found = row_taylor(
        model, [{name: t[:2] for name, t in batch.items()}, {name: t[2:] for name, t in batch.items()}]
    )
    block = blocks_of(model)[1]
    for part, module in (("k", block.self_attn.k_proj), ("gate", block.mlp.gate_proj)):
        expected = torch.zeros(module.weight.shape[0], dtype=torch.float64)
        for sample in range(4):
            loss = per_sample_loss(model, {name: t[sample : sample + 1] for name, t in batch.items()}).sum()
            (slope,) = torch.autograd.grad(loss, [module.weight])
            expected += (slope * module.weight).sum(dim=1).detach().double().abs() / 4
        torch.testing.assert_close(found[part, 1], expected, rtol=1e-4, atol=1e-7)


@pytest.fixture(scope="module")
def trained() -> tuple[PreTrainedModel, dict[str, Tensor]]:
    data = tones()
    model = classifier(llama_like, intermediate_size=24)
    fit(model, data.train, TrainConfig(steps=60, batch_size=16, learning_rate=3e-3), seed=0)
    return model, dict(data.train)


def test_a_check_says_all_it_should(trained: tuple[PreTrainedModel, dict[str, Tensor]]) -> None:
    model, data = trained
    found = check(model, data, criteria=("taylor", "magnitude"), budget=260, seed=1)
    again = check(model, data, criteria=("taylor", "magnitude"), budget=260, seed=1)
    assert [one.kind for one in found.verdicts] == list(kinds_of(anatomy_of(model)))
    assert found.ablations <= 260
    assert to_jsonable(found) | {"seconds": 0} == to_jsonable(again) | {"seconds": 0}
    assert from_jsonable(SIACheck, json.loads(json.dumps(to_jsonable(found)))) == found
    for verdict in found.verdicts:
        assert verdict.holds <= verdict.structural
        for one in verdict.curves:
            for each in (*one.gap, *one.loss, one.safe):
                assert each.low <= each.value <= each.high
                assert each.n >= 2
    assert not found[Kind.HEAD_APART].holds
    assert "κ=3" in found[Kind.HEAD_APART].words
    assert "kv_group" in found[Kind.HEAD_APART].words
    assert {one.criterion for one in found[Kind.CHANNEL].fidelity} == {"taylor", "magnitude"}
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_information_grows_to_what_the_model_uses(trained: tuple[PreTrainedModel, dict[str, Tensor]]) -> None:
    model, data = trained
    found = information_by_depth(model, data)
    assert len(found.information) == len(blocks_of(model))
    assert found.entropy == pytest.approx(torch.log(torch.tensor(3.0)).item(), abs=1e-3)
    assert 0.5 * found.entropy < found.information[-1] <= found.entropy
    texts = gpt2()
    lens = information_by_depth(texts, batch_for(texts, samples=6))
    last = float(per_sample_loss(texts, batch_for(texts, samples=6)).mean().detach())
    assert lens.information[-1] == pytest.approx(lens.entropy - last, abs=1e-4)


def test_bad_input_is_refused(trained: tuple[PreTrainedModel, dict[str, Tensor]]) -> None:
    model, data = trained
    with pytest.raises(
        UsageError, match=r"budget: 5 ablations do not suffice for one round, which takes \d+"
    ):
        check(model, data, budget=5)
    with pytest.raises(UnknownNameError):
        check(model, data, criterion="tailor")
    with pytest.raises(DataError):
        check(model, {name: tensor[:0] for name, tensor in data.items()})
    spoilt = {**data, "signal": data["signal"].clone()}
    spoilt["signal"][3, 5] = torch.nan
    with pytest.raises(DataError, match="not finite"):
        check(model, spoilt)
