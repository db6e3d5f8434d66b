"""The ledger: sums in the order of the micro-batches, whatever order they arrive in."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cascade_ops.batches import sequential
from cascade_ops.checkpoint import save_pruned
from cascade_ops.criteria import CRITERIA
from cascade_ops.errors import DataError, UnknownNameError, UsageError
from cascade_ops.granularity import Granularity
from cascade_ops.shards import layout_of
from cascade_ops.statistics import Statistics
from tests.factories import batch_for, classifier, gpt2, llama_like
from workflows.scoring import driver
from workflows.scoring.driver import Ledger, Request, Snapshot, make_request, score_here
from workflows.scoring.plan import Item, Phase
from workflows.scoring.worker import Receipt

KEY = ("x", Granularity.CHANNEL, 0)
OTHER = ("abs_gradient", Granularity.CHANNEL, 0)


def receipt(micro: int, key: tuple[str, Granularity, int] = KEY, seconds: float = 1.0) -> Receipt:
    """Values whose float64 sum depends on the order of addition."""
    generator = torch.Generator().manual_seed(micro)
    scale = 10.0 ** torch.randint(-8, 9, (5,), generator=generator)
    values = torch.randn(5, generator=generator, dtype=torch.float64) * scale
    found = Statistics(samples=micro + 1, tokens=3 * micro, sums={key: values})
    return Receipt(found=found, seconds=seconds, memory=0, peak=0)


def in_order(micros: int) -> Statistics:
    total = Statistics.zero()
    for micro in range(micros):
        total = total + receipt(micro).found
    return total


@settings(max_examples=60, deadline=None)
@given(data=st.data(), micros=st.integers(1, 9))
def test_the_sums_have_the_same_bits_in_whatever_order_they_arrive(data: st.DataObject, micros: int) -> None:
    """Repetitions too, at any time."""
    repeated = data.draw(st.lists(st.integers(0, micros - 1), max_size=4))
    arrivals = data.draw(st.permutations([*range(micros), *repeated]))
    ledger = Ledger()
    for micro in arrivals:
        ledger.add(Item(Phase.FORWARD, 0, micro), receipt(micro))
    found, expected = ledger.of_shard(0), in_order(micros)
    assert (found.samples, found.tokens) == (expected.samples, expected.tokens)
    assert torch.equal(found.sums[KEY], expected.sums[KEY])
    assert not any(ledger.waiting.values()), "kept although it was counted"


def test_these_sums_do_depend_on_their_order() -> None:
    """Or the test above would show nothing."""
    forward, back = in_order(9).sums[KEY], torch.zeros(5, dtype=torch.float64)
    for micro in reversed(range(9)):
        back = back + receipt(micro).found.sums[KEY]
    assert not torch.equal(forward, back)


def test_a_repeated_item_counts_once_but_its_time_counts_twice() -> None:
    ledger = Ledger()
    for _ in range(2):
        ledger.add(Item(Phase.BACKWARD, 4, 0), receipt(0))
    assert ledger.of_shard(4).samples == 1
    assert ledger.seconds == {4: 2.0}


def test_what_came_too_early_waits() -> None:
    ledger = Ledger()
    ledger.add(Item(Phase.FORWARD, 0, 1), receipt(1))
    assert ledger.of_shard(0).samples == 0
    ledger.add(Item(Phase.FORWARD, 0, 0), receipt(0))
    assert ledger.of_shard(0).samples == 3


def test_a_shard_has_the_sums_of_both_ways_and_its_samples_once() -> None:
    ledger = Ledger()
    for micro in (1, 0, 2):
        ledger.add(Item(Phase.BACKWARD, 1, micro), receipt(micro, OTHER))
        ledger.add(Item(Phase.FORWARD, 1, micro), receipt(micro, KEY))
        ledger.add(Item(Phase.BACKWARD, 2, micro), receipt(micro, OTHER))
    both = ledger.of_shard(1)
    assert both.sums.keys() == {KEY, OTHER}
    assert both.samples == 1 + 2 + 3
    assert ledger.of_shard(2).sums.keys() == {OTHER}
    assert ledger.of_shard(0).samples == 0
    with pytest.raises(AssertionError, match="not of the same samples"):
        both.beside(receipt(0).found)


# ------------------------------------------------------------------------------------------ requests


@pytest.fixture(scope="module")
def request_(tmp_path_factory: pytest.TempPathFactory) -> Request:
    folder = tmp_path_factory.mktemp("ledger") / "model"
    model = llama_like(num_hidden_layers=4)
    save_pruned(model, folder)
    return make_request(layout_of(folder), list(sequential(batch_for(model), 3)), tuple(CRITERIA))


@pytest.mark.parametrize("criteria", [("taylor", "wanda"), ("wanda",), ("magnitude",)])
def test_progress_is_told_after_every_item_and_ends_at_one(
    request_: Request, criteria: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(driver, "LOOK_EVERY", 0.0)
    request, seen = make_request(request_.layout, request_.batches, criteria), list[Snapshot]()
    found = score_here(request, shards=2, watch=seen.append)
    shares = [snapshot.share for snapshot in seen]
    assert shares == sorted(shares)
    assert shares[-1] == pytest.approx(1)
    assert seen[-1].seconds_left == pytest.approx(0)
    micros = 3 if criteria != ("magnitude",) else 0
    assert {(s.micros, s.gradients) for s in seen} == {(micros, "taylor" in criteria)}
    items = micros * (3 if "taylor" in criteria else 2) + 2
    assert (found.workers[0].items, len(seen)) == (items, items)
    assert (found.samples, found.tokens) == ((7, 63) if micros else (0, 0))
    # hidden states of every micro-batch at the one boundary: 7 samples × 9 tokens × 24 × 4 bytes
    assert found.object_store_bytes == (7 * 9 * 24 * 4 if micros else 0) + (
        3 * 9 * 24 * 4 if "taylor" in criteria else 0
    )


def test_a_request_is_checked_before_anything_starts(request_: Request) -> None:
    layout, batches = request_.layout, request_.batches
    with pytest.raises(UnknownNameError, match="Did you mean 'taylor'"):
        make_request(layout, batches, ("tailor",))
    with pytest.raises(DataError, match="got no batch"):
        make_request(layout, [], ("taylor",))
    with pytest.raises(DataError, match="have 33 tokens, the model has 32 positions: give --length 32"):
        make_request(layout, [{"input_ids": torch.zeros(1, 33, dtype=torch.long)}], ("taylor",))
    with pytest.raises(UsageError, match="float16"):
        make_request(layout, batches, ("taylor",), dtype=torch.float16)
    assert make_request(layout, [], ("magnitude",)).micros == 0


def test_padding_is_counted_where_memory_is_and_not_where_tokens_are(request_: Request) -> None:
    mask = torch.ones(3, 9, dtype=torch.long)
    mask[1, 4:] = 0
    batches = [{"input_ids": torch.zeros(3, 9, dtype=torch.long), "attention_mask": mask}]
    request = make_request(request_.layout, [*batches, *request_.batches[:1]], ("taylor",))
    assert request.largest == 27
    assert request.tokens == 22 + 27


def test_positions_of_a_signal_are_its_patches(tmp_path: Path) -> None:
    model = classifier(gpt2)
    save_pruned(model, tmp_path / "model")
    request = make_request(layout_of(tmp_path / "model"), [batch_for(model)], ("taylor",))
    assert request.largest == request.tokens == 7 * 6
    assert score_here(request, shards=2).tokens == request.tokens
