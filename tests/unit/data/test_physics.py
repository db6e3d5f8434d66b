"""Characteristic frequencies, envelope spectra, the simulator and descriptors."""

from __future__ import annotations

import dataclasses
import subprocess
import sys

import numpy as np
import pytest

from cascade_ops.data import (
    CWRU_LABELS,
    Dataset,
    Recording,
    fault_type,
    frequencies,
    orders,
    resample,
    simulate_dataset,
    simulate_recording,
)
from cascade_ops.data.bearings import SKF_6205, UCPH_20X
from cascade_ops.data.descriptor import as_prompt, describe
from cascade_ops.data.envelope import envelope, envelope_spectrum, line_ratio, peak_near
from cascade_ops.data.labels import fault_size_mil, ordered
from cascade_ops.data.simulate import load_zone
from cascade_ops.errors import DataError, UnknownNameError, UsageError


def ratios(recording: Recording, bearing=SKF_6205, tolerance: float = 0.02) -> dict[str, float]:
    common = resample(recording)
    frequency, amplitude = envelope_spectrum(common.signal, common.fs_hz)
    lines = frequencies(bearing, recording.rpm).fault_lines()
    return {kind: line_ratio(frequency, amplitude, hz, tolerance=tolerance) for kind, hz in lines.items()}


def test_orders_of_the_6205_are_the_published_ones():
    found = orders(SKF_6205)
    assert found.bpfi == pytest.approx(5.4152, abs=1e-4)
    assert found.bpfo == pytest.approx(3.5848, abs=1e-4)
    assert found.bsf == pytest.approx(2.357, abs=1e-3)
    assert found.ftf == pytest.approx(0.3983, abs=1e-4)
    assert found.bpfi + found.bpfo == pytest.approx(SKF_6205.balls)


def test_approximate_orders_lie_in_the_measured_ranges():
    found = orders(UCPH_20X)
    assert 2.96 < found.bpfo < 3.24
    assert 4.80 < found.bpfi < 4.94


def test_a_ball_fault_shows_at_twice_the_spin_rate_in_hertz():
    lines = frequencies(SKF_6205, 1800.0).fault_lines()
    assert lines["B"] == pytest.approx(2 * 2.357 * 30, rel=1e-3)


def test_a_contact_angle_shrinks_the_ratio():
    tilted = dataclasses.replace(SKF_6205, contact_angle_deg=40.0)
    assert orders(tilted).bpfi < orders(SKF_6205).bpfi


def test_labels_are_ordered_and_sized():
    assert ordered(["OR007", "zz", "N", "IR014", "IR007"]) == ("N", "IR007", "IR014", "OR007", "zz")
    assert (fault_type("B021"), fault_size_mil("B021")) == ("B", 21)
    assert (fault_type("Normal"), fault_size_mil("N")) == ("Normal", None)


def test_envelope_of_a_modulated_tone_is_its_modulation():
    time = np.arange(12_000) / 12_000.0
    modulation = 1.0 + 0.5 * np.cos(2 * np.pi * 100.0 * time)
    modulus = envelope(modulation * np.sin(2 * np.pi * 3_500.0 * time), 12_000.0)
    np.testing.assert_allclose(modulus, modulation, atol=1e-9)


def test_envelope_refuses_a_band_beyond_nyquist():
    with pytest.raises(UsageError, match="6000 Hz"):
        envelope(np.ones(100), 12_000.0, band_hz=(1_000.0, 7_000.0))


@pytest.mark.parametrize("label", [label for label in CWRU_LABELS if label != "N"])
@pytest.mark.parametrize("rpm", [1200.0, 1797.0])
def test_simulated_faults_peak_where_theory_says(label: str, rpm: float):
    recording = simulate_recording(label, rpm=rpm, seconds=5.0)
    found = ratios(recording)
    kind = fault_type(label)
    assert max(found, key=found.__getitem__) == kind
    assert found[kind] > 15.0
    common = resample(recording)
    hz = frequencies(SKF_6205, rpm).fault_lines()[kind]
    peak = peak_near(*envelope_spectrum(common.signal, common.fs_hz), hz)
    assert peak == pytest.approx(hz, rel=0.005)


def test_simulated_normal_has_no_line():
    assert max(ratios(simulate_recording("N", seconds=5.0)).values()) < 6.0


def test_simulated_inner_race_is_modulated_by_the_shaft_and_outer_race_is_not():
    def side_band(label: str) -> float:
        recording = simulate_recording(label, seconds=10.0, snr_db=20.0)
        frequency, amplitude = envelope_spectrum(recording.signal, recording.fs_hz)
        rates = frequencies(SKF_6205, recording.rpm)
        line = rates.fault_lines()[fault_type(label)]
        at = [np.abs(frequency - f) < 1.0 for f in (line, line + recording.rpm / 60.0)]
        return float(amplitude[at[1]].max() / amplitude[at[0]].max())

    assert side_band("IR014") > 3.0 * side_band("OR014")


