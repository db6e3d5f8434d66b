"""Resampling without a rate leak, and splits in which no sample is on two sides."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cascade_ops.data import CWRU_FAULT_LABELS, Dataset, Recording, SplitData, make_split, resample
from cascade_ops.data.readers.base import make_dataset
from cascade_ops.data.resample import PASS, STOP, support
from cascade_ops.data.simulate import INFO
from cascade_ops.data.windows import SIDES, side_ranges
from cascade_ops.errors import DataError, UnknownNameError, UsageError


def noise(
    name: str,
    samples: int,
    *,
    fs_hz: float = 12_000.0,
    label: str = "N",
    load: str = "0",
    rpm: float = 1797.0,
    segments: tuple[tuple[int, int], ...] = (),
) -> Recording:
    rng = np.random.default_rng(samples)
    return Recording(
        name=name,
        signal=rng.standard_normal(samples),
        fs_hz=fs_hz,
        rpm=rpm,
        label=label,
        load=load,
        unit=label,
        segments=segments,
    )


def dataset(*recordings: Recording) -> Dataset:
    return make_dataset(INFO, recordings)


def covered(split: SplitData, side: str, name: str) -> set[int]:
    windows = getattr(split, side)
    index = windows.recordings.index(name)
    length = windows.signal.shape[1]
    starts = windows.start[windows.recording == index]
    return {sample for start in starts.tolist() for sample in range(start, start + length)}


def assert_disjoint(split: SplitData, names: Sequence[str], gap: int = 0) -> None:
    for name in names:
        sides = [covered(split, side, name) for side in SIDES]
        for first in range(3):
            for second in range(first + 1, 3):
                assert not sides[first] & sides[second]
                if sides[first] and sides[second]:
                    low, high = sorted((sides[first], sides[second]), key=min)
                    assert min(high) - max(low) > gap


# -- resampling ------------------------------------------------------------------------------------


@pytest.mark.parametrize("fs_hz", [12_000.0, 20_000.0, 48_000.0, 50_000.0, 51_200.0, 44_100.0])
def test_every_rate_is_flat_in_the_pass_band_and_dark_above_it(fs_hz: float):
    recording = noise("r", int(6 * fs_hz), fs_hz=fs_hz)
    common = resample(recording)
    assert common.fs_hz == 12_000.0
    assert len(common.signal) == pytest.approx(72_000, abs=1)
    power = np.abs(np.fft.rfft(common.signal * np.hanning(len(common.signal)))) ** 2
    hz = np.fft.rfftfreq(len(common.signal), 1 / 12_000.0)
    density = [
        power[(hz > low) & (hz < high)].mean()
        for low, high in ((100, 2_000), (4_000, PASS * 12_000), (STOP * 12_000, 6_000))
    ]
    assert density[1] / density[0] == pytest.approx(1.0, abs=0.1)
    assert density[2] / density[0] < 1e-6


def test_the_edge_of_the_spectrum_does_not_tell_the_native_rate():
    """White noise at 12 and at 48 kHz has the same spectrum afterwards, in the transition band too."""
    shapes = []
    for fs_hz in (12_000.0, 48_000.0):
        signal = resample(noise("r", int(20 * fs_hz), fs_hz=fs_hz)).signal.astype(np.float64)
        blocks = signal[: len(signal) // 1024 * 1024].reshape(-1, 1024)
        power = (np.abs(np.fft.rfft(blocks * np.hanning(1024), axis=1)) ** 2).mean(axis=0)
        shapes.append(power / power[10:400].mean())
    transition = slice(int(0.43 * 1024), int(0.47 * 1024))
    assert np.abs(10 * np.log10(shapes[0][transition] / shapes[1][transition])).max() < 3.0


def test_a_tone_above_the_new_nyquist_does_not_alias():
    time = np.arange(48_000) / 48_000.0
    tone = dataclasses.replace(noise("r", 48_000, fs_hz=48_000.0), signal=np.sin(2 * np.pi * 7_000.0 * time))
    middle = resample(tone).signal[1_000:-1_000]
    assert np.abs(middle).max() < 1e-3


def test_a_tone_keeps_amplitude_phase_and_time():
    time = np.arange(48_000) / 48_000.0
    tone = dataclasses.replace(
        noise("r", 48_000, fs_hz=48_000.0), signal=3.0 + np.sin(2 * np.pi * 1_000.0 * time)
    )
    expected = 3.0 + np.sin(2 * np.pi * 1_000.0 * np.arange(12_000) / 12_000.0)
    np.testing.assert_allclose(resample(tone).signal[500:-500], expected[500:-500], atol=2e-3)


@pytest.mark.parametrize("fs_hz", [12_000.0, 20_000.0, 48_000.0, 50_000.0])
def test_support_bounds_what_a_sample_depends_on(fs_hz: float):
    quiet = dataclasses.replace(noise("r", int(fs_hz), fs_hz=fs_hz), signal=np.zeros(int(fs_hz)))
    click = quiet.signal.copy()
    middle = len(click) // 2
    click[middle : middle + 2] = 1.0, -1.0  # no mean, which is taken off before filtering
    response = resample(dataclasses.replace(quiet, signal=click)).signal
    touched = np.flatnonzero(np.abs(response) > 1e-6)
    assert max(6_000 - touched.min(), touched.max() - 6_000) <= support()


def test_segments_are_mapped_and_not_mixed():
    segments = ((0, 20_000), (20_000, 50_000))
    recording = noise("r", 50_000, fs_hz=48_000.0, segments=segments)
    common = resample(recording)
    assert common.segments == ((0, 5_000), (5_000, 12_500))
    alone = resample(dataclasses.replace(recording, signal=recording.signal[:20_000], segments=()))
    np.testing.assert_array_equal(common.signal[:5_000], alone.signal)


def test_a_recording_below_the_common_rate_is_refused():
    with pytest.raises(DataError, match=r"r: expected .* 12000 Hz, found 8000 Hz\. Choose"):
        resample(noise("r", 5_000, fs_hz=8_000.0))


def test_the_recorded_normal_is_resampled_and_not_taken_for_12_khz(cwru: Dataset):
    normal = next(r for r in cwru.recordings if r.name == "97.mat")
    assert normal.fs_hz == 48_000.0
    common = resample(normal)
    assert len(common.signal) == -(-len(normal.signal) // 4)

    def upper_share(recording: Recording) -> float:
        power = np.abs(np.fft.rfft(recording.signal * np.hanning(len(recording.signal)))) ** 2
        hz = np.fft.rfftfreq(len(recording.signal), 1 / recording.fs_hz)
        return float(power[hz > STOP * 12_000].sum() / power.sum())

    assert upper_share(common) < 1e-7
    native = next(r for r in cwru.recordings if r.name == "105.mat")
    assert upper_share(resample(native)) < 1e-7


# -- splits ----------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(
    samples=st.integers(6_000, 20_000),
    length=st.integers(16, 400),
    stride=st.integers(1, 300),
    validation=st.floats(0.15, 0.3),
    test=st.floats(0.15, 0.3),
    kind=st.sampled_from(["time", "load:1", "speed:1772", "bearing:IR014"]),
    cut=st.integers(0, 6_000),
)
def test_no_sample_is_on_two_sides(
    samples: int, length: int, stride: int, validation: float, test: float, kind: str, cut: int
):
    segments = ((0, cut), (cut, samples)) if 0 < cut < samples else ()
    data = dataset(
        noise("a", samples, segments=segments, label="IR007"),
        noise("b", samples + 7, load="1", rpm=1772.0, label="IR007"),
        noise("c", samples + 3, label="IR014"),
    )
    split = make_split(data, split=kind, length=length, stride=stride, validation=validation, test=test)
    assert_disjoint(split, ("a", "b", "c"), gap=2 * support() - 1)
    for side in SIDES:
        windows = getattr(split, side)
        for index, start in zip(windows.recording.tolist(), windows.start.tolist(), strict=True):
            if windows.recordings[index] == "a" and segments:
                assert any(low <= start and start + length <= high for low, high in segments)
        if side != "train":  # an evaluation never counts a sample twice
            for name in windows.recordings:
                mine = np.sort(windows.start[windows.recording == windows.recordings.index(name)])
                assert (np.diff(mine) >= length).all()


@settings(deadline=None)
@given(
    samples=st.integers(0, 100_000),
    fractions=st.tuples(st.floats(0.0, 1.0), st.floats(0.0, 1.0), st.floats(0.01, 1.0)),
    gap=st.integers(0, 500),
)
def test_ranges_are_ordered_and_apart(samples: int, fractions: tuple[float, ...], gap: int):
    total = sum(fractions)
    parts = {side: f / total for side, f in zip(SIDES, fractions, strict=True)}
    ranges = list(side_ranges(samples, parts, gap=gap).values())
    for (_, stop), (start, end) in itertools.pairwise(ranges):
        assert start - stop >= min(gap, end - stop) >= 0
    assert all(0 <= start <= stop <= samples for start, stop in ranges)


@pytest.mark.parametrize("kind", ["time", "load", "speed", "bearing"])
def test_recorded_splits_share_no_sample(cwru: Dataset, kind: str):
    split = make_split(cwru, split=kind, stride=512)
    assert_disjoint(split, [r.name for r in cwru.recordings], gap=2 * support() - 1)


@pytest.mark.parametrize("kind", ["time", "load:2", "bearing"])
def test_windows_are_normalised_typed_and_deterministic(simulated: Dataset, kind: str):
    split, again = (make_split(simulated, split=kind) for _ in range(2))
    for side in SIDES:
        windows = getattr(split, side)
        assert windows.signal.dtype == np.float32
        assert windows.signal.shape == (len(windows), 1024)
        np.testing.assert_allclose(windows.signal.mean(axis=1), 0.0, atol=1e-5)
        np.testing.assert_allclose(windows.signal.std(axis=1), 1.0, atol=1e-4)
        np.testing.assert_array_equal(windows.signal, getattr(again, side).signal)
        assert windows.fs_hz == 12_000.0
        assert len(windows.recordings) == len(windows.rpm)


def test_loudness_does_not_reach_a_window():
    quiet = noise("q", 20_000)
    loud = dataclasses.replace(quiet, name="l", signal=1_000.0 * quiet.signal + 5.0)
    split = make_split(dataset(quiet, loud), split="time")
    first, second = (split.train.signal[split.train.recording == index] for index in (0, 1))
    np.testing.assert_allclose(first, second, atol=1e-3)


def test_load_split_leaves_one_load_out(simulated: Dataset):
    split = make_split(simulated, split="load:1")
    loads = {r.name: r.load for r in simulated.recordings}
    assert {loads[split.test.recordings[i]] for i in set(split.test.recording.tolist())} == {"1"}
    assert "1" not in {loads[split.train.recordings[i]] for i in set(split.train.recording.tolist())}
    assert split.name == "load:1"


def test_bare_load_and_speed_have_a_default_that_is_told(simulated: Dataset):
    split = make_split(simulated, split="load")
    assert split.name == "load:3"
    assert any("by default" in note for note in split.notes)
    assert make_split(simulated, split="speed").name == "speed:1797"


def test_bearing_split_leaves_units_out_and_predicts_fault_types(simulated: Dataset):
    split = make_split(simulated, split="bearing")
    assert split.name == "bearing:IR014,B014,OR014"
    assert split.train.classes == ("N", "IR", "B", "OR")
    units = {r.name: r.unit for r in simulated.recordings}
    tested = {units[split.test.recordings[i]] for i in set(split.test.recording.tolist())}
    assert tested == {"IR014", "B014", "OR014"}
    assert "N is missing from the test side" in split.notes


def test_nine_fault_form(simulated: Dataset):
    split = make_split(simulated, split="time", classes=CWRU_FAULT_LABELS)
    assert split.train.classes == CWRU_FAULT_LABELS
    assert make_split(simulated, split="time", classes=("IR",)).train.classes == ("IR007", "IR014", "IR021")


def test_recorded_load_split_tells_that_normal_is_missing(cwru: Dataset):
    split = make_split(cwru, split="load:3")
    assert "N is missing from the test side" in split.notes
    assert any("derived" in note for note in split.notes)
    assert len(split.train.classes) == 10


def test_recorded_second_rig_by_speed(uestc: Dataset):
    split = make_split(uestc, split="speed:1200")
    assert set(split.test.rpm[np.unique(split.test.recording)]) == {1200.0}
    assert split.test.classes == ("N", "IR", "B", "OR")
    assert set(split.test.label.tolist()) == {0, 1, 2, 3}


@pytest.mark.parametrize(
    ("kind", "error", "message"),
    [
        ("random", UnknownNameError, "unknown split 'random'"),
        ("load:7", UnknownNameError, "unknown load '7'"),
        ("speed:fast", UsageError, "speed in rpm"),
        ("speed:100", UnknownNameError, "unknown speed"),
        ("bearing:IR14", UnknownNameError, "Did you mean 'IR014'"),
        ("bearing:IR007,IR014,IR021", UsageError, "Keep one of IR"),
        ("time:3", UsageError, "no argument"),
    ],
)
def test_impossible_splits(simulated: Dataset, kind: str, error: type[Exception], message: str):
    with pytest.raises(error, match=message):
        make_split(simulated, split=kind)


def test_splits_that_the_dataset_cannot_give():
    alone = dataset(noise("a", 20_000), noise("b", 20_001, label="IR007"))
    with pytest.raises(UsageError, match="two loads"):
        make_split(alone, split="load")
    with pytest.raises(UsageError, match="no recording to train on"):
        make_split(alone, split="speed")
    with pytest.raises(UsageError, match="per fault type"):
        make_split(alone, split="bearing")
    unnamed = dataset(dataclasses.replace(noise("a", 20_000), unit=""))
    with pytest.raises(UsageError, match="column 'unit'"):
        make_split(unnamed, split="bearing")


def test_unknown_class(simulated: Dataset):
    with pytest.raises(UnknownNameError, match=r"unknown label 'IR07'.*Did you mean 'IR007'"):
        make_split(simulated, split="time", classes=("IR07",))


def test_too_short_a_recording_is_named():
    with pytest.raises(DataError, match=r"brief: expected at least 1024 samples .* found 900"):
        make_split(dataset(noise("a", 20_000), noise("brief", 900)), split="time")


def test_a_side_without_room_is_named():
    with pytest.raises(DataError, match="validation windows of 1024 samples"):
        make_split(dataset(noise("a", 4_000)), split="time")


def test_a_constant_recording_is_named():
    dead = dataclasses.replace(noise("dead", 20_000), signal=np.full(20_000, 2.5))
    with pytest.raises(DataError, match="dead: expected vibration, found a constant signal"):
        make_split(dataset(noise("a", 20_000), dead), split="time")


def test_fractions_and_lengths_are_checked(simulated: Dataset):
    with pytest.raises(UsageError, match="fractions"):
        make_split(simulated, split="time", validation=0.6, test=0.5)
    with pytest.raises(UsageError, match="stride"):
        make_split(simulated, split="time", stride=0)


def test_repeated_names_are_refused():
    with pytest.raises(DataError, match="repeated"):
        make_split(dataset(noise("a", 20_000), noise("a", 20_001)), split="time")
