"""Windows without leakage: contiguous ranges first, windows inside them afterwards.

Splits (``make_split(dataset, split=...)``):

- ``time``: each recording is cut into train | validation | test, in this order;
- ``load:3``: recordings at that motor load are the test side. ``load`` alone takes the last load;
- ``speed:1200``: the same by shaft speed (±0.6 %). ``speed`` alone takes the highest nominal speed;
- ``bearing:IR014,B014,OR014``: those physical bearings are the test side, and labels are fault types.
  ``bearing`` alone takes the middle one of each fault type that has several.

Under all but ``time``, validation is the tail of each remaining recording. Between two sides of a recording
lies a gap as wide as the resampler's filters, so that they share no sample of the original either. A random
split of windows leaks (neighbours overlap, or are the same second of the same machine) and is not offered.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from cascade_ops.data.labels import fault_type, ordered
from cascade_ops.data.resample import COMMON_RATE_HZ, resample, support
from cascade_ops.data.types import Dataset, Recording, SplitData, Windows
from cascade_ops.errors import DataError, UnknownNameError, UsageError

SPLITS = ("time", "load", "speed", "bearing")
SIDES = ("train", "validation", "test")
SPEED_TOLERANCE = 0.006

Ranges = dict[str, tuple[int, int]]
"""Half-open range of samples per side, at the common rate."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Assignment:
    """Which recordings are left out, and what to tell about it."""

    name: str
    left_out: frozenset[str]
    notes: tuple[str, ...] = ()


def make_split(
    dataset: Dataset,
    *,
    split: str,
    length: int = 1024,
    stride: int = 256,
    rate_hz: float = COMMON_RATE_HZ,
    classes: Sequence[str] | None = None,
    validation: float = 0.15,
    test: float = 0.25,
) -> SplitData:
    """Resample, split and window ``dataset``; see the module's description for ``split``.

    Train windows start every ``stride`` samples; validation and test windows never overlap. Deterministic.

    ``length`` and ``stride`` count samples at ``rate_hz``. ``classes`` keeps only these labels (or fault
    types); ``CWRU_FAULT_LABELS`` gives the nine-fault form. ``validation`` and ``test`` are fractions of
    each recording (``test`` counts for ``time`` only).

    Raises:
        UsageError, UnknownNameError: a split or class that this dataset has not.
        DataError: a recording too short, or constant over a window.
    """
    _check_request(length, stride, validation, test)
    kept = _filter(dataset, classes)
    kind, _, argument = split.partition(":")
    assignment = _assign(kept, kind, argument)
    resampled = [resample(recording, rate_hz) for recording in kept]
    names = tuple(recording.name for recording in kept)
    label_of = [fault_type(r.label) if kind == "bearing" else r.label for r in kept]
    class_names = ordered(label_of)
    pieces: dict[str, list[tuple[int, int]]] = {side: [] for side in SIDES}
    for index, recording in enumerate(resampled):
        fractions = _fractions(kind, recording.name in assignment.left_out, validation, test)
        ranges = side_ranges(len(recording.signal), fractions, gap=2 * support(rate_hz))
        for side, starts in _starts(recording, ranges, length, stride).items():
            pieces[side] += [(index, start) for start in starts]
    sides = {
        side: _cut(resampled, places, length, label_of, class_names, names, rate_hz)
        for side, places in pieces.items()
    }
    for side, windows in sides.items():
        if not len(windows):
            raise DataError(
                f"{dataset.info.name}, split {assignment.name}: expected {side} windows of {length} "
                f"samples at {rate_hz:g} Hz, found room for none. Use longer recordings or a shorter window."
            )
    notes = (*assignment.notes, *_absences(sides, class_names), *_facts(kept))
    return SplitData(name=assignment.name, notes=notes, **sides)


def side_ranges(samples: int, fractions: dict[str, float], *, gap: int) -> Ranges:
    """Cuts ``samples`` into contiguous ranges, in the order of ``fractions``, ``gap`` samples apart.

    Fractions sum to 1; a side of fraction 0 is left out. The gap is taken from the later side.
    """
    ranges: Ranges = {}
    used, before = 0.0, 0
    for side, fraction in fractions.items():
        if fraction <= 0:
            continue
        used += fraction
        stop = min(samples, round(samples * used))
        start = before + gap if ranges else before
        ranges[side] = (min(start, stop), stop)
        before = stop
    return ranges


