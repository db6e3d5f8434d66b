"""A recording or a window in a dozen physical figures, for a text front end and for reports.

Time statistics (RMS, kurtosis, crest factor, skewness, spectral centroid) and, where the bearing's geometry
is known, the share of the envelope spectrum's energy that lies at each characteristic frequency and its
first three harmonics. A window of 1,024 samples at 12 kHz resolves 12 Hz: enough to tell BPFO from BPFI, not
to see FTF.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float

from cascade_ops.data.bearings import frequencies
from cascade_ops.data.envelope import SLIP_TOLERANCE, envelope_spectrum
from cascade_ops.data.types import Bearing
from cascade_ops.errors import DataError

HARMONICS = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Descriptor:
    """Figures of one signal. ``rms`` has the signal's unit, ``centroid_hz`` and ``lines_hz`` are in hertz.

    ``kurtosis`` is 3 for Gaussian noise. ``envelope_share`` gives, by "BPFO", "BPFI", "BSF" (lines at twice
    the spin rate) and "FTF", the share in 0..1 of the envelope spectrum's energy at harmonics 1 to 3; it is
    empty where the bearing is unknown. ``contrast`` is that share over what a flat spectrum would put there.
    """

    rms: float
    kurtosis: float
    crest: float
    skewness: float
    centroid_hz: float
    rpm: float
    lines_hz: dict[str, float] = field(default_factory=dict)
    envelope_share: dict[str, float] = field(default_factory=dict)
    contrast: dict[str, float] = field(default_factory=dict)


def describe(
    signal: Float[np.ndarray, " samples"], fs_hz: float, rpm: float, bearing: Bearing | None
) -> Descriptor:
    """The descriptor of ``signal``.

    Raises:
        DataError: fewer than 64 samples, or a constant signal.
    """
    x = np.asarray(signal, dtype=np.float64)
    if x.ndim != 1 or len(x) < 64:
        raise DataError(
            f"expected a signal of at least 64 samples, found shape {x.shape}. Use a longer window."
        )
    x = x - x.mean()
    power = float(np.mean(x**2))
    if power <= 0:
        raise DataError("expected vibration, found a constant signal. Check the sensor.")
    rms = power**0.5
    spectrum = np.abs(np.fft.rfft(x * np.hanning(len(x)))) ** 2
    bins = np.fft.rfftfreq(len(x), 1.0 / fs_hz)
    lines, share, contrast = _lines(x, fs_hz, rpm, bearing) if bearing else ({}, {}, {})
    return Descriptor(
        rms=rms,
        kurtosis=float(np.mean(x**4)) / power**2,
        crest=float(np.abs(x).max()) / rms,
        skewness=float(np.mean(x**3)) / rms**3,
        centroid_hz=float((bins * spectrum).sum() / spectrum.sum()),
        rpm=float(rpm),
        lines_hz=lines,
        envelope_share=share,
        contrast=contrast,
    )


def _lines(
    x: Float[np.ndarray, " samples"], fs_hz: float, rpm: float, bearing: Bearing
) -> tuple[dict[str, float], dict[str, float], dict[str, float]]:
    """Line frequencies, energy shares, contrasts. Energy is counted from 0 to the highest harmonic."""
    rates = frequencies(bearing, rpm)
    lines = {"BPFO": rates.bpfo, "BPFI": rates.bpfi, "BSF": 2.0 * rates.bsf, "FTF": rates.ftf}
    frequency, amplitude = envelope_spectrum(x, fs_hz)
    step = float(frequency[1])
    top = max(lines.values()) * HARMONICS * (1.0 + SLIP_TOLERANCE) + step
    counted = (frequency > 0) & (frequency <= top)
    energy = amplitude**2
    total = float(energy[counted].sum()) or 1.0
    share, contrast = {}, {}
    for name, line in lines.items():
        near = np.zeros(len(frequency), dtype=bool)
        for harmonic in range(1, HARMONICS + 1):
            reach = max(SLIP_TOLERANCE * harmonic * line, 0.75 * step)
            near |= np.abs(frequency - harmonic * line) <= reach
        near &= counted
        share[name] = float(energy[near].sum()) / total
        width = int(near.sum()) / int(counted.sum())
        contrast[name] = share[name] / width if width else 0.0
    return lines, share, contrast


def as_prompt(descriptor: Descriptor) -> str:
    """One short line of text, the same figures in the same order, for a language model."""
    d = descriptor
    parts = [
        f"speed {d.rpm:.0f} rpm",
        f"rms {d.rms:.3g}",
        f"kurtosis {d.kurtosis:.1f}",
        f"crest {d.crest:.1f}",
        f"skewness {d.skewness:.2f}",
        f"centroid {d.centroid_hz:.0f} Hz",
    ]
    parts += [f"{name} {100 * share:.0f}%" for name, share in d.envelope_share.items()]
    return "Bearing vibration: " + ", ".join(parts) + "."
