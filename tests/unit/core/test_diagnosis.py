"""Recordings in, windows, verdicts and evidence out."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cascade_ops.data.bearings import SKF_6205
from cascade_ops.data.simulate import simulate_recording
from cascade_ops.diagnosis import Expected, conclude, cut, evidence, prepared
from cascade_ops.errors import DataError

EXPECTED = Expected(window=1024, bearing=SKF_6205)


@pytest.mark.parametrize("rate", [12000.0, 25600.0, 48000.0, 96000.0])
@pytest.mark.parametrize(("label", "line"), [("OR014", "BPFO"), ("IR014", "BPFI")])
def test_a_fault_shows_however_fast_it_was_sampled(label: str, line: str, rate: float) -> None:
    recording = simulate_recording(label, rpm=1750.0, seconds=2.0, fs_hz=rate)
    found = evidence(recording.signal, rate, 1750.0, EXPECTED)
    assert found.strongest == line
    assert max(one.prominence for one in found.lines) > 20


@settings(max_examples=60, deadline=None)
@given(
    window=st.sampled_from([256, 1024, 2048, 4096, 8192]),
    ratio=st.floats(1.0, 64.0),
    spare=st.integers(0, 3),
)
def test_what_is_long_enough_has_a_window_or_is_refused(window: int, ratio: float, spare: int) -> None:
    expected = Expected(window=window)
    rate = ratio * expected.rate_hz
    signal = np.random.default_rng(0).normal(size=int(np.ceil(window * ratio)) + spare)
    try:
        found = cut(signal, rate, expected)
    except DataError as error:
        assert "Record longer" in str(error)  # noqa: PT017
        return
    assert found.windows.shape == (1, window)
    assert found.available == 1


def test_prepared_windows_are_normalised_ones() -> None:
    window = np.zeros(1024)
    window[0] = 32.0  # all of the variance in one sample
    assert prepared(window, EXPECTED).windows.shape == (1, 1024)
    with pytest.raises(DataError, match="variance 1"):
        prepared(2 * window, EXPECTED)


def test_no_number_is_no_diagnosis() -> None:
    with pytest.raises(DataError, match="gives no number"):
        conclude(torch.tensor([[0.0, 1.0], [float("nan"), 0.0]]))
