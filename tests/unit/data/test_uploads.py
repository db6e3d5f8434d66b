"""Strangers' files: read as scipy and numpy read them, or refused in one clear line."""

from __future__ import annotations

import io
import os
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.io import loadmat, wavfile

from cascade_ops.data import Dataset, find_dataset
from cascade_ops.data.readers.uploads import KINDS, Limits, read_upload, shown
from tests.unit.data.uploaded import FILES, SIGNAL, csv, mat, npy, refused, wav

# -- what is read -----------------------------------------------------------------------------------


def test_recorded_cwru_files(cwru: Dataset):
    folder = find_dataset("cwru")
    assert folder is not None
    recorded = {r.name: r for r in cwru.recordings}
    for name in ("97.mat", "105.mat", "118.mat", "130.mat"):
        found = read_upload(name, (folder / name).read_bytes())
        np.testing.assert_array_equal(found.signal, recorded[name].signal)
        assert (found.rpm, found.fs_hz) == (recorded[name].rpm, None)
        assert found.channel.endswith("DE_time")


def test_recorded_uestc_files(uestc: Dataset):
    folder = find_dataset("uestc")
    assert folder is not None
    for recording in uestc.recordings[::8]:
        content = (folder / recording.name).read_bytes()
        np.testing.assert_array_equal(
            read_upload(recording.name, content, channel="Data").signal, recording.signal
        )


@pytest.mark.parametrize("dtype", ["<f8", ">f8", "<f4", "<f2", "<i2", ">i4", "u1", "<u8", "<i8", "<f16"])
@pytest.mark.parametrize("version", [(1, 0), (2, 0), (3, 0)])
def test_npy_of_any_number(dtype: str, version: tuple[int, int]):
    values = (50 * SIGNAL + 100).clip(0).astype(dtype)
    stream = io.BytesIO()
    np.lib.format.write_array(stream, values, version=version)
    found = read_upload("a.NPY", stream.getvalue())
    assert found.signal.dtype == np.float64
    assert found.signal.flags.writeable
    np.testing.assert_array_equal(found.signal, values.astype(np.float64))
    assert (found.fs_hz, found.rpm, found.channel) == (None, None, "0")


@pytest.mark.parametrize("order", ["C", "F"])
def test_npy_of_several_channels(order: Any):
    table = np.stack([SIGNAL, -SIGNAL, 2 * SIGNAL], axis=1)
    for given_as in (table, table.T):
        content = npy(np.array(given_as, order=order))
        assert "expected one channel, found '0', '1', '2'" in refused("a.npy", content)
        np.testing.assert_array_equal(read_upload("a.npy", content, channel="2").signal, 2 * SIGNAL)
    for alone in (SIGNAL[:, None], SIGNAL[None, :], SIGNAL[None, :64]):
        np.testing.assert_array_equal(read_upload("a.npy", npy(alone)).signal, alone.reshape(-1))


def test_npy_written_by_others():
    head = b'{"shape": (400L,),"fortran_order":False , "descr":"<f8"}\n'
    content = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(head)) + head + SIGNAL.tobytes()
    np.testing.assert_array_equal(read_upload("a.npy", content).signal, SIGNAL)


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("dtype", ["f8", "f4", "i2", "u1", "i8"])
def test_mat_as_scipy_reads_it(dtype: str, compressed: bool):
    values = (50 * SIGNAL).astype(dtype)
    variables = {
        "note": "hello",
        "X": values[:, None],
        "cell": np.array([1, "a"], dtype=object),
        "fs": 12_000,
    }
    content = mat(
        variables | {"s": {"a": SIGNAL}, "z": SIGNAL * 1j, "l": SIGNAL > 0}, do_compression=compressed
    )
    found = read_upload("a.mat", content)
    np.testing.assert_array_equal(found.signal, loadmat(io.BytesIO(content))["X"].reshape(-1))
    assert (found.channel, found.rpm, found.fs_hz) == ("X", None, None)


def test_mat_matrices_are_channels():
    content = mat({"X": np.stack([SIGNAL, -SIGNAL], axis=1), "deep": np.ones((9, 9, 9))})
    assert "found 'X[0]', 'X[1]'" in refused("a.mat", content)
    np.testing.assert_array_equal(read_upload("a.mat", content, channel="X[1]").signal, -SIGNAL)
    content = mat({"X": np.stack([SIGNAL, -SIGNAL])})
    np.testing.assert_array_equal(read_upload("a.mat", content, channel="1").signal, -SIGNAL)


