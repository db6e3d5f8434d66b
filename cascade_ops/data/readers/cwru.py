"""CWRU: seeded faults on a 2 hp motor rig, 12 kHz drive-end set (Case School of Engineering).

Two traps in the original files. The normal recordings are sampled at 48 kHz, the faults at 12 kHz: the
manifest knows, and a file with another number of samples than the manifest's is refused. Some files lack
their speed: the nominal one for the load stands in, marked as such.
"""

from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path
from typing import Any

import numpy as np

from cascade_ops.data.bearings import SKF_6205
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
    require_file,
    sha256_of,
)
from cascade_ops.data.types import Dataset, DatasetInfo, Recording
from cascade_ops.errors import DataError, UnknownNameError, UsageError

NOMINAL_RPM = {0: 1797.0, 1: 1772.0, 2: 1750.0, 3: 1730.0}
"""Shaft speed by motor load in horsepower, as the publisher states it."""

SHORTEST_S = 9.0
"""A file of unknown length must last this long at its rate, or it was sampled at another one."""

CHANNELS = {"DE": "drive end", "FE": "fan end", "BA": "base"}

INFO = DatasetInfo(
    name="cwru",
    title="CWRU bearing data, drive-end faults, 12 kHz",
    bearing=SKF_6205,
    licence="Public at Case School of Engineering; no formal licence known. Files are not redistributed.",
    citation=(
        "Case Western Reserve University Bearing Data Center, engineering.case.edu/bearingdatacenter; "
        "see Smith and Randall, MSSP 64-65 (2015) 100-131, for what each recording is worth."
    ),
    notes=(
        "normal recordings are sampled at 48 kHz, faults at 12 kHz: all are resampled to one rate",
        "ball recordings and three of four OR014 show no clear line in the envelope spectrum",
    ),
)

_MANIFEST = manifest("cwru")
_FILES: dict[str, dict[str, Any]] = {row["file"]: row for row in _MANIFEST["files"]}
_UNVERIFIED: tuple[dict[str, Any], ...] = tuple(_MANIFEST["unverified"])
"""Publisher's files whose checksum is not known here: read where a user put them, never downloaded."""
_DERIVED: tuple[dict[str, Any], ...] = tuple(_MANIFEST["derived"])


def find(root: Path) -> Path | None:
    """The folder below ``root`` that holds CWRU files."""
    return folder_with(root, "cwru", _FILES)


def load(root: Path, *, channel: str = "DE", verify: bool = True, **options: Any) -> Dataset:
    """Every recording of the manifest that is in ``root``.

    ``channel`` is "DE", "FE" or "BA"; recordings without it are left out (normal has no BA). ``verify``
    compares each file's sha256 with the manifest's.

    Raises:
        DataError: a file is damaged, not the publisher's, or not what the manifest says.
    """
    _no_more_options("cwru", options)
    if channel not in CHANNELS:
        raise UnknownNameError("CWRU channel", channel, CHANNELS)
    recordings, missing, lacking = [], [], []
    for row in (*_FILES.values(), *_UNVERIFIED):
        if not (root / row["file"]).is_file():
            missing.append(row["file"])
            continue
        recording = read_recording(root / row["file"], row, channel=channel, verify=verify)
        if recording is None:
            lacking.append(row["file"])
        else:
            recordings.append(recording)
    for row in _DERIVED:
        replaced = any(r.label == row["label"] and r.load == str(row["load_hp"]) for r in recordings)
        if channel == "DE" and not replaced and (root / row["file"]).is_file():
            recordings.append(_read_derived(root / row["file"], row, verify=verify))
    if not recordings:
        raise DataError(
            f"{root}: expected CWRU files such as 97.mat, found none with channel {channel}. "
            f"Run `cascade data fetch cwru` or copy them there."
        )
    return make_dataset(_with_notes(recordings, missing, lacking, channel), recordings)


def _no_more_options(name: str, options: dict[str, Any]) -> None:
    if options:
        raise UsageError(f"dataset {name!r} has no option {', '.join(sorted(options))}. Leave it out.")


