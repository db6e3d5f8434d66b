"""Whatever is drawn obeys the bounds, lands on the target, and is drawn again from its parameters."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import permutations, takewhile
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from transformers import GPT2Config, LlamaConfig

from cascade_ops.anatomy import ModelAnatomy, anatomy_of
from cascade_ops.cascade import _all_alike, plan_stage, validate_schedule
from cascade_ops.export import refusals
from cascade_ops.granularity import Granularity
from cascade_ops.plan import PruningPlan
from cascade_ops.schedule import CascadeSchedule, Recovery
from cascade_ops.search import Bound, Preferred, Space, Unreachable, check_reach, draw, reach_of
from cascade_ops.search.drawing import prefix
from cascade_ops.search.space import WITHIN, countdown, least_left, most_removed, rounds_needed

MHA = anatomy_of(GPT2Config(n_embd=64, n_layer=6, n_head=8, n_inner=256, vocab_size=8))
GQA = anatomy_of(
    LlamaConfig(
        hidden_size=64,
        num_hidden_layers=5,
        num_attention_heads=8,
        num_key_value_heads=4,
        intermediate_size=120,
        vocab_size=8,
    )
)


@dataclass
class Drawn:
    """A Suggest that draws at random and remembers."""

    seed: int
    fixed: dict[str, Any] = field(default_factory=dict)
    params: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.chance = random.Random(self.seed)

    def integer(self, name: str, low: int, high: int) -> int:
        drawn = self.chance.randint(low, high)
        self.params[name] = self.fixed.get(name, drawn)
        return int(self.params[name])

    def choice(self, name: str, options: Sequence[Any]) -> Any:
        drawn = self.chance.choice(list(options))
        self.params[name] = self.fixed.get(name, drawn)
        return self.params[name]


def space(anatomy: ModelAnatomy = MHA, target: float | None = 6.0, **changes: Any) -> Space:
    attention = Granularity.HEAD if anatomy is MHA else Granularity.KV_GROUP
    orders = tuple(permutations((Granularity.LAYER, attention, Granularity.CHANNEL)))
    return Space(
        anatomy=anatomy, recovery=Recovery(steps=100), target=target, **({"orders": orders} | changes)
    )


def rehearsed(
    schedule: CascadeSchedule, dense: ModelAnatomy
) -> list[tuple[Granularity, float, ModelAnatomy]]:
    """Each stage's granularity, the share it removed, and what it left; units go by position."""
    left, found = dense, []
    for stage in schedule.stages:
        after = left.after(plan_stage(stage, _all_alike(stage, left), left, dense))
        units = [sum(one.units(stage.granularity)) for one in (left, after)]
        found.append((stage.granularity, 1 - units[1] / units[0], after))
        left = after
    return found


@settings(max_examples=150, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    anatomy=st.sampled_from([MHA, GQA]),
    target=st.one_of(st.none(), st.floats(1.5, 30)),
    bounds=st.tuples(*[st.floats(0.2, 1.0)] * 3),
    rounds=st.integers(1, 5),
    uniform=st.booleans(),
)
def test_every_draw_obeys_bounds_and_lands_on_target(
    seed: int,
    anatomy: ModelAnatomy,
    target: float | None,
    bounds: tuple[float, float, float],
    rounds: int,
    uniform: bool,
) -> None:
    one = space(anatomy, target, rounds=rounds, uniform=uniform)
    given_bounds = {g: Bound(safe=b) for g, b in zip(one.orders[0], bounds, strict=True)}
    one = replace(one, bounds=given_bounds)
    try:
        pairs = one.pairs()
    except Unreachable:
        assume(False)
    assert pairs
    schedule = draw(one, Drawn(seed))
    validate_schedule(schedule, anatomy)
    stages = rehearsed(schedule, anatomy)
    for granularity, ratio, _ in stages:
        assert ratio <= one.bound(granularity) + 1e-9, (granularity, ratio)
    final = stages[-1][2]
    if target is not None:
        off = final.backbone_params * target / anatomy.backbone_params - 1
        # One channel of every layer is the finest that a uniform plan, or a bound that forbids a trim, can do.
        finest = sum(row.params_channel for row in final.layers) / (anatomy.backbone_params / target)
        exact = not uniform and schedule.stages[-1].target is not None
        assert abs(off) <= (max(WITHIN, finest / len(final.layers)) if exact else max(WITHIN, finest))
    if uniform:
        assert len({(row.heads, row.kv_heads, row.channels) for row in final.layers}) == 1
    assert sum(stage.share for stage in schedule.stages) == pytest.approx(1)
    assert sum(schedule.steps()) == 100


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10**6), anatomy=st.sampled_from([MHA, GQA]), target=st.sampled_from([None, 3.0, 12.0])
)
def test_parameters_stand_for_the_schedule(seed: int, anatomy: ModelAnatomy, target: float | None) -> None:
    one, drawn = space(anatomy, target), Drawn(seed)
    schedule = draw(one, drawn)
    again = Preferred(drawn.params)
    assert draw(one, again) == schedule
    assert again.chosen == drawn.params