def _check_request(length: int, stride: int, validation: float, test: float) -> None:
    if length < 2 or stride < 1:
        raise UsageError(f"expected length ≥ 2 and stride ≥ 1, found {length} and {stride}. Correct them.")
    if not (0 < validation < 1 and 0 < test < 1 and validation + test < 1):
        raise UsageError(
            f"expected fractions above 0 that leave room to train, found validation {validation:g} and "
            f"test {test:g}. Choose, say, 0.15 and 0.25."
        )


def _filter(dataset: Dataset, classes: Sequence[str] | None) -> tuple[Recording, ...]:
    recordings = dataset.recordings
    if classes is not None:
        known = {r.label for r in recordings} | {fault_type(r.label) for r in recordings}
        for name in classes:
            if name not in known:
                raise UnknownNameError("label", name, known)
        recordings = tuple(r for r in recordings if r.label in classes or fault_type(r.label) in classes)
    if not recordings:
        raise DataError(
            f"{dataset.info.name}: expected recordings, found none. Check the folder and classes."
        )
    names = [recording.name for recording in recordings]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise DataError(
            f"{dataset.info.name}: expected each recording once, found {', '.join(twice)} "
            "repeated. List it once."
        )
    return recordings


def _fractions(kind: str, left_out: bool, validation: float, test: float) -> dict[str, float]:
    if kind == "time":
        return {"train": 1.0 - validation - test, "validation": validation, "test": test}
    if left_out:
        return {"test": 1.0}
    return {"train": 1.0 - validation, "validation": validation}


def _assign(recordings: Sequence[Recording], kind: str, argument: str) -> _Assignment:
    if kind not in SPLITS:
        raise UnknownNameError("split", kind, SPLITS)
    if kind == "time":
        if argument:
            raise UsageError(f"split 'time' takes no argument, found {argument!r}. Write 'time'.")
        return _Assignment(name="time", left_out=frozenset())
    assign = {"load": _assign_load, "speed": _assign_speed, "bearing": _assign_bearing}[kind]
    assignment = assign(recordings, argument)
    if len(assignment.left_out) == len(recordings):
        raise UsageError(
            f"split {assignment.name!r} leaves no recording to train on. Leave out less, or use 'time'."
        )
    return assignment


def _assign_load(recordings: Sequence[Recording], argument: str) -> _Assignment:
    loads = sorted({r.load for r in recordings if r.load})
    if len(loads) < 2:
        raise UsageError(
            f"split 'load' needs recordings at two loads or more, found {', '.join(loads) or 'none stated'}. "
            "Use 'speed' or 'time'."
        )
    chosen = argument or loads[-1]
    if chosen not in loads:
        raise UnknownNameError("load", chosen, loads)
    notes = () if argument else (f"load {chosen} was left out by default (the last of {', '.join(loads)})",)
    return _Assignment(
        name=f"load:{chosen}", left_out=frozenset(r.name for r in recordings if r.load == chosen), notes=notes
    )


def _assign_speed(recordings: Sequence[Recording], argument: str) -> _Assignment:
    speeds = sorted({r.rpm for r in recordings})
    try:
        chosen = float(argument) if argument else speeds[-1]
    except ValueError:
        raise UsageError(
            f"split 'speed' takes a speed in rpm, found {argument!r}. Write 'speed:1200'."
        ) from None
    left_out = frozenset(r.name for r in recordings if abs(r.rpm - chosen) <= SPEED_TOLERANCE * chosen)
    if not left_out:
        raise UnknownNameError("speed", argument, [f"{speed:g}" for speed in speeds])
    notes = () if argument else (f"{chosen:g} rpm was left out by default (the highest speed)",)
    return _Assignment(name=f"speed:{chosen:g}", left_out=left_out, notes=notes)


