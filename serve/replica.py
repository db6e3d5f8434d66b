"""The service on Ray Serve: requests that wait are batched, models come and go, counts go to a ledger."""

from __future__ import annotations

import asyncio
import logging
import sys
from contextlib import suppress
from typing import Any

import ray
from ray import serve
from starlette.types import ASGIApp

from cascade_ops.errors import CascadeError
from serve.api import application
from serve.config import read_config
from serve.engines import Loaded
from serve.metrics import Ledger
from serve.service import Computed, Item, Service
from serve.settings import token_of

LOG = logging.getLogger("cascade.serve")
REPORT_EVERY_S, FAREWELL_S = 1.0, 2.0
NAMESPACE = "serve"
BATCHES = 64
"""Of Serve's at a time: they wait for the model, which takes several of them together (``serve.together``)."""
SWITCH_S = 5e-4
"""The model's thread asks for Python's lock after every operator; 5 ms, the default, is what a whole batch takes."""


class Replica(Service):
    """One replica: ``document`` is a checked configuration as plain values."""

    def __init__(self, document: dict[str, Any]) -> None:
        config = read_config(document)
        sys.setswitchinterval(SWITCH_S)
        context = serve.get_replica_context()
        super().__init__(config, replica=context.replica_id.unique_id)

        async def load(name: str) -> Loaded:
            return await self.fetch(name)

        # Serve keeps the latest in memory, tells its router, and sends requests that name a model there
        self._multiplexed = serve.multiplexed(max_num_models_per_replica=config.loaded)(load)
        self._batched.set_max_batch_size(config.batch.size)  # type: ignore[attr-defined]  # from its decorator
        self._batched.set_batch_wait_timeout_s(config.batch.wait_ms / 1e3)  # type: ignore[attr-defined]
        self._ledger = ledger_of(context.app_name)
        self._token = token_of(config)
        self._reporting: asyncio.Task[None] | None = None

    async def __serve_build_asgi_app__(self) -> ASGIApp:
        """Called by Serve when the replica starts, which is ready once this returns."""
        await self.start()
        self._reporting = asyncio.get_running_loop().create_task(self._report())
        return application(self, token=self._token)

    async def engine(self, name: str) -> Loaded:
        return await self._multiplexed(name)  # type: ignore[no-any-return]

    async def infer(self, item: Item) -> Computed:
        computed: asyncio.Task[Computed] = await self._batched(item)
        return computed.result()

    @serve.batch(max_batch_size=1, batch_wait_timeout_s=0, max_concurrent_batches=BATCHES)
    async def _batched(self, items: list[Item]) -> list[asyncio.Task[Computed]]:
        """Tasks that are done, so that what fails for one model does not fail for another."""
        tasks = [asyncio.create_task(Service.infer(self, item)) for item in items]
        await asyncio.wait(tasks)
        return tasks

    async def metrics(self) -> bytes:
        """Of all replicas: this one's as they are now, the others' a second old at most."""
        await self._ledger.report.remote(self.meter.replica, self.snapshot())
        text: bytes = await self._ledger.text.remote()
        return text

    async def _report(self) -> None:
        while True:
            try:
                await self._ledger.report.remote(self.meter.replica, self.snapshot())
            except Exception as error:
                LOG.warning("counts could not be reported: %s", error)
            await asyncio.sleep(REPORT_EVERY_S)

    async def check_health(self) -> None:
        """Asked by Serve, which replaces a replica that raises."""
        if not self.ready:
            raise CascadeError("the models are not loaded")

    async def __del__(self) -> None:
        """Called by Serve after the last request has been answered."""
        reporting: asyncio.Task[None] | None = getattr(
            self, "_reporting", None
        )  # it may not have come so far
        if reporting is not None:
            reporting.cancel()
            self.stop()
            with suppress(ray.exceptions.RayError, TimeoutError):  # the cluster may be going, too
                async with asyncio.timeout(FAREWELL_S):
                    await self._ledger.farewell.remote(self.meter.replica, self.snapshot())


def ledger_of(app: str) -> Any:
    """The actor that adds up the counts of all replicas of ``app``, started if need be; it outlives them."""
    actor = ray.remote(num_cpus=0, max_restarts=-1)(Ledger)
    return actor.options(
        name=f"cascade-ledger-{app}", namespace=NAMESPACE, lifetime="detached", get_if_exists=True
    ).remote()
