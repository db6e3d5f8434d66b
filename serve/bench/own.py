"""A server of the benchmark's own, for as long as it takes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from cascade_ops.progress import Progress, silent


@contextmanager
def own_server(
    models: Sequence[str], *, engine: str, threads: int, progress: Progress = silent
) -> Iterator[str]:
    """The address of ``cascade serve MODELS…`` on a free port; drained and gone afterwards.

    Raises:
        ConfigError, CheckpointError, UsageError, CascadeError: it cannot be started.
    """
    from serve.config import load_config
    from serve.launch import Server

    config = load_config(None, models, engine=engine, threads=threads, port=0)
    with Server.local(config, progress=progress) as server:
        yield server.url
