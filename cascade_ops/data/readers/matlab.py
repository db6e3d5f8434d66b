"""MATLAB 5-7 files: their real numeric variables, read without believing what a file says of itself.

A file is a header of 128 bytes and elements: a tag (type, bytes) and data. A variable is an element miMATRIX, or one
miCOMPRESSED that inflates to it. In a variable follow elements for its flags, dimensions, name and values, padded to
8 bytes; one of at most 4 bytes lies within its tag. Source: MathWorks, "MAT-File Format", the chapter on level 5.

scipy's reader makes room for whatever dimensions a cell array claims, and inflates all there is. Here text, cells,
structs, objects, sparse, logical and complex arrays are passed over once their head is known, and values are inflated
to the size that the dimensions give, which is compared with the limits before.
"""

from __future__ import annotations

import math
import struct
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from cascade_ops.data.readers.columns import UNBOUNDED, Limits, brief, table_of, why
from cascade_ops.errors import DataError

HEADER = 128
HDF5 = b"\x89HDF\r\n\x1a\n"
INT8, UINT8, INT32, UINT32, MATRIX, COMPRESSED, UTF8 = 1, 2, 5, 6, 14, 15, 16
STORED = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8", 12: "i8", 13: "u8"}
"""Types of elements as numpy names them; doubles that are whole numbers are stored as integers."""
NUMERIC = range(6, 16)
"""Classes of arrays, double to uint64."""
COMPLEX, LOGICAL = 0x08, 0x02
HEAD_BYTES = 4096
"""Flags, dimensions and name (63 characters in MATLAB) end well within them."""
MOST_ELEMENTS = 1000
PADDING = 8

