"""Reading what is right, and one clear message for each thing that is not."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from scipy.io import savemat, wavfile

from cascade_ops.data import CWRU_LABELS, DATASETS, Dataset, available, find_dataset, open_dataset
from cascade_ops.data.readers import cwru as cwru_reader
from cascade_ops.data.readers import jnu, uestc, user
from cascade_ops.data.readers.base import checked_signal, manifest, read_mat
from cascade_ops.errors import DataError, UnknownNameError, UsageError

SIGNAL = np.random.default_rng(0).standard_normal(4_000)


def row_174(samples: int = 4_000) -> dict[str, object]:
    return {
        "file": "174.mat",
        "sha256": "0" * 64,
        "label": "IR014",
        "load_hp": 2,
        "rpm": 1750,
        "fs_hz": 12_000,
        "channel_key": "X174_DE_time",
        "samples": samples,
    }


# -- CWRU ------------------------------------------------------------------------------------------


def test_manifest_knows_the_rates_the_labels_and_the_loads():
    files = manifest("cwru")["files"]
    assert len(files) == 37
    assert {row["fs_hz"] for row in files if row["label"] == "N"} == {48_000}
    assert {row["fs_hz"] for row in files if row["label"] != "N"} == {12_000}
    assert {row["label"] for row in files} == set(CWRU_LABELS)
    for label in CWRU_LABELS[1:]:
        assert {row["load_hp"] for row in files if row["label"] == label} == {0, 1, 2, 3}
    assert all(len(row["sha256"]) == 64 for row in files)


def test_recorded_cwru(cwru: Dataset):
    assert cwru.source == "recorded"
    assert len(cwru.recordings) == 38
    by_name = {r.name: r for r in cwru.recordings}
    assert by_name["97.mat"].fs_hz == 48_000.0
    assert (by_name["105.mat"].rpm, by_name["105.mat"].rpm_nominal) == (1797.0, False)
    partial = by_name["98_normal_1hp_partial.npz"]
    assert partial.derived
    assert len(partial.segments) == 43
    assert partial.segments[-1][1] == len(partial.signal) == 266_164
    assert any("normal is missing at load 2, 3" in note for note in cwru.info.notes)


def test_recorded_cwru_fan_end_and_base(cwru: Dataset):
    folder = find_dataset("cwru")
    assert folder is not None
    base = cwru_reader.load(folder, channel="BA", verify=False)
    assert "97.mat" not in {r.name for r in base.recordings}
    assert any("97.mat" in note and "base" in note for note in base.info.notes)
    assert base.fingerprint != cwru.fingerprint


def test_the_fingerprint_is_stable(cwru: Dataset):
    assert open_dataset("cwru").fingerprint == cwru.fingerprint


def test_a_signal_under_another_files_name_and_without_a_speed(tmp_path: Path):
    path = tmp_path / "174.mat"
    savemat(path, {"X173_DE_time": SIGNAL[:, None], "X173_FE_time": SIGNAL[:, None]})
    recording = cwru_reader.read_recording(path, row_174(), verify=False)
    assert recording is not None
    np.testing.assert_array_equal(recording.signal, SIGNAL)
    assert (recording.rpm, recording.rpm_nominal) == (1750.0, True)
    assert (recording.label, recording.load, recording.unit) == ("IR014", "2", "IR014")


def test_of_two_files_signals_in_one_file_the_named_one_is_read(tmp_path: Path):
    path = tmp_path / "174.mat"
    savemat(path, {"X173_DE_time": -SIGNAL, "X174_DE_time": SIGNAL, "X174RPM": 1748, "X173RPM": 1})
    recording = cwru_reader.read_recording(path, row_174(), verify=False)
    assert recording is not None
    np.testing.assert_array_equal(recording.signal, SIGNAL)
    assert recording.rpm == 1748.0


def test_a_48_khz_version_is_not_taken_for_12_khz(tmp_path: Path):
    path = tmp_path / "174.mat"
    savemat(path, {"X174_DE_time": np.tile(SIGNAL, 4)})
    with pytest.raises(DataError, match=r"expected 4000 samples .*12000 Hz\), found 16000.* replace"):
        cwru_reader.read_recording(path, row_174(), verify=False)


def test_a_changed_file_is_refused(tmp_path: Path):
    path = tmp_path / "174.mat"
    savemat(path, {"X174_DE_time": SIGNAL})
    with pytest.raises(DataError, match=r"expected sha256 000000000000…, found .*cascade data fetch"):
        cwru_reader.read_recording(path, row_174())


def test_a_normal_recording_without_a_known_checksum_is_read_where_it_lies(tmp_path: Path):
    rows = {row["file"]: row for row in manifest("cwru")["unverified"]}
    long = np.resize(SIGNAL, 485_000)
    savemat(tmp_path / "99.mat", {"X098_DE_time": -long, "X099_DE_time": long})
    data = cwru_reader.load(tmp_path)
    assert [(r.name, r.load, r.fs_hz, r.signal[0]) for r in data.recordings] == [
        ("99.mat", "2", 48_000.0, SIGNAL[0])
    ]
    assert any("99.mat: no checksum is known" in note for note in data.info.notes)
    savemat(tmp_path / "100.mat", {"X100_DE_time": long[:121_000]})  # 10 s at 12 kHz
    with pytest.raises(DataError, match=r"expected at least 432000 samples .* found 121000"):
        cwru_reader.read_recording(tmp_path / "100.mat", rows["100.mat"])


def test_unknown_channel_and_option(tmp_path: Path):
    with pytest.raises(UnknownNameError, match="CWRU channel"):
        cwru_reader.load(tmp_path, channel="XX")
    with pytest.raises(UsageError, match="no option chanel"):
        cwru_reader.load(tmp_path, chanel="DE")


def _truncated(path: Path) -> None:
    savemat(path, {"X174_DE_time": SIGNAL})
    path.write_bytes(path.read_bytes()[:5_000])


def _truncated_compressed(path: Path) -> None:
    savemat(path, {"X174_DE_time": SIGNAL}, do_compression=True)
    path.write_bytes(path.read_bytes()[:5_000])


def _hdf5(path: Path) -> None:
    path.write_bytes(b"MATLAB 7.3 MAT-file".ljust(124, b" ") + b"\x00\x02IM" + b"\x89HDF\r\n\x1a\n" * 9)


BAD_MAT: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing": (lambda path: None, "found no such file"),
    "empty": (lambda path: path.write_bytes(b""), "found an empty file"),
    "truncated": (_truncated, "truncated|damaged"),
    "truncated compressed": (_truncated_compressed, "truncated|damaged"),
    "garbage": (lambda path: path.write_bytes(b"not a mat file " * 50), "do not parse|damaged"),
    "a few bytes": (lambda path: path.write_bytes(b"xx"), "do not parse|damaged"),
    "version 7.3": (_hdf5, "7.3"),
    "no vibration": (lambda path: savemat(path, {"note": "hello", "n": 3}), "expected a vibration channel"),
    "NaN": (
        lambda path: savemat(path, {"X174_DE_time": np.where(np.arange(4_000) == 7, np.nan, SIGNAL)}),
        "found 1 NaN or infinite, the first at sample 7",
    ),
    "a matrix": (lambda path: savemat(path, {"X174_DE_time": np.array(["a", "b"])}), "vibration channel"),
}


@pytest.mark.parametrize("case", BAD_MAT)
def test_bad_mat_files_give_one_clear_message(tmp_path: Path, case: str):
    make, message = BAD_MAT[case]
    path = tmp_path / "174.mat"
    make(path)
    with pytest.raises(DataError, match=message) as caught:
        cwru_reader.read_recording(path, row_174(), verify=False)
    text = str(caught.value)
    assert "174.mat" in text
    assert "expected" in text
    assert "found" in text
    assert "\n" not in text


def test_every_truncation_of_a_mat_file_is_a_data_error(tmp_path: Path):
    path = tmp_path / "a.mat"
    for compressed in (False, True):
        savemat(path, {"X174_DE_time": SIGNAL[:200], "X174RPM": 1750}, do_compression=compressed)
        whole = path.read_bytes()
        for size in [*range(1, 400, 7), len(whole) // 2, len(whole) - 1]:
            path.write_bytes(whole[: min(size, len(whole) - 1)])
            try:
                found = read_mat(path)
            except DataError:
                continue
            assert len(found.get("X174_DE_time", [])) in (0, 200)  # cut between two variables


# -- UESTC and JNU ---------------------------------------------------------------------------------


def test_recorded_uestc(uestc: Dataset):
    assert len(uestc.recordings) == 32
    assert {r.label for r in uestc.recordings} == {"N", "B", "IR", "OR"}
    assert {r.rpm for r in uestc.recordings} == {800.0, 1000.0, 1200.0, 1400.0}
    assert {r.fs_hz for r in uestc.recordings} == {20_000.0}


def test_uestc_checks_the_rate_that_the_file_states(tmp_path: Path):
    path = tmp_path / "N_800_1.mat"
    savemat(path, {"Data": SIGNAL, "SampleFrequency": 10_000})
    row = manifest("uestc")["files"][0]
    with pytest.raises(DataError, match="expected a sampling rate of 20000 Hz, found 10000 Hz"):
        uestc.read_recording(path, row, verify=False)


def test_jnu_reads_its_own_format(tmp_path: Path):
    folder = tmp_path / "jnu"
    folder.mkdir()
    names = [
        f"{kind}{rpm}{'_3' if kind == 'n' else ''}_2.csv" for kind in jnu.KINDS for rpm in (600, 800, 1000)
    ]
    for name in names:
        np.savetxt(folder / name, SIGNAL)
    (folder / "readme.csv").write_text("not,one,of,them\n")
    data = open_dataset("jnu", path=tmp_path)
    assert len(data.recordings) == 12
    inner = next(r for r in data.recordings if r.name == "ib800_2.csv")
    assert (inner.label, inner.rpm, inner.fs_hz) == ("IR", 800.0, 50_000.0)
    np.testing.assert_allclose(inner.signal, SIGNAL)
    assert data.info.bearing is None


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("ib600_2.csv", "", "empty file"),
        ("ib600_2.csv", "acceleration\n1\n2\n", "without a header"),
        ("ib600_2.csv", "1,2\n3,4\n", "expected one column, found 2"),
        ("ib600_2.csv", "1\nnan\n3\n", "first at sample 1"),
        ("xb600_2.csv", "1\n2\n", "expected a name like"),
    ],
)
def test_bad_jnu_files(tmp_path: Path, name: str, content: str, message: str):
    (tmp_path / name).write_text(content)
    with pytest.raises(DataError, match=message):
        jnu.read_recording(tmp_path / name)


# -- a user's own recordings -----------------------------------------------------------------------


def write_all(folder: Path) -> None:
    wave = (SIGNAL / np.abs(SIGNAL).max()).astype(np.float32)
    time = np.arange(len(SIGNAL)) / 25_600.0
    (folder / "plain.csv").write_text("\n".join(map(repr, SIGNAL.tolist())))
    pq.write_table(pa.table({"time": time, "x": SIGNAL, "y": -SIGNAL}), folder / "a.parquet")
    rows = zip(time.tolist(), SIGNAL.tolist(), strict=True)
    (folder / "named.csv").write_text("time,acc\n" + "\n".join(f"{t!r},{x!r}" for t, x in rows))
    wavfile.write(folder / "w.wav", 25_600, wave)
    savemat(folder / "m.mat", {"vib": SIGNAL, "fs": 25_600})
    np.save(folder / "n.npy", np.stack([SIGNAL, -SIGNAL], axis=1))
    (folder / "recordings.csv").write_text(
        "file,fs_hz,rpm,label,load,unit,channel\n"
        "plain.csv,25600,1500,N,0,a,\n"
        "named.csv,25600,1500,N,0,b,acc\n"
        "a.parquet,25600,1500,IR,0,c,y\n"
        "w.wav,25600,1500,OR,1,d,\n"
        "m.mat,25600,1500,B,1,e,\n"
        "n.npy,25600,1500,B,1,f,1\n"
    )


def test_every_format_of_ones_own(tmp_path: Path):
    write_all(tmp_path)
    bearing = {"name": "6204", "balls": 8, "ball_diameter": 7.94, "pitch_diameter": 33.5}
    (tmp_path / "dataset.json").write_text(json.dumps({"title": "Pump 3", "bearing": bearing}))
    data = open_dataset("user", path=tmp_path)
    assert [len(r.signal) for r in data.recordings] == [4_000] * 6
    by_label = {r.name: r for r in data.recordings}
    for name, sign in [
        ("plain.csv", 1),
        ("named.csv#acc", 1),
        ("a.parquet#y", -1),
        ("m.mat", 1),
        ("n.npy#1", -1),
    ]:
        np.testing.assert_allclose(by_label[name].signal, sign * SIGNAL)
    assert data.info.title == "Pump 3"
    assert data.info.bearing is not None
    assert data.info.bearing.balls == 8
    assert (by_label["w.wav"].load, by_label["w.wav"].unit) == ("1", "d")


HEADER = "file,fs_hz,rpm,label,channel\n"
BAD_LISTS = {
    "no list": (None, "found no such file"),
    "empty list": ("", "empty file"),
    "header only": (HEADER, "at least one recording"),
    "missing column": ("file,rpm,label\nn.npy,1500,N\n", r"found file, rpm, label\. Add fs_hz"),
    "unknown column": ("file,fs_hz,rpm,label,colour\nn.npy,1,1,N,red\n", "'colour'"),
    "no rate": (HEADER + "n.npy,,1500,N,0\n", r"recordings.csv:2: expected fs_hz .* found 'nothing'"),
    "a word for a rate": (HEADER + "n.npy,fast,1500,N,0\n", "found 'fast'"),
    "negative rate": (HEADER + "n.npy,-1,1500,N,0\n", "above 0"),
    "infinite speed": (HEADER + "n.npy,25600,inf,N,0\n", "expected rpm"),
    "wrong rate": (HEADER + "w.wav,48000,1500,N,\n", "expected the sampling rate 48000 Hz .* found 25600 Hz"),
    "rate against time": (HEADER + "a.parquet,12000,1500,N,x\n", "found 25600 Hz"),
    "no label": (HEADER + "n.npy,25600,1500,,0\n", "expected a label"),
    "no file": (HEADER + "gone.npy,25600,1500,N,0\n", "gone.npy: expected a recording, found no such file"),
    "unknown format": (HEADER + "x.tdms,25600,1500,N,0\n", r"ending in \.csv"),
    "ambiguous channel": (HEADER + "n.npy,25600,1500,N,\n", "expected one channel, found '0', '1'"),
    "missing channel": (HEADER + "a.parquet,25600,1500,N,z\n", "expected a channel 'z', found 'x', 'y'"),
    "broken wav": (HEADER + "bad.wav,25600,1500,N,\n", "expected a WAV file"),
    "broken parquet": (HEADER + "bad.parquet,25600,1500,N,\n", "expected a Parquet file"),
    "broken npy": (HEADER + "bad.npy,25600,1500,N,\n", "npy array"),
    "pickled npy": (HEADER + "pickle.npy,25600,1500,N,\n", "npy array"),
    "broken mat": (HEADER + "bad.mat,25600,1500,N,\n", r"\.mat file"),
    "text csv": (HEADER + "bad.csv,25600,1500,N,\n", "numeric samples"),
}


@pytest.mark.parametrize("case", BAD_LISTS)
def test_bad_descriptions_of_ones_own(tmp_path: Path, case: str):
    write_all(tmp_path)
    for name in ("bad.wav", "bad.parquet", "bad.npy", "bad.mat"):
        (tmp_path / name).write_bytes(b"RIFF garbage " * 30)
    (tmp_path / "bad.csv").write_text("acc\nhello\nworld\n")
    np.save(tmp_path / "pickle.npy", np.array([{"a": 1}, None], dtype=object), allow_pickle=True)
    text, message = BAD_LISTS[case]
    if text is None:
        (tmp_path / "recordings.csv").unlink()
    else:
        (tmp_path / "recordings.csv").write_text(text)
    with pytest.raises(DataError, match=message) as caught:
        user.load(tmp_path)
    assert "\n" not in str(caught.value)


def test_nan_in_ones_own(tmp_path: Path):
    np.save(tmp_path / "n.npy", np.array([1.0, np.inf, 3.0]))
    (tmp_path / "recordings.csv").write_text(HEADER + "n.npy,25600,1500,N,\n")
    with pytest.raises(DataError, match=r"n\.npy: expected finite .* first at sample 1"):
        user.load(tmp_path)


@pytest.mark.parametrize("text", ["[]", "{", '{"bearing": {"balls": 3}}', '{"bearing": 5}'])
def test_bad_dataset_json(tmp_path: Path, text: str):
    write_all(tmp_path)
    (tmp_path / "dataset.json").write_text(text)
    with pytest.raises(DataError, match=r"dataset\.json: expected"):
        user.load(tmp_path)


def test_checked_signal_names_shape_and_kind():
    with pytest.raises(DataError, match=r"here: .* shape \(3, 2\)"):
        checked_signal("here", np.zeros((3, 2)))
    with pytest.raises(DataError, match="numeric"):
        checked_signal("here", np.array(["a", "b"]))


# -- finding ---------------------------------------------------------------------------------------


def test_every_entry_states_licence_and_citation():
    assert tuple(DATASETS) == ("cwru", "jnu", "simulated", "uestc", "user")
    for entry in DATASETS.values():
        assert entry.info.licence
        assert entry.info.citation
        assert entry.info.title
        assert entry.obtain


def test_unknown_dataset():
    with pytest.raises(UnknownNameError, match="Did you mean 'cwru'"):
        open_dataset("cwur")


def test_a_dataset_that_is_not_here_says_what_to_do(nowhere: Path):
    with pytest.raises(DataError, match="cascade data fetch cwru") as caught:
        open_dataset("cwru")
    assert str(nowhere / "cwru") in str(caught.value)
    with pytest.raises(DataError, match="Get it from"):
        open_dataset("jnu")


def test_auto_falls_back_to_the_simulator_and_says_so(nowhere: Path):
    data = open_dataset("auto", seconds=0.5, labels=("N", "IR007"), loads=("0",))
    assert data.source == "simulated"
    assert any("stand in" in note for note in data.info.notes)


def test_auto_prefers_recordings(cwru: Dataset):
    assert open_dataset("auto").fingerprint == cwru.fingerprint


def test_places_are_searched_in_order(nowhere: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def put(root: Path) -> Path:
        (root / "jnu").mkdir(parents=True)
        np.savetxt(root / "jnu" / "ib600_2.csv", SIGNAL)
        return root

    put(nowhere)
    assert find_dataset("jnu") == nowhere / "jnu"
    put(Path("..") / "shared" / "data")
    assert find_dataset("jnu") == Path("..") / "shared" / "data" / "jnu"
    monkeypatch.setenv("CASCADE_DATA_DIR", str(put(tmp_path / "mine")))
    assert find_dataset("jnu") == tmp_path / "mine" / "jnu"
    assert find_dataset("jnu", path=put(tmp_path / "other")) == tmp_path / "other" / "jnu"
    assert find_dataset("jnu", path=tmp_path / "none") is None


def test_available_lists_every_dataset(nowhere: Path):
    rows = {row.name: row for row in available()}
    assert rows["simulated"].complete
    assert not rows["cwru"].complete
    assert (rows["cwru"].files, rows["cwru"].expected, rows["cwru"].folder) == (0, 37, "")


def test_unknown_simulator_option():
    with pytest.raises(UsageError, match="Known options: seed"):
        open_dataset("simulated", loudness=3)
