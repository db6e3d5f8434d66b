"""Plans and how they follow from scores, over random scores and anatomies."""

from __future__ import annotations

import json

import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from cascade_ops.anatomy import ModelAnatomy
from cascade_ops.errors import PlanError, UsageError
from cascade_ops.granularity import Granularity
from cascade_ops.layer import LayerAnatomy
from cascade_ops.plan import PruningPlan
from cascade_ops.planning import plan_ratio, plan_target, removal_order
from cascade_ops.schedule import Allocation
from cascade_ops.scoring import ImportanceScores

MANY = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
ALLOCATIONS: tuple[Allocation, ...] = ("uniform", "global")
EITHER = pytest.mark.parametrize("allocation", ALLOCATIONS)


def anatomy_with(layers: list[tuple[tuple[int, ...], int]], *, unit: int = 3) -> ModelAnatomy:
    """An anatomy of (heads of each KV group, channels) per layer."""
    return ModelAnatomy(
        family="made up",
        model_type="gpt2",
        hidden_size=16,
        layers=tuple(
            LayerAnatomy(
                source=index,
                heads_per_kv=groups,
                head_dim=4,
                channels=channels,
                params_fixed=17,
                params_head=40,
                params_kv=24,
                params_channel=unit,
            )
            for index, (groups, channels) in enumerate(layers)
        ),
        params_other=100,
        gated=False,
    )


# Strategies draw plain values and the tests build from them: the shape checks use randomness of their own,
# which hypothesis forbids while it draws.
Layers = list[tuple[tuple[int, ...], int]]
Drawn = tuple[Layers, Granularity, str, list[list[float]]]

layer_lists = st.lists(
    st.tuples(st.lists(st.integers(1, 4), min_size=1, max_size=5).map(tuple), st.integers(1, 30)),
    min_size=1,
    max_size=6,
)


def units_of(layers: Layers, granularity: Granularity) -> list[int]:
    match granularity:
        case Granularity.LAYER:
            return [len(layers)]
        case Granularity.HEAD:
            return [sum(groups) for groups, _ in layers]
        case Granularity.KV_GROUP:
            return [len(groups) for groups, _ in layers]
        case Granularity.CHANNEL:
            return [channels for _, channels in layers]


@st.composite
def scored(draw: st.DrawFn) -> Drawn:
    """Layers, and random scores for one granularity of their units, ties included."""
    layers = draw(layer_lists)
    granularity = draw(st.sampled_from(list(Granularity)))
    criterion = draw(st.sampled_from(["taylor", "wanda", "flap"]))
    value = st.integers(0, 40).map(lambda n: n / 4) if draw(st.booleans()) else st.floats(0, 10)
    rows = [draw(st.lists(value, min_size=n, max_size=n)) for n in units_of(layers, granularity)]
    return layers, granularity, criterion, rows


def built(case: Drawn) -> tuple[ModelAnatomy, ImportanceScores]:
    layers, granularity, criterion, rows = case
    return anatomy_with(layers), scores_of(rows, granularity, criterion)


def scores_of(
    rows: list[list[float]], granularity: Granularity = Granularity.CHANNEL, criterion: str = "taylor"
) -> ImportanceScores:
    return ImportanceScores(
        granularity=granularity,
        criterion=criterion,
        per_layer=tuple(torch.tensor(row, dtype=torch.float64) for row in rows),
        samples=1,
    )


def removed(plan: PruningPlan, anatomy: ModelAnatomy) -> set[tuple[int, int]]:
    units = anatomy.units(plan.granularity)
    return {
        (layer, unit)
        for layer, (n, keep) in enumerate(zip(units, plan.keep, strict=True))
        for unit in set(range(n)) - set(keep)
    }


# ------------------------------------------------------------------------------------------ the order


@MANY
@EITHER
@given(case=scored())
def test_the_order_spares_one_unit_of_each_layer(case: Drawn, allocation: Allocation) -> None:
    anatomy, scores = built(case)
    order = removal_order(scores, allocation)
    assert len(set(order)) == len(order) == sum(n - 1 for n in anatomy.units(scores.granularity))
    for layer, row in enumerate(scores.per_layer):
        gone = [row[unit] for at, unit in order if at == layer]
        assert gone == sorted(gone), "within a layer the less important goes first"
        (spared,) = set(range(len(row))) - {unit for at, unit in order if at == layer}
        assert row[spared] == row.max()


