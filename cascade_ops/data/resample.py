"""Bringing recordings to one sampling rate without leaving a trace of the rate they came from.

A rational polyphase resampler (``scipy.signal.resample_poly``) with an explicit Kaiser low-pass does the
conversion. That alone would still tell rates apart: a decimated recording has the filter's edge just below
the new Nyquist frequency, a native one has not. So *every* recording, native ones too, passes one common
low-pass at the common rate, flat to 0.44 and 80 dB down from 0.48 of it (5.3 and 5.8 kHz at 12 kHz). The
resampler is flat up to the point where the common filter stops, hence the edge is the same for all.
"""

from __future__ import annotations

import dataclasses
import functools
from fractions import Fraction

import numpy as np
from jaxtyping import Float

from cascade_ops.data.types import Recording
from cascade_ops.errors import DataError

COMMON_RATE_HZ = 12_000.0
PASS, STOP = 0.44, 0.48
"""Edges of the common low-pass, as fractions of the common rate."""
ATTENUATION_DB = 80.0
MAX_DENOMINATOR = 1000
"""Bounds the polyphase filter; the rate is off by 5e-4 at most, far below bearing slip (1e-2)."""


@functools.lru_cache(maxsize=32)
def _low_pass(pass_edge: float, stop_edge: float) -> Float[np.ndarray, " taps"]:
    """Linear-phase Kaiser low-pass of odd length; edges in cycles per sample. Unit gain at 0."""
    from scipy.signal import firwin, kaiserord

    taps, beta = kaiserord(ATTENUATION_DB, 2.0 * (stop_edge - pass_edge))
    taps |= 1  # odd: an integer delay, taken out exactly
    design: np.ndarray = firwin(taps, pass_edge + stop_edge, window=("kaiser", beta))
    return design


def rational_ratio(fs_hz: float, rate_hz: float) -> Fraction:
    """``rate_hz / fs_hz`` as a fraction of small terms."""
    return (Fraction(rate_hz) / Fraction(fs_hz)).limit_denominator(MAX_DENOMINATOR)


def support(rate_hz: float = COMMON_RATE_HZ) -> int:
    """How many samples at the common rate, to either side, a resampled sample depends on (upper bound).

    Splits leave a gap of twice this, so that two sides share no sample of the *original* recording either.
    """
    del rate_hz  # both filters scale with the rate, their length in samples does not
    common = len(_low_pass(PASS, STOP)) // 2
    return 2 * common + 2  # the resampler's transition is as wide as the common one's


def _resample(signal: Float[np.ndarray, " samples"], ratio: Fraction) -> Float[np.ndarray, " resampled"]:
    from scipy.signal import oaconvolve, resample_poly

    offset = float(signal.mean())  # so that the zeros beyond the ends are no step
    signal = signal - offset
    if ratio != 1:
        # edges in cycles per sample of the interpolated signal, whose rate is numerator × fs
        scale = float(ratio) / ratio.numerator
        kernel = _low_pass(STOP * scale, (1.0 - STOP) * scale)
        signal = resample_poly(signal, ratio.numerator, ratio.denominator, window=kernel)  # type: ignore[call-overload]  # the stubs know no arrays
    common = _low_pass(PASS, STOP)
    filtered: np.ndarray = oaconvolve(signal, common, mode="full")
    half = len(common) // 2
    return filtered[half : half + len(signal)] + offset


def resample(recording: Recording, rate_hz: float = COMMON_RATE_HZ) -> Recording:
    """``recording`` at ``rate_hz``, band-limited as described above, segment by segment.

    Segments are resampled on their own (a filter must not mix across a gap) and put end to end; the
    result's ``segments`` tell where. Its signal is float32: 24 bits exceed any converter used here.

    Raises:
        DataError: the recording was sampled below ``rate_hz`` (its upper band would stay empty and tell
            it from the others) or a segment vanishes.
    """
    if recording.fs_hz < rate_hz:
        raise DataError(
            f"{recording.name}: expected a sampling rate of at least {rate_hz:g} Hz, found "
            f"{recording.fs_hz:g} Hz. Choose a common rate of {recording.fs_hz:g} Hz or less."
        )
    ratio = rational_ratio(recording.fs_hz, rate_hz)
    parts, segments, at = [], [], 0
    for start, stop in recording.segments or ((0, len(recording.signal)),):
        part = _resample(recording.signal[start:stop], ratio).astype(np.float32)
        parts.append(part)
        segments.append((at, at + len(part)))
        at += len(part)
    return dataclasses.replace(
        recording, signal=np.concatenate(parts), fs_hz=float(rate_hz), segments=tuple(segments)
    )
