"""The models on offer: what a run directory, or a model folder, says about each, without loading its weights."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml

from cascade_ops.anatomy import anatomy_of
from cascade_ops.checkpoint import read_config
from cascade_ops.data.readers import DATASETS
from cascade_ops.data.resample import COMMON_RATE_HZ
from cascade_ops.data.types import Bearing
from cascade_ops.diagnosis import Expected
from cascade_ops.errors import CheckpointError, ConfigError, UsageError
from cascade_ops.results import Metric
from cascade_ops.serde import from_jsonable
from cascade_ops.tokenizers import has_tokenizer
from cascade_ops.weights import weight_files
from serve.config import BASELINE, ServeConfig

VERSION_DIGITS = 12


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """One model on offer.

    ``version`` are the first digits of a SHA-256 over its configuration and weights; ``compression`` is how many
    times smaller its backbone is than the dense one's; ``tokenizer`` is where a language model's is.
    """

    name: str
    folder: Path
    title: str
    task: str
    engine: str
    version: str
    created: int
    backbone_params: int
    total_params: int
    size_bytes: int
    baseline: bool = False
    compression: float | None = None
    metric: Metric | None = None
    classes: tuple[str, ...] = ()
    expected: Expected | None = None
    tokenizer: Path | None = None


def variants_of(config: ServeConfig) -> dict[str, Variant]:
    """Every model that ``config`` offers, by name, compressed ones first; the first is the default.

    Raises:
        CheckpointError: a folder is no finished run and no model.
        ConfigError: two of one name, or of two tasks.
        UsageError: a model that cannot be served.
    """
    found: dict[str, Variant] = {}
    for given in config.models:
        path = Path(given.path)
        run = _run(path)
        name = given.name or (path.resolve().name if run is None or path.is_dir() else path.stem)
        variant = _variant(path, run, name, given.engine or config.engine, config)
        if name in found:
            raise ConfigError(f"models: two are called {name!r}. Name them apart: NAME=PATH")
        found[name] = variant
    if config.baseline == BASELINE:
        dense = next(filter(None, (_dense(Path(given.path), config) for given in config.models)), None)
        if dense is not None and dense.version not in {variant.version for variant in found.values()}:
            if BASELINE in found:
                raise ConfigError("models: 'dense' is the baseline's name. Choose another, or baseline: none")
            found[BASELINE] = dense
    if len({variant.task for variant in found.values()}) > 1:
        raise ConfigError("models: classifiers and language models are served apart. Name models of one task")
    return found


def _run(path: Path) -> dict[str, Any] | None:
    """The report of a run directory; None for a model folder."""
    if not path.is_dir():
        raise CheckpointError(f"{path}: expected a run directory or a model folder, found no such folder")
    if (path / "report.json").is_file():
        try:
            document: dict[str, Any] = json.loads((path / "report.json").read_text(encoding="utf-8"))
            if not str(document["schema"]).startswith("cascade.report/"):
                raise ValueError(f"the schema {document['schema']!r}")
        except (ValueError, KeyError, TypeError) as error:
            raise CheckpointError(f"{path}/report.json: expected a run's report, found {error}") from None
        return document
    if (path / "config.yaml").is_file():
        raise CheckpointError(f"{path}: has no report yet. Finish it: cascade compress --resume {path}")
    return None


def _variant(path: Path, run: dict[str, Any] | None, name: str, engine: str, config: ServeConfig) -> Variant:
    if run is None:
        return _described(path, name, engine, config, source=path, run={}, title=name)
    factor = run["compression"]["backbone"]
    return _described(
        path / run["artifacts"]["model"],
        name,
        engine,
        config,
        source=path,
        run=run,
        title=f"{run['model']}, {factor:.3g}× smaller",
        side="final",
        compression=factor,
    )


def _dense(path: Path, config: ServeConfig) -> Variant | None:
    """The dense model that a run started from, where the run kept it."""
    run = _run(path)
    if run is None or "dense_model" not in run["artifacts"]:
        return None
    folder = path / run["artifacts"]["dense_model"]
    title = f"{run['model']}, dense"
    return _described(
        folder,
        BASELINE,
        config.engine,
        config,
        source=path,
        run=run,
        title=title,
        side=BASELINE,
        baseline=True,
    )


def _described(
    folder: Path,
    name: str,
    engine: str,
    config: ServeConfig,
    *,
    source: Path,
    run: Mapping[str, Any],
    title: str,
    side: str = "",
    compression: float | None = None,
    baseline: bool = False,
) -> Variant:
    saved = read_config(folder)
    anatomy = anatomy_of(saved)
    is_classifier = saved.model_type == "signal_classifier"
    if is_classifier and saved.front_end != "patch":
        raise UsageError(
            f"{folder}: its front end is {saved.front_end!r}; only signals ('patch') are served. Serve another model."
        )
    files = weight_files(folder)
    return Variant(
        name=name,
        folder=folder,
        title=title,
        task="diagnosis" if is_classifier else "lm",
        engine=engine,
        version=_version([folder / "config.json", *files]),
        created=int((folder / "config.json").stat().st_mtime),
        backbone_params=anatomy.backbone_params,
        total_params=anatomy.total_params,
        size_bytes=sum(file.stat().st_size for file in files),
        baseline=baseline,
        compression=compression,
        metric=_metric(run, side),
        classes=tuple(saved.classes) if is_classifier else (),
        expected=_expected(saved.window, run, config) if is_classifier else None,
        tokenizer=None if is_classifier else _tokenizer(folder, source),
    )


def _version(files: list[Path]) -> str:
    return _digits(tuple((file, file.stat().st_size, file.stat().st_mtime_ns) for file in files))


@lru_cache(maxsize=64)
def _digits(files: tuple[tuple[Path, int, int], ...]) -> str:
    """Gigabytes are read once, though a configuration is checked in several places."""
    whole = hashlib.sha256()
    for file, _, _ in files:
        with file.open("rb") as stream:
            whole.update(hashlib.file_digest(stream, "sha256").digest())
    return whole.hexdigest()[:VERSION_DIGITS]


def _metric(run: Mapping[str, Any], side: str) -> Metric | None:
    """A run's headline figure of its dense or final model."""
    found = run.get("metric")
    if not found or found.get(side) is None:
        return None
    low, high = found.get(f"{side}_ci") or (found[side], found[side])
    return Metric(name=found["name"], value=found[side], low=low, high=high, samples=found["samples"])