def test_uniform_order_takes_layers_alike_and_global_the_smallest() -> None:
    scores = scores_of([[4.0, 1.0, 3.0, 2.0], [40.0, 10.0, 30.0, 20.0]])
    assert removal_order(scores, "uniform") == ((0, 1), (1, 1), (0, 3), (1, 3), (0, 2), (1, 2))
    assert removal_order(scores, "global") == ((0, 1), (0, 3), (0, 2), (1, 1), (1, 3), (1, 2))


@pytest.mark.parametrize("criterion", ["wanda", "flap"])
def test_scaled_criteria_compete_after_standardising_their_layers(criterion: str) -> None:
    """Ten times larger scores in a layer change nothing when the criterion declares a relative scale."""
    small, large = [4.0, 1.0, 3.0, 2.5], [3.0, 2.0, 1.5, 8.0]
    plain = scores_of([small, large], criterion=criterion)
    scaled = scores_of([small, [10 * v for v in large]], criterion=criterion)
    assert removal_order(plain, "global") == removal_order(scaled, "global")


# ------------------------------------------------------------------------------------------ ratio


@MANY
@given(case=scored(), ratio=st.floats(0.01, 0.99))
def test_a_uniform_ratio_removes_its_share_of_each_layer(case: Drawn, ratio: float) -> None:
    anatomy, scores = built(case)
    units = anatomy.units(scores.granularity)
    expected = [min(round(ratio * n), n - 1) for n in units]
    if sum(expected) == 0:
        with pytest.raises(PlanError, match=r"rounds to none|one unit per layer is left"):
            plan_ratio(scores, ratio)
        return
    plan = plan_ratio(scores, ratio)
    plan.validate(anatomy)
    assert [n - len(keep) for n, keep in zip(units, plan.keep, strict=True)] == expected
    for row, keep in zip(scores.per_layer, plan.keep, strict=True):
        gone = [row[unit] for unit in range(len(row)) if unit not in keep]
        assert all(value <= row[list(keep)].min() for value in gone)


@MANY
@given(case=scored(), ratio=st.floats(0.01, 0.99))
def test_a_global_ratio_removes_its_share_of_all(case: Drawn, ratio: float) -> None:
    anatomy, scores = built(case)
    units = anatomy.units(scores.granularity)
    expected = min(round(ratio * sum(units)), sum(units) - len(units))
    assume(expected > 0)
    plan = plan_ratio(scores, ratio, allocation="global")
    plan.validate(anatomy)
    assert len(removed(plan, anatomy)) == expected


@MANY
@EITHER
@given(case=scored(), one=st.floats(0.05, 0.95), other=st.floats(0.05, 0.95))
def test_a_larger_ratio_removes_what_a_smaller_one_does_and_more(
    case: Drawn, one: float, other: float, allocation: Allocation
) -> None:
    anatomy, scores = built(case)
    try:
        small = plan_ratio(scores, min(one, other), allocation=allocation)
    except PlanError:
        return
    large = plan_ratio(scores, max(one, other), allocation=allocation)
    assert removed(small, anatomy) <= removed(large, anatomy)


@MANY
@given(
    rows=st.integers(2, 12).flatmap(
        lambda n: st.lists(st.lists(st.floats(0, 10), min_size=n, max_size=n), min_size=1, max_size=5)
    ),
    ratio=st.floats(0.05, 0.9),
)
def test_global_allocation_keeps_at_least_as_much_score(rows: list[list[float]], ratio: float) -> None:
    """For as many units, with the same guard, and a criterion whose scores compare between layers."""
    scores = scores_of(rows)
    try:
        uniform = plan_ratio(scores, ratio)
    except PlanError:
        return
    count = sum(len(row) - len(keep) for row, keep in zip(rows, uniform.keep, strict=True))
    gone = removal_order(scores, "global")[:count]
    kept_by_uniform = sum(rows[i][j] for i, keep in enumerate(uniform.keep) for j in keep)
    kept_by_global = sum(map(sum, rows)) - sum(rows[i][j] for i, j in gone)
    assert kept_by_global >= kept_by_uniform - 1e-9


@EITHER
@pytest.mark.parametrize("ratio", [0.0, 1.0, -0.1, 1.5, float("nan")])
def test_a_ratio_outside_the_open_interval_is_refused(ratio: float, allocation: Allocation) -> None:
    with pytest.raises(PlanError, match=r"ratio: must be in \(0, 1\), got"):
        plan_ratio(scores_of([[1.0, 2.0]]), ratio, allocation=allocation)


