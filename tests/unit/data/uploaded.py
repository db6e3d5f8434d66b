"""Files as others would send them, and what a reader may do with them."""

from __future__ import annotations

import io
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
from scipy.io import savemat, wavfile

from cascade_ops.data.readers.uploads import Limits, Upload, read_upload
from cascade_ops.errors import DataError

SIGNAL = np.random.default_rng(0).standard_normal(400)
MB = 2**20


def npy(values: Any, **options: Any) -> bytes:
    stream = io.BytesIO()
    np.save(stream, values, **options)
    return stream.getvalue()


def mat(variables: dict[str, Any], **options: Any) -> bytes:
    stream = io.BytesIO()
    savemat(stream, variables, **options)
    return stream.getvalue()


def wav(samples: np.ndarray, rate: int = 25_600) -> bytes:
    stream = io.BytesIO()
    wavfile.write(stream, rate, samples)
    return stream.getvalue()


def csv(columns: dict[str, np.ndarray], *, header: bool = True, end: str = "\n") -> bytes:
    rows = [",".join(map(repr, row)) for row in zip(*(c.tolist() for c in columns.values()), strict=True)]
    return end.join([",".join(columns)] * header + rows + [""]).encode()


FILES = {
    ".npy": npy(SIGNAL),
    ".mat": mat({"X105_DE_time": SIGNAL[:, None], "X105_FE_time": -SIGNAL[:, None], "X105RPM": 1797}),
    ".wav": wav((1000 * SIGNAL).astype(np.int16)),
    ".csv": csv({"time": np.arange(400) / 12_000, "acc": SIGNAL}),
}
COMPRESSED = mat({"X105_DE_time": SIGNAL[:, None]}, do_compression=True)


@contextmanager
def at_most(megabytes: float) -> Iterator[None]:
    """What Python, numpy and zlib allocate at one time stays below that."""
    tracemalloc.start()
    try:
        yield
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < megabytes * MB, f"{peak / MB:.1f} MB"


def refused(name: str, content: bytes, **options: Any) -> str:
    """The one line with which a file is refused."""
    with pytest.raises(DataError) as caught:
        read_upload(name, content, **options)
    text = str(caught.value)
    assert_clear(text)
    return text


def assert_clear(text: str) -> None:
    assert "expected" in text
    assert "found" in text
    assert text.isprintable(), repr(text)
    assert len(text) < 1200, text
    assert "cannot be read (" not in text  # the last resort: a reader met what it does not know


def outcome(name: str, content: bytes) -> object:
    """ "refused", or the first sample of a sound Upload; any other exception, or a warning, fails the test."""
    try:
        found = read_upload(name, content, limits=Limits(max_samples=10_000))
    except DataError as error:
        assert_clear(str(error))
        return "refused"
    assert_sound(found)
    return found.signal[0]


def assert_sound(found: Upload) -> None:
    assert found.signal.dtype == np.float64
    assert found.signal.ndim == 1
    assert 64 <= len(found.signal) <= 10_000
    assert np.isfinite(found.signal).all()
    assert found.signal.min() < found.signal.max()
    for stated in (found.fs_hz, found.rpm):
        assert stated is None or 0 < stated < np.inf
