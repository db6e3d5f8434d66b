"""A model by its run directory, its folder or its hub name; and the configuration it came from."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from cascade_ops.errors import CheckpointError, UsageError

if TYPE_CHECKING:
    from workflows.config import JobConfig


def model_folder(path: Path) -> Path:
    """A run's compressed model, or the folder itself. Raises CheckpointError."""
    if (path / "config.yaml").is_file():
        if not (path / "model").is_dir():
            raise CheckpointError(f"{path}: has no model yet. Finish it: cascade compress --resume {path}")
        return path / "model"
    return path


def run_config(path: Path) -> JobConfig:
    """The configuration of the run that ``path`` is or is part of. Raises CheckpointError."""
    from workflows.rundir import CONFIG, RunDir

    for folder in (path, *path.resolve().parents):
        if (folder / CONFIG).is_file():
            return RunDir(path=folder).config()
    if (path / "config.json").is_file():
        return _config_from_model(path)
    raise CheckpointError(f"{path}: expected a run directory or a model folder, found neither")


def _config_from_model(path: Path) -> JobConfig:
    """What a diagnosis model that has left its run still knows about its input. Raises CheckpointError."""
    from cascade_ops.checkpoint import read_config
    from workflows.config import resolve

    saved = read_config(path)
    if saved.model_type != "signal_classifier":
        raise CheckpointError(f"{path}: is outside its run, and only diagnosis models can be measured there")
    model = {"path": str(path), "front_end": saved.front_end, "patch": saved.patch}
    document = {"model": model, "data": {"length": saved.window}, "schedule": {"target": 2}}
    return resolve(document)


def check_classes(config: object, classes: tuple[str, ...]) -> None:
    """Raises UsageError where a classifier's classes are not the data's."""
    known = getattr(config, "classes", None)
    if known is not None and tuple(known) != classes:
        raise UsageError(
            f"the model knows the classes {', '.join(known)}; the data has {', '.join(classes)}. "
            "Choose data with the same classes."
        )
