"""Splits on disk: Parquet shards with a JSON document beside them, all or nothing.

    FOLDER/split.json               schema, name, notes, classes, recordings, rpm, rate, files with sha256
    FOLDER/train-00000.parquet …    columns signal (fixed-size list), label, recording, start

Everything is written to a temporary folder beside the target, synced, and renamed: a full disk or a killed
process leaves no half-written split. Loading compares every checksum.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from pathlib import Path
from typing import Any

import numpy as np

from cascade_ops import __version__
from cascade_ops.data.readers.base import sha256_of
from cascade_ops.data.types import Dataset, SplitData, Windows
from cascade_ops.data.windows import SIDES, make_split
from cascade_ops.errors import DataError, RunExistsError
from cascade_ops.files import written_whole

SCHEMA = "cascade.split/1"
DOCUMENT = "split.json"
COLUMNS = ("label", "recording", "start")


def stored_split(dataset: Dataset, root: Path, **options: Any) -> SplitData:
    """``make_split(dataset, **options)``, kept as shards below ``root`` for the next time.

    The folder's name is a hash of the recordings and the options, so that a changed recording or option
    is never answered from an old store. A damaged store is made anew; one that cannot be written is done
    without.

    Raises:
        DataError, UsageError: as ``make_split``.
    """
    facts = [(r.name, r.fs_hz, r.rpm, r.label, r.load, r.unit, r.segments) for r in dataset.recordings]
    asked = json.dumps([SCHEMA, __version__, dataset.fingerprint, facts, sorted(options.items())])
    folder = root / hashlib.sha256(asked.encode()).hexdigest()[:24]
    if folder.is_dir():
        with contextlib.suppress(DataError):
            return load_split(folder)
    split = make_split(dataset, **options)
    with contextlib.suppress(DataError, RunExistsError):
        save_split(split, folder, overwrite=True)
    return split


def save_split(split: SplitData, folder: Path, *, shard_windows: int = 4096, overwrite: bool = False) -> Path:
    """Stores ``split`` as ``folder`` and returns it.

    Raises:
        RunExistsError: ``folder`` exists and ``overwrite`` is off, or it is no stored split.
        DataError: it cannot be written (a full disk, say); nothing is left behind.
    """
    if folder.exists() and not (overwrite and (folder / DOCUMENT).is_file()):
        raise RunExistsError(
            f"{folder}: expected a new folder, found it there"
            + ("." if overwrite else " already.")
            + " Choose another name"
            + (", it holds no stored split." if overwrite else ", or overwrite it.")
        )
    try:
        with written_whole(folder) as scratch:
            _write(split, scratch, shard_windows)
    except OSError as error:
        size = sum(getattr(split, side).signal.nbytes for side in SIDES) / 2**20
        raise DataError(
            f"{folder}: expected to store about {size:.0f} MiB of windows, found {error.strerror or error}. "
            "Nothing was kept: free some space or choose another folder."
        ) from error
    return folder


def _write(split: SplitData, folder: Path, shard_windows: int) -> None:
    files: dict[str, list[dict[str, Any]]] = {}
    for side in SIDES:
        windows: Windows = getattr(split, side)
        files[side] = []
        for number, start in enumerate(range(0, len(windows), shard_windows)):
            path = folder / f"{side}-{number:05d}.parquet"
            _write_shard(windows, slice(start, start + shard_windows), path)
            files[side].append(
                {
                    "file": path.name,
                    "windows": len(windows.label[start : start + shard_windows]),
                    "sha256": sha256_of(path),
                }
            )
    train = split.train
    document = {
        "schema": SCHEMA,
        "name": split.name,
        "notes": split.notes,
        "classes": train.classes,
        "recordings": train.recordings,
        "rpm": train.rpm.tolist(),
        "fs_hz": train.fs_hz,
        "length": int(train.signal.shape[1]),
        "files": files,
    }
    with (folder / DOCUMENT).open("w", encoding="utf-8") as stream:
        json.dump(document, stream, indent=1, ensure_ascii=False)
        stream.flush()
        os.fsync(stream.fileno())


def _write_shard(windows: Windows, rows: slice, path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    signal = np.ascontiguousarray(windows.signal[rows], dtype=np.float32)
    table = pa.table(
        {
            "signal": pa.FixedSizeListArray.from_arrays(pa.array(signal.reshape(-1)), signal.shape[1]),
            **{column: pa.array(getattr(windows, column)[rows]) for column in COLUMNS},
        }
    )
    # noise does not compress; dictionaries of floats only cost time
    with path.open("wb") as stream:
        pq.write_table(table, stream, compression="none", use_dictionary=False)
        stream.flush()
        os.fsync(stream.fileno())


def load_split(folder: Path) -> SplitData:
    """A split that ``save_split`` stored.

    Raises:
        DataError: not a stored split, of another schema, or a shard is missing or changed.
    """
    path = folder / DOCUMENT
    if not path.is_file():
        raise DataError(f"{folder}: expected a stored split with {DOCUMENT}, found none. Check the folder.")
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        schema = document.get("schema")
    except (ValueError, AttributeError) as error:
        raise DataError(f"{path}: expected JSON, found {error}. Store the split again.") from None
    if schema != SCHEMA:
        raise DataError(f"{path}: expected schema {SCHEMA!r}, found {schema!r}. Store the split again.")
    try:
        sides = {side: _read_side(folder, document, side) for side in SIDES}
        return SplitData(name=document["name"], notes=tuple(document["notes"]), **sides)
    except (KeyError, TypeError) as error:
        raise DataError(
            f"{path}: expected a complete document, found {error!r}. Store the split again."
        ) from None


def _read_side(folder: Path, document: dict[str, Any], side: str) -> Windows:
    import pyarrow as pa
    import pyarrow.parquet as pq

    tables = []
    for entry in document["files"][side]:
        path = folder / entry["file"]
        found = sha256_of(path) if path.is_file() else "no file"
        if found != entry["sha256"]:
            raise DataError(
                f"{path}: expected sha256 {entry['sha256'][:12]}…, found {found[:12]}. Store the split again."
            )
        tables.append(pq.read_table(path))
    table = pa.concat_tables(tables).combine_chunks()
    signal = np.concatenate([chunk.flatten().to_numpy() for chunk in table["signal"].chunks])
    return Windows(
        signal=signal.reshape(-1, document["length"]),
        **{column: table[column].to_numpy() for column in COLUMNS},
        recordings=tuple(document["recordings"]),
        rpm=np.array(document["rpm"], dtype=np.float64),
        classes=tuple(document["classes"]),
        fs_hz=float(document["fs_hz"]),
    )
