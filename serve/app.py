"""``serve.app:build``: the application for ``serve run``, ``serve deploy`` and KubeRay.

serve run serve.app:build config=serve.yaml
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ray import serve
from ray.serve import Application

from serve.config import ServeConfig, load_config, read_config
from serve.guard import RETRY_AFTER_S
from serve.replica import Replica
from serve.settings import token_of
from serve.variants import variants_of

GRACE_LOOP_S = 0.2
HEALTH_EVERY_S = 2.0
SLACK = 1024
"""Requests for health, pages and refusals beside those that compute."""
UPSCALE_DELAY_S, DOWNSCALE_DELAY_S = 2.0, 30.0


def build(args: Mapping[str, Any]) -> Application:
    """The application of a configuration: its keys, or ``config`` with the path of a YAML file of them.

    Raises:
        ConfigError, CheckpointError, UsageError: before anything is deployed.
    """
    given = dict(args)
    path = given.pop("config", None)
    config = read_config(given) if path is None else load_config(Path(str(path)), (), **given)
    return application_of(config)


def application_of(config: ServeConfig, *, elsewhere: bool = False) -> Application:
    """One deployment: every replica has the models, the batches and the web server's routes.

    ``elsewhere``: replicas do not inherit this process's environment, so the token goes with them.
    """
    variants_of(config)
    if not config.loopback and config.token_env is None:
        warn_open(config.host)
    token = token_of(config)
    document = config.model_dump(mode="json")
    document["models"] = [
        {**model, "path": os.path.abspath(model["path"])} for model in document["models"]
    ]  # replicas start elsewhere
    options = _options(config)
    if elsewhere and token is not None:
        options["ray_actor_options"]["runtime_env"] = {"env_vars": {str(config.token_env): token}}
    deployment = serve.deployment(name="cascade", **options)(serve.ingress()(Replica))
    return deployment.bind(document)


def _options(config: ServeConfig) -> dict[str, Any]:
    scale, limits = config.replicas, config.limits
    fixed = scale.min == scale.max
    return {
        # the guard refuses what is too much, and counts it; what gets past it is not refused a second time
        "max_ongoing_requests": limits.ongoing + limits.queued + SLACK,
        "max_queued_requests": limits.queued + SLACK,
        "backpressure_config": {"status_code": 503, "retry_after_s": RETRY_AFTER_S},
        "graceful_shutdown_timeout_s": config.drain_s,
        "graceful_shutdown_wait_loop_s": GRACE_LOOP_S,
        "health_check_period_s": HEALTH_EVERY_S,
        "health_check_timeout_s": 30.0,
        "logging_config": {"log_level": "WARNING", "enable_access_log": False},
        "ray_actor_options": {"num_cpus": config.cpus, "num_gpus": config.gpus},
        **(
            {"num_replicas": scale.min}
            if fixed
            else {
                "autoscaling_config": {
                    "min_replicas": scale.min,
                    "max_replicas": scale.max,
                    "target_ongoing_requests": scale.target_ongoing,
                    "upscale_delay_s": UPSCALE_DELAY_S,
                    "downscale_delay_s": DOWNSCALE_DELAY_S,
                }
            }
        ),
    }


def warn_open(host: str) -> None:
    import warnings

    warnings.warn(f"serving on {host} without a token: anyone who reaches it may use it", stacklevel=3)
