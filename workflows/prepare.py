"""From a configuration to data and a dense model, before anything is written."""

from __future__ import annotations

import difflib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from cascade_ops.anatomy import ModelAnatomy, anatomy_of
from cascade_ops.checkpoint import load_pruned, read_config
from cascade_ops.data import Dataset, SplitData, Windows, cache_root, open_dataset
from cascade_ops.data.store import stored_split
from cascade_ops.errors import ConfigError, UnknownNameError, UsageError
from cascade_ops.models.classifier import SignalClassifier, SignalClassifierConfig
from cascade_ops.serde import to_jsonable
from cascade_ops.tasks import TaskData, diagnosis_data, lm_data
from cascade_ops.tokenizers import tokenizer_in
from workflows.config import JobConfig
from workflows.hub import CONFIG_ONLY, TOKENIZER, locate


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """The data of a run.

    ``dataset`` and ``split`` are None for texts; ``description`` is what the report says about the data.
    """

    data: TaskData
    dataset: Dataset | None
    split: SplitData | None
    description: dict[str, Any]
    fingerprint: str


def prepare_data(config: JobConfig) -> Prepared:
    """Read, split and window. Raises DataError, UsageError."""
    return _texts(config) if config.task == "lm" else _vibration(config)


def _vibration(config: JobConfig) -> Prepared:
    wanted = config.data
    path = Path(wanted.path) if wanted.path else None
    dataset = open_dataset(wanted.name, path=path, **wanted.options)
    split = stored_split(
        dataset,
        cache_root().parent / "windows",
        split=wanted.split,
        length=wanted.length,
        stride=wanted.stride,
        rate_hz=wanted.rate_hz,
        classes=wanted.classes,
    )
    prompts: dict[str, Any] = {}
    if config.model.front_end == "text":
        prompts = {"render": lambda windows: render(windows, dataset), "tokenizer": tokenizer_of(config)}
    data = diagnosis_data(
        split,
        calibration_samples=wanted.calibration,
        seed=config.seed,
        augment=wanted.augment,
        **prompts,
    )
    info = dataset.info
    description = {
        "name": info.name,
        "title": info.title,
        "source": dataset.source,
        "licence": info.licence,
        "citation": info.citation,
        "bearing": info.bearing.name if info.bearing else None,
        "geometry": to_jsonable(info.bearing),
        "recordings": len(dataset.recordings),
        "fingerprint": dataset.fingerprint,
        "length": wanted.length,
        "rate_hz": wanted.rate_hz,
        **data.metadata,
        "notes": list(dict.fromkeys([*info.notes, *split.notes])),
    }
    return Prepared(
        data=data, dataset=dataset, split=split, description=description, fingerprint=dataset.fingerprint
    )


def render(windows: Windows, dataset: Dataset) -> list[str]:
    """The physics descriptor of each window as a prompt."""
    from cascade_ops.data.descriptor import as_prompt, describe

    return [
        as_prompt(describe(signal, windows.fs_hz, float(windows.rpm[recording]), dataset.info.bearing))
        for signal, recording in zip(windows.signal, windows.recording, strict=True)
    ]


def _texts(config: JobConfig) -> Prepared:
    from cascade_ops.data.readers.base import sha256_of

    wanted = config.data
    assert wanted.train is not None  # resolve() has asked for both
    assert wanted.test is not None
    data = lm_data(
        wanted.train,
        wanted.test,
        tokenizer_of(config),
        length=wanted.length,
        calibration_samples=wanted.calibration,
        max_sequences=wanted.sequences,
        seed=config.seed,
    )
    fingerprint = "-".join(sha256_of(Path(file)) for file in (wanted.train, wanted.test))
    description = {
        "name": Path(wanted.train).stem,
        "source": "recorded",
        "fingerprint": fingerprint,
        "notes": [f"perplexity at a sequence length of {wanted.length} tokens"],
        **data.metadata,
    }
    return Prepared(data=data, dataset=None, split=None, description=description, fingerprint=fingerprint)


def tokenizer_of(config: JobConfig) -> Any:
    """The backbone's own tokenizer. Raises ConfigError, UsageError."""
    source = config.model.tokenizer or config.model.path
    if source is None:
        raise ConfigError("model.tokenizer: is required where the model is built from a config")
    return tokenizer_in(locate(source, what="tokenizer", files=TOKENIZER))


