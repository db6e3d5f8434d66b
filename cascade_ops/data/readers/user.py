"""A user's own recordings: a folder with a ``recordings.csv`` that describes each file.

Columns ``file, fs_hz, rpm, label`` are required, ``load, unit, channel`` optional. Formats by extension:
``.csv`` (with or without a header), ``.wav``, ``.mat``, ``.npy`` and ``.parquet``. ``channel`` names the
column or variable, or counts it from 0; it may be empty where there is only one. The sampling rate is
never guessed; where the file states it too (WAV, or a ``time`` column in seconds), the two must agree.

An optional ``dataset.json`` gives ``title``, ``licence``, ``citation`` and ``bearing`` (``name, balls,
ball_diameter, pitch_diameter, contact_angle_deg``; an outer ring at rest).
"""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path
from typing import Any

import numpy as np

from cascade_ops.data.readers.base import (
    DATASETS,
    DatasetEntry,
    checked_signal,
    make_dataset,
    require_file,
    sha256_of,
)
from cascade_ops.data.readers.columns import UNBOUNDED, choose
from cascade_ops.data.readers.formats import READERS, Reader
from cascade_ops.data.types import Bearing, Dataset, DatasetInfo, Recording
from cascade_ops.errors import DataError, UsageError

LIST = "recordings.csv"
REQUIRED = ("file", "fs_hz", "rpm", "label")
OPTIONAL = ("load", "unit", "channel")
RATE_TOLERANCE = 0.01

INFO = DatasetInfo(
    name="user",
    title="Your own recordings",
    bearing=None,
    licence="Yours.",
    citation="Not stated.",
    notes=(),
)


def find(root: Path) -> Path | None:
    """``root/user`` or ``root``, whichever holds a ``recordings.csv``."""
    return next((folder for folder in (root / "user", root) if (folder / LIST).is_file()), None)


def load(root: Path, **options: Any) -> Dataset:
    """Every recording listed in ``root/recordings.csv``, in its order.

    Raises:
        DataError: naming the list's line, or the file, with what was expected and found.
    """
    if options:
        raise UsageError(f"dataset 'user' has no option {', '.join(sorted(options))}. Leave it out.")
    path = root / LIST
    return make_dataset(_info(root), [_recording(root, where, row) for where, row in _rows(path)])


def _rows(path: Path) -> list[tuple[str, dict[str, str]]]:
    """The list's rows, each with ``path:line`` for messages."""
    require_file(path, f"a table with the columns {', '.join(REQUIRED)}")
    try:
        with path.open(newline="", encoding="utf-8-sig") as stream:
            reader = csv.DictReader(stream)
            columns = [name.strip() for name in reader.fieldnames or ()]
            reader.fieldnames = columns
            rows = [(f"{path}:{reader.line_num}", row) for row in reader]
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path}: expected a CSV table in UTF-8, found {error}. Save it as such.") from None
    if absent := [name for name in REQUIRED if name not in columns]:
        raise DataError(
            f"{path}: expected the columns {', '.join(REQUIRED)}, found {', '.join(columns) or 'none'}. "
            f"Add {', '.join(absent)}."
        )
    if unknown := [name for name in columns if name not in REQUIRED + OPTIONAL]:
        raise DataError(
            f"{path}: expected only the columns {', '.join(REQUIRED + OPTIONAL)}, found "
            f"{', '.join(map(repr, unknown))}. Rename or remove them."
        )
    if not rows:
        raise DataError(f"{path}: expected at least one recording, found none below the header. Add a line.")
    return [(where, {key: (value or "").strip() for key, value in row.items() if key}) for where, row in rows]


def _positive(where: str, row: dict[str, str], column: str) -> float:
    try:
        value = float(row[column])
    except ValueError:
        value = math.nan
    if not (math.isfinite(value) and value > 0):
        raise DataError(
            f"{where}: expected {column} to be a number above 0, found "
            f"{row[column] or 'nothing'!r}. Fill it in."
        )
    return value


def _recording(root: Path, where: str, row: dict[str, str]) -> Recording:
    for column in ("file", "label"):
        if not row[column]:
            raise DataError(f"{where}: expected a {column}, found nothing. Fill it in.")
    fs_hz, rpm = _positive(where, row, "fs_hz"), _positive(where, row, "rpm")
    path, channel = root / row["file"], row.get("channel", "")
    reader = READERS.get(path.suffix.lower())
    if reader is None:
        raise DataError(
            f"{where}: expected a file ending in {', '.join(READERS)}, found {path.name!r}. Convert it."
        )
    values, stated = _read(path, channel, reader)
    if stated is not None and abs(stated - fs_hz) > RATE_TOLERANCE * fs_hz:
        raise DataError(
            f"{path}: expected the sampling rate {fs_hz:g} Hz given in {LIST}, found {stated:g} Hz in the "
            "file. Correct whichever is wrong."
        )
    return Recording(
        name=row["file"] + (f"#{channel}" if channel else ""),
        signal=checked_signal(path, values),
        fs_hz=fs_hz,
        rpm=rpm,
        label=row["label"],
        load=row.get("load", ""),
        unit=row.get("unit", ""),
        channel=channel,
        sha256=sha256_of(path),
    )


def _read(path: Path, channel: str, reader: Reader) -> tuple[np.ndarray, float | None]:
    """One channel of a file, and the rate that the file states."""
    require_file(path, "a recording")
    found = reader(str(path), path.read_bytes(), UNBOUNDED)
    picked = choose(str(path), found.signals, channel, how=f"in the column 'channel' of {LIST}")
    return found.signals[picked], found.rate_hz


def _info(root: Path) -> DatasetInfo:
    path = root / "dataset.json"
    if not path.is_file():
        return INFO
    try:
        given = json.loads(path.read_text(encoding="utf-8"))
        bearing = Bearing(**given["bearing"]) if given.get("bearing") else None
        if bearing is not None and not (
            0 < bearing.ball_diameter < bearing.pitch_diameter and bearing.balls > 0
        ):
            raise ValueError("a bearing with balls > 0 and 0 < ball_diameter < pitch_diameter is needed")
        return DatasetInfo(
            name="user",
            title=str(given.get("title", INFO.title)),
            bearing=bearing,
            licence=str(given.get("licence", INFO.licence)),
            citation=str(given.get("citation", INFO.citation)),
        )
    except (ValueError, TypeError, AttributeError) as error:
        raise DataError(
            f"{path}: expected an object with title, licence, citation and bearing, found "
            f"{error}. Correct it."
        ) from None


DATASETS.add(
    "user",
    DatasetEntry(
        info=INFO, find=find, load=load, obtain=f"you: a folder with {LIST} (see the documentation)"
    ),
)
