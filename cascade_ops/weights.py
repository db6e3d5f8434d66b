"""The tensors of a model folder, known by their headers and read one by one.

A safetensors file starts with eight bytes (the length of its header) and a JSON header that gives every
tensor's type, shape and place. Headers alone say whether a folder is complete and what a range of blocks
weighs, and let any tensor be read by itself.
"""

from __future__ import annotations

import json
import math
import os
import platform
import struct
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cascade_ops.errors import CheckpointError

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
FLOATS = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
INTEGERS = {"I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8}
KINDS = {**FLOATS, **INTEGERS, "BOOL": torch.bool}
"""safetensors' names of types."""
LARGEST_HEADER = 100 * 2**20


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredTensor:
    """Where a tensor is: ``nbytes`` from ``offset`` in ``file``. ``kind`` is safetensors' name of its type."""

    file: Path
    name: str
    kind: str
    shape: tuple[int, ...]
    offset: int
    nbytes: int


def stored_tensors(path: Path) -> dict[str, StoredTensor]:
    """Every tensor of a model folder, from the headers alone.

    Raises:
        CheckpointError: a file is absent, truncated or no safetensors file, or a tensor the index names is
            not where it says.
    """
    found: dict[str, StoredTensor] = {}
    for file in weight_files(path):
        found |= _header(file)
    if (path / SINGLE).is_file():
        return found
    lost = sorted(
        name for name, file in _weight_map(path).items() if _misplaced(found.get(name), path / file)
    )
    if lost:
        raise CheckpointError(
            f"{path / INDEX}: names {lost[0]}, which is not in the file it says ({len(lost)} such tensors). "
            "Copy the folder again."
        )
    return found


def _misplaced(tensor: StoredTensor | None, file: Path) -> bool:
    return tensor is None or tensor.file != file


def weight_files(path: Path) -> list[Path]:
    """The safetensors files of a model folder. Raises CheckpointError."""
    if (path / SINGLE).is_file():
        return [path / SINGLE]
    if not (path / INDEX).is_file():
        raise CheckpointError(
            f"{path}: expected {SINGLE} or {INDEX}, found neither (pickled weights are not loaded)"
        )
    names = sorted(set(_weight_map(path).values()))
    absent = [name for name in names if not (path / name).is_file()]
    if absent:
        raise CheckpointError(
            f"{path}: the index names {absent[0]}, which is not there ({len(absent)} absent)"
        )
    return [path / name for name in names]


def _weight_map(path: Path) -> dict[str, str]:
    try:
        names: Any = json.loads((path / INDEX).read_text())["weight_map"]
        return {str(name): os.path.basename(file) for name, file in names.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{path / INDEX}: not a safetensors index ({error})") from error


def _header(file: Path) -> dict[str, StoredTensor]:
    try:
        with file.open("rb") as stream:
            (length,) = struct.unpack("<Q", stream.read(8))
            if length > LARGEST_HEADER:
                raise ValueError(f"a header of {length:,} bytes")
            header = json.loads(stream.read(length))
        header.pop("__metadata__", None)
        start = 8 + length
        tensors = {name: _stored(file, name, start, entry) for name, entry in header.items()}
    except (OSError, struct.error, ValueError, KeyError, TypeError, AttributeError) as error:
        raise _incomplete(file, error) from error
    wanted = start + max((tensor.offset - start + tensor.nbytes for tensor in tensors.values()), default=0)
    if file.stat().st_size < wanted:
        raise _incomplete(file, f"{wanted:,} bytes expected, {file.stat().st_size:,} found")
    return tensors


def _stored(file: Path, name: str, start: int, entry: Mapping[str, Any]) -> StoredTensor:
    first, last = map(int, entry["data_offsets"])
    kind, shape = str(entry["dtype"]), tuple(int(n) for n in entry["shape"])
    size = math.prod(shape) * KINDS[kind].itemsize if kind in KINDS else last - first
    if not 0 <= first <= last or last - first != size:
        raise ValueError(f"{name}: {kind} {shape} in bytes {first} to {last}")
    return StoredTensor(
        file=file, name=name, kind=kind, shape=shape, offset=start + first, nbytes=last - first
    )


def _incomplete(file: Path, reason: object) -> CheckpointError:
    return CheckpointError(f"{file}: not a complete safetensors file ({reason}); copy or train it again")


def read_tensors(stored: Mapping[str, StoredTensor], names: Collection[str]) -> dict[str, Tensor]:
    """These tensors, and nothing else of their files.

    They are read, not mapped: pages that come in one by one as they are used are slow, and may go again.

    Raises:
        CheckpointError: a file cannot be read, or has become shorter.
    """
    read = {tensor: _read(tensor) for tensor in {stored[name] for name in names}}  # tied tensors once
    return {name: read[stored[name]] for name in names}


def _read(tensor: StoredTensor) -> Tensor:
    if tensor.kind not in KINDS:
        raise CheckpointError(
            f"{tensor.file}: {tensor.name} has type {tensor.kind}, which is not read. De-quantise the model first."
        )
    values = torch.empty(tensor.shape, dtype=KINDS[tensor.kind])
    target: memoryview = values.view(-1).view(torch.uint8).numpy().data
    try:
        with tensor.file.open("rb", buffering=0) as stream:
            stream.seek(tensor.offset)
            while target:
                count = stream.readinto(target)
                if not count:
                    raise OSError(f"{len(target):,} bytes of {tensor.name} are missing")
                target = target[count:]
    except FileNotFoundError:
        raise CheckpointError(
            f"{tensor.file}: is not there on {platform.node()}. Every node must have the model at this path."
        ) from None
    except OSError as error:
        raise _incomplete(tensor.file, error) from error
    return values
