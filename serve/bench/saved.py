"""A benchmark's folder: ``bench.json`` for machines, ``requests.parquet`` with every request."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from cascade_ops.errors import CheckpointError, RunExistsError
from cascade_ops.files import written_whole
from cascade_ops.loadtest.records import Request
from cascade_ops.loadtest.results import BENCH_SCHEMA, Bench
from cascade_ops.serde import from_jsonable, to_jsonable

DOCUMENT, REQUESTS, PAGE = "bench.json", "requests.parquet", "bench.html"
COLUMNS = {
    "round": pa.int32(),
    "variant": pa.string(),
    "mode": pa.string(),
    "level": pa.float64(),
    "intended": pa.float64(),
    "sent": pa.float64(),
    "finished": pa.float64(),
    "latency": pa.float64(),
    "status": pa.int32(),
    "error": pa.string(),
    "counted": pa.bool_(),
}
"""Of ``requests.parquet``; times in seconds since the segment began."""


def refuse_existing(folder: Path) -> None:
    """Raises RunExistsError if ``folder`` is anything but an empty folder, nothing, or an older benchmark."""
    if folder.is_file() or (folder.is_dir() and any(folder.iterdir()) and not (folder / DOCUMENT).is_file()):
        raise RunExistsError(f"{folder}: is not empty and not a benchmark. Give another --out.")


def save(bench: Bench, requests: Sequence[Request], page: str, folder: Path) -> None:
    """Everything or nothing; an older benchmark in ``folder`` is replaced."""
    refuse_existing(folder)
    with written_whole(folder) as scratch:
        text = json.dumps(to_jsonable(bench), indent=1, ensure_ascii=False, allow_nan=False)
        (scratch / DOCUMENT).write_text(text + "\n", encoding="utf-8")
        (scratch / PAGE).write_text(page, encoding="utf-8")
        if requests:
            pq.write_table(table_of(requests), scratch / REQUESTS, compression="zstd")


def table_of(requests: Sequence[Request]) -> pa.Table:
    """One row for each request."""
    columns = {name: [getattr(request, name) for request in requests] for name in COLUMNS}
    return pa.table(columns, schema=pa.schema(list(COLUMNS.items())))


def load(path: Path) -> Bench:
    """What ``save`` wrote; ``path`` is the folder or its bench.json. Raises CheckpointError."""
    file = path / DOCUMENT if path.is_dir() else path
    try:
        document = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: expected a benchmark's folder with {DOCUMENT} ({error})") from None
    found = document.get("schema") if isinstance(document, dict) else None
    if found != BENCH_SCHEMA:
        raise CheckpointError(f"{file}: expected a benchmark of schema {BENCH_SCHEMA!r}, found {found!r}")
    try:
        return from_jsonable(Bench, document)
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{file}: is not a whole benchmark ({error})") from None