def _with_notes(
    recordings: list[Recording], missing: list[str], lacking: list[str], channel: str
) -> DatasetInfo:
    notes = list(INFO.notes)
    notes += [f"{r.name}: {r.derived}" for r in recordings if r.derived]
    nominal = [r.name for r in recordings if r.rpm_nominal]
    if nominal:
        notes.append(f"no speed in {', '.join(nominal)}: the nominal one for the load is used")
    if missing:
        notes.append(f"not here: {', '.join(missing)}")
    if lacking:
        notes.append(f"no {CHANNELS[channel]} channel in {', '.join(lacking)}: left out")
    unchecked = [r.name for r in recordings if not r.sha256]
    if unchecked:
        notes.append(f"{', '.join(unchecked)}: no checksum is known, read as found")
    absent = [load for load in "0123" if not any(r.label == "N" and r.load == load for r in recordings)]
    if absent:
        notes.append(f"normal is missing at load {', '.join(absent)}")
    return dataclasses.replace(INFO, notes=tuple(notes))


def read_recording(
    path: Path, row: dict[str, Any], *, channel: str = "DE", verify: bool = True
) -> Recording | None:
    """One original file, checked against its manifest row; None if it lacks ``channel``.

    Raises:
        DataError: damaged, another file's content, or another length (a 48 kHz version, say).
    """
    variables = read_mat(path)
    key = row["channel_key"].replace("_DE_", f"_{channel}_")
    if channel != "DE" and not any(name.endswith(f"_{channel}_time") for name in variables):
        return None
    signal = checked_signal(path, pick_channel(path, variables, key, f"_{channel}_time"))
    expected = row["samples"] or max(len(signal), round(SHORTEST_S * row["fs_hz"]))
    least = "" if row["samples"] else "at least "
    if len(signal) != expected:
        raise DataError(
            f"{path}: expected {least}{expected} samples ({row['label']}, {row['fs_hz']} Hz), found "
            f"{len(signal)}. It is not the {row['fs_hz'] // 1000} kHz file of that name: replace it."
        )
    found = sha256_of(path) if verify and row["sha256"] else row["sha256"]
    if found != row["sha256"]:
        raise DataError(
            f"{path}: expected sha256 {row['sha256'][:12]}…, found {found[:12]}…. The file was changed: "
            "delete it and run `cascade data fetch cwru`, or load with verify=False."
        )
    rpm = variables.get(key.split("_")[0] + "RPM")
    if rpm is None:
        speeds = [value for name, value in variables.items() if name.endswith("RPM")]
        rpm = speeds[0] if len(speeds) == 1 else None
    return Recording(
        name=path.name,
        signal=signal,
        fs_hz=float(row["fs_hz"]),
        rpm=NOMINAL_RPM[row["load_hp"]] if rpm is None else float(rpm[0]),
        rpm_nominal=rpm is None,
        label=row["label"],
        load=str(row["load_hp"]),
        unit=row["label"],  # one seeded bearing per class, run through all loads
        channel=channel,
        sha256=row["sha256"] or "",
    )


def _read_derived(path: Path, row: dict[str, Any], *, verify: bool) -> Recording:
    """A partial recording: samples put end to end, with the ranges that are free of gaps."""
    require_file(path, "an .npz file of signal segments")
    if verify and sha256_of(path) != row["sha256"]:
        raise DataError(f"{path}: expected sha256 {row['sha256'][:12]}…, found another. Delete the file.")
    try:
        with np.load(path, allow_pickle=False) as arrays:
            signal, offsets = arrays[row["channel_key"]], arrays["offset"]
    except (ValueError, OSError, KeyError, EOFError) as error:
        raise DataError(f"{path}: expected arrays x48k and offset, found {error}. Delete the file.") from None
    bounds = [int(offset) for offset in offsets]
    return Recording(
        name=path.name,
        signal=checked_signal(path, signal),
        fs_hz=float(row["fs_hz"]),
        rpm=float(row["rpm"]),
        rpm_nominal=True,
        label=row["label"],
        load=str(row["load_hp"]),
        unit=row["label"],
        channel="DE",
        sha256=row["sha256"],
        derived=f"derived, not an original: {len(signal)} samples of 98.mat in {len(bounds) - 1} segments",
        segments=tuple(itertools.pairwise(bounds)),
    )


DATASETS.add(
    "cwru",
    DatasetEntry(
        info=INFO,
        find=find,
        load=load,
        files=tuple(
            RemoteFile(file=row["file"], sha256=row["sha256"], remote=row["file"]) for row in _FILES.values()
        ),
        base_url="https://engineering.case.edu/sites/default/files",
        obtain="engineering.case.edu/bearingdatacenter",
    ),
)