def _expected(window: int, run: Mapping[str, Any], config: ServeConfig) -> Expected:
    data = run.get("data") or {}
    return Expected(
        window=window, rate_hz=float(data.get("rate_hz") or COMMON_RATE_HZ), bearing=_bearing(data, config)
    )


def _bearing(data: Mapping[str, Any], config: ServeConfig) -> Bearing | None:
    """As configured, or as the run's data description has it."""
    if config.bearing is not None:
        return Bearing(**config.bearing.model_dump())
    if data.get("geometry"):
        return from_jsonable(Bearing, data["geometry"])
    name = str(data.get("name", ""))
    return DATASETS[name].info.bearing if name in DATASETS else None


def _tokenizer(folder: Path, source: Path) -> Path:
    """The model folder, or where the run's configuration points. Raises CheckpointError."""
    candidates = [folder]
    if (source / "config.yaml").is_file():
        model = (yaml.safe_load((source / "config.yaml").read_text(encoding="utf-8")) or {}).get(
            "model"
        ) or {}
        candidates += [Path(model[key]) for key in ("tokenizer", "path") if model.get(key)]
    for candidate in candidates:
        if has_tokenizer(candidate):
            return candidate
    raise CheckpointError(
        f"{folder}: expected a tokenizer beside the model or where its run names one, found none in "
        f"{', '.join(map(str, candidates))}. Copy tokenizer.json into the model folder."
    )