Bytes = bytes | memoryview
Order = Literal["<", ">"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Variable:
    """Where a variable's values lie: from byte ``start`` of ``element``, or of what that inflates to."""

    name: str
    shape: tuple[int, ...]
    stored: np.dtype[Any]
    start: int
    element: memoryview
    compressed: bool


def read(where: str, content: bytes, limits: Limits = UNBOUNDED) -> dict[str, np.ndarray]:
    """The real numeric variables of at most two dimensions; vectors are flat, empty ones left out.

    Raises:
        DataError: damaged, of another version or format, or beyond ``limits``.
    """
    order = _byte_order(where, content)
    try:
        found = {variable.name: variable for variable in _variables(memoryview(content), order)}
        _check(where, found.values(), limits)
        return {name: _values(variable) for name, variable in found.items()}
    except (ValueError, struct.error, zlib.error) as error:
        raise DataError(
            f"{where}: expected a MATLAB .mat file, found damaged data ({why(error)}). "
            "It is truncated or was changed: copy or download it again."
        ) from None


def _byte_order(where: str, content: bytes) -> Order:
    """``<`` or ``>``, from the header. Raises DataError for other versions and formats."""
    order: Order = ">" if content[126:HEADER] == b"MI" else "<"
    marked = content[126:HEADER] in (b"IM", b"MI")
    version = struct.unpack_from(f"{order}H", content, 124)[0] >> 8 if marked else None
    if version == 2 or content.startswith(HDF5):
        raise DataError(
            f"{where}: expected a MATLAB 5-7 file, found version 7.3 (HDF5). Save it with `save -v7`."
        )
    if version == 1:
        return order
    if len(content) >= 20 and 0 in content[:4]:
        raise DataError(
            f"{where}: expected a MATLAB 5-7 file, found no header of one (version 4 has none). "
            "Save it with `save -v7`."
        )
    raise DataError(
        f"{where}: expected a MATLAB .mat file, found {len(content)} bytes that do not parse as one. "
        "It is truncated or of another format: copy or download it again."
    )


def _variables(content: memoryview, order: Order) -> Iterator[Variable]:
    """Raises ValueError, struct.error or zlib.error on damage."""
    at = HEADER
    for _ in range(MOST_ELEMENTS):
        if at == len(content):
            return
        kind, size = struct.unpack_from(f"{order}II", content, at)
        element, at = content[at : at + 8 + size], at + 8 + size
        if at > len(content):
            raise ValueError(f"{len(content)} bytes end within a variable")
        if kind == COMPRESSED:
            head: Bytes = _inflated(element[8:], HEAD_BYTES)[0]
        else:
            head = element[:HEAD_BYTES]
        (inner,) = struct.unpack_from(f"{order}I", head)
        if inner != MATRIX:
            raise ValueError(f"an element of type {inner}")
        variable = _described(head, order, element, kind == COMPRESSED)
        if variable is not None:
            yield variable
    raise ValueError(f"more than {MOST_ELEMENTS} variables")


def _inflated(data: memoryview, most: int) -> tuple[bytes, bool]:
    """The first ``most`` bytes, fewer where there are not so many, and whether the end with its checksum was met."""
    inflater = zlib.decompressobj()
    pieces = [inflater.decompress(data, most)]
    missing = most - len(pieces[0])
    while missing and (piece := inflater.decompress(inflater.unconsumed_tail, missing)):
        pieces.append(piece)
        missing -= len(piece)
    return b"".join(pieces), inflater.eof


def _described(head: Bytes, order: Order, element: memoryview, compressed: bool) -> Variable | None:
    """A variable by its head; None where it is no real numeric array of at most two dimensions, or is empty."""
    _, begin, _, at = _element(head, 8, order, expected=(UINT32,))
    (flags,) = struct.unpack_from(f"{order}I", head, begin)
    if flags & 0xFF not in NUMERIC or flags >> 8 & (COMPLEX | LOGICAL):
        return None
    _, begin, size, at = _element(head, at, order, expected=(INT32, UINT32))
    shape = struct.unpack_from(f"{order}{size // 4}i", head, begin)
    if len(shape) < 2 or min(shape) < 0:
        raise ValueError(f"dimensions {brief(shape)}")
    _, begin, size, at = _element(head, at, order, expected=(INT8, UINT8, UTF8))
    name = bytes(head[begin : begin + size]).decode("utf-8", "replace")
    if len(shape) > 2 or 0 in shape or not name:  # without a name: MATLAB's own notes
        return None
    kind, start, size, _ = _element(head, at, order, expected=STORED)
    stored = np.dtype(STORED[kind]).newbyteorder(order)
    if size != math.prod(shape) * stored.itemsize:
        raise ValueError(f"{brief(name, 40)!r} has {size} bytes for dimensions {shape}")
    return Variable(
        name=name, shape=shape, stored=stored, start=start, element=element, compressed=compressed
    )


def _element(data: Bytes, at: int, order: Order, *, expected: Iterable[int]) -> tuple[int, int, int, int]:
    """Type, first byte and size of the data of the element at ``at``, and where the next one is."""
    kind, size = struct.unpack_from(f"{order}II", data, at)
    begin, after = at + 8, at + 8 + size + -size % 8
    if kind >> 16:
        kind, size, begin, after = kind & 0xFFFF, kind >> 16, at + 4, at + 8
    if kind not in expected or (begin == at + 4 and size > 4):
        raise ValueError(f"an element of type {kind} and {size} bytes")
    return kind, begin, size, after


def _check(where: str, variables: Iterable[Variable], limits: Limits) -> None:
    numbers = 0
    for variable in variables:
        limits.check(f"{where}: {brief(variable.name, 40)}", *table_of(variable.shape, limits))
        numbers += math.prod(variable.shape)
    limits.check_total(where, numbers)


def _values(variable: Variable) -> np.ndarray:
    """Raises ValueError where they are not all there, zlib.error where they were changed."""
    count = math.prod(variable.shape)
    end = variable.start + count * variable.stored.itemsize
    data: Bytes = variable.element
    complete = True
    if variable.compressed:
        data, complete = _inflated(variable.element[8:], end + PADDING)
    if len(data) < end or not complete:
        raise ValueError(f"{brief(variable.name, 40)!r} does not end where its dimensions say")
    flat = np.frombuffer(data, variable.stored, count, variable.start)
    values = flat.astype(variable.stored.newbyteorder("="))
    return values if 1 in variable.shape else values.reshape(variable.shape, order="F")
