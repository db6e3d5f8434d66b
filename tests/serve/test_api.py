"""The HTTP interface as a client meets it: right answers to right requests, a 4xx with a reason to all others."""

from __future__ import annotations

import io
import json
import struct
import zlib
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import requests
import torch
from scipy.io import savemat, wavfile

from cascade_ops.checkpoint import load_pruned
from cascade_ops.data.simulate import simulate_recording
from cascade_ops.diagnosis import cut
from cascade_ops.evaluation import predict
from tests.serve.conftest import TOKEN, Served

RATE = 12000.0


@pytest.fixture(scope="module")
def signal() -> np.ndarray:
    return simulate_recording("OR014", rpm=1750.0, seconds=2.0).signal.astype(np.float64)


def ask(served: Served, **body: Any) -> requests.Response:
    return requests.post(f"{served.url}/v1/diagnose", json=body)


def upload(served: Served, name: str, content: bytes, **fields: Any) -> requests.Response:
    return requests.post(f"{served.url}/v1/diagnose", files={"file": (name, content)}, data=fields)


def npy(array: Any) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array, allow_pickle=True)
    return stream.getvalue()


def test_diagnosis_is_the_mean_over_windows(served: Served, signal: np.ndarray) -> None:
    found = ask(served, signal=signal.tolist(), fs_hz=RATE, rpm=1750, model="dense").json()
    expected = served.service.variants["dense"].expected
    assert expected is not None
    windows = cut(signal, RATE, expected)
    model = load_pruned(served.run / "steps/00-dense/model")
    mean = predict(model, {"signal": windows.windows}).double().softmax(1).mean(0)
    assert torch.allclose(torch.tensor(list(found["probabilities"].values())).double(), mean, atol=1e-5)
    assert found["diagnosis"] == served.service.variants["dense"].classes[int(mean.argmax())]
    assert found["windows"]["used"] == len(windows.windows) == 64
    assert found["windows"]["available"] == windows.available > 64
    assert found["model"]["version"] == served.service.variants["dense"].version
    assert found["latency_ms"]["total"] >= found["latency_ms"]["model"] > 0


def test_evidence_shows_the_fault(served: Served, signal: np.ndarray) -> None:
    found = ask(served, signal=signal.tolist(), fs_hz=RATE, rpm=1750, detail="full").json()["evidence"]
    assert found["strongest"] == "BPFO"
    assert {line["name"]: round(line["hz"], 1) for line in found["lines"]} == {
        "BPFO": 104.6,
        "BPFI": 157.9,
        "2×BSF": 137.5,
    }
    peak = found["spectrum"]["hz"][int(np.argmax(found["spectrum"]["amplitude"][5:])) + 5]
    assert min(abs(peak - k * 104.56) for k in (1, 2, 3)) < 3
    assert len(found["waveform"]["samples"]) == 2048


def test_without_a_speed_there_are_no_lines_but_a_spectrum(served: Served, signal: np.ndarray) -> None:
    plain = ask(served, signal=signal.tolist(), fs_hz=RATE).json()
    assert plain["evidence"] is None
    assert "rpm" in plain["evidence_missing"]
    full = ask(served, signal=signal.tolist(), fs_hz=RATE, detail="full").json()
    assert full["evidence"]["lines"] == []
    assert full["evidence"]["strongest"] is None
    assert len(full["evidence"]["spectrum"]["hz"]) > 100


def files(signal: np.ndarray) -> dict[str, tuple[bytes, dict[str, Any]]]:
    mat, wav = io.BytesIO(), io.BytesIO()
    savemat(mat, {"X105_DE_time": signal[:, None], "X105_FE_time": signal[::-1, None], "X105RPM": 1750.0})
    wavfile.write(wav, int(RATE), signal.astype(np.float32))
    time = np.arange(len(signal)) / RATE
    rows = "\n".join(f"{t:.9f},{v:.9g}" for t, v in zip(time, signal, strict=True))
    return {
        "a.npy": (npy(signal), {"fs_hz": RATE, "rpm": 1750}),
        "b.mat": (mat.getvalue(), {"fs_hz": RATE}),
        "c.csv": (f"time,vibration\n{rows}\n".encode(), {"rpm": 1750}),
        "d.wav": (wav.getvalue(), {"rpm": 1750}),
    }


