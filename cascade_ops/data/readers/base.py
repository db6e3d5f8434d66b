"""What every dataset reader shares: the registry entry, manifests, ``.mat`` parsing, signal checks."""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from cascade_ops.data.readers import matlab
from cascade_ops.data.types import Dataset, DatasetInfo, Recording
from cascade_ops.errors import DataError
from cascade_ops.registry import Registry


@dataclass(frozen=True, slots=True, kw_only=True)
class RemoteFile:
    """A file that the publisher offers: its name, checksum and path below the entry's ``base_url``."""

    file: str
    sha256: str
    remote: str


@dataclass(frozen=True, slots=True, kw_only=True)
class DatasetEntry:
    """A dataset that users choose by name.

    ``find`` maps a data root to the dataset's folder, or None; ``load(folder, **options)`` reads it.
    ``files`` is empty where nothing can be downloaded; ``obtain`` then tells where the data comes from.
    """

    info: DatasetInfo
    find: Callable[[Path], Path | None]
    load: Callable[..., Dataset]
    files: tuple[RemoteFile, ...] = ()
    base_url: str = ""
    obtain: str = ""


DATASETS: Registry[DatasetEntry] = Registry("dataset")


@functools.cache
def manifest(name: str) -> dict[str, Any]:
    """The packaged manifest of a dataset: figures about its files, never the files."""
    path = Path(__file__).parent.parent / "manifests" / f"{name}.json"
    document: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return document


def folder_with(root: Path, name: str, files: Iterable[str]) -> Path | None:
    """``root/name``, or ``root`` itself, whichever holds at least one of ``files``."""
    wanted = tuple(files)
    for folder in (root / name, root):
        if any((folder / file).is_file() for file in wanted):
            return folder
    return None


def sha256_of(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def read_mat(path: Path) -> dict[str, np.ndarray]:
    """The real numeric variables of a MATLAB 5-7 file, flattened; text, structs and objects are left out.

    Raises:
        DataError: missing, empty, truncated, or not a MATLAB 5-7 file.
    """
    require_file(path, "a MATLAB .mat file")
    return {name: values.reshape(-1) for name, values in matlab.read(str(path), path.read_bytes()).items()}


def require_file(path: Path, expected: str) -> None:
    """Raises DataError when ``path`` is missing or empty."""
    if not path.is_file():
        raise DataError(f"{path}: expected {expected}, found no such file. Put it there or correct the name.")
    if path.stat().st_size == 0:
        raise DataError(f"{path}: expected {expected}, found an empty file. Copy or download it again.")


def pick_channel(path: Path, variables: dict[str, np.ndarray], key: str, suffix: str) -> np.ndarray:
    """The variable ``key``, or else the only one whose name ends in ``suffix``.

    Some CWRU files keep their signal under another file's name (``174.mat`` under ``X173_DE_time``),
    and some hold two files' signals, where only ``key`` is right.

    Raises:
        DataError: neither is there, or the suffix is ambiguous.
    """
    if key in variables:
        return variables[key]
    matching = [name for name in variables if name.endswith(suffix)]
    if len(matching) == 1:
        return variables[matching[0]]
    raise DataError(
        f"{path}: expected a vibration channel {key!r} (or one variable ending in {suffix!r}), found "
        f"{', '.join(sorted(variables)) or 'no numeric variable'}. Choose another file or channel."
    )


def checked_signal(where: str | Path, values: np.ndarray) -> Float[np.ndarray, " samples"]:
    """A one-dimensional, finite, non-empty float64 signal.

    Raises:
        DataError: naming ``where`` and the first bad sample.
    """
    if values.dtype.kind not in "fiu":
        raise DataError(f"{where}: expected numeric samples, found {values.dtype}. Convert them to numbers.")
    if values.ndim == 2 and 1 in values.shape:
        values = values.reshape(-1)
    if values.ndim != 1 or values.size < 2:
        raise DataError(
            f"{where}: expected a one-dimensional vibration signal, found shape {values.shape}. "
            "Name one channel of it."
        )
    signal = np.ascontiguousarray(values, dtype=np.float64)
    finite = np.isfinite(signal)
    if not finite.all():
        bad = np.flatnonzero(~finite)
        raise DataError(
            f"{where}: expected finite samples, found {bad.size} NaN or infinite, the first at sample "
            f"{bad[0]}. Cut or repair the recording."
        )
    return signal


def make_dataset(info: DatasetInfo, recordings: Iterable[Recording], *, source: str = "recorded") -> Dataset:
    """A Dataset with its fingerprint: sha256 over names, labels and float64 samples, in order."""
    kept = tuple(recordings)
    digest = hashlib.sha256()
    for recording in kept:
        digest.update(f"{recording.name}\0{recording.label}\0{recording.fs_hz:g}\0".encode())
        digest.update(np.ascontiguousarray(recording.signal, dtype="<f8").data)
    return Dataset(info=info, recordings=kept, source=source, fingerprint=digest.hexdigest())
