"""Scores from Ray workers are the scores of the whole model in one process; what goes wrong there is told here."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import ray
import torch
from ray._private import state
from torch import Tensor
from transformers import PreTrainedModel

from cascade_ops.criteria import CRITERIA
from cascade_ops.errors import CheckpointError, DataError
from cascade_ops.scoring import Scores, score
from tests.factories import gpt2, gpt_neox, llama_like, opt
from workflows.scoring.cluster import WorkersLostError
from workflows.scoring.driver import Request, Snapshot, make_request, score_here
from workflows.scoring.sharded import PATIENCE, score_sharded
from workflows.scoring.sizing import ClusterTooSmallError, Wish

pytestmark = [
    pytest.mark.slow,
    pytest.mark.usefixtures("no_orphans"),
]

LAYERS = 5
MODELS: dict[str, Callable[[], PreTrainedModel]] = {
    "gpt2": lambda: gpt2(n_layer=LAYERS),
    "gpt_neox": lambda: gpt_neox(num_hidden_layers=LAYERS),
    "opt": lambda: opt(num_hidden_layers=LAYERS),
    "llama": lambda: llama_like(heads=6, kv_heads=2, num_hidden_layers=LAYERS),
}


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    ray.init(
        "local", num_cpus=2, include_dashboard=False, log_to_driver=False, object_store_memory=80 * 2**20
    )
    yield
    ray.shutdown()


def assert_same_scores(one: Scores, other: Scores) -> None:
    """Relative to the largest of the layer, and in the same order."""
    assert one.keys() == other.keys()
    for key, scores in one.items():
        for row, again in zip(scores.per_layer, other[key].per_layer, strict=True):
            torch.testing.assert_close(again, row, rtol=0, atol=1e-6 * float(row.abs().max()))
            assert row.argsort(stable=True).tolist() == again.argsort(stable=True).tolist(), key


@pytest.mark.parametrize(
    ("name", "shards", "workers"), [("gpt2", 5, 2), ("gpt_neox", 3, 2), ("opt", 2, 1), ("llama", 1, 2)]
)
def test_a_cluster_gives_the_scores_of_one_process(
    ask: Callable[..., Request],
    same_bits: Callable[[Scores, Scores], None],
    name: str,
    shards: int,
    workers: int,
) -> None:
    model = MODELS[name]()
    request, seen = ask(model), list[Snapshot]()
    found = score_sharded(request, Wish(shards=shards, workers=workers), watch=seen.append)
    assert set(found.scores) == {(name, g) for name in CRITERIA for g in CRITERIA[name].granularities}
    assert_same_scores(score(model, request.batches, tuple(CRITERIA)), found.scores)
    here = score_here(request, shards=shards)
    same_bits(here.scores, found.scores)  # one worker, many workers: the same bits

    assert (found.samples, found.tokens) == (here.samples, here.tokens) == (7, 63)
    assert [(s.first, s.stop, s.bytes) for s in found.shards] == [
        (s.first, s.stop, s.bytes) for s in here.shards
    ]
    assert len(found.workers) == workers
    assert not any(worker.lost for worker in found.workers)
    micros = len(request.batches)
    assert sum(worker.items for worker in found.workers) == micros * (2 * shards - 1) + shards
    assert all(worker.items and worker.peak_bytes > 2**20 for worker in found.workers)
    shares = [snapshot.share for snapshot in seen]
    assert shares == sorted(shares)
    assert shares[-1] == 1
    assert seen[-1].backward == (micros,) * shards


# ------------------------------------------------------------------------------------------ refusals


def test_activations_that_are_not_finite_name_shard_and_layer(ask: Callable[..., Request]) -> None:
    model = gpt2(n_layer=LAYERS)
    with torch.no_grad():
        model.transformer.h[3].mlp.c_fc.bias[2] = torch.inf
    request = ask(model)
    with pytest.raises(DataError, match=r"^shard \d \(blocks 3 to \d\): layer 3: .* not finite"):
        score_sharded(request, Wish(shards=LAYERS, workers=1))


def test_a_weight_file_that_became_shorter_is_named(ask: Callable[..., Request]) -> None:
    request = ask(gpt2(n_layer=LAYERS))
    (file,) = request.layout.path.glob("*.safetensors")
    os.truncate(file, file.stat().st_size - 100)
    with pytest.raises(
        CheckpointError, match=r"model\.safetensors: not a complete safetensors file"
    ) as caught:
        score_sharded(request, Wish(shards=2, workers=1))
    assert "\n" not in str(caught.value)


def test_a_cluster_that_is_too_small_is_refused_before_any_worker_starts(ask: Callable[..., Request]) -> None:
    request = ask(gpt2(n_layer=LAYERS))
    before = len(state.actors())
    endless = torch.zeros(1, 1, dtype=torch.long).expand(10**8, 32)
    with pytest.raises(ClusterTooSmallError, match=r"needs [\d.]+ GiB, and the nodes have [\d.]+ GiB"):
        score_sharded(replace(request, batches=({"input_ids": endless},)), Wish())
    busy = replace(request, orders=replace(request.orders, threads=3))
    with pytest.raises(
        ClusterTooSmallError, match="workers of 3 threads were asked for, the nodes can take 0"
    ):
        score_sharded(busy, Wish(threads=3))
    assert len(state.actors()) == before


class Poison(Tensor):
    """Token ids that kill whichever worker opens them."""

    def __reduce_ex__(self, protocol: Any) -> Any:
        return eval, (f"__import__('os').kill(__import__('os').getpid(), {int(signal.SIGKILL)})",)


def test_an_item_that_kills_every_worker_is_given_up(ask: Callable[..., Request]) -> None:
    request = ask(gpt2(n_layer=LAYERS))
    poison = request.batches[1]["input_ids"].as_subclass(Poison)
    batches = (request.batches[0], {"input_ids": poison}, *request.batches[2:])
    began = time.monotonic()
    with pytest.raises(WorkersLostError, match=rf"shard 0 has killed {PATIENCE} workers"):
        score_sharded(replace(request, batches=batches), Wish(shards=1, workers=1))
    assert time.monotonic() - began < 90


def test_criteria_that_look_at_no_data_need_none(
    ask: Callable[..., Request], same_bits: Callable[[Scores, Scores], None]
) -> None:
    """And a sweep after all those errors is as good as one before."""
    model = llama_like(num_hidden_layers=LAYERS)
    dataless = make_request(ask(model).layout, (), ("magnitude",))
    found = score_sharded(dataless, Wish(shards=3, workers=1))
    same_bits(score(model, (), ("magnitude",)), found.scores)
    assert found.samples == 0
