"""What is served and how, as YAML or a mapping; checked before anything starts.

Ray Serve accepts misspelt keys in silence, so nothing reaches it unchecked.
"""

from __future__ import annotations

import difflib
import ipaddress
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from cascade_ops.errors import ConfigError
from serve.errors import worded

NAME = r"^[A-Za-z0-9][A-Za-z0-9._:-]{0,63}$"
BASELINE = "dense"


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ModelConfig(_Strict):
    """One model: a run, or a model folder; its own engine where it differs."""

    path: str
    name: Annotated[str, Field(pattern=NAME)] | None = None
    engine: str | None = None


class BatchConfig(_Strict):
    """Requests that wait are computed together, ``size`` at most; ``wait_ms`` waits for more to come.

    Without waiting a batch is what arrived while the one before it was computed.
    """

    size: Annotated[int, Field(ge=1, le=1024)] = 32
    wait_ms: Annotated[float, Field(ge=0, le=1000)] = 0.0


class ScaleConfig(_Strict):
    """Replicas: ``min`` to ``max``, so many that each has about ``target_ongoing`` requests in hand."""

    min: Annotated[int, Field(ge=1)] = 1
    max: Annotated[int, Field(ge=1)] = 1
    target_ongoing: Annotated[float, Field(gt=0)] = 16.0

    @model_validator(mode="after")
    def _ordered(self) -> ScaleConfig:
        if self.max < self.min:
            raise ValueError(f"max must be at least min ({self.min}), got {self.max}")
        return self


class LimitConfig(_Strict):
    """What one request, and what all of them together, may ask for.

    A replica has at most ``ongoing`` + ``queued`` requests in hand; more are refused with 503. A body must be there
    after ``body_s`` seconds.
    """

    body_mb: Annotated[float, Field(gt=0, le=1024)] = 32.0
    body_s: Annotated[float, Field(gt=0)] = 30.0
    samples: Annotated[int, Field(ge=64)] = 4_000_000
    recordings: Annotated[int, Field(ge=1)] = 256
    tokens: Annotated[int, Field(ge=1)] = 512
    ongoing: Annotated[int, Field(ge=1)] = 64
    queued: Annotated[int, Field(ge=0)] = 64


class BearingConfig(_Strict):
    """Geometry of the bearing, where the run does not know it; lengths in any one unit, the angle in degrees."""

    name: str = "bearing"
    balls: Annotated[int, Field(gt=0)]
    ball_diameter: Annotated[float, Field(gt=0)]
    pitch_diameter: Annotated[float, Field(gt=0)]
    contact_angle_deg: Annotated[float, Field(ge=0, lt=90)] = 0.0


class ServeConfig(_Strict):
    """An application. ``loaded`` models are in memory at a time; others come and go as they are asked for.

    ``bitwise`` answers do not depend on what else was in the batch, to the last bit (a lone window is
    computed twice over). ``token_env`` names the environment variable that holds the bearer token. ``front``:
    ``direct``, the one replica listens on ``port`` itself; ``proxy``, Serve's proxy does and shares the requests out
    among replicas, which costs each some milliseconds; ``auto``, direct for one replica on this machine.
    """

    models: Annotated[tuple[ModelConfig, ...], Field(min_length=1)]
    baseline: Literal["dense", "none"] = "dense"
    engine: str = "eager"
    batch: BatchConfig = BatchConfig()
    replicas: ScaleConfig = ScaleConfig()
    limits: LimitConfig = LimitConfig()
    bearing: BearingConfig | None = None
    loaded: Annotated[int, Field(ge=1)] = 4
    threads: Annotated[int, Field(ge=1)] = 1
    cpus: Annotated[float, Field(ge=0)] = 1.0
    gpus: Annotated[float, Field(ge=0)] = 0.0
    bitwise: bool = False
    token_env: str | None = None
    front: Literal["auto", "direct", "proxy"] = "auto"
    host: str = "127.0.0.1"
    port: Annotated[int, Field(ge=0, le=65535)] = 8000
    drain_s: Annotated[float, Field(ge=0)] = 20.0

    @model_validator(mode="after")
    def _consistent(self) -> ServeConfig:
        if self.batch.size > self.limits.ongoing:
            raise ValueError(
                f"batch.size ({self.batch.size}) must not exceed limits.ongoing ({self.limits.ongoing}): "
                "such a batch would never fill"
            )
        if self.front == "direct" and self.replicas.max > 1:
            raise ValueError("front: direct is for one replica; several are reached by front: proxy")
        from cascade_ops.engines import ENGINES

        for engine in {self.engine, *(model.engine for model in self.models if model.engine)}:
            ENGINES[engine]
        return self

    @property
    def direct(self) -> bool:
        """Whether the replica listens itself."""
        return self.front == "direct" or (self.front == "auto" and self.replicas.max == 1)

    @property
    def loopback(self) -> bool:
        """Whether only this machine can reach it."""
        return is_loopback(self.host)


