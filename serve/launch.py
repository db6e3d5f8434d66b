"""A server on this machine: Ray, Serve and the application, started and ended together."""

from __future__ import annotations

import http.client
import logging
import os
import random
import socket
import time
from collections.abc import Collection
from contextlib import suppress
from types import TracebackType

from cascade_ops.errors import CascadeError, UsageError
from cascade_ops.progress import Progress, silent
from serve.config import ServeConfig
from serve.settings import switch, token_of

LOG = logging.getLogger("cascade.serve")
APP = "cascade"
PATIENCE_S = 600.0
QUIET_PORTS = range(20_000, 32_768)
"""Between Ray's workers' and those of outgoing connections."""
ATTEMPTS = 16


class Server:
    """A running application, as a context manager: ready inside, drained and gone afterwards.

    Ray is started for it (``address`` None) or joined.
    """

    def __init__(
        self, config: ServeConfig, *, address: str | None = None, progress: Progress = silent
    ) -> None:
        self.config, self._address, self._progress = config, address, progress
        self._owns_ray = self._running = False

    @classmethod
    def local(cls, config: ServeConfig, *, progress: Progress = silent) -> Server:
        """On a Ray of its own."""
        return cls(config, progress=progress)

    @property
    def url(self) -> str:
        host = f"[{self.config.host}]" if ":" in self.config.host else self.config.host
        return f"http://{'127.0.0.1' if host in ('0.0.0.0', '[::]') else host}:{self.config.port}"

    def __enter__(self) -> Server:
        """Raises UsageError (the port is taken), ConfigError, CheckpointError, CascadeError (it did not start)."""
        token_of(self.config)
        if os.environ.get("RAY_AUTH_MODE") == "disabled":
            LOG.warning("RAY_AUTH_MODE=disabled: whoever reaches this machine's ports can run code in Ray")
        port = free_port(self.config.host, self.config.port)
        self.config = self.config.model_copy(update={"port": port})
        direct = self.config.direct and self._address is None
        switch(port if direct else None)
        import ray
        from ray import serve

        from serve.app import application_of

        logging.getLogger("ray.serve").setLevel(logging.WARNING)  # it tells of inner addresses
        self._progress("starting Ray", 0, 3)
        self._start_ray()
        try:
            self._progress("starting Serve", 1, 3)
            serve.start(
                http_options={
                    "host": self.config.host,
                    "port": free_port(self.config.host, 0) if direct else port,
                },
                proxy_location="HeadOnly",
                logging_config={"encoding": "TEXT", "log_level": "WARNING", "enable_access_log": False},
            )
            self._progress("loading models", 2, 3)
            if not self._owns_ray:
                _free_name(serve.status().applications)
            self._running = True
            serve.run(
                application_of(self.config, elsewhere=not self._owns_ray),
                name=APP,
                route_prefix="/",
                logging_config={"log_level": "WARNING", "enable_access_log": False},
            )
            self._wait_until_ready()
        except (RuntimeError, ray.exceptions.RayError) as error:
            self.stop()
            raise CascadeError(f"the application did not start: {_reason(error)}") from error
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def stop(self) -> None:
        """Let requests finish, then end what was started here."""
        import ray
        from ray import serve

        if not ray.is_initialized():
            return
        try:
            if self._running:
                serve.delete(APP)
            if self._owns_ray:
                serve.shutdown()
        finally:
            if self._owns_ray:
                ray.shutdown()

    def _start_ray(self) -> None:
        import ray

        if ray.is_initialized():
            raise UsageError(
                "this process has joined a Ray already: a server of its own needs another process"
            )
        ray.init(
            self._address or "local",
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.ERROR,
            namespace="serve",
            num_cpus=None if self._address else max(os.cpu_count() or 1, self._cpus_needed()),
        )
        self._owns_ray = self._address is None

    def _cpus_needed(self) -> int:
        """Logical CPUs for all replicas: a small machine may still serve several."""
        return int(self.config.cpus * self.config.replicas.max) + 1

    def _wait_until_ready(self) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while status_of(self.config.host, self.config.port, "/readyz") != 200:
            if time.monotonic() > deadline:
                raise CascadeError(f"{self.url} was not ready after {PATIENCE_S:g} s")
            time.sleep(0.05)


def _free_name(applications: Collection[str]) -> None:
    if APP in applications:
        raise UsageError(
            f"the cluster serves an application called {APP!r} already. End that one first, or use serve deploy."
        )


def status_of(host: str, port: int, path: str) -> int | None:
    """The HTTP status of a GET; None where nobody answers."""
    connection = http.client.HTTPConnection("127.0.0.1" if host == "0.0.0.0" else host, port, timeout=10)
    try:
        connection.request("GET", path)
        return connection.getresponse().status
    except OSError:
        return None
    finally:
        connection.close()


def free_port(host: str, port: int) -> int:
    """``port``, or any free one for 0. Raises UsageError where it is taken or the host is not this machine's.

    Any: below those that systems give to outgoing connections, one of which could take it before the server does.
    """
    if not port:
        for choice in random.SystemRandom().sample(QUIET_PORTS, ATTEMPTS):
            with suppress(UsageError):
                return free_port(host, choice)
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise UsageError(
                f"{host}:{port}: {error.strerror or error}. Choose another: --port 0 takes any."
            ) from None
        return int(probe.getsockname()[1])


def _reason(error: Exception) -> str:
    lines = [line for line in str(error).strip().splitlines() if line.strip()]
    return lines[-1].strip() if lines else type(error).__name__
