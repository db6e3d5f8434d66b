"""What is taken from the environment: the token, and Ray Serve's switches for short requests."""

from __future__ import annotations

import os

from cascade_ops.errors import ConfigError
from serve.config import ServeConfig

FEWEST_CHARACTERS = 16

ON_PORT = {
    "RAY_SERVE_ENABLE_DIRECT_INGRESS": "1",
    "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "0",
    "RAY_SERVE_PORT_QUARANTINE_S": "0",
}
"""The replica listens itself, gives the port up as soon as its requests are answered, and its successor gets it."""

FAST = {
    "RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD": "0",
    "RAY_SERVE_RUN_ROUTER_IN_SEPARATE_LOOP": "0",
    "RAY_SERVE_REQUEST_PATH_LOG_BUFFER_SIZE": "1000",
    "RAY_SERVE_LOG_TO_STDERR": "0",
    "RAY_SERVE_USE_GRPC_BY_DEFAULT": "1",
    "RAY_SERVE_FREEZE_GC_ON_STARTUP": "1",
}
"""For every process of Serve: models compute on a thread of their own here, so Serve's own loops need none, and
replicas are called by gRPC."""


def token_of(config: ServeConfig) -> str | None:
    """The bearer token. Raises ConfigError where it is missing or short."""
    if config.token_env is None:
        return None
    token = os.environ.get(config.token_env, "")
    if len(token) < FEWEST_CHARACTERS or not token.isascii() or not token.isprintable():
        raise ConfigError(
            f"token_env: expected the environment variable {config.token_env} to hold at least "
            f"{FEWEST_CHARACTERS} printable characters, found {len(token)}. Set it."
        )
    return token


def switch(port: int | None = None) -> None:
    """Set Serve's switches, where they are not set; ``port`` is where the replica listens itself.

    To be called before ray.serve is imported; Ray's processes, once started, inherit them.
    """
    for name, value in FAST.items():
        os.environ.setdefault(name, value)
    bounds = {f"RAY_SERVE_DIRECT_INGRESS_{bound}_HTTP_PORT": bound for bound in ("MIN", "MAX")}
    if port is None:
        for name in (*ON_PORT, *bounds):
            os.environ.pop(name, None)
        return
    os.environ.update(ON_PORT)
    for name, bound in bounds.items():
        os.environ[name] = str(port + (bound == "MAX"))  # the upper one is excluded
