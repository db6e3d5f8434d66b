"""Recordings, datasets and windows: what flows from files to batches."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float, Int


@dataclass(frozen=True, slots=True, kw_only=True)
class Bearing:
    """Rolling-element bearing geometry.

    Lengths share any one unit; the angle is in degrees. See ``cascade_ops.data.bearings`` for the
    characteristic frequencies that follow from it.
    """

    name: str
    balls: int
    ball_diameter: float
    pitch_diameter: float
    contact_angle_deg: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Recording:
    """One continuous vibration signal, as recorded (not resampled, not normalised).

    ``segments`` are half-open sample ranges without gaps inside; a window never spans two.
    ``rpm`` is the shaft speed; ``rpm_nominal`` tells that the file had none and the nominal one
    stands in. ``unit`` identifies the physical bearing. ``derived`` marks a signal that is not an
    original file, with the reason.
    """

    name: str
    signal: Float[np.ndarray, " samples"]
    fs_hz: float
    rpm: float
    label: str
    load: str = ""
    unit: str = ""
    channel: str = ""
    rpm_nominal: bool = False
    derived: str = ""
    sha256: str = ""
    segments: tuple[tuple[int, int], ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class DatasetInfo:
    """What a report must say about a dataset."""

    name: str
    title: str
    bearing: Bearing | None
    licence: str
    citation: str
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Dataset:
    """Recordings of one rig. ``source`` is "recorded" or "simulated"; ``fingerprint`` a sha256 over
    the recordings' names, labels and samples."""

    info: DatasetInfo
    recordings: tuple[Recording, ...]
    source: str
    fingerprint: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Windows:
    """Windows of one side of a split, each normalised to zero mean and unit variance.

    ``start`` is the first sample, counted at the common rate in the resampled recording;
    ``recording`` indexes ``recordings``.
    """

    signal: Float[np.ndarray, "windows length"]
    label: Int[np.ndarray, " windows"]
    recording: Int[np.ndarray, " windows"]
    start: Int[np.ndarray, " windows"]
    recordings: tuple[str, ...]
    rpm: Float[np.ndarray, " recordings"]
    classes: tuple[str, ...]
    fs_hz: float

    def __len__(self) -> int:
        return len(self.label)


@dataclass(frozen=True, slots=True, kw_only=True)
class SplitData:
    """Three disjoint sides. ``name`` reads like ``load:3``; ``notes`` tell what a reader must know
    (a class absent from the test side, say)."""

    name: str
    train: Windows
    validation: Windows
    test: Windows
    notes: tuple[str, ...] = field(default=())