@settings(max_examples=80, deadline=None)
@given(seed=st.integers(0, 10**6), other=st.integers(0, 10**6), length=st.integers(1, 2))
def test_a_prefix_fixes_the_first_stages(seed: int, other: int, length: int) -> None:
    """What prefix() names is all that the first granularities' stages and their recovery depend on."""
    one, parent = space(), Drawn(seed)
    schedule = draw(one, parent)
    order = tuple(Granularity(name) for name in parent.params["order"].split())
    names = prefix(one, order, length)
    child = Drawn(other, fixed={name: parent.params[name] for name in names if name in parent.params})
    grown = draw(one, child)
    first = list(takewhile(lambda stage: stage.granularity in order[:length], schedule.stages))
    cuts = [{stage.granularity for stage in each.stages} for each in (schedule, grown)]
    if cuts[0] == cuts[1]:  # shares are divided by how many granularities are cut
        again = zip(first, grown.stages, schedule.steps(), grown.steps(), strict=False)
        for stage, same, steps, same_steps in again:
            assert replace(stage, share=0.0) == replace(same, share=0.0)
            assert steps == same_steps
    assert grown.recovery == schedule.recovery


@given(count=st.integers(2, 400), data=st.data(), bound=st.floats(0.1, 1.0), rounds=st.integers(1, 6))
def test_countdown(count: int, data: st.DataObject, bound: float, rounds: int) -> None:
    kept = data.draw(st.integers(1, count - 1))
    assume(least_left(count, 64, bound) <= kept)
    needed = rounds_needed(count, kept, bound)
    left = countdown(count, kept, max(rounds, needed), bound)
    assert left[-1] == kept
    assert len(left) <= max(rounds, needed)
    assert needed == next(n for n in range(65) if least_left(count, n, bound) <= kept)
    before = (count, *left[:-1])
    assert all(0 < was - now <= most_removed(was, bound) for was, now in zip(before, left, strict=True))


def test_a_bound_that_removes_less_than_one_unit() -> None:
    with pytest.raises(Unreachable, match="10% of 6 units is less than one"):
        countdown(6, 3, 2, 0.1)


def test_an_unreachable_target_names_what_binds() -> None:
    tight = {Granularity.LAYER: Bound(safe=0.3), Granularity.CHANNEL: Bound(safe=0.3, loss=0.2)}
    one = space(target=200.0, bounds=tight)
    with pytest.raises(Unreachable) as caught:
        check_reach(one)
    message = str(caught.value)
    reach = reach_of(one)
    assert f"{reach.compression:.4g}×" in message
    assert "the channel bound" in message
    assert "channel 256 → 132 (20% a round)" in message
    assert reach.relaxed["the channel bound"] > reach.relaxed["the layer bound"] > reach.compression
    # And it is true: what is said to be reachable can be reached, and what is beyond it cannot.
    assert replace(one, target=reach.compression * 0.999).pairs()
    with pytest.raises(Unreachable):
        replace(one, target=reach.compression * 1.001).pairs()


def test_a_target_beyond_the_model() -> None:
    with pytest.raises(Unreachable, match="no more to give"):
        check_reach(space(target=5000.0))


def test_without_a_target_something_is_always_removed() -> None:
    for seed in range(300):
        schedule = draw(space(target=None), Drawn(seed))
        assert rehearsed(schedule, MHA)[-1][2].backbone_params < MHA.backbone_params


def test_a_plain_config_takes_one_width_for_all_layers() -> None:
    uniform = MHA.after(PruningPlan.from_keep(Granularity.CHANNEL, [range(8)] * 6))
    assert refusals(uniform, "hf") == ()
    keep = [range(8)] * 5 + [range(7)]
    ragged = MHA.after(PruningPlan.from_keep(Granularity.CHANNEL, keep))
    assert refusals(ragged, "hf") == ("layer 5: 7 channels, layer 0 has 8: hf wants one number",)
    assert refusals(ragged, "cascade") == ()
    headless = MHA.after(PruningPlan.from_keep(Granularity.HEAD, [range(4)] * 6))
    assert "head_dim is hidden_size ÷ heads" in refusals(headless, "hf")[0]
    assert refusals(GQA.after(PruningPlan.from_keep(Granularity.KV_GROUP, [range(2)] * 5)), "hf") == ()
