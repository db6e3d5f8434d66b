"""The plan of a sweep: it ends whatever order things end in, whoever dies and whatever is lost."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from workflows.scoring.plan import GRADIENT, HIDDEN, Boundary, Item, Phase, Sweep, shards_of

QUEUE = 2
SHAPES = {
    "shards": st.integers(1, 5),
    "micros": st.integers(0, 5),
    "workers": st.integers(1, 6),
    "gradients": st.booleans(),
}


@dataclass(slots=True)
class Crew:
    """Workers with queues, driven by a sweep. ``loads`` are the shards each has read, one after another."""

    sweep: Sweep
    workers: int
    queues: list[list[Item]] = field(init=False)
    loads: list[list[int]] = field(init=False)
    given: Counter[Item] = field(default_factory=Counter)
    began: set[int] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.queues = [[] for _ in range(self.workers)]
        self.loads = [[] for _ in range(self.workers)]

    def give_out(self) -> None:
        for length in range(QUEUE):
            for rank, queue in enumerate(self.queues):
                if len(queue) <= length:
                    self._give(rank)

    def _give(self, rank: int) -> None:
        sweep = self.sweep
        mine = shards_of(rank, self.workers, sweep.shards)
        current = self.loads[rank][-1] if self.loads[rank] else None
        at_hand = [item for item in sweep.ready(mine) if item.shard == current]
        # Looking ahead to another shard would put it between this one's last micro-batch and its scores.
        offered = {current} if self.queues[rank] and current is not None else mine
        item = sweep.next_for(offered, current)
        if item is None:
            assert not sweep.ready(offered), "there was something to do"
            return
        assert item.shard in mine
        assert not at_hand or item.shard == current, "switched although there was work"
        assert item not in sweep.done
        assert item in sweep.running
        assert sum(item in queue for queue in self.queues) == 0, "given out twice at once"
        assert set(sweep.inputs(item)) <= sweep.held, "inputs are not there"
        if item.phase is Phase.SCORE:
            chain = {one for one in sweep.items() if one.shard == item.shard and one != item}
            assert chain <= sweep.done, "scored before it has seen everything"
        else:
            self.began.add(item.micro)
            under_way = [micro for micro in self.began if sweep.left_of_micro[micro]]
            assert len(under_way) <= sweep.in_flight
        self.queues[rank].append(item)
        self.given[item] += 1
        if current != item.shard:
            self.loads[rank].append(item.shard)

    def busy(self) -> list[int]:
        return [rank for rank, queue in enumerate(self.queues) if queue]

    def finish(self, rank: int) -> None:
        item = self.queues[rank].pop(0)
        spent = self.sweep.finish(item)
        assert not self.sweep.held & set(spent)

    def die(self, rank: int) -> None:
        for item in self.queues[rank]:
            self.sweep.put_back(item)
        self.queues[rank].clear()
        self.loads[rank].append(-1)  # a replacement has nothing loaded

    def fail(self, rank: int) -> None:
        """Its inputs cannot be fetched: they were on a node that is gone."""
        item = self.queues[rank].pop(0)
        self.sweep.put_back(item)
        for boundary in self.sweep.inputs(item):
            for taken in self.sweep.lose(boundary):
                assert taken not in self.sweep.done


def assert_over(sweep: Sweep) -> None:
    assert sweep.complete
    assert not sweep.held
    assert not sweep.running
    assert sweep.done == set(sweep.items())
    assert not +sweep.left_of_micro
    assert not +sweep.left_of_shard
    assert min((*sweep.left_of_micro.values(), *sweep.left_of_shard.values()), default=0) == 0


@settings(max_examples=150, deadline=None)
@given(data=st.data(), in_flight=st.integers(1, 6), failures=st.booleans(), **SHAPES)
def test_every_sweep_ends_with_everything_done_and_nothing_held(
    data: st.DataObject,
    shards: int,
    micros: int,
    workers: int,
    gradients: bool,
    in_flight: int,
    failures: bool,
) -> None:
    if workers < shards:
        in_flight = 2**31  # as sizing gives it: fewer workers stream the model
    sweep = Sweep(shards=shards, micros=micros, gradients=gradients, in_flight=in_flight)
    crew = Crew(sweep, workers)
    mishaps = data.draw(st.integers(1, 12)) if failures else 0
    limit = 4 * (len(list(sweep.items())) * (mishaps + 1) + mishaps)
    while not sweep.complete:
        limit -= 1
        assert limit, "it does not end"
        crew.give_out()
        busy = crew.busy()
        assert busy, "nobody has anything to do, and it is not over"
        rank = data.draw(st.sampled_from(busy))
        what = data.draw(st.sampled_from(["finish", "die", "fail", "lose"])) if mishaps else "finish"
        mishaps -= what != "finish"
        match what:
            case "finish":
                crew.finish(rank)
            case "die":
                crew.die(rank)
            case "fail":
                crew.fail(rank)
            case "lose" if sweep.held:
                boundary = data.draw(st.sampled_from(sorted(sweep.held)))
                taken = sweep.lose(boundary)
                assert taken[:1] in ([], [sweep.producer(boundary)])
                assert not set(taken) & sweep.done
                assert boundary not in sweep.held
    assert_over(sweep)
    if not failures:
        assert set(crew.given.values()) == {1}


@settings(max_examples=60, deadline=None)
@given(data=st.data(), shards=st.integers(1, 5), micros=st.integers(0, 6), gradients=st.booleans())
def test_a_worker_for_each_shard_reads_it_once(
    data: st.DataObject, shards: int, micros: int, gradients: bool
) -> None:
    sweep = Sweep(shards=shards, micros=micros, gradients=gradients, in_flight=2 * shards + shards)
    crew = Crew(sweep, shards)
    while not sweep.complete:
        crew.give_out()
        crew.finish(data.draw(st.sampled_from(crew.busy())))
    assert_over(sweep)
    assert crew.loads == [[shard] for shard in range(shards)]


@settings(max_examples=60, deadline=None)
@given(shards=st.integers(1, 8), micros=st.integers(0, 6), gradients=st.booleans())
def test_a_lone_worker_streams_the_model_once_up_and_once_down(
    shards: int, micros: int, gradients: bool
) -> None:
    sweep = Sweep(shards=shards, micros=micros, gradients=gradients, in_flight=2**31)
    crew = Crew(sweep, 1)
    while not sweep.complete:
        crew.give_out()
        crew.finish(0)
    assert_over(sweep)
    up, down = list(range(shards)), list(reversed(range(shards)))
    if micros:
        assert crew.loads[0] == (up + down[1:] if gradients else up)
    else:
        assert sorted(crew.loads[0]) == up


def test_a_lost_hidden_state_is_made_again_from_the_lowest_that_is_left() -> None:
    """Gradients' way down has spent the boundary below: the chain is redone as far as it must be."""
    sweep = Sweep(shards=4, micros=1, gradients=True, in_flight=1)
    for phase, shard in ((Phase.FORWARD, 0), (Phase.FORWARD, 1), (Phase.FORWARD, 2), (Phase.BACKWARD, 3)):
        assert sweep.next_for({shard}, None) == Item(phase, shard, 0)
        sweep.finish(Item(phase, shard, 0))
    assert sweep.held == {Boundary(HIDDEN, 1, 0), Boundary(HIDDEN, 2, 0), Boundary(GRADIENT, 2, 0)}
    taken = sweep.lose(Boundary(GRADIENT, 2, 0))
    assert taken == [
        Item(Phase.BACKWARD, 3, 0),
        Item(Phase.FORWARD, 2, 0),
    ]  # hidden 3 was spent, hidden 2 is held
    assert sweep.next_for(range(4), 3) == Item(Phase.FORWARD, 2, 0)


