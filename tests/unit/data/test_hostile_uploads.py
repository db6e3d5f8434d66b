"""Files made to do harm: refused quickly, in little memory, without running anything."""

from __future__ import annotations

import functools
import io
import os
import pickle
import struct
import time
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cascade_ops.data.readers.uploads import KINDS, read_upload
from tests.unit.data.uploaded import COMPRESSED, FILES, MB, SIGNAL, at_most, mat, npy, outcome, refused


class _Payload:
    """Unpickled, it makes a folder."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return (os.mkdir, (str(self.path),))


def test_pickles_do_not_run(tmp_path: Path):
    trap = tmp_path / "trap"
    content = npy(np.array([_Payload(trap)], dtype=object), allow_pickle=True)
    assert "pickled objects" in refused("a.npy", content)
    refused("a.npy", pickle.dumps(_Payload(trap)))
    refused("a.npy", content.replace(b"'|O'", b"'f8'"))
    assert not trap.exists()
    np.load(io.BytesIO(content), allow_pickle=True)
    assert trap.exists()  # so the trap was one


@pytest.mark.parametrize(
    "shape", ["(1000000000000,)", "(4000000,)", "(4000000, 8)", f"({10**17}, {10**17})", "(-9,)"]
)
def test_npy_that_claims_more_than_is_there(shape: str):
    head = f"{{'descr': '<f8', 'fortran_order': False, 'shape': {shape}}}\n".encode()
    content = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(head)) + head + bytes(800)
    with at_most(1):
        text = refused("a.npy", content)
    assert any(part in text for part in ("at most", "are announced", "damaged head"))


@pytest.mark.parametrize(
    "head",
    [
        "{'descr': __import__('os').abort(), 'fortran_order': False, 'shape': (99,)}",
        "(" * 9000,
        "{'descr': '<f8', 'fortran_order': False, 'shape': (" + "1" * 9000 + ",)}",
        "{'descr': '<f8', 'fortran_order': False, 'shape': (9" + " " * 9000 + "x)}",
        "'shape': (" * 900 + "'descr':" * 90,
    ],
    ids=["code", "depth", "digits", "blanks", "repeats"],
)
def test_npy_heads_are_neither_evaluated_nor_slow(head: str):
    content = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(head)) + head.encode() + bytes(800)
    began = time.perf_counter()
    assert "damaged head" in refused("a.npy", content)
    assert time.perf_counter() - began < 1


def _element(kind: int, data: bytes) -> bytes:
    return struct.pack("<II", kind, len(data)) + data + bytes(-len(data) % 8)


def _head(name: bytes, shape: tuple[int, ...], *, of_class: int = 6, size: int | None = None) -> bytes:
    """A variable up to its values."""
    size = 8 * int(np.prod(shape, dtype=object)) if size is None else size
    inner = _element(6, struct.pack("<II", of_class, 0)) + _element(5, struct.pack(f"<{len(shape)}i", *shape))
    inner += _element(1, name)
    values = struct.pack("<II", 9, size % 2**32)
    return struct.pack("<II", 14, (len(inner) + 8 + size) % 2**32) + inner + values


HEADER = b"MATLAB 5.0 MAT-file".ljust(124) + b"\x00\x01IM"


def _zeros_after(head: bytes, count: int) -> bytes:
    """``head`` and ``count`` zeros as a zlib stream, checksum and all, made without making them."""
    packer = zlib.compressobj(9)
    packed = packer.compress(head) + packer.flush(zlib.Z_FULL_FLUSH)
    low, high = zlib.adler32(head) & 0xFFFF, zlib.adler32(head) >> 16
    checksum = ((high + count * low) % 65521) << 16 | low
    rest = _deflated_zeros(count % (16 * MB), zlib.Z_FINISH)
    return (
        packed
        + _deflated_zeros(16 * MB, zlib.Z_FULL_FLUSH) * (count // (16 * MB))
        + rest
        + struct.pack(">I", checksum)
    )


@functools.cache
def _deflated_zeros(count: int, mode: int) -> bytes:
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    return packer.compress(bytes(count)) + packer.flush(mode)


def test_the_bomb_is_one():
    """Of 100 MB, it inflates whole, with the right checksum."""
    assert len(zlib.decompress(_zeros_after(b"head", 100 * MB))) == 100 * MB + 4


def compressed(stream: bytes) -> bytes:
    return struct.pack("<II", 15, len(stream)) + stream


GIANT = 2**32 - 4096


@pytest.mark.parametrize("claim", ["its size", "less", "as text", "as a cell"])
def test_zip_bombs(claim: str):
    """4 GB of zeros in 4 MB: refused by the claimed size, cut at it, or passed over."""
    of_class = {"as text": 4, "as a cell": 1}.get(claim, 6)
    shape = (100, 1) if claim == "less" else (GIANT // 8, 1)
    size = 800 if claim == "less" else GIANT
    bomb = compressed(_zeros_after(_head(b"x", shape, of_class=of_class, size=size), GIANT))
    assert len(bomb) < 6 * MB
    began = time.perf_counter()
    with at_most(12):  # mostly the copy that zlib makes of what it has not read yet
        text = refused("a.mat", HEADER + bomb)
    assert time.perf_counter() - began < 1
    expected = {"its size": "at most 4,000,000 samples", "less": "does not end where its dimensions say"}
    assert expected.get(claim, "found none") in text
    if of_class != 6:  # a recording beside it is read all the same
        found = read_upload("a.mat", HEADER + bomb + mat({"y": SIGNAL})[128:])
        np.testing.assert_array_equal(found.signal, SIGNAL)


def test_many_small_bombs():
    """Each within the limit for one variable, and 312 MB together: refused before any is inflated."""
    variables = [
        compressed(_zeros_after(_head(f"x{index}".encode(), (3_900_000, 1)), 8 * 3_900_000))
        for index in range(10)
    ]
    with at_most(12):
        assert "at most 33,554,432 numbers, found 39,000,000" in refused(
            "a.mat", HEADER + b"".join(variables)
        )


@pytest.mark.parametrize("of_class", range(20))
def test_no_class_of_array_allocates_what_it_claims(of_class: int):
    """Cells, structs, objects, text, sparse arrays, and numbers without values."""
    for shape in ((2**31 - 1, 2**31 - 1), (2**31 - 1, 1), (2**31 - 1,) * 32, (-5, 3), (7,), ()):
        for pack in (lambda data: data, lambda data: compressed(zlib.compress(data))):
            head = _head(b"x", shape, of_class=of_class, size=0)
            with at_most(1):
                refused("a.mat", HEADER + pack(head))


@pytest.mark.parametrize("size", [0, 2**31, 2**32 - 1])
@pytest.mark.parametrize("chunk", [b"data", b"LIST", b"fmt "])
def test_wav_that_lies_of_its_size(chunk: bytes, size: int):
    content = bytearray(FILES[".wav"])
    at = 12 if chunk != b"data" else content.index(b"data")
    content[at : at + 8] = chunk + struct.pack("<I", size)
    with at_most(1):
        refused("a.wav", bytes(content))


def test_csv_of_text_makes_no_objects():
    with at_most(8):
        refused("a.csv", b"x\n" + b"abc\n" * 300_000)


@pytest.mark.parametrize("name", ["a.npy", "a.wav", "a.mat", "compressed.mat", "a.csv"])
def test_truncated_anywhere(name: str):
    whole = COMPRESSED if name == "compressed.mat" else FILES[name[1:]]
    for size in sorted({*range(0, 200, 8), *np.linspace(0, len(whole) - 1, 40).astype(int).tolist()}):
        if name in ("a.mat", "a.csv"):  # between variables or rows it may be cut
            assert outcome(name, whole[:size]) in ("refused", SIGNAL[0])
        else:
            refused(name, whole[:size])


FUZZ = settings(max_examples=250, deadline=None, suppress_health_check=list(HealthCheck))


@FUZZ
@given(name=st.sampled_from([f"a{suffix}" for suffix in KINDS]), content=st.binary(max_size=600))
def test_any_bytes(name: str, content: bytes):
    outcome(name, content)
    outcome(name, FILES[name[1:]][:128] + content)


@pytest.mark.parametrize("name", ["a.npy", "a.wav", "a.mat", "compressed.mat", "a.csv"])
@FUZZ
@given(data=st.data())
def test_any_change_of_a_sound_file(name: str, data: st.DataObject):
    """Bytes replaced, mostly where sizes and types are; pieces doubled or cut out."""
    content = bytearray(COMPRESSED if name == "compressed.mat" else FILES[name[1:]])
    place = st.one_of(st.integers(0, 300), st.integers(0, len(content) - 1))
    special = st.sampled_from([0, 1, 4, 9, 14, 15, 0x2C, 0x0A, 0x22, 0x7F, 0x80, 0xFF])
    for _ in range(data.draw(st.integers(1, 6))):
        at = data.draw(place)
        content[at : at + 1] = bytes([data.draw(st.one_of(special, st.integers(0, 255)))])
    if data.draw(st.booleans()):
        start, end = sorted((data.draw(place), data.draw(place)))
        content[start:end] = content[start:end] * data.draw(st.integers(0, 2))
    with at_most(2):
        outcome(name, bytes(content))


@FUZZ
@given(data=st.data())
def test_any_change_within_a_compressed_variable(data: st.DataObject):
    """Checksums would stop the changes above; here they are right."""
    inner = bytearray(zlib.decompress(COMPRESSED[136:]))
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, 70))
        inner[at : at + 1] = bytes([data.draw(st.integers(0, 255))])
    with at_most(2):
        outcome("a.mat", HEADER + compressed(zlib.compress(bytes(inner))))