def test_the_drive_end_and_its_speed():
    both = {"X098_DE_time": SIGNAL, "X099_DE_time": -SIGNAL, "X098RPM": 1772, "X099RPM": 1750}
    assert "'X098_DE_time', 'X099_DE_time'" in refused("99.mat", mat(both))
    found = read_upload("99.mat", mat(both), channel="X099_DE_time")
    assert (found.signal[0], found.rpm) == (-SIGNAL[0], 1750.0)
    for speed in (0, np.nan, np.inf, -5):
        assert (
            read_upload("a.mat", mat({"X1_DE_time": SIGNAL, "X2_FE_time": SIGNAL, "X1RPM": speed})).rpm
            is None
        )
    assert read_upload("a.mat", mat({"x": SIGNAL, "aRPM": 1, "bRPM": 2})).rpm is None


@pytest.mark.parametrize("dtype", ["i2", "i4", "u1", "f4", "f8"])
def test_wav_as_scipy_reads_it(dtype: str):
    values = (50 * np.stack([SIGNAL, -SIGNAL], axis=1) + 100).astype(dtype)
    content = wav(values)
    found = read_upload("a.wav", content, channel="1")
    np.testing.assert_array_equal(found.signal, wavfile.read(io.BytesIO(content))[1][:, 1])
    assert found.fs_hz == 25_600.0
    assert read_upload("a.wav", wav(values[:, 0])).signal.flags.writeable


def test_wav_of_24_bits_with_other_chunks():
    raw = np.random.default_rng(1).integers(0, 256, 3 * 401, dtype=np.uint8).tobytes()
    form = struct.pack("<HHIIHHHHI", 0xFFFE, 1, 48_000, 144_000, 3, 24, 22, 24, 4)
    form += b"\x01\x00\x00\x00\x00\x00\x10\x00\x80\x00\x00\xaa\x00\x38\x9b\x71"
    chunks = [(b"LIST", b"abc\x00"), (b"fmt ", form), (b"odd ", b"123\x00"), (b"data", raw + b"\x00")]
    sizes = [4, len(form), 3, len(raw)]
    body = b"WAVE" + b"".join(
        name + struct.pack("<I", size) + data for (name, data), size in zip(chunks, sizes, strict=True)
    )
    content = b"RIFF" + struct.pack("<I", len(body)) + body
    with pytest.warns(wavfile.WavFileWarning):
        expected = wavfile.read(io.BytesIO(content))[1]
    np.testing.assert_array_equal(read_upload("a.wav", content).signal, expected)
    # what follows the samples does not matter
    np.testing.assert_array_equal(read_upload("a.wav", content + b"ID3").signal, expected)


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_csv_with_and_without_a_header(end: str):
    plain = csv({"x": SIGNAL}, header=False, end=end)
    named = csv({"time": np.arange(400) / 12_000, "acc": SIGNAL}, end=end)
    for content in (plain, end.encode() * 2 + plain, b"\xef\xbb\xbf" + plain):
        found = read_upload("a.csv", content)
        np.testing.assert_array_equal(found.signal, SIGNAL)
        assert found.fs_hz is None
    found = read_upload("a.csv", named)
    np.testing.assert_array_equal(found.signal, SIGNAL)
    assert found.fs_hz == pytest.approx(12_000)
    assert found.channel == "acc"


def test_csv_with_a_column_of_text_has_one_channel():
    rows = "\n".join(f"2024-01-01 10:{i:04},{x!r}" for i, x in enumerate(SIGNAL.tolist()))
    content = ("when,acc\n" + rows).encode()
    np.testing.assert_array_equal(read_upload("a.csv", content).signal, SIGNAL)
    assert "numeric samples" in refused("a.csv", content, channel="when")


# -- what is refused --------------------------------------------------------------------------------

LONG_NAME = "a" * 90_000


def _time(last: float) -> bytes:
    return csv({"t": np.append(np.arange(399.0), last), "x": SIGNAL})


