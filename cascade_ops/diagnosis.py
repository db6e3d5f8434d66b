"""A recording in, a diagnosis with its evidence out: what lies between a sensor's samples and a classifier.

Windows are cut as in training: the recording is brought to the model's rate through the same filters, cut without
overlap, and each window normalised. Their class probabilities are averaged.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from cascade_ops.data.bearings import frequencies
from cascade_ops.data.envelope import BAND, envelope_spectrum, line_ratio
from cascade_ops.data.resample import COMMON_RATE_HZ, resample
from cascade_ops.data.types import Bearing, Recording
from cascade_ops.data.windows import normalise
from cascade_ops.errors import DataError, UsageError

MOST_WINDOWS = 64
"""Windows of one recording that are classified, spread evenly over it."""
EVIDENCE_SECONDS = 20.0
"""A spectrum's lines are 1/20 Hz apart then, finer than slip lets them be told apart."""
SPECTRUM_POINTS, WAVEFORM_POINTS = 600, 2048
SPECTRUM_REACH = 3.3
"""The spectrum is shown to this multiple of the highest fault frequency: two harmonics, and some room."""
MOST_RATIO = 64
"""Recordings sampled at more than so many times the model's rate are refused: the filters would be enormous."""
SAME_RATE = 1e-3
"""Rates this close are one: a file's time column is rounded, and bearings slip by twenty times as much."""
LARGEST = 1e30
"""Beyond what any sensor gives, and well within what float32 can hold."""
LINES = {"OR": "BPFO", "IR": "BPFI", "B": "2×BSF"}
"""The line at which each fault shows."""
FLAT = 1e-6
"""A window whose deviation is below this share of the recording's peak holds rounding, not vibration."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Expected:
    """What a classifier takes: windows of ``window`` samples at ``rate_hz``, and whose bearing it listens to."""

    window: int
    rate_hz: float = COMMON_RATE_HZ
    bearing: Bearing | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Cut:
    """Windows of one recording, of which there would have been ``available``."""

    windows: Float[Tensor, "windows samples"]
    available: int


def cut(signal: Float[np.ndarray, " samples"], fs_hz: float, expected: Expected) -> Cut:
    """``signal`` (any unit) as the windows that a classifier takes.

    Raises:
        DataError: too short, sampled too slowly or far too fast, out of range, or constant over a window.
    """
    if not (math.isfinite(fs_hz) and fs_hz > 0):
        raise DataError(f"fs_hz: expected a sampling rate above 0 Hz, found {fs_hz:g}. Give the sensor's.")
    if abs(fs_hz - expected.rate_hz) <= SAME_RATE * expected.rate_hz:
        fs_hz = expected.rate_hz
    if not expected.rate_hz <= fs_hz <= MOST_RATIO * expected.rate_hz:
        raise DataError(
            f"fs_hz: expected a sampling rate of {expected.rate_hz:g} to {MOST_RATIO * expected.rate_hz:g} Hz, found "
            f"{fs_hz:g} Hz. Record at a rate that holds what the model listens to, and thin out what is above."
        )
    needed = math.ceil(expected.window * fs_hz / expected.rate_hz)
    if len(signal) < needed:
        raise DataError(
            f"expected at least {needed} samples at {fs_hz:g} Hz (a window of {expected.window} at "
            f"{expected.rate_hz:g} Hz), found {len(signal)}. Record longer."
        )
    _in_range(signal)
    recording = Recording(name="signal", signal=signal, fs_hz=fs_hz, rpm=0.0, label="")
    resampled = resample(recording, expected.rate_hz).signal
    available = len(resampled) // expected.window
    if available == 0:  # ratios are rational, to a ten-thousandth: a sample may be missing
        raise DataError(
            f"expected more than {needed} samples at {fs_hz:g} Hz, found {len(signal)}. Record longer."
        )
    starts = np.unique(np.linspace(0, available - 1, min(available, MOST_WINDOWS)).round().astype(np.int64))
    pieces = resampled[: available * expected.window].reshape(available, expected.window)[starts]
    windows, deviation = normalise(pieces)
    floor = FLAT * max(1e-12, float(np.abs(resampled).max()))
    if (deviation <= floor).any():
        at = int(starts[int(np.argmax(deviation <= floor))]) * expected.window / expected.rate_hz
        raise DataError(
            f"expected vibration, found a constant signal from {at:.3g} s on. Check the sensor, or cut the recording."
        )
    return Cut(windows=torch.from_numpy(windows), available=available)


def prepared(signal: Float[np.ndarray, " samples"], expected: Expected) -> Cut:
    """Windows that were cut and normalised already, one after the other.

    Raises:
        DataError: not a whole number of windows, or not normalised.
    """
    if len(signal) == 0 or len(signal) % expected.window:
        raise DataError(
            f"expected prepared windows of {expected.window} samples each, found {len(signal)} samples. "
            "Send whole windows, or raw samples with preprocessed: false."
        )
    _in_range(signal)
    most = math.sqrt(expected.window)  # of one sample where the window's variance is 1
    peak = float(np.abs(signal).max())
    if peak > 1.01 * most:
        raise DataError(
            f"expected prepared windows of variance 1, so samples up to {most:.3g}, found {peak:.3g}. Normalise each "
            "window, or send raw samples with preprocessed: false."
        )
    windows = torch.from_numpy(signal.astype(np.float32)).view(-1, expected.window)
    return Cut(windows=windows, available=len(windows))


def _in_range(signal: Float[np.ndarray, " samples"]) -> None:
    peak = float(np.abs(signal).max())
    if not peak <= LARGEST:  # NaN, too
        raise DataError(
            f"expected finite samples up to {LARGEST:g}, found {peak:g}. Check the sensor's scale."
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """Mean class probabilities over windows; ``agreement`` is the share of windows with the same likeliest class."""

    probabilities: tuple[float, ...]
    likeliest: int
    agreement: float


def conclude(logits: Float[Tensor, "windows classes"]) -> Verdict:
    """The mean of the windows' softmax probabilities. Raises DataError where a logit is not finite."""
    if not logits.isfinite().all():
        raise DataError(
            "expected vibration that the model can judge, found samples for which it gives no number."
        )
    each = logits.double().softmax(dim=1)
    mean = each.mean(dim=0)
    likeliest = int(mean.argmax())
    return Verdict(
        probabilities=tuple(mean.tolist()),
        likeliest=likeliest,
        agreement=float((each.argmax(dim=1) == likeliest).double().mean()),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """A characteristic frequency and its ``prominence``: peak over the median around it; about 1 is none."""

    name: str
    hz: float
    prominence: float
    fault: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """The envelope spectrum (amplitudes in the signal's unit) and the bearing's lines in it."""

    lines: tuple[Line, ...]
    hz: Float[np.ndarray, " bins"]
    amplitude: Float[np.ndarray, " bins"]

    @property
    def strongest(self) -> str | None:
        """The most prominent line's name."""
        return max(self.lines, key=lambda line: line.prominence).name if self.lines else None


def evidence(
    signal: Float[np.ndarray, " samples"], fs_hz: float, rpm: float | None, expected: Expected
) -> Evidence:
    """BPFO, BPFI and 2×BSF in the envelope spectrum; no lines where speed or bearing is unknown.

    The envelope is of the band that the model hears, however fast the signal was sampled. Lines that the spectrum does
    not reach are left out. At most the first 20 s are looked at.
    """
    bearing = expected.bearing
    band = (BAND[0] * expected.rate_hz, BAND[1] * expected.rate_hz)
    hz, amplitude = envelope_spectrum(signal[: int(EVIDENCE_SECONDS * fs_hz)], fs_hz, band_hz=band)
    lines = []
    if rpm is not None and bearing is not None:
        for fault, at in frequencies(bearing, rpm).fault_lines().items():
            try:
                prominence = line_ratio(hz, amplitude, at)
            except UsageError:
                continue
            lines.append(Line(name=LINES[fault], hz=at, prominence=prominence, fault=fault))
    return Evidence(lines=tuple(lines), hz=hz, amplitude=amplitude)


def shown_spectrum(found: Evidence) -> tuple[list[float], list[float]]:
    """Frequencies and amplitudes for a chart: up to 3.3× the highest line, each point the peak of its group."""
    reach = SPECTRUM_REACH * max((line.hz for line in found.lines), default=math.inf)
    inside = found.hz <= reach
    hz, amplitude = found.hz[inside], found.amplitude[inside]
    size = max(1, math.ceil(len(hz) / SPECTRUM_POINTS))
    peaks = [start + int(np.argmax(amplitude[start : start + size])) for start in range(0, len(hz), size)]
    return [_short(hz[at]) for at in peaks], [_short(amplitude[at]) for at in peaks]


def shown_waveform(signal: Float[np.ndarray, " samples"]) -> list[float]:
    """The beginning of the signal, without its mean, at most 2,048 samples."""
    return [_short(value) for value in signal[:WAVEFORM_POINTS] - signal.mean()]


def _short(value: float) -> float:
    """Five figures: below what a screen resolves."""
    return float(f"{float(value):.5g}")
