"""What ``cascade sia`` leaves behind: ``sia.json`` for machines and ``report.html`` for people."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cascade_ops.errors import CheckpointError
from cascade_ops.results import SIAVerdict
from cascade_ops.serde import from_jsonable, to_jsonable
from cascade_ops.sia.results import SCHEMA, SIACheck

DOCUMENT, PAGE = "sia.json", "report.html"


@dataclass(frozen=True, slots=True, kw_only=True)
class SIARecord:
    """A check of one model. ``check`` is None where only the config was looked at."""

    model: str
    family: str
    model_type: str
    params: int
    heads_per_kv: tuple[tuple[int, ...], ...]
    gated: bool
    structural: tuple[SIAVerdict, ...]
    check: SIACheck | None = None
    data: dict[str, Any] = field(default_factory=dict)
    provenance: dict[str, Any] = field(default_factory=dict)


def machine_view(record: SIARecord) -> dict[str, Any]:
    return {"schema": SCHEMA, **to_jsonable(record)}


def write_record(record: SIARecord, folder: Path) -> None:
    """Into an existing folder."""
    text = json.dumps(machine_view(record), ensure_ascii=False, allow_nan=False, indent=1)
    (folder / DOCUMENT).write_text(text + "\n", encoding="utf-8")


def read_record(folder: Path) -> SIARecord:
    """Raises CheckpointError: missing, of another schema, or damaged."""
    path = folder / DOCUMENT
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        found = document.pop("schema", None)
        if found != SCHEMA:
            raise CheckpointError(f"{path}: expected schema {SCHEMA!r}, found {found!r}")
        return from_jsonable(SIARecord, document)
    except (OSError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(f"{path}: incomplete or corrupt ({error}). Run cascade sia again.") from None
