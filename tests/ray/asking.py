"""Many requests to a served application, and what they should answer."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np
import torch

from cascade_ops.checkpoint import load_pruned
from cascade_ops.data.readers.base import DATASETS
from cascade_ops.data.windows import make_split
from cascade_ops.evaluation import predict
from serve.config import ServeConfig, read_config
from tests.jobs import TINY


def served(run: Path, **settings: Any) -> ServeConfig:
    return read_config({"models": [{"path": str(run), "name": "small"}], "port": 0, **settings})


def unseen_windows(count: int) -> np.ndarray:
    """Of recordings that the run did not see."""
    data = TINY["data"]
    options = {**data["options"], "seconds": 15.0, "seed": 1}
    dataset = DATASETS["simulated"].load(Path(), **options)
    split = make_split(dataset, split="time", length=data["length"], stride=data["stride"])
    found = split.train.signal[:count]
    assert len(found) == count
    return found


Answer = tuple[int, dict[str, Any]]


def _nothing(place: int) -> None:
    pass


async def ask(
    url: str, bodies: Sequence[bytes], concurrency: int, asking: Callable[[int], None] = _nothing
) -> list[Answer]:
    """Every body once, so many at a time; status 0 where the connection broke. ``asking`` is told each beforehand."""
    answers: list[Answer] = [(0, {})] * len(bodies)
    waiting = iter(range(len(bodies)))
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:

        async def client() -> None:
            for place in waiting:
                asking(place)
                try:
                    async with session.post(
                        f"{url}/v1/diagnose", data=bodies[place], headers={"content-type": "application/json"}
                    ) as response:
                        answers[place] = response.status, await response.json(content_type=None)
                except (aiohttp.ClientError, json.JSONDecodeError) as error:
                    answers[place] = 0, {"error": repr(error)}

        await asyncio.gather(*(client() for _ in range(concurrency)))
    return answers


def body(window: np.ndarray, model: str = "small") -> bytes:
    asked = {
        "signal": window.tolist(),
        "fs_hz": 12000,
        "preprocessed": True,
        "model": model,
        "detail": "none",
    }
    return json.dumps(asked).encode()


def offline(folder: Path, windows: np.ndarray) -> torch.Tensor:
    return predict(load_pruned(folder), {"signal": torch.from_numpy(windows)}).double().softmax(1)


def probabilities(answers: Sequence[Answer]) -> torch.Tensor:
    assert Counter(status for status, _ in answers) == {200: len(answers)}
    return torch.tensor([list(found["probabilities"].values()) for _, found in answers], dtype=torch.float64)
