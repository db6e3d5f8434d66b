"""Ablations on Ray: sets of gates divided among workers that have read the model from its folder.

Pieces are cut the same way whatever the number of workers, so losses are the same bits. Ray does the pieces of a
worker that dies again.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray
import torch
from ray.util import ActorPool
from torch import Tensor

from cascade_ops.batches import Batch
from cascade_ops.checkpoint import load_pruned
from cascade_ops.sia.ablation import Ablate, Cut, ablate, sets_at_once
from cascade_ops.training import deterministic
from workflows.scoring.cluster import connected

PIECES = 8
"""Forwards of one task."""


class Ablator:
    """Made into a Ray actor: the model, and losses under gates."""

    def __init__(self, folder: str, threads: int, device: str) -> None:
        deterministic(threads)
        self._model: Any = load_pruned(Path(folder)).to(device)  # type: ignore[arg-type]

    def losses(self, batch: Mapping[str, Tensor], cut: Cut) -> Tensor:
        return ablate(self._model, batch, cut)


@contextmanager
def ablating(
    folder: Path, *, workers: int, threads: int, device: str, address: str | None
) -> Iterator[Ablate]:
    """``ablate`` of the model in ``folder`` by ``workers`` actors.

    Raises:
        UsageError: no cluster answers at ``address``.
    """
    gpu = {"num_gpus": 1} if device == "cuda" else {}
    with connected(address, cpus=None if address else workers * threads):
        actors: list[Any] = [
            ray.remote(Ablator)
            .options(num_cpus=threads, max_restarts=-1, max_task_retries=-1, **gpu)
            .remote(str(folder), threads, device)
            for _ in range(workers)
        ]

        def carried_out(batch: Batch, cuts: Sequence[Cut]) -> list[Tensor]:
            shared = ray.put({name: tensor.cpu() for name, tensor in batch.items()})
            size = PIECES * sets_at_once(batch)
            pieces = [
                (number, Cut(granularity=cut.granularity, shut=shut))
                for number, cut in enumerate(cuts)
                for shut in cut.shut.split(size)
            ]
            pool = ActorPool(actors)
            found = pool.map(lambda actor, piece: actor.losses.remote(shared, piece[1]), pieces)
            joined: list[list[Tensor]] = [[] for _ in cuts]
            for (number, _), losses in zip(pieces, found, strict=True):
                joined[number].append(losses)
            return [torch.cat(parts) for parts in joined]

        try:
            yield carried_out
        finally:
            for actor in actors:
                ray.kill(actor)