def test_larger_simulated_faults_stand_out_more():
    small, large = (ratios(simulate_recording(label, seconds=5.0))["OR"] for label in ("OR007", "OR021"))
    assert large > 1.5 * small


def test_load_zone_is_one_at_the_load_line_and_zero_opposite():
    assert load_zone(np.array([0.0, np.pi])) == pytest.approx([1.0, 0.0])


def test_the_simulator_is_seeded():
    first, again, other = (simulate_dataset(seed=s, seconds=0.5, loads=("0",)) for s in (1, 1, 2))
    assert first.fingerprint == again.fingerprint != other.fingerprint
    assert first.source == "simulated"
    assert tuple(r.label for r in first.recordings) == CWRU_LABELS


def test_the_simulator_refuses_what_cannot_be():
    with pytest.raises(UnknownNameError, match="IR007"):
        simulate_recording("IRR07")
    with pytest.raises(UsageError, match="above 0"):
        simulate_recording("N", rpm=0.0)
    with pytest.raises(UsageError, match="resonance"):
        simulate_recording("N", fs_hz=4_000.0)
    with pytest.raises(UnknownNameError):
        simulate_dataset(loads=("9",))


def test_all_recorded_inner_race_faults_peak_at_bpfi(cwru: Dataset):
    recordings = [r for r in cwru.recordings if r.label.startswith("IR")]
    assert len(recordings) == 12
    for recording in recordings:
        found = ratios(recording)
        assert max(found, key=found.__getitem__) == "IR", recording.name
        assert found["IR"] > 50.0, recording.name


def test_recorded_outer_race_faults_of_7_and_21_mil_peak_at_bpfo(cwru: Dataset):
    recordings = [r for r in cwru.recordings if r.label in ("OR007", "OR021")]
    assert len(recordings) == 8
    for recording in recordings:
        found = ratios(recording)
        assert max(found, key=found.__getitem__) == "OR", recording.name
        assert found["OR"] > 80.0, recording.name


def test_recorded_normal_has_no_line(cwru: Dataset):
    for recording in cwru.recordings:
        if recording.label == "N":
            assert max(ratios(recording).values()) < 6.0, recording.name


def test_second_rig_peaks_within_its_speed_error(uestc: Dataset):
    for recording in uestc.recordings:
        found = ratios(recording, UCPH_20X, tolerance=0.1)
        if recording.label in ("IR", "OR"):
            assert found[recording.label] > 80.0, recording.name
        if recording.label == "N":
            assert max(found.values()) < 10.0, recording.name


def test_descriptor_tells_races_apart():
    inner, outer = (
        describe(r.signal, r.fs_hz, r.rpm, SKF_6205)
        for r in (simulate_recording(label, seconds=2.0, snr_db=10.0) for label in ("IR021", "OR021"))
    )
    assert inner.contrast["BPFI"] > 2.0 > outer.contrast["BPFI"]
    assert outer.contrast["BPFO"] > 2.0 > inner.contrast["BPFO"]
    assert inner.kurtosis > 4.0
    assert all(0.0 <= share <= 1.0 for share in inner.envelope_share.values())


def test_descriptor_of_known_signals():
    time = np.arange(12_000) / 12_000.0
    sine = describe(2.0 * np.sin(2 * np.pi * 1_000.0 * time), 12_000.0, 1797.0, None)
    assert sine.rms == pytest.approx(2.0**0.5)
    assert sine.kurtosis == pytest.approx(1.5)
    assert sine.crest == pytest.approx(2.0**0.5, rel=1e-3)
    assert sine.skewness == pytest.approx(0.0, abs=1e-9)
    assert sine.centroid_hz == pytest.approx(1_000.0, rel=1e-3)
    assert sine.envelope_share == {}
    noise = describe(np.random.default_rng(0).standard_normal(50_000), 12_000.0, 1797.0, SKF_6205)
    assert noise.kurtosis == pytest.approx(3.0, abs=0.1)
    assert noise.contrast["BPFI"] == pytest.approx(1.0, abs=0.3)


def test_prompt_is_short_and_stable():
    recording = simulate_recording("IR014", seconds=1.0)
    window = recording.signal[:1024]
    prompt = as_prompt(describe(window, recording.fs_hz, recording.rpm, SKF_6205))
    assert prompt == as_prompt(describe(window, recording.fs_hz, recording.rpm, SKF_6205))
    assert prompt.startswith("Bearing vibration: speed 1797 rpm, rms ")
    assert "BPFI" in prompt
    assert len(prompt) < 160


def test_descriptor_refuses_constant_and_tiny_signals():
    with pytest.raises(DataError, match="constant"):
        describe(np.ones(1024), 12_000.0, 1797.0, None)
    with pytest.raises(DataError, match="64 samples"):
        describe(np.ones(10), 12_000.0, 1797.0, None)


def test_importing_the_package_loads_neither_scipy_nor_pyarrow_nor_torch():
    code = (
        "import sys, cascade_ops.data as d; "
        "print(sorted({'scipy', 'pyarrow', 'torch', 'ray', 'typer', 'pydantic'} & set(sys.modules)))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
