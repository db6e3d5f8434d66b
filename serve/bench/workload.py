"""What users send: bodies made and serialised before the clock runs."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float

from cascade_ops.data.labels import CWRU_LABELS
from cascade_ops.data.resample import COMMON_RATE_HZ
from cascade_ops.data.simulate import simulate_recording
from cascade_ops.data.windows import normalise
from cascade_ops.errors import CascadeError, UsageError
from cascade_ops.loadtest.results import ModelFacts

WINDOWS = 64
RPM = 1750.0
PROMPT = "The bearing on the drive end has begun to sound like a coffee mill, and the maintenance log says"
NEW_TOKENS = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """Windows for classifiers (None for language models), raw, or normalised already (``prepared``)."""

    source: str
    windows: Float[np.ndarray, "windows samples"] | None
    rate_hz: float = COMMON_RATE_HZ
    prepared: bool = False

    @property
    def inputs(self) -> Float[np.ndarray, "windows samples"] | None:
        """As the classifier itself takes them."""
        if self.windows is None or self.prepared:
            return self.windows
        return normalise(self.windows)[0]


def simulated(samples: int, rate_hz: float, *, seed: int = 0) -> Workload:
    """Windows of simulated bearings, every fault in turn."""
    each = -(-WINDOWS // len(CWRU_LABELS))
    recordings = (
        simulate_recording(
            label, rpm=RPM, seed=seed, seconds=(each * samples + 1) / rate_hz, fs_hz=rate_hz
        ).signal[: each * samples]
        for label in CWRU_LABELS
    )
    windows = np.concatenate([signal.reshape(each, samples) for signal in recordings])
    # one fault after another, not all windows of one first
    order = np.arange(len(windows)).reshape(len(CWRU_LABELS), each).T.ravel()
    return Workload(source="simulated", windows=windows[order][:WINDOWS], rate_hz=rate_hz)


def workload_for(models: tuple[ModelFacts, ...], own: Workload | None) -> Workload:
    """``own`` windows, or simulated ones, for models of one task and one window.

    Raises:
        UsageError: the models take different inputs.
    """
    tasks, windows = {model.task for model in models}, {model.window for model in models}
    if len(tasks) > 1 or len(windows) > 1:
        raise UsageError(
            f"expected models that take the same input, found tasks {', '.join(sorted(tasks))} and windows of "
            f"{', '.join(map(str, windows))} samples. Measure them apart."
        )
    first = models[0]
    if first.task == "lm":
        return Workload(source="one prompt", windows=None)
    if not isinstance(first.window, int) or first.window < 1:
        raise CascadeError(f"{first.name}: does not say how many samples its window has")
    if own is not None and own.windows is not None and own.windows.shape[1] != first.window:
        raise UsageError(
            f"expected windows of {first.window} samples, found {own.windows.shape[1]}. Use --data simulated."
        )
    return own or simulated(first.window, first.rate_hz or COMMON_RATE_HZ)


def route(task: str) -> str:
    """Where a model of this task is asked."""
    return "/v1/completions" if task == "lm" else "/v1/diagnose"


def bodies(workload: Workload, model: str, detail: str) -> list[bytes]:
    """One serialised request for each window, or the one prompt."""
    if workload.windows is None:
        asked = {"model": model, "prompt": PROMPT, "max_tokens": NEW_TOKENS, "temperature": 0}
        return [_json(asked)]
    return [
        _json(
            {
                "model": model,
                "signal": [round(value, 6) for value in window.tolist()],
                "fs_hz": workload.rate_hz,
                "rpm": RPM,
                "preprocessed": workload.prepared,
                "detail": detail,
            }
        )
        for window in workload.windows
    ]


def described(workload: Workload, task: str, detail: str) -> dict[str, Any]:
    """For the record."""
    found: dict[str, Any] = {"source": workload.source, "route": route(task)}
    example = bodies(workload, "model", detail)
    found |= {"bodies": len(example), "bytes_each": round(sum(map(len, example)) / len(example))}
    if workload.windows is None:
        return {**found, "prompt_characters": len(PROMPT), "max_tokens": NEW_TOKENS}
    samples = workload.windows.shape[1]
    return {
        **found,
        "samples": samples,
        "rate_hz": workload.rate_hz,
        "detail": detail,
        "prepared": workload.prepared,
    }


def _json(document: dict[str, Any]) -> bytes:
    return json.dumps(document, separators=(",", ":")).encode()
