"""File formats by extension: named columns of numbers, and the sampling rate where the file states it.

Each reader takes a file's bytes, never a path, and makes nothing larger than its limits allow, so that what arrives
over a network is read as what lies on a disk.
"""

from __future__ import annotations

import csv
import io
import math
import re
import struct
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from cascade_ops.data.readers import matlab
from cascade_ops.data.readers.columns import Columns, Limits, brief, by_index, listed, table_of, timed, why
from cascade_ops.errors import DataError

Reader = Callable[[str, bytes, Limits], Columns]
"""``(where, content, limits)``; ``where`` names the file in messages. Raises DataError."""


def read_csv(where: str, content: bytes, limits: Limits) -> Columns:
    """A table in UTF-8, with or without a header."""
    import pyarrow as pa
    from pyarrow import csv as arrow_csv

    content = content.removeprefix(b"\xef\xbb\xbf").strip(b"\r\n")
    ends = [end for end in (content.find(b"\n"), content.find(b"\r")) if end >= 0]
    first = content[: min(ends, default=len(content))]
    lines = 1 + content.count(b"\n") + content.count(b"\r") - content.count(b"\r\n")
    limits.check(where, lines - 1, max(1, first.count(b",")))  # a header, and a column of time
    try:
        cells = next(csv.reader([first.decode("utf-8")]), [])
        if not all(_is_number(cell) for cell in cells):
            content = content[len(first) :]
        else:
            cells = [f"f{index}" for index in range(len(cells))]
        # named here, since pyarrow would find more columns in a header that goes on after a quote
        options = arrow_csv.ReadOptions(column_names=cells, use_threads=False)
        table = arrow_csv.read_csv(io.BytesIO(content), read_options=options)
        found = timed(_columns(where, table))
    except (pa.ArrowException, csv.Error, ValueError, OSError) as error:
        raise DataError(
            f"{where}: expected a table of numbers, found {brief(error, 160)}. Export it again."
        ) from None
    limits.check(where, table.num_rows, len(found.signals))
    return found


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


def _columns(where: str, table: Any) -> dict[str, np.ndarray]:
    names = table.column_names
    if repeated := sorted({name for name in names if names.count(name) > 1}):
        raise DataError(
            f"{where}: expected a name for each column, found {listed(repeated)} twice. Rename one."
        )
    return {name: _numbers(table.column(index)) for index, name in enumerate(names)}


def _numbers(column: Any) -> np.ndarray:
    """Its values; none where it is text, of which each cell would become a Python object."""
    import pyarrow as pa

    if pa.types.is_integer(column.type) or pa.types.is_floating(column.type):
        values: np.ndarray = column.to_numpy()
        return values
    return np.empty(0, dtype=object)


def read_parquet(where: str, content: bytes, limits: Limits) -> Columns:
    """One's own files only: ``limits`` are not known to pyarrow, which expands what it is given."""
    del limits
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return timed(_columns(where, pq.read_table(pa.BufferReader(content))))
    except (pa.ArrowException, ValueError, OSError) as error:
        raise DataError(
            f"{where}: expected a Parquet file, found {brief(error, 160)}. Copy it again."
        ) from None


MOST_CHUNKS = 100
PCM, FLOAT, EXTENSIBLE = 1, 3, 0xFFFE
SAMPLES = {(PCM, 8): "u1", (PCM, 16): "<i2", (PCM, 32): "<i4", (FLOAT, 32): "<f4", (FLOAT, 64): "<f8"}


