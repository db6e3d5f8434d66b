"""The server to be measured: whether it may be, what it offers, and what it says of itself."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import aiohttp
from prometheus_client.parser import text_string_to_metric_families

from cascade_ops.errors import CascadeError, ConfigError, UsageError
from cascade_ops.loadtest.results import ModelFacts
from cascade_ops.results import Metric
from cascade_ops.serde import from_jsonable
from serve.config import is_loopback

PATIENCE_S = 10.0
LARGEST = 4 * 2**20


def checked_url(text: str, *, allow_remote: bool) -> str:
    """``text`` without a trailing slash.

    Raises:
        UsageError: no HTTP address, or another machine's without ``allow_remote``: load is an attack on whoever did
            not ask for it.
    """
    try:
        parts = urlsplit(text)
        host, port = parts.hostname, parts.port
    except ValueError:
        host, port = None, None
    if host is None or port == 0 or parts.scheme not in ("http", "https") or parts.query or parts.fragment:
        raise UsageError(f"--url {text}: expected an address such as http://127.0.0.1:8000")
    if parts.username or parts.password:
        raise UsageError("--url: has a user or password in it. Give a token by --token-env NAME instead.")
    if not allow_remote and not is_here(text):
        raise UsageError(
            f"--url {text}: expected a server on this machine, found {host}. If it is yours to load: --allow-remote."
        )
    return text.rstrip("/")


def is_here(url: str) -> bool:
    """Whether the server is on this machine."""
    return is_loopback(urlsplit(url).hostname or "")


def token_from(name: str | None) -> str | None:
    """The bearer token in the environment variable ``name``. Raises ConfigError where there is none."""
    if name is None:
        return None
    token = os.environ.get(name, "")
    if not token or not token.isascii() or not token.isprintable():
        raise ConfigError(
            f"--token-env {name}: expected a token in this environment variable, found none. Set it."
        )
    return token


async def fetch(session: aiohttp.ClientSession, url: str) -> tuple[int, bytes]:
    """Status and body of a GET. Raises CascadeError where nobody answers, or too much."""
    try:
        timeout = aiohttp.ClientTimeout(total=PATIENCE_S)
        async with session.get(url, allow_redirects=False, timeout=timeout) as answer:
            pieces, size = [], 0
            async for piece in answer.content.iter_chunked(2**16):
                pieces.append(piece)
                size += len(piece)
                if size > LARGEST:
                    raise CascadeError(f"{url}: answered with more than {LARGEST} bytes")
            return answer.status, b"".join(pieces)
    except (aiohttp.ClientError, TimeoutError) as error:
        raise CascadeError(f"{url}: does not answer ({str(error) or 'timeout'}). Is the server up?") from None


async def models_of(session: aiohttp.ClientSession, url: str) -> tuple[ModelFacts, ...]:
    """What ``GET /v1/models`` lists. Raises CascadeError where it is not such a list."""
    status, body = await fetch(session, f"{url}/v1/models")
    if status in (401, 403):
        raise UsageError(f"{url}: asks for a token (status {status}). Name its variable: --token-env NAME.")
    if status != 200:
        raise CascadeError(f"{url}/v1/models: expected status 200, found {status}. Is it cascade serve?")
    try:
        found = tuple(_facts(entry) for entry in json.loads(body)["data"])
    except (ValueError, KeyError, TypeError) as error:
        raise CascadeError(f"{url}/v1/models: expected a list of models, found {error!r:.200}") from None
    if not found:
        raise CascadeError(f"{url}/v1/models: offers no model")
    return found


def _facts(entry: Mapping[str, Any]) -> ModelFacts:
    metric, rate, compression = (entry.get(name) for name in ("metric", "rate_hz", "compression"))
    return ModelFacts(
        name=str(entry["id"]),
        title=str(entry.get("title", entry["id"])),
        task=str(entry.get("task", "diagnosis")),
        engine=entry.get("engine"),
        version=entry.get("version"),
        baseline=bool(entry.get("baseline", False)),
        compression=None if compression is None else float(compression),
        backbone_params=int(entry.get("backbone_params", 0)),
        total_params=int(entry.get("total_params", 0)),
        size_bytes=int(entry.get("size_bytes", 0)),
        metric=None if not metric else from_jsonable(Metric, metric),
        window=entry.get("window"),
        rate_hz=None if rate is None else float(rate),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Scrape:
    """``GET /metrics`` at one moment. ``batches``: (batches, requests in them) of each model, so far."""

    resident_bytes: float = 0.0
    peak_bytes: float = 0.0
    cuda_bytes: float | None = None
    replicas: int = 1
    batches: Mapping[str, tuple[float, float]]


async def scrape(session: aiohttp.ClientSession, url: str) -> Scrape | None:
    """None where the server has no such page, or does not show it."""
    try:
        status, body = await fetch(session, f"{url}/metrics")
        return read_metrics(body.decode("utf-8")) if status == 200 else None
    except (CascadeError, ValueError):
        return None


def read_metrics(text: str) -> Scrape:
    """Prometheus' text; memory is summed over replicas. Raises ValueError where it cannot be read."""
    sums: dict[str, float] = {}
    batches: dict[str, tuple[float, float]] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            model = sample.labels.get("model", "")
            count, total = batches.get(model, (0.0, 0.0))
            if sample.name == "cascade_batch_size_count":
                batches[model] = (count + sample.value, total)
            elif sample.name == "cascade_batch_size_sum":
                batches[model] = (count, total + sample.value)
            else:
                sums[sample.name] = sums.get(sample.name, 0.0) + sample.value
    return Scrape(
        resident_bytes=sums.get("cascade_resident_bytes", 0.0),
        peak_bytes=sums.get("cascade_peak_resident_bytes", 0.0),
        cuda_bytes=sums.get("cascade_cuda_bytes"),
        replicas=int(sums.get("cascade_replicas", 1)),
        batches=batches,
    )
