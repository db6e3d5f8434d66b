"""What an engine is, and the comparison it must pass before it goes live."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedModel

from cascade_ops.batches import Batch, length_of, on_device, take
from cascade_ops.errors import EngineError, UsageError
from cascade_ops.registry import Registry

Engine = Callable[[Batch], Float[Tensor, "batch *positions classes"]]
"""Inputs (without labels) to float32 logits on the CPU; any number of samples."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineEntry:
    """An engine that users choose by name.

    Attributes:
        build: ``(model, example)`` to an Engine; it may change ``model``. ``example`` shows the inputs.
        title: in a few words.
        tolerances: of each task that it can run, the difference from plain PyTorch (``Parity``) that is put down to
            its arithmetic.
        packages: importable names it needs beyond this package's own dependencies.
    """

    build: Callable[[PreTrainedModel, Batch], Engine]
    title: str
    tolerances: Mapping[str, float]
    packages: tuple[str, ...] = ()


ENGINES: Registry[EngineEntry] = Registry("engine")


@dataclass(frozen=True, slots=True, kw_only=True)
class Parity:
    """An engine's answers beside plain PyTorch's, on the same probes.

    Attributes:
        difference: total variation between the two distributions, ½ Σ|p - q|, which is how often a draw from one
            differs from a draw from the other at best; the mean over the positions of a text, the largest over probes.
            No probability differs by more, and it does not vanish where many answers share the probability.
        agreement: share of answers with the same most likely class (or next token).
        tolerance: the difference that was allowed.
        probes: how many.
    """

    engine: str
    difference: float
    agreement: float
    tolerance: float
    probes: int

    @property
    def holds(self) -> bool:
        """False for a difference that is no number, too."""
        return self.difference <= self.tolerance


def start_engine(
    name: str, model: PreTrainedModel, probes: Batch, *, task: str = "diagnosis"
) -> tuple[Engine, Parity]:
    """The engine ``name`` around ``model``, once it has answered ``probes`` as plain PyTorch does.

    Batches of one and of all probes are compared, since runtimes specialise on the batch.

    Raises:
        UnknownNameError: no such engine.
        UsageError: the engine cannot run this task, or a package that it needs is not installed.
        EngineError: it cannot be built, or answers differently; or plain PyTorch itself answers NaN.
    """
    entry = ENGINES[name]
    require(name, entry, task)
    model.eval()
    with torch.inference_mode():
        logits = model(**on_device(probes, model)).logits.float().cpu()
    if not logits.isfinite().all():
        raise EngineError(
            "expected finite logits from plain PyTorch, found NaN or infinite ones: no engine can be compared with it. "
            "Check the model's weights."
        )
    expected = torch.cat([logits[:1], logits])
    try:
        engine = entry.build(model, probes)
        answers = torch.cat([engine(take(probes, slice(0, 1))), engine(probes)])
    except Exception as error:
        # compilers and runtimes raise whatever they like; onnxruntime's errors have no base but Exception
        raise EngineError(
            f"engine {name!r} cannot run this model: {_first_line(error)}. Use --engine eager."
        ) from error
    if answers.shape != expected.shape:
        raise EngineError(
            f"engine {name!r} was to answer with logits of shape {tuple(expected.shape)}, found "
            f"{tuple(answers.shape)}. It does not go live: use --engine eager."
        )
    parity = compare(name, answers, expected, entry.tolerances[task])
    if not parity.holds:
        raise EngineError(
            f"engine {name!r} was to answer as plain PyTorch does, within a total variation of "
            f"{parity.tolerance:g}; found {parity.difference:.3g} on {length_of(probes)} probes (same answer on "
            f"{parity.agreement:.0%}). It does not go live: use --engine eager."
        )
    return engine, parity


def require(name: str, entry: EngineEntry, task: str) -> None:
    """Raises UsageError where the engine cannot be used at all."""
    if task not in entry.tolerances:
        able = [other for other in ENGINES if task in ENGINES[other].tolerances]
        raise UsageError(f"engine {name!r} does not run the task {task!r}. Those that do: {', '.join(able)}.")
    missing = [package for package in entry.packages if importlib.util.find_spec(package) is None]
    if missing:
        raise UsageError(
            f"engine {name!r} needs {', '.join(missing)}, not installed here: pip install 'cascade-ops[engines]'."
        )


def compare(
    name: str,
    answers: Float[Tensor, "batch *positions classes"],
    expected: Float[Tensor, "batch *positions classes"],
    tolerance: float,
) -> Parity:
    """Both as probabilities, over the last dimension."""
    apart = (answers.double().softmax(-1) - expected.double().softmax(-1)).abs().sum(-1) / 2
    difference = apart.flatten(1).mean(1).max() if apart.dim() > 1 else apart.max()
    same = (answers.argmax(-1) == expected.argmax(-1)).float().mean()
    return Parity(
        engine=name,
        difference=float(difference),
        agreement=float(same),
        tolerance=tolerance,
        probes=len(answers),
    )


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
