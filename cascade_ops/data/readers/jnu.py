"""JNU: four conditions at three speeds, 50 kHz (Jiangnan University).

One CSV per recording, one column, no header: ``n600_3_2.csv``, ``ib600_2.csv``, ``ob600_2.csv``,
``tb600_2.csv`` and the same at 800 and 1000 rpm (normal, inner race, outer race, rolling element).
"""

from __future__ import annotations

import re
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
from cascade_ops.data.types import Dataset, DatasetInfo, Recording
from cascade_ops.errors import DataError, UsageError

FS_HZ = 50_000.0
KINDS = {"n": "N", "ib": "IR", "ob": "OR", "tb": "B"}
_NAME = re.compile(r"(n|ib|ob|tb)(600|800|1000)(?:_\d+)*\.csv")

INFO = DatasetInfo(
    name="jnu",
    title="JNU bearing data, 50 kHz, three speeds",
    bearing=None,
    licence="Licence not known here: ask the authors. Files are not redistributed.",
    citation=(
        "Li, Ping, Wang, Chen and Cao, Sequential fuzzy diagnosis method for motor roller bearing in "
        "variable operating conditions based on vibration analysis, Sensors 13(6) (2013) 8013-8041"
    ),
    notes=(
        "bearing geometry is not known here: no characteristic frequencies",
        "speeds are nominal, from the file names",
    ),
)


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("*.csv") if _NAME.fullmatch(path.name))


def find(root: Path) -> Path | None:
    """``root/jnu`` or ``root``, whichever holds files named like JNU's."""
    return next((folder for folder in (root / "jnu", root) if folder.is_dir() and _files(folder)), None)


def load(root: Path, **options: Any) -> Dataset:
    """Every JNU file in ``root``.

    Raises:
        DataError: there is none, or one is not a single column of numbers.
    """
    if options:
        raise UsageError(f"dataset 'jnu' has no option {', '.join(sorted(options))}. Leave it out.")
    paths = _files(root)
    if not paths:
        raise DataError(f"{root}: expected JNU files such as n600_3_2.csv, found none. Copy them there.")
    return make_dataset(INFO, (read_recording(path) for path in paths))


def read_recording(path: Path) -> Recording:
    """One file; condition and speed come from its name."""
    match = _NAME.fullmatch(path.name)
    if match is None:
        raise DataError(
            f"{path}: expected a name like ib600_2.csv (n, ib, ob or tb, then the speed), found {path.name}. "
            "Rename it, or describe it as your own recording."
        )
    label = KINDS[match.group(1)]
    return Recording(
        name=path.name,
        signal=checked_signal(path, read_column(path)),
        fs_hz=FS_HZ,
        rpm=float(match.group(2)),
        rpm_nominal=True,
        label=label,
        unit=label,
        sha256=sha256_of(path),
    )


def read_column(path: Path) -> np.ndarray:
    """The numbers of a headerless one-column CSV; ``nan`` stays, for the caller to refuse.

    Raises:
        DataError: empty, more columns, or text.
    """
    require_file(path, "one column of numbers")
    try:
        values = np.loadtxt(path, delimiter=",", dtype=np.float64, ndmin=2)
    except (ValueError, UnicodeDecodeError) as error:
        raise DataError(
            f"{path}: expected one column of numbers without a header, found {error}. "
            "Remove what is not a number."
        ) from None
    if values.shape[1] != 1:
        raise DataError(
            f"{path}: expected one column, found {values.shape[1]}. Keep the vibration channel only."
        )
    return values[:, 0]


DATASETS.add(
    "jnu",
    DatasetEntry(
        info=INFO,
        find=find,
        load=load,
        obtain="the authors (Jiangnan University); copies circulate in fault-diagnosis benchmark collections",
    ),
)