def test_a_ratio_that_removes_nothing_says_which_would() -> None:
    with pytest.raises(PlanError, match=r"of 4 units rounds to none: give a ratio above 0\.125"):
        plan_ratio(scores_of([[1.0, 2.0, 3.0, 4.0]] * 2), 0.125)
    with pytest.raises(PlanError, match=r"of 8 units rounds to none: give a ratio above 0\.0625"):
        plan_ratio(scores_of([[1.0, 2.0, 3.0, 4.0]] * 2), 0.0625, allocation="global")
    assert plan_ratio(scores_of([[1.0, 2.0, 3.0, 4.0]]), 0.126).keep == ((1, 2, 3),)


@EITHER
def test_the_last_unit_cannot_go_whatever_the_ratio(allocation: Allocation) -> None:
    """Multi-query attention has one KV group per layer: no ratio removes it."""
    with pytest.raises(PlanError, match="one unit per layer is left"):
        plan_ratio(scores_of([[1.0], [2.0]], Granularity.KV_GROUP), 0.9, allocation=allocation)


# ------------------------------------------------------------------------------------------ target


@MANY
@EITHER
@given(case=scored(), fraction=st.floats(0.01, 0.99))
def test_a_target_is_met_within_one_unit(case: Drawn, fraction: float, allocation: Allocation) -> None:
    anatomy, scores = built(case)
    target = int(fraction * anatomy.backbone_params)
    order = removal_order(scores, allocation)
    spared = [
        set(range(n)) - {u for at, u in order if at == i}
        for i, n in enumerate(anatomy.units(scores.granularity))
    ]
    if anatomy.params(PruningPlan.from_keep(scores.granularity, spared)) > target:
        with pytest.raises(PlanError, match="cannot be met"):
            plan_target(scores, anatomy, target, allocation=allocation)
        return
    plan = plan_target(scores, anatomy, target, allocation=allocation)
    plan.validate(anatomy)
    left = anatomy.params(plan)
    assert left <= target
    gone = [unit for unit in order if unit in removed(plan, anatomy)]
    assert tuple(gone) == order[: len(gone)], "a plan is a prefix of the removal order"
    keep = [set(range(n)) for n in anatomy.units(scores.granularity)]
    for layer, unit in gone[:-1]:
        keep[layer].discard(unit)
    one_less = anatomy.params(PruningPlan.from_keep(scores.granularity, keep))
    assert one_less > target, "one unit fewer would have met the target"


@EITHER
@pytest.mark.parametrize("compression", [1.2, 2.0, 3.7])
def test_a_target_is_met_within_one_percent_by_fine_units(compression: float, allocation: Allocation) -> None:
    anatomy = anatomy_with([((1, 1), 400), ((1, 1), 300)], unit=3)
    generator = torch.Generator().manual_seed(0)
    rows = [torch.rand(n, generator=generator).tolist() for n in (400, 300)]
    target = int(anatomy.backbone_params / compression)
    left = anatomy.params(plan_target(scores_of(rows), anatomy, target, allocation=allocation))
    assert 0.99 * target <= left <= target


@EITHER
def test_an_unreachable_target_names_the_best(allocation: Allocation) -> None:
    anatomy = anatomy_with([((1, 1), 10), ((1, 1), 10)])
    scores = scores_of([[float(i) for i in range(10)]] * 2)
    best = anatomy.params(PruningPlan.from_keep(Granularity.CHANNEL, [[9], [9]]))
    with pytest.raises(PlanError, match="cannot be met") as caught:
        plan_target(scores, anatomy, best - 1, allocation=allocation)
    assert f"leaves {best:,} of {anatomy.backbone_params:,}" in str(caught.value)
    assert f"reaches {anatomy.backbone_params / best:.3g}× at most" in str(caught.value)
    assert anatomy.params(plan_target(scores, anatomy, best, allocation=allocation)) == best


def test_a_target_that_is_met_already_is_refused() -> None:
    anatomy = anatomy_with([((1, 1), 10)])
    with pytest.raises(PlanError, match="already"):
        plan_target(scores_of([[1.0] * 10]), anatomy, anatomy.backbone_params)


# ------------------------------------------------------------------------------------------ plans themselves


Keeps = list[list[int]]


@st.composite
def two_plans(draw: st.DrawFn) -> tuple[Layers, Granularity, Keeps, Keeps]:
    layers = draw(layer_lists)
    granularity = draw(st.sampled_from(list(Granularity)))

    def some(n: int) -> list[int]:
        return draw(st.lists(st.integers(0, n - 1), min_size=1, max_size=n, unique=True))

    first = [some(n) for n in units_of(layers, granularity)]
    return layers, granularity, first, [some(len(keep)) for keep in first]