def build_dense(config: JobConfig, data: TaskData) -> PreTrainedModel:
    """The untrained (or pretrained) dense model.

    Raises:
        ConfigError, UnknownNameError, UsageError: no such architecture, config field or weights.
    """
    if config.task == "lm":
        return _language_model(config)
    wanted = config.model
    shape: dict[str, Any] = {
        "front_end": wanted.front_end,
        "window": config.data.length,
        "patch": wanted.patch,
        "filters": wanted.filters,
        "taps": wanted.taps,
        "classes": list(data.classes),
        "head_dropout": wanted.dropout,
    }
    if wanted.path is None:
        _check_tokens(config)
        return SignalClassifier(SignalClassifierConfig(backbone_config=backbone_config(config), **shape))
    folder = locate(wanted.path)
    saved = read_config(folder)
    if saved.model_type == SignalClassifierConfig.model_type:
        return _saved_classifier(folder, saved, data)
    return SignalClassifier.from_backbone(str(folder), **shape)


def _saved_classifier(path: Path, saved: PreTrainedConfig, data: TaskData) -> PreTrainedModel:
    if list(saved.classes) != list(data.classes):
        raise UsageError(
            f"{path}: was trained for classes {', '.join(saved.classes)}; the data has {', '.join(data.classes)}"
        )
    return load_pruned(path)


def _language_model(config: JobConfig) -> PreTrainedModel:
    path = config.model.path
    if path is None:
        fresh: PreTrainedModel = AutoModelForCausalLM.from_config(backbone_config(config))
        return fresh
    return load_pruned(locate(path))


def backbone_config(config: JobConfig) -> PreTrainedConfig:
    """``model.config`` as a transformers config, misspelt fields refused."""
    given = dict(config.model.config or {})
    name = given.pop("model_type")
    if name not in CONFIG_MAPPING:
        close = difflib.get_close_matches(str(name), list(CONFIG_MAPPING), n=1, cutoff=0.5)
        hint = f" Did you mean {close[0]!r}?" if close else ""
        raise ConfigError(f"model.config.model_type: transformers knows no {name!r}.{hint}")
    defaults = AutoConfig.for_model(name)
    known = {*defaults.to_dict(), *defaults.attribute_map}
    for key in given:
        if key not in known:
            close = difflib.get_close_matches(key, sorted(known), n=1, cutoff=0.5)
            hint = f" Did you mean {close[0]!r}?" if close else ""
            raise ConfigError(f"model.config.{key}: {name} has no such field.{hint}")
    if config.task == "lm" and "vocab_size" not in given:
        given["vocab_size"] = len(tokenizer_of(config))
    try:
        return AutoConfig.for_model(name, **given)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"model.config: {name} refuses it: {error}") from None


def dense_anatomy(config: JobConfig) -> ModelAnatomy:
    """The anatomy of the dense model, from its config alone.

    Raises:
        UsageError: no such model, or a family that is not supported.
    """
    if config.model.path is None:
        return anatomy_of(backbone_config(config))
    return anatomy_of(read_config(locate(config.model.path, files=CONFIG_ONLY)))


def _check_tokens(config: JobConfig) -> None:
    limit = getattr(backbone_config(config), "max_position_embeddings", None)
    tokens = config.data.length // config.model.patch
    if config.model.front_end == "patch" and isinstance(limit, int) and tokens > limit:
        raise ConfigError(
            f"model.config: {config.data.length} samples in patches of {config.model.patch} are {tokens} tokens, "
            f"the model has {limit} positions. Raise them, or model.patch."
        )


def with_data(config: JobConfig, *, name: str | None, path: str | None, split: str | None) -> JobConfig:
    """The configuration with other data. Raises UnknownNameError."""
    from cascade_ops.data import DATASETS

    if name is not None and config.task == "diagnosis" and name not in ("auto", *DATASETS):
        raise UnknownNameError("dataset", name, ("auto", *DATASETS))
    changes = {"name": name, "path": path, "split": split}
    given: dict[str, Any] = {key: value for key, value in changes.items() if value is not None}
    if name is not None and "path" not in given:
        given |= {"path": None, "options": {}}  # another dataset's
    return replace(config, data=replace(config.data, **given))
