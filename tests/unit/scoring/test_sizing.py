"""How many workers and shards: the most workers, the fewest shards, and a refusal that says what is lacking."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cascade_ops.anatomy import anatomy_of
from cascade_ops.checkpoint import save_pruned
from cascade_ops.errors import UsageError
from cascade_ops.granularity import Granularity
from cascade_ops.plan import PruningPlan
from cascade_ops.shards import Layout, Shard, layout_of, partition
from cascade_ops.surgery import prune
from tests.factories import gpt2, llama_like
from workflows.scoring.sizing import (
    GIB,
    INTERPRETER,
    ClusterTooSmallError,
    Node,
    Sizing,
    Wish,
    memory_needed,
    size_up,
)

DEPTH = 6


@pytest.fixture(scope="module")
def layout(tmp_path_factory: pytest.TempPathFactory) -> Layout:
    folder = tmp_path_factory.mktemp("sizing") / "model"
    save_pruned(gpt2(n_layer=DEPTH), folder)
    return layout_of(folder)


@pytest.fixture(scope="module")
def uneven(tmp_path_factory: pytest.TempPathFactory) -> Layout:
    """Blocks of very different weight."""
    model = gpt2(n_layer=DEPTH, n_inner=64)
    kept = [list(range(n)) for n in (64, 1, 20, 3, 40, 7)]
    prune(model, PruningPlan.from_keep(Granularity.CHANNEL, kept))
    folder = tmp_path_factory.mktemp("uneven") / "model"
    save_pruned(model, folder)
    return layout_of(folder)


def by_depth(shard: Shard) -> int:
    """One GiB for each block, and one for the worker."""
    return (1 + shard.depth) * GIB


def node(cpus: int = 4, memory: float = 8, gpus: int = 0) -> Node:
    return Node(name="n", cpus=cpus, gpus=gpus, memory=int(memory * GIB))


def found(layout: Layout, nodes: list[Node], wish: Wish) -> tuple[int, int]:
    """Shards and workers."""
    sizing = size_up(layout, nodes, wish, by_depth)
    assert sizing.need == max(map(by_depth, sizing.shards))
    return len(sizing.shards), sizing.workers


@pytest.mark.parametrize(("memory", "shards"), [(7, 1), (6.9, 2), (4, 2), (3.9, 3), (3, 3), (2.9, 6), (2, 6)])
def test_the_fewest_shards_that_fit(layout: Layout, memory: float, shards: int) -> None:
    assert found(layout, [node(cpus=1, memory=memory)], Wish()) == (shards, 1)


@pytest.mark.parametrize(
    ("memory", "expected"), [(28, (1, 4)), (16, (2, 4)), (8, (6, 4)), (7.9, (6, 3)), (4, (6, 2)), (2, (6, 1))]
)
def test_as_many_workers_as_cores_unless_memory_forbids(
    layout: Layout, memory: float, expected: tuple[int, int]
) -> None:
    assert found(layout, [node(cpus=4, memory=memory)], Wish()) == expected


def test_a_node_without_memory_does_not_stop_the_others(layout: Layout) -> None:
    nodes = [node(cpus=2, memory=14), node(cpus=8, memory=1)]
    assert found(layout, nodes, Wish()) == (1, 2)


def test_threads_make_fewer_workers(layout: Layout) -> None:
    nodes = [node(cpus=7, memory=100), node(cpus=2, memory=100)]
    assert found(layout, nodes, Wish(threads=3)) == (1, 2)
    assert found(layout, nodes, Wish(threads=2)) == (1, 4)


def test_a_gpu_takes_one_worker_whatever_the_cores(layout: Layout) -> None:
    nodes = [node(cpus=64, memory=100, gpus=2), node(cpus=64, memory=100)]
    assert found(layout, nodes, Wish(gpu=True)) == (1, 2)


def test_wishes_are_obeyed(layout: Layout) -> None:
    nodes = [node(cpus=4, memory=100)]
    assert found(layout, nodes, Wish(shards=5)) == (5, 4)
    assert found(layout, nodes, Wish(workers=3)) == (1, 3)
    assert found(layout, nodes, Wish(shards=4, workers=2)) == (4, 2)
    assert found(layout, [node(cpus=4, memory=8)], Wish(workers=2)) == (2, 2)


def test_wishes_that_cannot_be_met_are_refused(layout: Layout) -> None:
    with pytest.raises(ClusterTooSmallError, match="Give more --shards"):
        size_up(layout, [node(memory=4)], Wish(shards=1), by_depth)
    with pytest.raises(ClusterTooSmallError, match="fewer --workers"):
        size_up(layout, [node(memory=4)], Wish(workers=4), by_depth)
    for shards in (0, DEPTH + 1):
        with pytest.raises(UsageError, match=rf"between 1 and the model's 6 blocks, got {shards}"):
            size_up(layout, [node(memory=100)], Wish(shards=shards), by_depth)


def test_a_refusal_says_what_is_needed_and_what_there_is(layout: Layout) -> None:
    with pytest.raises(
        ClusterTooSmallError, match=r"with 6 shards it needs 2\.00 GiB.* have 1\.50 GiB for each of 1 workers"
    ):
        size_up(layout, [node(memory=1), node(memory=1.5)], Wish(), by_depth)


def test_a_model_of_one_block_is_not_told_to_take_more_shards(layout: Layout) -> None:
    with pytest.raises(ClusterTooSmallError, match="smaller --batch") as caught:
        size_up(layout, [node(memory=1)], Wish(shards=DEPTH), by_depth)
    assert "more --shards" not in str(caught.value)


def test_no_cores_and_no_gpu_are_told_apart(layout: Layout) -> None:
    with pytest.raises(
        ClusterTooSmallError, match=r"of 8 threads were asked for, the nodes can take 0 \(.*4 cores"
    ):
        size_up(layout, [node(cpus=4), node(cpus=2)], Wish(threads=8), by_depth)
    with pytest.raises(ClusterTooSmallError, match="no node has a GPU"):
        size_up(layout, [node()], Wish(gpu=True), by_depth)
    with pytest.raises(
        ClusterTooSmallError, match="of 8 threads and a GPU were asked for, the nodes can take 0"
    ):
        size_up(layout, [node(cpus=4, gpus=1)], Wish(gpu=True, threads=8), by_depth)
    with pytest.raises(ClusterTooSmallError, match="the nodes can take 0"):
        size_up(layout, [], Wish(), by_depth)


def test_more_workers_than_there_are_cores_for_are_refused(layout: Layout) -> None:
    with pytest.raises(
        ClusterTooSmallError, match="5 workers of 2 threads were asked for, the nodes can take 4"
    ):
        size_up(layout, [node(cpus=4), node(cpus=5)], Wish(workers=5, threads=2), by_depth)


def rooms(nodes: list[Node], workers: int) -> list[int]:
    """The best least share of memory that any placement of so many workers gives (none: not enough cores)."""
    best = []

    def place(index: int, left: int, least: int) -> None:
        if left == 0:
            best.append(least)
        elif index < len(nodes):
            for here in range(min(left, nodes[index].cpus) + 1):
                share = int(nodes[index].memory / here) if here else least
                place(index + 1, left - here, min(least, share))

    place(0, workers, 2**62)
    return [max(best)] if best else []


@settings(max_examples=80, deadline=None)
@given(
    nodes=st.lists(
        st.builds(node, cpus=st.integers(0, 3), memory=st.integers(1, 20)), min_size=1, max_size=3
    ),
    shards=st.none() | st.integers(1, DEPTH),
)
def test_the_division_is_the_best_of_all(layout: Layout, nodes: list[Node], shards: int | None) -> None:
    """Most workers first, fewest shards second, against every placement there is."""
    counts = [shards] if shards else range(1, DEPTH + 1)
    possible = [
        (-workers, count)
        for workers in range(1, 1 + sum(n.cpus for n in nodes))
        for room in rooms(nodes, workers)
        for count in counts
        if max(map(by_depth, partition(layout, count))) <= room
    ]
    sizing: Sizing | None
    try:
        sizing = size_up(layout, nodes, Wish(shards=shards), by_depth)
    except ClusterTooSmallError:
        sizing = None
    if sizing is None:
        assert not possible
    else:
        assert (-sizing.workers, len(sizing.shards)) == min(possible)
        # Fewer workers than shards stream: every micro-batch must be under way at once.
        assert sizing.in_flight >= (2 if sizing.workers >= len(sizing.shards) else 10**6)


# ------------------------------------------------------------------------------------------ partitions


@pytest.mark.parametrize("shards", range(1, DEPTH + 1))
@pytest.mark.parametrize("which", ["layout", "uneven"])
def test_no_partition_has_a_lighter_largest_shard(
    which: str, shards: int, request: pytest.FixtureRequest
) -> None:
    layout: Layout = request.getfixturevalue(which)
    parts = partition(layout, shards)
    assert [part.first for part in parts] == [0, *(part.stop for part in parts[:-1])]
    assert parts[-1].stop == DEPTH
    assert len(parts) == shards
    assert all(part.depth >= 1 and part.layers == DEPTH for part in parts)

    def heaviest(starts: tuple[int, ...]) -> int:
        stops = (*starts[1:], DEPTH)
        return max(
            layout.nbytes(Shard(first=first, stop=stop, layers=DEPTH))
            for first, stop in zip(starts, stops, strict=True)
        )

    best = min(heaviest((0, *cuts)) for cuts in combinations(range(1, DEPTH), shards - 1))
    assert heaviest(tuple(part.first for part in parts)) == best


# ------------------------------------------------------------------------------------------ memory


def test_a_worker_needs_its_weights_at_least(layout: Layout) -> None:
    whole = Shard(first=0, stop=DEPTH, layers=DEPTH)
    for shard in (whole, *partition(layout, 3)):
        for dtype in (torch.float32, torch.bfloat16):
            needed = memory_needed(layout, shard, tokens=0, dtype=dtype, gradients=False)
            assert needed >= INTERPRETER + layout.nbytes(shard) * dtype.itemsize // 4


@settings(max_examples=40, deadline=None)
@given(tokens=st.integers(0, 10_000), shards=st.integers(1, DEPTH))
def test_more_tokens_and_gradients_need_more(layout: Layout, tokens: int, shards: int) -> None:
    for shard in partition(layout, shards):

        def needed(tokens: int, gradients: bool, shard: Shard = shard) -> int:
            return memory_needed(layout, shard, tokens=tokens, dtype=torch.float32, gradients=gradients)

        assert needed(tokens, True) >= needed(tokens, False)
        assert needed(tokens + 1, True) > needed(tokens, True)
        assert needed(tokens + 1, False) > needed(tokens, False)


def test_tied_weights_are_counted_once_where_both_ends_are_together(tmp_path: Path) -> None:
    sizes = {}
    for tied in (True, False):
        model = llama_like(tie_word_embeddings=tied)
        save_pruned(model, tmp_path / str(tied))
        layout = layout_of(tmp_path / str(tied))
        depth = len(anatomy_of(model).layers)
        ends = [Shard(first=i, stop=i + 1, layers=depth) for i in (0, depth - 1)]
        sizes[tied] = [layout.nbytes(Shard(first=0, stop=depth, layers=depth)), *map(layout.nbytes, ends)]
        assert sizes[tied][0] == sum(t.nbytes for t in {t.offset: t for t in layout.stored.values()}.values())
    table = 4 * 40 * 24
    assert sizes[False][0] - sizes[True][0] == table
    assert sizes[False][1:] == sizes[True][1:], "each end needs the table"