@MANY
@given(case=two_plans())
def test_composition_is_one_plan_after_the_other(case: tuple[Layers, Granularity, Keeps, Keeps]) -> None:
    """For KV groups this rests on groups staying whole; a head plan may empty a group and so remove it."""
    layers, granularity, *keeps = case
    anatomy = anatomy_with(layers)
    first, second = (PruningPlan.from_keep(granularity, keep) for keep in keeps)
    left = anatomy.after(first).units(granularity)
    assert left == tuple(len(keep) for keep in first.keep)
    assert anatomy.after(first.compose(second)) == anatomy.after(first).after(second)
    identity = PruningPlan.identity(granularity, anatomy)
    assert identity.compose(first) == first
    assert anatomy.after(identity) == anatomy


@MANY
@given(case=two_plans())
def test_plans_survive_json(case: tuple[Layers, Granularity, Keeps, Keeps]) -> None:
    _, granularity, *keeps = case
    for keep in keeps:
        plan = PruningPlan.from_keep(granularity, keep)
        assert PruningPlan.from_json(json.loads(json.dumps(plan.to_json()))) == plan


def test_kept_units_are_sorted() -> None:
    assert PruningPlan.from_keep("head", [[3, 1], [0]]).keep == ((1, 3), (0,))


@pytest.mark.parametrize(
    ("granularity", "keep", "message"),
    [
        ("head", [[0]], r"expected one list per layer \(2\), got 1"),
        ("layer", [[0], [1]], r"expected one list of kept layers \(1\), got 2"),
        ("head", [[0], []], "layer 1: nothing would be left.*remove the whole layer"),
        ("layer", [[]], "nothing would be left; keep at least one layer"),
        ("channel", [[0], [10]], "layer 1: has units 0…9, got 10"),
        ("layer", [[0, 2]], "has units 0…1, got 2"),
    ],
)
def test_plans_that_do_not_fit_are_refused(granularity: str, keep: list[list[int]], message: str) -> None:
    anatomy = anatomy_with([((1, 1), 10), ((1, 1), 10)])
    with pytest.raises(PlanError, match=message):
        PruningPlan.from_keep(granularity, keep).validate(anatomy)


def test_duplicates_and_negatives_are_refused() -> None:
    with pytest.raises(PlanError, match=r"keep\[1\]: every unit may be named once, got \[2, 2\]"):
        PruningPlan.from_keep("head", [[0], [2, 2]])
    with pytest.raises(PlanError, match=r"keep\[0\]: units count from 0, got -1"):
        PruningPlan.from_keep("head", [[-1, 0]])


@pytest.mark.parametrize(
    "later",
    [
        PruningPlan.from_keep("channel", [[0], [0]]),
        PruningPlan.from_keep("head", [[0]]),
        PruningPlan.from_keep("head", [[0], [2]]),
    ],
    ids=["granularity", "depth", "index"],
)
def test_plans_that_cannot_follow_are_refused(later: PruningPlan) -> None:
    with pytest.raises(PlanError):
        PruningPlan.from_keep("head", [[0, 1], [0, 1]]).compose(later)


# ------------------------------------------------------------------------------------------ one-shot carry-over


def test_scores_follow_a_cut_of_their_own_granularity() -> None:
    scores = scores_of([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])
    rest = scores.restrict(PruningPlan.from_keep("channel", [[0, 2], [1]]))
    assert [row.tolist() for row in rest.per_layer] == [[1.0, 3.0], [5.0]]


def test_scores_follow_a_cut_of_layers() -> None:
    scores = scores_of([[1.0], [2.0], [3.0]])
    rest = scores.restrict(PruningPlan.from_keep("layer", [[0, 2]]))
    assert [row.tolist() for row in rest.per_layer] == [[1.0], [3.0]]
    by_layer = scores_of([[1.0, 2.0, 3.0]], Granularity.LAYER)
    rest = by_layer.restrict(PruningPlan.from_keep("layer", [[1, 2]]))
    assert [row.tolist() for row in rest.per_layer] == [[2.0, 3.0]]


def test_scores_of_other_units_stay() -> None:
    scores = scores_of([[1.0, 2.0]])
    assert scores.restrict(PruningPlan.from_keep("head", [[0]])) is scores


def test_heads_and_groups_do_not_carry_over() -> None:
    with pytest.raises(UsageError, match="score again"):
        scores_of([[1.0, 2.0]], Granularity.HEAD).restrict(PruningPlan.from_keep("kv_group", [[0]]))
