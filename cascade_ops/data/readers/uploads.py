"""A recording from a stranger's bytes.

Nothing is opened, evaluated or unpickled. What a file says of its size is compared with its limits and with the
bytes that are there before room is made for it; of a ``.mat`` file only real numeric variables are inflated.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from cascade_ops.data.readers.base import checked_signal
from cascade_ops.data.readers.columns import Columns, choose
from cascade_ops.data.readers.columns import Limits as Limits
from cascade_ops.data.readers.formats import READERS
from cascade_ops.errors import DataError

KINDS = tuple(suffix for suffix in READERS if suffix != ".parquet")
FEWEST = 64
"""Samples below which nothing can be said of a recording."""
SHOWN = 60
LIMITS = Limits()


@dataclass(frozen=True, slots=True, kw_only=True)
class Upload:
    """One channel of a file, in its unit. ``fs_hz`` and ``rpm`` are None where the file does not state them."""

    signal: Float[np.ndarray, " samples"]
    fs_hz: float | None
    rpm: float | None
    channel: str


def read_upload(name: str, content: bytes, *, channel: str = "", limits: Limits = LIMITS) -> Upload:
    """The channel of a ``.mat``, ``.csv``, ``.npy`` or ``.wav`` file.

    Args:
        name: the file's name; only what follows its last dot matters, and it appears in messages.
        channel: a variable's or column's name, or its number from 0. May be empty where there is only one, and for
            CWRU's files, of which the drive end is taken.

    Raises:
        DataError: whatever is wrong with the bytes.
    """
    where = shown(name)
    suffix = "".join(where.rpartition(".")[1:]).lower() if "." in where else ""
    if suffix not in KINDS:
        raise DataError(f"{where}: expected a file ending in {', '.join(KINDS)}, found another. Convert it.")
    if not content:
        raise DataError(f"{where}: expected a recording, found an empty file. Send it again.")
    try:
        with np.errstate(all="ignore"):  # what overflows is found by the check for finite values
            found = READERS[suffix](where, content, limits)
            picked = _pick(where, found, channel)
            signal = _checked(where, found.signals[picked])
    except DataError:
        raise
    except Exception as error:
        # the bytes are a stranger's and pyarrow is large: whatever else it may raise is the file's fault, too
        raise DataError(
            f"{where}: expected a recording, found data that cannot be read ({type(error).__name__}). Export it again."
        ) from error
    return Upload(signal=signal, fs_hz=_rate(where, found), rpm=_speed(found, picked), channel=picked)


def shown(name: str) -> str:
    """The end of a file's name, without folders, in at most 60 printable characters."""
    base = name[-4 * SHOWN :].replace("\\", "/").rpartition("/")[2]
    clean = "".join(one if one.isprintable() else "?" for one in base).strip() or "upload"
    return clean if len(clean) <= SHOWN else "…" + clean[1 - SHOWN :]


def _pick(where: str, found: Columns, channel: str) -> str:
    """The channel's name. Raises DataError."""
    how = "in the field 'channel'"
    if channel:
        return choose(where, found.signals, channel, how=how)
    numeric = [name for name, values in found.signals.items() if values.dtype.kind in "fiu"]
    drive_end = [name for name in numeric if name.endswith("DE_time")]
    if len(drive_end) == 1:
        return drive_end[0]
    return choose(where, numeric or found.signals, "", how=how)


def _checked(where: str, values: np.ndarray) -> Float[np.ndarray, " samples"]:
    """Finite, long enough and not constant, in memory of its own. Raises DataError."""
    if values.dtype.kind in "fiu" and len(values) < FEWEST:
        raise DataError(
            f"{where}: expected at least {FEWEST} samples, found {len(values)}. Record longer, or name another channel."
        )
    signal = np.array(checked_signal(where, values))
    if signal.min() == signal.max():
        raise DataError(
            f"{where}: expected vibration, found {len(signal):,} samples that are all {signal[0]:g}. "
            "Check the sensor, or name another channel."
        )
    return signal


def _rate(where: str, found: Columns) -> float | None:
    if found.rate_hz is None or (math.isfinite(found.rate_hz) and found.rate_hz > 0):
        return found.rate_hz
    raise DataError(
        f"{where}: expected times in seconds that give a sampling rate, found {found.rate_hz:g} Hz. "
        "Correct the column, or leave it out."
    )


def _speed(found: Columns, channel: str) -> float | None:
    """CWRU's ``X105RPM``: the one that belongs to the channel, or else the only one."""
    speeds = {name: value for name, value in found.scalars.items() if name.endswith("RPM")}
    own = speeds.get(channel.partition("_")[0] + "RPM")
    rpm = own if own is not None else next(iter(speeds.values())) if len(speeds) == 1 else None
    return rpm if rpm is not None and math.isfinite(rpm) and rpm > 0 else None
