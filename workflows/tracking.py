"""Loss curves for TensorBoard, MLflow and Weights & Biases: a Progress that also writes scalars."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import Any

from cascade_ops.errors import ConfigError, UnknownNameError
from cascade_ops.progress import Progress

Scalar = Callable[[str, float, int], None]
"""Takes a curve's name, a value and its step."""

PACKAGES = {"tensorboard": "tensorboardX", "mlflow": "mlflow", "wandb": "wandb"}
"""Tracker → the package that it needs."""


def tracking(
    names: Sequence[str], folder: Path, run: str, progress: Progress
) -> AbstractContextManager[Progress]:
    """``progress`` that also records the loss of each fit as ``<phase>/<n>/loss``, n from 1, by step.

    Raises:
        UnknownNameError: no such tracker.
        ConfigError: its package is not installed; nothing was started.
    """
    return _tracking(check_trackers(names), folder, run, progress)


def check_trackers(names: Sequence[str]) -> dict[str, Any]:
    """The packages of these trackers. Raises UnknownNameError, ConfigError."""
    return {name: _module(name) for name in dict.fromkeys(names)}


def _module(name: str) -> Any:
    if name not in PACKAGES:
        raise UnknownNameError("tracker", name, PACKAGES)
    try:
        return importlib.import_module(PACKAGES[name])
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"tracking: {name} needs a package that is not installed ({error.name}); "
            f"pip install {PACKAGES[name]}, or leave it out"
        ) from None


@contextmanager
def _tracking(modules: dict[str, Any], folder: Path, run: str, progress: Progress) -> Iterator[Progress]:
    with ExitStack() as stack:
        scalars = [_open(name, module, folder, run, stack) for name, module in modules.items()]
        fits: dict[str, tuple[int, int]] = {}

        def tracked(phase: str, done: int, total: int, **figures: float) -> None:
            progress(phase, done, total, **figures)
            if "loss" not in figures:
                return
            count, before = fits.get(phase, (0, done))
            count += done <= before  # a step that does not go on from the last one begins a new fit
            fits[phase] = (count, done)
            for scalar in scalars:
                scalar(f"{phase}/{count}/loss", figures["loss"], done)

        yield tracked


def _open(name: str, module: Any, folder: Path, run: str, stack: ExitStack) -> Scalar:
    if name == "tensorboard":
        writer = stack.enter_context(module.SummaryWriter(str(folder / "tensorboard")))
        return lambda curve, value, step: writer.add_scalar(curve, value, step)
    if name == "mlflow":
        stack.enter_context(module.start_run(run_name=run))
        return lambda curve, value, step: module.log_metric(curve, value, step=step)
    logged = stack.enter_context(module.init(name=run, dir=str(folder)))
    # wandb wants one rising step for all curves: each fit's own goes with it as a value.
    return lambda curve, value, step: logged.log({curve: value, f"{curve[:-4]}step": step})