def read_wav(where: str, content: bytes, limits: Limits) -> Columns:
    """RIFF: PCM of 8 (from 0 to 255), 16, 24 (as the upper bytes of 32) and 32 bits, or floats of 32 and 64."""
    try:
        if content[:4] != b"RIFF" or content[8:12] != b"WAVE":
            raise ValueError(f"a file that begins with {brief(content[:12].decode('latin-1'))!r}")
        chunks = dict(_chunks(content))
        if b"fmt " not in chunks:
            raise ValueError("no format")
        kind, channels, rate, _, frame, bits = struct.unpack_from("<HHIIHH", chunks[b"fmt "])
        if kind == EXTENSIBLE:
            (kind,) = struct.unpack_from("<H", chunks[b"fmt "], 24)
        if (kind, bits) not in SAMPLES and (kind, bits) != (PCM, 24):
            raise ValueError(f"samples of format {kind} and {bits} bits, neither PCM nor floats")
        if not (channels and rate and frame == channels * bits // 8):
            raise ValueError(f"{channels} channels of {bits} bits at {rate} Hz in {frame} bytes")
    except (ValueError, struct.error) as error:
        raise DataError(
            f"{where}: expected a WAV file, found {why(error)}. Copy it again, or save it as PCM."
        ) from None
    count = len(chunks[b"data"]) // frame
    limits.check(where, count, channels)
    samples = chunks[b"data"][: count * frame]
    if bits == 24:
        values = np.zeros((count * channels, 4), np.uint8)
        values[:, 1:] = np.frombuffer(samples, np.uint8).reshape(-1, 3)
        flat = values.view("<i4")
    else:
        flat = np.frombuffer(samples, SAMPLES[kind, bits])
    table = flat.reshape(count, channels)
    return Columns(signals={str(index): table[:, index] for index in range(channels)}, rate_hz=float(rate))


def _chunks(content: bytes) -> Iterator[tuple[bytes, memoryview]]:
    """Up to the samples. Raises ValueError where one is larger than what is there, struct.error where a head is cut."""
    at, end = 12, len(content)
    for _ in range(MOST_CHUNKS):
        name, size = struct.unpack_from("<4sI", content, at)
        if at + 8 + size > end:
            raise ValueError(f"{end} bytes, where {at + 8 + size} are announced")
        yield name, memoryview(content)[at + 8 : at + 8 + size]
        if name == b"data":
            return
        at += 8 + size + size % 2
    raise ValueError(f"more than {MOST_CHUNKS} chunks")


def read_mat(where: str, content: bytes, limits: Limits) -> Columns:
    """Columns of a matrix ``X`` are called ``X[0]``, ``X[1]``, …; single numbers (a speed, a rate) are no signals."""
    variables = matlab.read(where, content, limits)
    signals: dict[str, np.ndarray] = {}
    for name, values in variables.items():
        if values.size > 1:
            signals |= by_index(values, limits, name)
    scalars = {name: float(values[0]) for name, values in variables.items() if values.size == 1}
    return Columns(signals=signals, scalars=scalars)


NPY_HEAD = 10_000
_DESCR = re.compile(r"['\"]descr['\"]\s*:\s*['\"]([^'\"]{1,20})['\"]")
_NUMBER = re.compile(r"[<>=|]?(?:f(?:2|4|8|16)|[iu][1248])")
_FORTRAN = re.compile(r"['\"]fortran_order['\"]\s*:\s*(True|False)")
_SHAPE = re.compile(r"['\"]shape['\"]\s*:\s*\(([\d\s,L]{0,60})\)")  # L: Python 2


def read_npy(where: str, content: bytes, limits: Limits) -> Columns:
    """A real numeric array of at most two dimensions (see ``table_of``), and nothing that needs unpickling."""
    try:
        stored, order, shape, start = _npy_head(content)
    except (ValueError, struct.error) as error:
        raise DataError(
            f"{where}: expected a plain .npy array of numbers, found {why(error)}. Save it with numpy.save."
        ) from None
    limits.check(where, *table_of(shape, limits))
    count = math.prod(shape)
    if start + count * stored.itemsize > len(content):
        raise DataError(
            f"{where}: expected a plain .npy array of numbers, found {len(content):,} bytes where "
            f"{start + count * stored.itemsize:,} are announced. It is truncated: copy it again."
        )
    flat = np.frombuffer(content, stored, count, start).astype(stored.newbyteorder("="))
    return Columns(signals=by_index(flat.reshape(shape, order=order), limits))


def _npy_head(content: bytes) -> tuple[np.dtype[Any], Any, tuple[int, ...], int]:
    """Type, order, shape and where the values begin. Source: numpy's NEP 1; the head is matched, not evaluated.

    Raises:
        ValueError: not what is read here. struct.error: too short.
    """
    if content[:6] != b"\x93NUMPY":
        raise ValueError("an archive of several arrays" if content[:2] == b"PK" else "another format")
    version = content[6] if len(content) > 6 else 0
    if version not in (1, 2, 3):
        raise ValueError(f"version {version} of the format")
    width = 2 if version == 1 else 4
    (size,) = struct.unpack_from("<H" if version == 1 else "<I", content, 8)
    start = 8 + width + size
    if size > NPY_HEAD or start > len(content):
        raise ValueError(f"a head of {size} bytes")
    head = content[8 + width : start].decode("latin-1")
    descr, fortran, extent = _DESCR.search(head), _FORTRAN.search(head), _SHAPE.search(head)
    if descr is None or fortran is None or extent is None:
        raise ValueError("several fields, more than two dimensions or a damaged head")
    if not _NUMBER.fullmatch(descr[1]):
        raise ValueError(f"values of type {descr[1]!r}" + " (pickled objects)" * ("O" in descr[1]))
    shape = tuple(int(length) for length in re.findall(r"\d+", extent[1]))
    if len(shape) > 2:
        raise ValueError(f"{len(shape)} dimensions")
    return np.dtype(descr[1]), "F" if fortran[1] == "True" else "C", shape, start


READERS: dict[str, Reader] = {
    ".csv": read_csv,
    ".wav": read_wav,
    ".mat": read_mat,
    ".npy": read_npy,
    ".parquet": read_parquet,
}