def _assign_bearing(recordings: Sequence[Recording], argument: str) -> _Assignment:
    if nameless := [r.name for r in recordings if not r.unit]:
        raise UsageError(
            f"split 'bearing' needs to know each recording's physical bearing, found none for {nameless[0]}. "
            "Fill in the column 'unit'."
        )
    units: dict[str, list[str]] = {}
    for kind in ordered(fault_type(r.label) for r in recordings):
        units[kind] = sorted({r.unit for r in recordings if fault_type(r.label) == kind})
    known = sorted({r.unit for r in recordings})
    if argument:
        chosen = tuple(part.strip() for part in argument.split(","))
        for unit in chosen:
            if unit not in known:
                raise UnknownNameError("bearing", unit, known)
        notes: tuple[str, ...] = ()
    else:
        chosen = tuple(group[len(group) // 2] for group in units.values() if len(group) > 1)
        notes = (
            f"bearings {', '.join(chosen)} were left out by default (the middle one of each fault type)",
        )
    lost = [kind for kind, group in units.items() if set(group) <= set(chosen)]
    if lost or not chosen:
        raise UsageError(
            "split 'bearing' needs a bearing to train on and another to test, per fault type; "
            f"found {'; '.join(f'{kind}: {chr(44).join(group)}' for kind, group in units.items())}. "
            + (f"Keep one of {', '.join(lost)}." if lost else "Use 'time', 'load' or 'speed'.")
        )
    return _Assignment(
        name=f"bearing:{','.join(chosen)}",
        left_out=frozenset(r.name for r in recordings if r.unit in chosen),
        notes=(*notes, "labels are fault types"),
    )


def _starts(recording: Recording, ranges: Ranges, length: int, stride: int) -> dict[str, list[int]]:
    """First samples of every window that lies within one side and one segment."""
    longest = max(stop - start for start, stop in recording.segments)
    if longest < length:
        raise DataError(
            f"{recording.name}: expected at least {length} samples in one piece at {recording.fs_hz:g} Hz, "
            f"found {longest}. Record longer, or choose a shorter window."
        )
    places: dict[str, list[int]] = {side: [] for side in SIDES}
    for side, (low, high) in ranges.items():
        step = stride if side == "train" else length
        for start, stop in recording.segments:
            places[side] += range(max(low, start), min(high, stop) - length + 1, step)
    return places


def normalise(
    windows: Float[np.ndarray, "windows length"],
) -> tuple[Float[np.ndarray, "windows length"], Float[np.ndarray, " windows"]]:
    """Zero mean and unit variance per window, float32; also each window's standard deviation before."""
    centred = windows - windows.mean(axis=1, keepdims=True, dtype=np.float64)
    deviation: np.ndarray = np.sqrt(np.mean(centred**2, axis=1))
    scale = np.where(deviation > 0, deviation, 1.0)
    return (centred / scale[:, None]).astype(np.float32), deviation


def _cut(
    recordings: Sequence[Recording],
    places: Sequence[tuple[int, int]],
    length: int,
    label_of: Sequence[str],
    classes: tuple[str, ...],
    names: tuple[str, ...],
    rate_hz: float,
) -> Windows:
    """The windows at ``places`` (recording, first sample), normalised, with their metadata."""
    recording = np.array([index for index, _ in places], dtype=np.int64)
    start = np.array([first for _, first in places], dtype=np.int64)
    signal = np.empty((len(places), length), dtype=np.float32)
    for index in np.unique(recording):
        mine = recording == index
        source = np.lib.stride_tricks.sliding_window_view(recordings[index].signal, length)
        signal[mine], deviation = normalise(source[start[mine]])
        # a dead channel keeps a rounding residue after filtering: compare with what float32 resolves
        floor = 1e-6 * max(1e-12, float(np.abs(recordings[index].signal).max()))
        if (deviation <= floor).any():
            at = int(start[mine][np.argmax(deviation <= floor)])
            raise DataError(
                f"{names[index]}: expected vibration, found a constant signal over {length} samples from "
                f"sample {at} at {rate_hz:g} Hz. Check the sensor, or cut the recording."
            )
    return Windows(
        signal=signal,
        label=np.array([classes.index(label_of[index]) for index in recording], dtype=np.int64),
        recording=recording,
        start=start,
        recordings=names,
        rpm=np.array([r.rpm for r in recordings], dtype=np.float64),
        classes=classes,
        fs_hz=float(rate_hz),
    )


def _absences(sides: dict[str, Windows], classes: tuple[str, ...]) -> list[str]:
    """Classes that a side lacks: a reader of its accuracy must know."""
    notes = []
    for side, windows in sides.items():
        present = set(np.unique(windows.label).tolist())
        for index, name in enumerate(classes):
            if index not in present:
                effect = ": it cannot be learnt" if side == "train" else ""
                notes.append(f"{name} is missing from the {side} side{effect}")
    return notes


def _facts(recordings: Sequence[Recording]) -> list[str]:
    """What stands in for originals among the recordings used."""
    notes = [f"{r.name}: {r.derived}" for r in recordings if r.derived]
    nominal = sum(r.rpm_nominal for r in recordings)
    if nominal:
        notes.append(f"the speed of {nominal} of {len(recordings)} recordings is nominal")
    return notes