REFUSED: dict[str, tuple[str, bytes, str]] = {
    "parquet": ("a.parquet", b"PAR1", "ending in .csv, .wav, .mat, .npy, found another"),
    "no suffix": ("recording", FILES[".npy"], "ending in"),
    "only a suffix's letters": ("mat", FILES[".mat"], "ending in"),
    "empty": ("a.mat", b"", "empty file"),
    "npz": ("a.npy", b"PK\x03\x04" + bytes(200), "archive of several arrays"),
    "npy complex": ("a.npy", npy(SIGNAL * 1j), "type '<c16'"),
    "npy bool": ("a.npy", npy(SIGNAL > 0), "type '|b1'"),
    "npy text": ("a.npy", npy(np.array(["a"] * 99)), "type '<U1'"),
    "npy dates": ("a.npy", npy(np.zeros(99, "M8[s]")), "type '<M8[s]'"),
    "npy fields": ("a.npy", npy(np.zeros(99, [("a", "f8")])), "several fields"),
    "npy cube": ("a.npy", npy(np.zeros((99, 2, 2))), "3 dimensions"),
    "npy scalar": ("a.npy", npy(np.float64(3)), "at least 64 samples, found 1"),
    "npy nothing": ("a.npy", npy(np.zeros((1000, 0))), "found none"),
    "npy wide nothing": ("a.npy", npy(np.zeros((0, 10**9))), "at most 4,000,000 samples"),
    "npy version": ("a.npy", b"\x93NUMPY\x09\x00" + bytes(200), "version 9"),
    "short": ("a.npy", npy(SIGNAL[:63]), "at least 64 samples, found 63"),
    "constant": ("a.npy", npy(np.full(99, 3.5)), "all 3.5"),
    "NaN": ("a.npy", npy(np.where(np.arange(400) == 7, np.nan, SIGNAL)), "the first at sample 7"),
    "beyond float64": ("a.npy", npy(np.full(99, np.longdouble("1e400"))), "99 NaN or infinite"),
    "signalling NaN": ("a.npy", npy(np.full(99, 0x7F800001, "u4").view("f4")), "99 NaN or infinite"),
    "mat 7.3": ("a.mat", b"MATLAB 7.3".ljust(124) + b"\x00\x02IM" + b"\x89HDF\r\n\x1a\n" * 9, "7.3 (HDF5)"),
    "HDF5": ("a.mat", b"\x89HDF\r\n\x1a\n" * 90, "7.3 (HDF5)"),
    "mat 4": ("a.mat", mat({"x": SIGNAL}, format="4"), "version 4 has none"),
    "mat of text": ("a.mat", mat({"x": "hello"}), "expected one channel, found none"),
    "mat without channel": ("a.mat", FILES[".mat"], "expected a channel 'nope', found 'X105_DE_time'"),
    "mat names": ("a.mat", mat({f"x{i}" * 9: SIGNAL for i in range(40)}), "and 20 more"),
    "mat of many": ("a.mat", mat({f"x{i}": 1 for i in range(1001)}), "more than 1000 variables"),
    "wav big-endian": ("a.wav", b"RIFX" + FILES[".wav"][4:], "begins with 'RIFX"),
    "wav mu-law": ("a.wav", FILES[".wav"][:20] + b"\x07" + FILES[".wav"][21:], "format 7 and 16 bits"),
    "wav of rate 0": ("a.wav", FILES[".wav"][:24] + bytes(4) + FILES[".wav"][28:], "at 0 Hz"),
    "wav of frames of 0": (
        "a.wav",
        FILES[".wav"][:32] + bytes(2) + FILES[".wav"][34:],
        "1 channels of 16 bits at 25600 Hz in 0 bytes",
    ),
    "wav without format": ("a.wav", FILES[".wav"][:12] + FILES[".wav"][36:], "no format"),
    "wav without samples": ("a.wav", FILES[".wav"][:36], "found an unexpected end"),
    "wav of many chunks": (
        "a.wav",
        FILES[".wav"][:12] + b"junk\x00\x00\x00\x00" * 200,
        "more than 100 chunks",
    ),
    "csv of text": ("a.csv", b"acc\nhello\nworld\n", "numeric samples"),
    "csv not UTF-8": ("a.csv", b"\xff\xfe\n1\n2\n", "utf-8"),
    "csv ragged": ("a.csv", b"a,b\n1,2\n3\n", "Expected 2 columns, got 1"),
    "csv wide row": ("a.csv", b"a\n" + b"1," * 100_000, "Expected 1 columns"),
    "csv wide header": ("a.csv", b"1," * 100_000 + b"1\n", "at most 64 channels"),
    "csv empty cell": ("a.csv", csv({"a": SIGNAL, "b": SIGNAL}) + b"1,\n", "expected one channel"),
    "csv gap": (
        "a.csv",
        csv({"a": SIGNAL}) + b"NaN\n" + csv({"a": SIGNAL}, header=False),
        "first at sample 400",
    ),
    "csv twice": ("a.csv", csv({"a": SIGNAL, " a": SIGNAL}).replace(b" ", b""), "found 'a' twice"),
    "csv long names": ("a.csv", f"{LONG_NAME}1,{LONG_NAME}2\n1,2\n3,4\n".encode(), "aaa…'"),
    "csv blank": ("a.csv", b"\n" * 1000, "Empty CSV file"),
    "csv header that goes on": (
        "a.csv",
        b'"a\n",' + b"1," * 10_000 + b"1\n" + b"1," * 10_001 + b"1\n",
        "numeric samples",
    ),
    "csv huge cell": ("a.csv", b"a" * 200_000 + b"\n1\n2\n", "field larger than field limit"),
    "csv open quote": ("a.csv", b'"a\n' + b"1\n" * 100, "found"),
    "csv endless time": ("a.csv", _time(np.inf), "that give a sampling rate, found 0 Hz"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused_with_one_clear_line(case: str):
    name, content, message = REFUSED[case]
    channel = "nope" if case == "mat without channel" else ""
    assert message in refused(name, content, channel=channel)


def test_unusable_times_give_no_rate():
    for last in (np.nan, -1.0, 0.0):
        assert read_upload("a.csv", _time(last)).fs_hz is None


@pytest.mark.parametrize("suffix", KINDS)
def test_limits(suffix: str):
    table = np.stack([SIGNAL, -SIGNAL, 2 * SIGNAL], axis=1)
    content = {
        ".npy": npy(table),
        ".mat": mat({"X": table}),
        ".wav": wav(table),
        ".csv": csv(dict(zip("abc", table.T, strict=True))),
    }[suffix]
    name = "a" + suffix
    exact = Limits(max_samples=400, max_channels=3, max_expanded_bytes=1200 * 8)
    assert len(read_upload(name, content, channel="1", limits=exact).signal) == 400
    for limits, message in (
        (Limits(max_samples=399), "at most 399 samples of a channel, found 400"),
        (Limits(max_channels=2), "at most 2 channels, found 3"),
        (Limits(max_expanded_bytes=1199 * 8), "at most 1,199 numbers, found 1,200"),
    ):
        assert message in refused(name, content, channel="1", limits=limits)


@pytest.mark.parametrize("channel", ["9", "-1", "9" * 5000, "x\n\x00" * 90, "²", "\ud800"])
def test_any_channel(channel: str):
    for suffix, content in FILES.items():
        assert "expected a channel" in refused("a" + suffix, content, channel=channel)


# -- names ------------------------------------------------------------------------------------------

NAMES = {
    "../../etc/passwd.npy": "passwd.npy",
    "/etc/shadow.npy": "shadow.npy",
    "C:\\windows\\x.npy": "x.npy",
    "a\x00b\n\x1b[31m.npy": "a?b??[31m.npy",
    "\u202egpj.npy": "?gpj.npy",
    "\ud800.npy": "?.npy",
    "x" * 10_000 + ".npy": "…" + "x" * 55 + ".npy",
    "x/" * 10_000 + "y.npy": "y.npy",
    "a.mat/b.npy": "b.npy",
    "  a.npy  ": "a.npy",
    ".npy": ".npy",
    "": "upload",
    "../": "upload",
}


@pytest.mark.parametrize("name", NAMES, ids=lambda name: repr(name[:20]))
def test_names_are_shown_clean_and_never_opened(name: str, monkeypatch: pytest.MonkeyPatch):
    def opened(*args: object, **kwargs: object) -> None:
        raise AssertionError(f"opened {args}")

    assert shown(name) == NAMES[name]
    monkeypatch.setattr("builtins.open", opened)
    monkeypatch.setattr(os, "open", opened)
    if NAMES[name].endswith(".npy"):
        np.testing.assert_array_equal(read_upload(name, FILES[".npy"]).signal, SIGNAL)
        assert refused(name, b"junk").startswith(NAMES[name] + ": expected")
    else:
        assert refused(name, FILES[".npy"]).startswith("upload: expected a file ending in")


def test_a_file_of_that_name_is_not_read(tmp_path: Path):
    path = tmp_path / "a.npy"
    np.save(path, -SIGNAL)
    np.testing.assert_array_equal(read_upload(str(path), FILES[".npy"]).signal, SIGNAL)
    assert str(tmp_path) not in refused(str(path), b"junk")