def test_a_boundary_that_is_being_made_again_is_not_asked_for_twice() -> None:
    sweep = Sweep(shards=3, micros=1, gradients=False, in_flight=1)
    first = sweep.next_for({0}, None)
    assert first is not None
    sweep.finish(first)
    boundary = Boundary(HIDDEN, 1, 0)
    assert sweep.lose(boundary) == [first]
    assert sweep.lose(boundary) == []
    assert sweep.next_for({0}, None) == first
    assert sweep.lose(boundary) == []
    assert first in sweep.running


def test_no_more_micro_batches_than_asked_for_are_under_way() -> None:
    sweep = Sweep(shards=2, micros=5, gradients=True, in_flight=2)
    started = []
    while (item := sweep.next_for({0}, 0)) is not None:
        started.append(item.micro)
        sweep.finish(item)
    assert started == [0, 1]


def test_what_is_nearer_to_its_end_goes_first() -> None:
    sweep = Sweep(shards=1, micros=2, gradients=True, in_flight=2)
    order = []
    while (item := sweep.next_for({0}, 0)) is not None:
        order.append(item)
        sweep.finish(item)
    assert order == [Item(Phase.BACKWARD, 0, 0), Item(Phase.BACKWARD, 0, 1), Item(Phase.SCORE, 0)]


@pytest.mark.parametrize("workers", range(1, 9))
@pytest.mark.parametrize("shards", range(1, 9))
def test_every_shard_has_workers_as_evenly_as_can_be(workers: int, shards: int) -> None:
    parts = [shards_of(rank, workers, shards) for rank in range(workers)]
    assert frozenset().union(*parts) == frozenset(range(shards))
    sizes = [len(part) for part in parts]
    assert max(sizes) - min(sizes) <= 1
    assert min(sizes) >= 1
    crowd = Counter(shard for part in parts for shard in part)
    assert max(crowd.values()) - min(crowd.values()) <= 1
    assert workers < shards or sizes == [1] * workers
