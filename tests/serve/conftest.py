"""The application behind a real web server, without Ray; one for each test process."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import uvicorn

from cascade_ops import Granularity, anatomy_of, prune, save_pruned
from cascade_ops.data.simulate import simulate_recording
from serve.api import application
from serve.config import ServeConfig, read_config
from serve.service import Service
from tests.factories import llama_like, varied_plan
from tests.jobs import WORDS, save_word_tokenizer

TOKEN = "a token of some length"
PAGE_TOKENS = 48
"""As many as the page asks for."""


@dataclass(frozen=True)
class Served:
    """A running server and the run behind it."""

    url: str
    run: Path
    service: Service


@pytest.fixture(scope="session")
def config(finished: Path) -> ServeConfig:
    return read_config({"models": [{"path": str(finished), "name": "small"}], "port": 0})


@pytest.fixture(scope="session")
def served(config: ServeConfig, finished: Path) -> Iterator[Served]:
    yield from serving(config, finished)


@pytest.fixture(scope="session")
def guarded(config: ServeConfig, finished: Path) -> Iterator[Served]:
    """The same, asking for a token and taking small bodies only."""
    small = config.model_copy(update={"limits": config.limits.model_copy(update={"body_mb": 1.0})})
    yield from serving(small, finished, token=TOKEN)


@pytest.fixture(scope="session")
def language(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A language model whose layers differ in their KV groups and channels."""
    model = llama_like(vocab_size=len(WORDS) + 1, max_position_embeddings=128)
    for granularity in (Granularity.KV_GROUP, Granularity.CHANNEL):
        prune(model, varied_plan(anatomy_of(model), granularity))
    folder = tmp_path_factory.mktemp("lm") / "tiny"
    save_pruned(model, folder)
    save_word_tokenizer(folder)
    limits = {"tokens": PAGE_TOKENS}
    yield from serving(read_config({"models": [{"path": str(folder)}], "limits": limits}), folder)


def serving(config: ServeConfig, run: Path, *, token: str | None = None) -> Iterator[Served]:
    service = Service(config)
    asyncio.run(service.start())
    server = uvicorn.Server(
        uvicorn.Config(application(service, token=token), port=0, log_level="error", lifespan="off")
    )
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    deadline = time.monotonic() + 30
    while not server.started:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    yield Served(url=f"http://127.0.0.1:{port}", run=run, service=service)
    server.should_exit = True
    thread.join(10)
    service.stop()


@pytest.fixture(scope="session")
def recording_npy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two seconds of an outer race fault at 12 kHz and 1,750 rpm."""
    recording = simulate_recording("OR014", rpm=1750.0, seconds=2.0)
    path = tmp_path_factory.mktemp("recordings") / "outer.npy"
    np.save(path, recording.signal)
    return path
