"""The study as a Ray job: one task for each architecture and seed; what is there already is not run again."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from cascade_ops.errors import CascadeError
from cascade_ops.progress import Progress, silent
from cascade_ops.serde import to_jsonable
from workflows.report.render import write_page
from workflows.scoring.cluster import connected
from workflows.study.analysis import analyse, page
from workflows.study.cell import StudyOptions, job_config, run_cell
from workflows.study.grid import GRID, Architecture

CELLS, TABLE, RESULT, PAGE = "cells", "study.parquet", "study.json", "study.md"


def run_study(
    out: Path,
    options: StudyOptions,
    *,
    seeds: Sequence[int],
    workers: int,
    address: str | None = None,
    grid: Sequence[Architecture] = GRID,
    progress: Progress = silent,
) -> dict[str, Any]:
    """Run the cells that ``out`` lacks, then sum all of them up.

    Raises:
        UnknownNameError: no such dataset.
        UsageError: no cluster answers.
        CascadeError: a cell failed; those that are done stay.
    """
    for cell in grid[:1]:
        job_config(cell, 0, options)  # names that nobody knows are found out before anything is written
    folder = out / CELLS
    folder.mkdir(parents=True, exist_ok=True)
    cells = [(cell, seed) for seed in seeds for cell in grid]
    places = {(cell, seed): folder / f"{cell.name}-{seed}-{_key(options)}.json" for cell, seed in cells}
    todo = [one for one in cells if not places[one].is_file()]
    done = len(cells) - len(todo)
    progress("cells", done, len(cells))
    if todo:
        import ray
        from ray.exceptions import RayTaskError

        with connected(address, cpus=None if address else workers):
            task = ray.remote(num_cpus=1, max_retries=3)(run_cell)
            pending = {task.remote(*one, options): one for one in todo}
            while pending:
                (ready,), _ = ray.wait(list(pending), num_returns=1)
                try:
                    rows = ray.get(ready)
                except RayTaskError as error:
                    if isinstance(error.cause, CascadeError):
                        raise error.cause from None
                    raise
                write_page(places[pending.pop(ready)], json.dumps(to_jsonable(rows)))
                done += 1
                progress("cells", done, len(cells))
    rows = [row for one in cells for row in json.loads(places[one].read_text(encoding="utf-8"))]
    pq.write_table(pa.Table.from_pylist(rows), out / TABLE)
    found = analyse(rows)
    write_page(out / RESULT, json.dumps(to_jsonable(found), ensure_ascii=False, indent=1) + "\n")
    write_page(out / PAGE, page(rows, found) + "\n")
    return found


def _key(options: StudyOptions) -> str:
    text = json.dumps(to_jsonable(options), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:8]
