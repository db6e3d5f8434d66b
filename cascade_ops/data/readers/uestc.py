"""UESTC: four conditions at four speeds without load, 20 kHz (C. Liu et al.).

The traps: amplitude differs hugely by class, so windows must be normalised one by one (they are); the
true speed is off the nominal one by up to 10 %; files of one condition were recorded one after the other.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from cascade_ops.data.bearings import UCPH_20X
from cascade_ops.data.readers.base import (
    DATASETS,
    DatasetEntry,
    RemoteFile,
    checked_signal,
    folder_with,
    make_dataset,
    manifest,
    pick_channel,
    read_mat,
    sha256_of,
)
from cascade_ops.data.types import Dataset, DatasetInfo, Recording
from cascade_ops.errors import DataError, UsageError

INFO = DatasetInfo(
    name="uestc",
    title="UESTC bearing data, 20 kHz, four speeds, no load",
    bearing=UCPH_20X,
    licence="Open for fault-detection research; publications cite the paper. Files are not redistributed.",
    citation=(
        "C. Liu et al., A New Target Domain One-Class Learning Bearing Fault Detection Framework, "
        "IEEE Sensors Journal, doi 10.1109/JSEN.2025.3635217"
    ),
    notes=(
        "speeds are nominal; the real ones are off by up to 10 %",
        "bearing geometry is approximate, inferred from measured orders",
        "files 1 and 2 of a condition were recorded one after the other (O_1200 jumps between them): "
        "each is cut by itself",
        "amplitude differs by class up to a hundredfold: only per-window normalisation makes it fair",
    ),
)

_FILES: dict[str, dict[str, Any]] = {row["file"]: row for row in manifest("uestc")["files"]}
_COMMIT = "2091a655c31b075f0388b96bb7e81f4e3099b027"


def find(root: Path) -> Path | None:
    """The folder below ``root`` that holds UESTC files."""
    return folder_with(root, "uestc", _FILES)


def load(root: Path, *, verify: bool = True, **options: Any) -> Dataset:
    """Every recording of the manifest that is in ``root``. ``load`` is empty: the rig runs without one.

    Raises:
        DataError: a file is damaged, changed, or states another sampling rate.
    """
    if options:
        raise UsageError(f"dataset 'uestc' has no option {', '.join(sorted(options))}. Leave it out.")
    present = [row for row in _FILES.values() if (root / row["file"]).is_file()]
    if not present:
        raise DataError(f"{root}: expected UESTC files such as N_800_1.mat, found none. Copy them there.")
    info = INFO
    if missing := sorted(set(_FILES) - {row["file"] for row in present}):
        info = dataclasses.replace(INFO, notes=(*INFO.notes, f"not here: {', '.join(missing)}"))
    return make_dataset(info, (read_recording(root / row["file"], row, verify=verify) for row in present))


def read_recording(path: Path, row: dict[str, Any], *, verify: bool = True) -> Recording:
    """One file, checked against its manifest row and against the rate that it states itself."""
    variables = read_mat(path)
    signal = checked_signal(path, pick_channel(path, variables, row["channel_key"], "Data"))
    stated = variables.get("SampleFrequency")
    if stated is not None and float(stated[0]) != float(row["fs_hz"]):
        raise DataError(
            f"{path}: expected a sampling rate of {row['fs_hz']} Hz, found {float(stated[0]):g} Hz in the "
            "file. It is not the published recording: replace it."
        )
    if verify and (found := sha256_of(path)) != row["sha256"]:
        raise DataError(
            f"{path}: expected sha256 {row['sha256'][:12]}…, found {found[:12]}…. The file was changed: "
            "delete it and run `cascade data fetch uestc`, or load with verify=False."
        )
    return Recording(
        name=path.name,
        signal=signal,
        fs_hz=float(row["fs_hz"]),
        rpm=float(row["rpm"]),
        rpm_nominal=True,
        label=row["label"],
        unit=row["label"],  # as far as is known, one bearing per condition
        sha256=row["sha256"],
    )


def _remote(file: str) -> str:
    return f"{file.rsplit('_', 1)[0]}/{file}"


DATASETS.add(
    "uestc",
    DatasetEntry(
        info=INFO,
        find=find,
        load=load,
        files=tuple(
            RemoteFile(file=row["file"], sha256=row["sha256"], remote=_remote(row["file"]))
            for row in _FILES.values()
        ),
        base_url=f"https://raw.githubusercontent.com/ChangLiu2024/UESTC-Bearing-Dataset/{_COMMIT}/Data",
        obtain="github.com/ChangLiu2024/UESTC-Bearing-Dataset",
    ),
)
