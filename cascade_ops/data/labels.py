"""Class labels: a fault type, and where known its size in thousandths of an inch (``IR014``)."""

from __future__ import annotations

import re
from collections.abc import Iterable

FAULT_TYPES = ("N", "IR", "B", "OR")
"""Normal, inner race, ball (rolling element), outer race."""

CWRU_LABELS = ("N", *(f"{kind}{mil}" for kind in FAULT_TYPES[1:] for mil in ("007", "014", "021")))
"""The ten classes of the 12 kHz drive-end set."""

CWRU_FAULT_LABELS = CWRU_LABELS[1:]
"""The nine-fault form: without normal, which is not recorded at every load."""

_SIZED = re.compile(r"(IR|B|OR)(\d+)")


def fault_type(label: str) -> str:
    """``IR014`` → ``IR``; a label that is not a fault type followed by a size is its own type."""
    match = _SIZED.fullmatch(label)
    return match.group(1) if match else label


def fault_size_mil(label: str) -> int | None:
    """``IR014`` → 14 (thousandths of an inch); None where the label tells no size."""
    match = _SIZED.fullmatch(label)
    return int(match.group(2)) if match else None


WORDS = {
    "N": "no fault found",
    "IR": "inner race fault",
    "B": "rolling element fault",
    "OR": "outer race fault",
}


def in_words(label: str) -> str:
    """``IR014`` → ``inner race fault, 14 mil``; a label of another scheme as it is."""
    kind, size = fault_type(label), fault_size_mil(label)
    return WORDS.get(kind, kind) + (f", {size} mil" if size is not None else "")


def ordered(labels: Iterable[str]) -> tuple[str, ...]:
    """Distinct labels: the known fault types first (N, IR, B, OR), by size; others by name."""

    def rank(label: str) -> tuple[int, str]:
        kind = fault_type(label)
        return (FAULT_TYPES.index(kind) if kind in FAULT_TYPES else len(FAULT_TYPES), label)

    return tuple(sorted(set(labels), key=rank))
