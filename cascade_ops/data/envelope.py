"""Envelope spectra, where bearing faults show.

A fault's impacts excite structural resonances at kilohertz; their *repetition* is the diagnosis. So: cut
out a band that holds resonances and no shaft harmonics, take the modulus of the analytic signal (Hilbert),
and look at the spectrum of that envelope (McFadden and Smith, Tribology Int. 17 (1984); Randall and
Antoni, MSSP 25 (2011), section 4).

Band choice: one sixth to 0.44 of the sampling rate, 2.0 to 5.3 kHz at 12 kHz. That holds the drive-end
resonances of CWRU (2.8 to 3.6 kHz) and stops where the common low-pass of ``resample`` does. It is fixed and
not searched by kurtosis: a fixed band is the same for every class.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

from cascade_ops.errors import UsageError

BAND = (1.0 / 6.0, 0.44)
"""Default band as fractions of the sampling rate."""
SLIP_TOLERANCE = 0.02
"""Rolling elements slip: lines lie within about 2 % of the kinematic figure."""
NEIGHBOURHOOD = 0.25
"""Half-width, relative to the line, of the stretch whose median is the local background."""


def envelope(
    signal: Float[np.ndarray, " samples"], fs_hz: float, *, band_hz: tuple[float, float] | None = None
) -> Float[np.ndarray, " samples"]:
    """Modulus of the band-passed analytic signal, in the signal's unit.

    One FFT does both: negative frequencies and those outside of the band are set to zero.

    Raises:
        UsageError: the band is empty or beyond half of ``fs_hz``.
    """
    low, high = band_hz or (BAND[0] * fs_hz, BAND[1] * fs_hz)
    if not 0 <= low < high <= fs_hz / 2:
        raise UsageError(
            f"expected a band within 0 and {fs_hz / 2:g} Hz, found {low:g} to {high:g} Hz. Correct it."
        )
    samples = len(signal)
    spectrum = np.fft.fft(signal)
    frequency = np.fft.fftfreq(samples, 1.0 / fs_hz)
    spectrum[(frequency < low) | (frequency > high)] = 0.0
    modulus: np.ndarray = np.abs(np.fft.ifft(2.0 * spectrum))
    return modulus


def envelope_spectrum(
    signal: Float[np.ndarray, " samples"], fs_hz: float, *, band_hz: tuple[float, float] | None = None
) -> tuple[Float[np.ndarray, " bins"], Float[np.ndarray, " bins"]]:
    """Frequencies in hertz and amplitudes of the envelope without its mean (Hann window, one-sided)."""
    modulus = envelope(signal, fs_hz, band_hz=band_hz)
    window = np.hanning(len(modulus))
    amplitude = 2.0 * np.abs(np.fft.rfft((modulus - modulus.mean()) * window)) / window.sum()
    return np.fft.rfftfreq(len(modulus), 1.0 / fs_hz), amplitude


def line_ratio(
    frequency: Float[np.ndarray, " bins"],
    amplitude: Float[np.ndarray, " bins"],
    at_hz: float,
    *,
    tolerance: float = SLIP_TOLERANCE,
) -> float:
    """Peak within ``tolerance`` of ``at_hz`` over the median of its neighbourhood; 1 is no line, roughly.

    Raises:
        UsageError: the spectrum is too coarse, or does not reach ``at_hz``.
    """
    # at least the nearest bin to either side: short windows have bins wider than the slip
    step = float(frequency[1] - frequency[0])
    reach = max(tolerance * at_hz, step)
    near = np.abs(frequency - at_hz) <= reach
    around = np.abs(frequency - at_hz) <= max(NEIGHBOURHOOD * at_hz, 4 * step)
    if not near.any() or at_hz + reach > frequency[-1]:
        raise UsageError(
            f"expected a line below {frequency[-1]:g} Hz, found {at_hz:g} Hz. Use a higher sampling rate."
        )
    median = float(np.median(amplitude[around]))
    return float(amplitude[near].max()) / median if median > 0 else 0.0


def peak_near(
    frequency: Float[np.ndarray, " bins"],
    amplitude: Float[np.ndarray, " bins"],
    at_hz: float,
    *,
    tolerance: float = SLIP_TOLERANCE,
) -> float:
    """Frequency of the highest bin within ``tolerance`` of ``at_hz``."""
    near = np.flatnonzero(np.abs(frequency - at_hz) <= tolerance * at_hz)
    if not near.size:
        raise UsageError(
            f"expected bins within {tolerance:.1%} of {at_hz:g} Hz, found none. Use a longer signal."
        )
    return float(frequency[near[np.argmax(amplitude[near])]])