@pytest.mark.parametrize("name", ["a.npy", "b.mat", "c.csv", "d.wav"])
def test_a_file_is_answered_as_its_samples_are(served: Served, signal: np.ndarray, name: str) -> None:
    content, fields = files(signal)[name]
    answer = upload(served, name, content, **fields)
    assert answer.status_code == 200, answer.text
    samples = ask(served, signal=signal.tolist(), fs_hz=RATE, rpm=1750).json()
    assert answer.json()["probabilities"] == pytest.approx(samples["probabilities"], abs=1e-4)
    assert answer.json()["evidence"]["rpm"] == 1750
    assert answer.json()["evidence"]["strongest"] == "BPFO"


def test_a_batch_is_its_parts(served: Served, signal: np.ndarray) -> None:
    parts = [{"signal": signal[at : at + 3000].tolist(), "fs_hz": RATE} for at in (0, 5000, 9000)]
    found = requests.post(f"{served.url}/v1/diagnose/batch", json={"recordings": parts}).json()["results"]
    alone = [ask(served, **part).json() for part in parts]
    for one, other in zip(found, alone, strict=True):
        assert one["diagnosis"] == other["diagnosis"]
        assert one["probabilities"] == pytest.approx(other["probabilities"], abs=1e-5)


def test_models_say_what_they_are(served: Served) -> None:
    found = {model["id"]: model for model in requests.get(f"{served.url}/v1/models").json()["data"]}
    assert list(found) == ["small", "dense"]
    assert found["small"]["default"]
    assert found["dense"]["baseline"]
    assert found["small"]["compression"] == pytest.approx(4, rel=0.05)
    assert found["small"]["size_bytes"] < found["dense"]["size_bytes"]
    assert found["small"]["metric"]["name"] == "accuracy"
    assert found["small"]["bearing"] == "SKF 6205-2RS JEM"


def many_fields(count: int) -> bytes:
    return ("{" + ",".join(f'"{n}":0' for n in range(count)) + "}").encode()


GOOD = [float(n % 7) for n in range(400)]
BAD_JSON: dict[str, tuple[Any, int, str]] = {
    "not JSON": (b"{", 400, "JSON"),
    "not an object": (b"[1]", 422, "object"),
    "nothing": (b"", 400, "JSON"),
    "no signal": ({"fs_hz": RATE}, 422, "signal"),
    "empty": ({"signal": [], "fs_hz": RATE}, 422, "signal"),
    "words": ({"signal": ["a"] * 400, "fs_hz": RATE}, 422, "signal.0"),
    "numbers as words": ({"signal": ["1.0"] * 400, "fs_hz": RATE}, 422, "signal.0"),
    "truths": ({"signal": [True] * 400, "fs_hz": RATE}, 422, "signal.0"),
    "nested": ({"signal": [GOOD], "fs_hz": RATE}, 422, "signal.0"),
    "NaN": (b'{"signal": [NaN], "fs_hz": 12000}', 422, "finite"),
    "infinite": (b'{"signal": [1e999], "fs_hz": 12000}', 422, "finite"),
    "enormous": ({"signal": [1e200, -1e200] * 200, "fs_hz": RATE}, 422, "finite samples up to"),
    "too short": ({"signal": GOOD[:100], "fs_hz": RATE}, 422, "at least 256 samples"),
    "constant": ({"signal": [1.0] * 400, "fs_hz": RATE}, 422, "constant"),
    "no rate": ({"signal": GOOD}, 422, "fs_hz"),
    "rate of zero": ({"signal": GOOD, "fs_hz": 0}, 422, "fs_hz"),
    "rate below the model's": ({"signal": GOOD, "fs_hz": 8000}, 422, "12000"),
    "rate beyond sense": ({"signal": GOOD, "fs_hz": 9e6}, 422, "thin out"),
    "negative speed": ({"signal": GOOD, "fs_hz": RATE, "rpm": -1}, 422, "rpm"),
    "misspelt": ({"signal": GOOD, "fs_hz": RATE, "rmp": 1}, 422, "rmp"),
    "no such model": ({"signal": GOOD, "fs_hz": RATE, "model": "../etc/passwd"}, 404, "small, dense"),
    "no such detail": ({"signal": GOOD, "fs_hz": RATE, "detail": "all"}, 422, "detail"),
    "a million and more": (
        b'{"signal": [' + b"0," * 1_100_000 + b'0], "fs_hz": 12000}',
        413,
        "1000000 samples",
    ),
    "fields without end": (many_fields(20_000), 413, "256 recordings with their fields"),
    "windows that are not normalised": (
        {"signal": [1e20, -1e20] * 128, "fs_hz": RATE, "preprocessed": True},
        422,
        "variance 1",
    ),
    "a part of a window": ({"signal": GOOD, "fs_hz": RATE, "preprocessed": True}, 422, "256 samples each"),
}