def is_loopback(host: str) -> bool:
    """``localhost`` and the loopback addresses."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"


def read_config(document: Mapping[str, Any]) -> ServeConfig:
    """A checked configuration.

    Raises:
        ConfigError: ``limits.body_mb: …``, with every finding's place, and "did you mean" for keys.
        UnknownNameError: no such engine.
    """
    try:
        return ServeConfig.model_validate(document)
    except ValidationError as error:
        raise ConfigError(_located(error)) from None


def load_config(
    path: Path | None, models: Sequence[str], settings: Sequence[str] = (), **given: Any
) -> ServeConfig:
    """The YAML file, overridden by what was ``given`` (None: not) and by ``a.b=value`` settings.

    ``models`` are ``[NAME=]PATH``.

    Raises:
        ConfigError: as in ``read_config``, or the file cannot be read.
    """
    document = _read(path) if path is not None else {}
    if models:
        document["models"] = [model_of(text) for text in models]
    document |= {key: value for key, value in given.items() if value is not None}
    for setting in settings:
        _override(document, setting)
    if not document.get("models"):
        raise ConfigError("models: is required: name a run, as in `cascade serve runs/demo`")
    return read_config(document)


def model_of(text: str) -> dict[str, str]:
    """``NAME=PATH`` or ``PATH``."""
    name, found, path = text.partition("=")
    return {"name": name, "path": path} if found and re.match(NAME, name) else {"path": text}


def _read(path: Path) -> dict[str, Any]:
    try:
        document = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"{path}: expected a YAML file, found {str(error).splitlines()[0]}") from None
    if not isinstance(document, dict):
        raise ConfigError(f"{path}: expected a mapping of keys to values, found {type(document).__name__}")
    return document


def _override(document: dict[str, Any], setting: str) -> None:
    place, found, value = setting.partition("=")
    if not found or not place:
        raise ConfigError(f"--set {setting}: expected key=value, as in limits.queued=128")
    *parents, last = place.split(".")
    for key in parents:
        document = document.setdefault(key, {})
        if not isinstance(document, dict):
            raise ConfigError(f"--set {setting}: {key} holds no keys")
    document[last] = yaml.safe_load(value)


def _located(error: ValidationError) -> str:
    findings = sorted(error.errors(), key=lambda finding: finding["type"] != "extra_forbidden")
    first = findings[0]
    where = ".".join(map(str, first["loc"]))
    more = f" (and {len(findings) - 1} more)" if len(findings) > 1 else ""
    if first["type"] == "extra_forbidden":
        known = _keys(first["loc"][:-1])
        close = difflib.get_close_matches(str(first["loc"][-1]), known, n=1)
        hint = f" Did you mean {close[0]!r}?" if close else ""
        return f"{where}: unknown key.{hint} Known: {', '.join(known)}." + more
    what = worded(first["msg"].removeprefix("Value error, "))
    got = "" if first["type"] in ("missing", "value_error") else f", got {first['input']!r}"
    return f"{where}: {what}{got}{more}" if where else f"{what}{more}"


def _keys(place: tuple[int | str, ...]) -> list[str]:
    """The keys that a configuration has at ``place``."""
    kinds: dict[str, type[BaseModel]] = {
        "models": ModelConfig,
        "batch": BatchConfig,
        "replicas": ScaleConfig,
        "limits": LimitConfig,
        "bearing": BearingConfig,
    }
    kind = kinds[str(place[0])] if place else ServeConfig
    return list(kind.model_fields)
