"""What every file format comes to: named columns of numbers, within bounds."""

from __future__ import annotations

import math
import struct
from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Shaped

from cascade_ops.errors import DataError

TIME_COLUMNS = ("time", "time_s", "t")


USUAL_CHANNELS = 64
"""More are taken for samples, where an array can be read either way."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Bounds on what a file may hold, compared with what its head states before anything of that size is made.

    Attributes:
        max_samples: of one channel.
        max_channels: columns of one table or matrix.
        max_expanded_bytes: of all numbers in the file together, 8 bytes each.
    """

    max_samples: int = 4_000_000
    max_channels: int = USUAL_CHANNELS
    max_expanded_bytes: int = 256 * 2**20

    def check(self, where: str, samples: int, channels: int) -> None:
        """Raises DataError where a table of ``samples`` × ``channels`` is beyond them."""
        if channels > self.max_channels:
            raise DataError(
                f"{where}: expected at most {self.max_channels} channels, found {channels:,}. Send fewer of them."
            )
        if samples > self.max_samples:
            raise DataError(
                f"{where}: expected at most {self.max_samples:,} samples of a channel, found {samples:,}. "
                "Send a part of the recording."
            )
        self.check_total(where, samples * channels)

    def check_total(self, where: str, numbers: int) -> None:
        """Raises DataError where a file of so many ``numbers`` is beyond them."""
        if 8 * numbers > self.max_expanded_bytes:
            raise DataError(
                f"{where}: expected at most {self.max_expanded_bytes // 8:,} numbers, found {numbers:,}. "
                "Send fewer channels, or a part of the recording."
            )


UNBOUNDED = Limits(max_samples=2**62, max_channels=2**62, max_expanded_bytes=2**70)
"""For one's own files."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Columns:
    """What a file holds. ``rate_hz`` is None where it does not state one; ``scalars`` are single numbers."""

    signals: dict[str, Shaped[np.ndarray, " samples"]]
    rate_hz: float | None = None
    scalars: dict[str, float] = field(default_factory=dict)


def brief(text: object, most: int = 60) -> str:
    """One line of at most ``most`` printable characters: for what a stranger's file says in our messages."""
    line = "".join(one if one.isprintable() else " " for one in str(text)[: 4 * most])
    line = " ".join(line.split())
    return line if len(line) <= most else line[: most - 1] + "…"


def why(error: Exception) -> str:
    """What a parser of bytes met, in a few words."""
    return "an unexpected end" if isinstance(error, struct.error) else brief(error, 120)


def listed(names: Iterable[str]) -> str:
    """The first twenty ``names`` for a message."""
    every = list(names)
    more = f" and {len(every) - 20} more" if len(every) > 20 else ""
    return (", ".join(repr(brief(name, 40)) for name in every[:20]) or "none") + more


def choose(where: str, names: Iterable[str], channel: str, *, how: str) -> str:
    """The one of ``names`` that is ``channel``, or is counted by it from 0, or is the only one.

    Args:
        how: what a person does to name one, for the message.

    Raises:
        DataError: none fits, or several would.
    """
    every = list(names)
    if channel in every:
        return channel
    if not channel and len(every) == 1:
        return every[0]
    if channel.isdecimal() and len(channel) < 9 and int(channel) < len(every):
        return every[int(channel)]
    wanted = f"a channel {brief(channel)!r}" if channel else "one channel"
    raise DataError(f"{where}: expected {wanted}, found {listed(every)}. Name one of them {how}.")


def timed(columns: dict[str, np.ndarray]) -> Columns:
    """Columns of which one may be the time in seconds, from which the rate follows."""
    rate = None
    signals = {}
    for name, column in columns.items():
        if name.lower() not in TIME_COLUMNS:
            signals[name] = column
        elif column.dtype.kind in "fiu" and len(column) > 1 and rate is None:
            span = float(column[-1]) - float(column[0])
            rate = (len(column) - 1) / span if span > 0 else None
    return Columns(signals=signals, rate_hz=rate)


def table_of(shape: tuple[int, ...], limits: Limits) -> tuple[int, int]:
    """Samples and channels of an array of that shape.

    Two dimensions are samples × channels, or the other way round where the first could be a number of channels
    and the second could not.
    """
    if len(shape) < 2 or 1 in shape:
        return math.prod(shape), 1
    samples, channels = shape
    most = min(limits.max_channels, USUAL_CHANNELS)
    return (channels, samples) if samples <= most < channels else (samples, channels)


def by_index(values: np.ndarray, limits: Limits, name: str = "") -> dict[str, np.ndarray]:
    """An array of at most two dimensions as columns 0, 1, …; or ``name[0]``, …, and ``name`` where it is alone."""
    shape = table_of(values.shape, limits)
    if shape[1] == 1:
        return {name or "0": values.reshape(-1)}
    table = values if values.shape == shape else values.T
    return {f"{name}[{index}]" if name else str(index): table[:, index] for index in range(shape[1])}