@pytest.mark.parametrize("case", BAD_JSON)
def test_bad_json_is_refused_with_a_reason(served: Served, case: str) -> None:
    body, status, reason = BAD_JSON[case]
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    answer = requests.post(
        f"{served.url}/v1/diagnose", data=content, headers={"content-type": "application/json"}
    )
    assert answer.status_code == status, answer.text
    assert reason in answer.json()["error"]["message"]


def test_what_is_wrong_is_not_repeated_at_length(served: Served) -> None:
    answer = ask(served, signal=GOOD, fs_hz=RATE, **{"x" * 100_000: 1})
    assert answer.status_code == 422
    assert len(answer.content) < 500


class Payload:
    """What a pickle would run."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return open, (str(self.path), "w")


def bomb() -> bytes:
    """A .mat of half a megabyte whose one variable inflates to 512 MiB of zeros."""
    inner = struct.pack("<II", 14, 2**29) + bytes(2**20)
    packer = zlib.compressobj(9)
    packed = (
        packer.compress(inner) + b"".join(packer.compress(bytes(2**20)) for _ in range(511)) + packer.flush()
    )
    header = b"MATLAB 5.0 MAT-file".ljust(124, b" ") + struct.pack("<HH", 0x0100, 0x4D49)
    return header + struct.pack("<II", 15, len(packed)) + packed


def test_hostile_files_are_refused(served: Served, signal: np.ndarray, tmp_path: Path) -> None:
    trap = tmp_path / "ran"
    hostile = {
        "bomb.mat": bomb(),
        "pickle.npy": npy(np.array([Payload(trap)], dtype=object)),
        "claims.npy": npy(signal[:300]).replace(b"(300,)", b"(3" + b"0" * 6 + b",)")[:128],
        "cut.mat": files(signal)["b.mat"][0][:500],
        "words.csv": b"a,b\nx,y\n" * 100,
        "table.parquet": b"PAR1" * 100,
        "nothing.wav": b"",
        "no-suffix": npy(signal),
        "zip.npy": b"PK\x03\x04" + bytes(400),
    }
    for name, content in hostile.items():
        answer = upload(served, name, content, fs_hz=RATE)
        assert answer.status_code == 422, (name, answer.text)
        assert answer.json()["error"]["field"] == "file"
    assert not trap.exists()


@pytest.mark.parametrize(
    "name", ["../../etc/passwd.npy", "/etc/shadow.npy", "C:\\windows\\x.npy", "x" * 900 + ".npy"]
)
def test_a_name_is_only_a_suffix(served: Served, signal: np.ndarray, name: str) -> None:
    assert upload(served, name, npy(signal), fs_hz=RATE).status_code == 200


def test_forms_are_checked(served: Served, signal: np.ndarray) -> None:
    content = npy(signal)
    assert upload(served, "a.npy", content).json()["error"]["field"] == "fs_hz"
    assert upload(served, "a.npy", content, fs_hz="fast").json()["error"]["field"] == "fs_hz"
    assert upload(served, "a.npy", content, fs_hz="nan").status_code == 422
    assert upload(served, "d.wav", files(signal)["d.wav"][0], fs_hz=25600).json()["error"]["field"] == "fs_hz"
    assert upload(served, "a.npy", content, fs_hz=RATE, unknown="x").status_code == 422
    two = [("file", ("a.npy", content)), ("file", ("b.npy", content))]
    assert requests.post(f"{served.url}/v1/diagnose", files=two, data={"fs_hz": RATE}).status_code == 400
    without = {"content-type": "multipart/form-data"}
    assert requests.post(f"{served.url}/v1/diagnose", data=b"x", headers=without).status_code == 400
    broken = {"content-type": "multipart/form-data; boundary=x"}
    for body in (b"--y\r\n", b"--x\r\nContent-Disposition: nonsense\r\n\r\n", b""):
        assert requests.post(f"{served.url}/v1/diagnose", data=body, headers=broken).status_code in (400, 422)
    assert (
        requests.post(
            f"{served.url}/v1/diagnose", data=b"x", headers={"content-type": "text/plain"}
        ).status_code
        == 415
    )


def test_a_large_body_is_refused_before_it_is_read(guarded: Served) -> None:
    """By its announced length, while the sender has sent nothing of it; and one without a length while it comes."""
    import http.client

    host, port = guarded.url.removeprefix("http://").split(":")
    connection = http.client.HTTPConnection(host, int(port), timeout=10)
    connection.putrequest("POST", "/v1/diagnose")
    for name, value in (
        ("Content-Type", "application/json"),
        ("Content-Length", str(100 * 2**20)),
        ("Authorization", f"Bearer {TOKEN}"),
    ):
        connection.putheader(name, value)
    connection.endheaders()
    answer = connection.getresponse()
    assert answer.status == 413
    assert "1 MiB" in json.loads(answer.read())["error"]["message"]
    connection.close()

    sent = 0

    def endless() -> Any:
        nonlocal sent
        for _ in range(2000):
            sent += 2**16
            yield bytes(2**16)

    with suppress(requests.exceptions.RequestException):  # it may be closed while sending
        refused = requests.post(
            f"{guarded.url}/v1/diagnose", data=endless(), headers={"authorization": f"Bearer {TOKEN}"}
        )
        assert refused.status_code == 413
    assert sent < 100 * 2**20


def test_a_token_is_asked_for(guarded: Served) -> None:
    for path, method in (
        ("/v1/models", "GET"),
        ("/metrics", "GET"),
        ("/v1/diagnose", "POST"),
        ("/nowhere", "GET"),
    ):
        for headers in ({}, {"authorization": "Bearer wrong"}, {"authorization": TOKEN}):
            answer = requests.request(method, f"{guarded.url}{path}", headers=headers)
            assert answer.status_code == 401
            assert answer.headers["www-authenticate"] == "Bearer"
    for path in ("/healthz", "/readyz", "/"):
        assert requests.get(f"{guarded.url}{path}").status_code == 200
    right = {"authorization": f"Bearer {TOKEN}"}
    assert requests.get(f"{guarded.url}/v1/models", headers=right).status_code == 200


def test_counts(served: Served) -> None:
    def counted() -> float:
        lines = requests.get(f"{served.url}/metrics").text.splitlines()
        refused = [
            line for line in lines if line.startswith("cascade_requests_total") and 'status="404"' in line
        ]
        return sum(float(line.split()[-1]) for line in refused)

    before = counted()
    ask(served, signal=GOOD, fs_hz=RATE, model="nobody")
    requests.get(f"{served.url}/some/path/{'x' * 50}")
    assert counted() == before + 2
    assert "/some/path" not in requests.get(f"{served.url}/metrics").text


def test_headers_keep_the_page_to_itself(served: Served) -> None:
    for path in ("/", "/v1/models", "/nowhere"):
        headers = requests.get(f"{served.url}{path}").headers
        assert "default-src 'self'" in headers["content-security-policy"]
        assert headers["x-content-type-options"] == "nosniff"
