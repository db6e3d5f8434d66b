"""The job's configuration: one typed schema, read from YAML, overridden by ``a.b=c``, errors located.

A file that gives only ``schedule.target`` gets the stages of ``default_schedule``; ``resolve`` writes them
out, so that a recorded configuration says everything and needs no later interpretation.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field, replace
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BeforeValidator, ConfigDict, TypeAdapter, ValidationError, WrapValidator

from cascade_ops.anatomy import ModelAnatomy
from cascade_ops.augment import Augment
from cascade_ops.errors import ConfigError, UnknownNameError
from cascade_ops.schedule import CascadeSchedule, Recovery, Stage
from cascade_ops.serde import to_jsonable
from cascade_ops.training import TrainConfig
from cascade_ops.zero import Zero
from workflows.located import keep_location, located_message
from workflows.overrides import apply_override

FORBID = ConfigDict(extra="forbid")
Task = Literal["diagnosis", "lm"]
FrontEnd = Literal["patch", "text"]


def parse_target(value: Any) -> Any:
    """``13.8x``, ``13.8×``, ``"13.8"`` and 13.8 all mean 13.8."""
    if not isinstance(value, str):
        return value
    try:
        return float(value.strip().rstrip("xX×").strip())
    except ValueError:
        raise ConfigError(f"must be a compression such as 13.8x, got {value!r}") from None


Target = Annotated[float, BeforeValidator(parse_target), WrapValidator(keep_location)]
LocatedAugment = Annotated[Augment, WrapValidator(keep_location)]
LocatedStage = Annotated[Stage, WrapValidator(keep_location)]
LocatedRecovery = Annotated[Recovery, WrapValidator(keep_location)]
LocatedTrain = Annotated[TrainConfig, WrapValidator(keep_location)]


@dataclass(frozen=True, slots=True, kw_only=True)
class DataConfig:
    """What the model learns from.

    Attributes:
        name: a dataset's name; ``auto`` takes recordings where they are found and simulates otherwise;
            ``text`` reads the files ``train`` and ``test`` (task ``lm``).
        path: the dataset's folder, where it is not in a default place.
        split: ``time``, ``load:3``, ``bearing:…``.
        length: samples per window, or tokens per sequence.
        stride: samples from one window to the next.
        rate_hz: everything is resampled to this rate.
        classes: only these labels; all by default.
        calibration: samples from which importance is estimated.
        augment: how training signals are varied; ``{speed: 0, noise: 0}`` leaves them alone.
        options: passed to the dataset's reader (``seconds`` of the simulator, say).
        train, test: text files.
        sequences: at most so many of each side (texts).
    """

    __pydantic_config__ = FORBID

    name: str = "auto"
    path: str | None = None
    split: str = "load:3"
    length: int = 1024
    stride: int = 256
    rate_hz: float = 12000.0
    classes: tuple[str, ...] | None = None
    calibration: int = 256
    augment: LocatedAugment = field(default_factory=Augment)
    options: dict[str, Any] = field(default_factory=dict)
    train: str | None = None
    test: str | None = None
    sequences: int | None = None

    def __post_init__(self) -> None:
        for name in ("length", "stride", "rate_hz", "calibration", "sequences"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ConfigError(f"{name}: must be > 0, got {getattr(self, name)}")


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    """The dense model: a transformers config to train from scratch, or weights by path or hub name.

    ``front_end``, ``patch``, ``filters``, ``taps`` and ``dropout`` concern task ``diagnosis``
    (``SignalClassifierConfig``); ``tokenizer`` (a path or hub name; ``path`` by default) the text front
    end and task ``lm``.
    """

    __pydantic_config__ = FORBID

    config: dict[str, Any] | None = None
    path: str | None = None
    front_end: FrontEnd = "patch"
    patch: int = 32
    filters: int = 64
    taps: int = 64
    dropout: float = 0.0
    tokenizer: str | None = None

    def __post_init__(self) -> None:
        if (self.config is None) == (self.path is None):
            got = "neither" if self.config is None else "both"
            raise ConfigError(f"config, path: give exactly one, got {got}")
        if self.config is not None and "model_type" not in self.config:
            raise ConfigError("config.model_type: is required (gpt2, llama, …)")
        for name in ("patch", "filters", "taps"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}: must be ≥ 1, got {getattr(self, name)}")


@dataclass(frozen=True, slots=True, kw_only=True)
class ScheduleConfig:
    """Give ``target`` for the default cascade, or ``stages`` for any other."""

    __pydantic_config__ = FORBID

    target: Target | None = None
    stages: tuple[LocatedStage, ...] | None = None
    recovery: LocatedRecovery = field(default_factory=Recovery)
    rescore: bool = True

    def __post_init__(self) -> None:
        if (self.target is None) == (self.stages is None):
            got = "neither" if self.stages is None else "both"
            raise ConfigError(f"target, stages: give exactly one, got {got}")
        if self.target is not None and not self.target > 1:
            raise ConfigError(f"target: must be a compression > 1, got {self.target:g}")
        if self.stages is not None:
            self.build()

    def build(self, anatomy: ModelAnatomy | None = None) -> CascadeSchedule:
        """The schedule itself. ``anatomy`` lets a bare target choose units that share no weights."""
        if self.stages is None:
            from cascade_ops.cascade import default_schedule

            assert self.target is not None
            return replace(
                default_schedule(self.target, anatomy), recovery=self.recovery, rescore=self.rescore
            )
        return CascadeSchedule(stages=self.stages, recovery=self.recovery, rescore=self.rescore)


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoringConfig:
    """Where importance is estimated: in the job's own process, or on a Ray cluster.

    Attributes:
        workers: Ray actors; 0 is the job's own process.
        shards: parts of the model; None: the fewest that fit the workers' memory.
        threads: of each worker.
        address: of a Ray cluster; None starts one here.
    """

    __pydantic_config__ = FORBID

    workers: int = 0
    shards: int | None = None
    threads: int = 1
    address: str | None = None

    def __post_init__(self) -> None:
        if self.workers < 0:
            raise ConfigError(f"workers: must be ≥ 0, got {self.workers}")
        for name in ("shards", "threads"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"{name}: must be ≥ 1, got {value}")
        if self.workers == 0 and (self.shards is not None or self.address is not None):
            raise ConfigError("shards, address: concern workers on a cluster; give workers ≥ 1")


@dataclass(frozen=True, slots=True, kw_only=True)
class RecoveringConfig:
    """Where recovery fits run: in the job's own process, or by DeepSpeed on a Ray cluster.

    Attributes:
        workers: processes that share each step's batch; 0 is the job's own process, without DeepSpeed.
        zero: what DeepSpeed divides among them, and how.
        threads: of each worker.
        address: of a Ray cluster; None starts one here.
    """

    __pydantic_config__ = FORBID

    workers: int = 0
    zero: Annotated[Zero, WrapValidator(keep_location)] = field(default_factory=Zero)
    threads: int = 1
    address: str | None = None

    def __post_init__(self) -> None:
        if self.workers < 0:
            raise ConfigError(f"workers: must be ≥ 0, got {self.workers}")
        if self.threads < 1:
            raise ConfigError(f"threads: must be ≥ 1, got {self.threads}")
        if self.workers == 0 and (self.zero != Zero() or self.address is not None):
            raise ConfigError("zero, address: concern workers on a cluster; give workers ≥ 1")

    def numerics(self) -> dict[str, Any]:
        """What changes results by more than the order of sums: not how many workers share them, or how."""
        if self.zero.config is None:
            return {"dtype": self.zero.dtype, "deepspeed": None}
        path = Path(self.zero.config)
        content = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "missing"
        return {"dtype": self.zero.dtype, "deepspeed": content}


@dataclass(frozen=True, slots=True, kw_only=True)
class JobConfig:
    """One run of ``cascade compress``.

    ``threads`` are torch's; None takes every core. ``device`` is ``cpu``, ``cuda`` or ``auto`` (a GPU
    where there is one). Both are recorded, since sums of floats depend on how they are divided. ``tracking`` names what
    loss curves are written for (``tensorboard``, ``mlflow``, ``wandb``). ``store`` is
    a folder or URL (``s3://bucket/steps``) where finished steps are kept for this and other runs.
    """

    __pydantic_config__ = FORBID

    model: Annotated[ModelConfig, WrapValidator(keep_location)]
    schedule: Annotated[ScheduleConfig, WrapValidator(keep_location)]
    data: Annotated[DataConfig, WrapValidator(keep_location)] = field(default_factory=DataConfig)
    train: LocatedTrain = field(default_factory=TrainConfig)
    scoring: Annotated[ScoringConfig, WrapValidator(keep_location)] = field(default_factory=ScoringConfig)
    recovering: Annotated[RecoveringConfig, WrapValidator(keep_location)] = field(
        default_factory=RecoveringConfig
    )
    task: Task = "diagnosis"
    seed: int = 0
    threads: int | None = None
    device: Literal["auto", "cpu", "cuda"] = "auto"
    out: str | None = None
    store: str | None = None
    tracking: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.threads is not None and self.threads < 1:
            raise ConfigError(f"threads: must be ≥ 1, got {self.threads}")
        if self.seed < 0:
            raise ConfigError(f"seed: must be ≥ 0, got {self.seed}")


def default_document() -> dict[str, Any]:
    """The packaged default, as read from its YAML file."""
    text = resources.files("workflows").joinpath("defaults/demo.yaml").read_text(encoding="utf-8")
    document: dict[str, Any] = yaml.safe_load(text)
    return document


def read_document(path: Path) -> dict[str, Any]:
    """A configuration file as plain data. Raises ConfigError."""
    try:
        document = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{path}: expected a configuration file, found no such file") from None
    except (IsADirectoryError, UnicodeDecodeError):
        raise ConfigError(f"{path}: expected a YAML file, found something else") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{path}:{mark.line + 1}" if mark else str(path)
        raise ConfigError(f"{where}: not YAML: {getattr(error, 'problem', None) or error}") from None
    if not isinstance(document, dict):
        raise ConfigError(f"{path}: expected a mapping of keys to values, found {type(document).__name__}")
    return document


def override(document: dict[str, Any], settings: list[str]) -> dict[str, Any]:
    """``document`` with each ``a.b=c`` applied; ``c`` is YAML. Raises ConfigError."""
    for setting in settings:
        if setting.startswith("schedule.stages."):
            document = _with_explicit_stages(document)
        document = apply_override(document, setting)
    return document


def _with_explicit_stages(document: dict[str, Any]) -> dict[str, Any]:
    """So that ``schedule.stages.0.ratio=0.5`` can change one of the stages that a target stands for."""
    schedule = document.get("schedule")
    if not isinstance(schedule, dict) or "stages" in schedule or "target" not in schedule:
        return document
    stages = _built(validate(document)).stages
    rest = {key: value for key, value in schedule.items() if key != "target"}
    return {**document, "schedule": {**rest, "stages": to_jsonable(stages)}}


def _built(config: JobConfig) -> CascadeSchedule:
    from workflows.prepare import dense_anatomy

    return config.schedule.build(dense_anatomy(config) if config.schedule.stages is None else None)


def validate(document: dict[str, Any]) -> JobConfig:
    """Check types, ranges and keys. Raises ConfigError that starts with where.

    A ``search`` section is for ``cascade search`` and does not concern a run.
    """
    document = {key: value for key, value in document.items() if key != "search"}
    try:
        return TypeAdapter(JobConfig).validate_python(document)
    except ValidationError as error:
        raise ConfigError(located_message(error, JobConfig)) from None


@dataclass(frozen=True, slots=True, kw_only=True)
class _RecoveryOnly:
    """What of a job's configuration a recovery by itself needs."""

    __pydantic_config__ = FORBID

    recovery: LocatedRecovery
    recovering: Annotated[RecoveringConfig, WrapValidator(keep_location)]


def recovery_options(document: dict[str, Any], settings: list[str]) -> tuple[Recovery, RecoveringConfig]:
    """``recovery`` and ``recovering`` with each ``a.b=c`` applied. Raises ConfigError."""
    for setting in settings:
        document = apply_override(document, setting)
    try:
        found = TypeAdapter(_RecoveryOnly).validate_python(document)
    except ValidationError as error:
        raise ConfigError(located_message(error, _RecoveryOnly)) from None
    return found.recovery, found.recovering


def resolve(document: dict[str, Any]) -> JobConfig:
    """A validated configuration with its stages written out and every name known.

    Raises:
        ConfigError, UnknownNameError: with the location or the nearest name.
    """
    config = validate(document)
    _check_names(config)
    explicit = replace(config.schedule, target=None, stages=_built(config).stages)
    return replace(config, schedule=explicit)


def _check_names(config: JobConfig) -> None:
    from cascade_ops.criteria import CRITERIA
    from cascade_ops.data import DATASETS

    if config.task == "lm":
        if config.data.name != "text":
            raise ConfigError(
                f"data.name: task lm reads 'text' (with data.train and data.test), got {config.data.name!r}"
            )
        for name in ("train", "test"):
            if getattr(config.data, name) is None:
                raise ConfigError(f"data.{name}: is required for task lm: a text file")
    elif config.data.name not in ("auto", *DATASETS):
        raise UnknownNameError("dataset", config.data.name, ("auto", *DATASETS))
    for index, stage in enumerate(config.schedule.stages or ()):
        try:
            CRITERIA[stage.criterion]
        except UnknownNameError as error:
            raise ConfigError(f"schedule.stages.{index}.criterion: {error}") from None


def dump(config: JobConfig) -> str:
    """The configuration as YAML that ``read_document`` and ``resolve`` read back to the same."""
    return yaml.safe_dump(to_jsonable(config), sort_keys=False, allow_unicode=True)


def differences(recorded: JobConfig, requested: JobConfig) -> list[str]:
    """``key: recorded → requested`` for each leaf that differs; the output folder, the store, the trackers, and where
    scoring and fits run may."""
    old, new = (
        _flat(
            {**to_jsonable(config), **dict.fromkeys(("out", "store", "scoring", "tracking"))}
            | {"recovering": config.recovering.numerics()}
        )
        for config in (recorded, requested)
    )
    return [
        f"{key}: {old.get(key)} → {new.get(key)}"
        for key in sorted(old.keys() | new.keys())
        if old.get(key) != new.get(key)
    ]


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    if isinstance(value, dict):
        items = value.items()
    elif isinstance(value, list):
        items = {str(index): item for index, item in enumerate(value)}.items()
    else:
        return {prefix.rstrip("."): value}
    return {key: leaf for name, item in items for key, leaf in _flat(item, f"{prefix}{name}.").items()}
