"""What ``cascade score`` leaves behind: a folder with two files for machines and a page for people.

    RUN/score.json         schema, model, shards, timing, memory, provenance: everything but the scores
    RUN/scores.parquet     one row per unit: criterion, granularity, layer, source, unit, score
    RUN/report.html

The folder appears whole or not at all.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from cascade_ops.anatomy import ModelAnatomy
from cascade_ops.errors import CheckpointError
from cascade_ops.granularity import Granularity
from cascade_ops.results import LayerScores
from cascade_ops.scoring import ImportanceScores, Scores
from cascade_ops.serde import from_jsonable, to_jsonable

SCHEMA = "cascade.score/1"
DOCUMENT, TABLE, PAGE = "score.json", "scores.parquet", "report.html"
COLUMNS = pa.schema(
    [
        ("criterion", pa.dictionary(pa.int32(), pa.string())),
        ("granularity", pa.dictionary(pa.int32(), pa.string())),
        ("layer", pa.int32()),
        ("source", pa.int32()),
        ("unit", pa.int32()),
        ("score", pa.float64()),
    ]
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoredUnits:
    """One criterion's scores of one granularity, higher = keep.

    For granularity ``layer``, ``layers`` holds one entry per layer with one score each. ``kept`` is
    empty: nothing has been decided.
    """

    criterion: str
    granularity: str
    layers: tuple[LayerScores, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardRecord:
    """Blocks ``first`` ≤ i < ``stop``, with the weights' ``bytes`` on disk and the ``seconds`` spent on them."""

    first: int
    stop: int
    bytes: int
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerRecord:
    """One worker's life. ``peak_bytes`` is its largest resident memory."""

    name: str
    node: str
    items: int
    busy_seconds: float
    peak_bytes: int
    lost: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoreReport:
    """A score run.

    Attributes:
        model: folder or name.
        family, model_type, params: of the model.
        heads_per_kv: of each layer: where entries exceed 1, heads share K/V and ``kv_group`` is the unit to read.
        task, samples, tokens, length: the calibration set (tokens without padding; ``length`` per sample).
        criteria: as asked for.
        scores: one entry per criterion and granularity.
        shards, workers: how the work was divided; ``threads`` are each worker's.
        dtype, device: weights and activations; sums accumulate in ``accumulation``.
        seconds, tokens_per_second: wall time of the sweep, start of the cluster excluded.
        object_store_bytes: largest amount of boundary activations held at once.
        data, provenance: free-form but JSON-able.
    """

    model: str
    family: str
    model_type: str
    params: int
    heads_per_kv: tuple[tuple[int, ...], ...]
    task: str
    samples: int
    tokens: int
    length: int
    criteria: tuple[str, ...]
    scores: tuple[ScoredUnits, ...] = ()
    shards: tuple[ShardRecord, ...]
    workers: tuple[WorkerRecord, ...]
    threads: int
    dtype: str
    device: str
    accumulation: str = "float64"
    seconds: float
    tokens_per_second: float
    object_store_bytes: int
    data: dict[str, Any] = field(default_factory=dict)
    provenance: dict[str, Any] = field(default_factory=dict)


def scored_units(scores: Scores, anatomy: ModelAnatomy) -> tuple[ScoredUnits, ...]:
    """Scores as plain values."""
    sources = [layer.source for layer in anatomy.layers]
    return tuple(
        ScoredUnits(
            criterion=criterion,
            granularity=granularity.value,
            layers=tuple(
                LayerScores(source=source, scores=tuple(row), kept=())
                for source, row in zip(sources, _rows(found), strict=True)
            ),
        )
        for (criterion, granularity), found in scores.items()
    )


def _rows(scores: ImportanceScores) -> list[list[float]]:
    if scores.granularity is Granularity.LAYER:
        return [[value] for value in scores.per_layer[0].tolist()]
    return [row.tolist() for row in scores.per_layer]


def tensors(report: ScoreReport) -> Scores:
    """The scores as ``cascade_ops.score`` gives them."""
    found: Scores = {}
    for one in report.scores:
        granularity = Granularity(one.granularity)
        rows = tuple(torch.tensor(layer.scores, dtype=torch.float64) for layer in one.layers)
        found[one.criterion, granularity] = ImportanceScores(
            granularity=granularity,
            criterion=one.criterion,
            per_layer=(torch.cat(rows),) if granularity is Granularity.LAYER else rows,
            samples=report.samples,
        )
    return found


def machine_view(report: ScoreReport) -> dict[str, Any]:
    """Everything but the scores, which are in the table."""
    document: dict[str, Any] = to_jsonable(report)
    del document["scores"]
    return {"schema": SCHEMA, "table": TABLE, **document}


def write_records(report: ScoreReport, folder: Path) -> None:
    """The two files for machines, into an existing folder."""
    text = json.dumps(machine_view(report), ensure_ascii=False, allow_nan=False, indent=1)
    (folder / DOCUMENT).write_text(text + "\n", encoding="utf-8")
    metadata = {b"schema": SCHEMA.encode(), b"model": report.model.encode()}
    table = pa.Table.from_batches([_batch(one) for one in report.scores], schema=COLUMNS)
    pq.write_table(table.replace_schema_metadata(metadata), folder / TABLE)


def _batch(one: ScoredUnits) -> pa.RecordBatch:
    sizes = [len(layer.scores) for layer in one.layers]
    rows = sum(sizes)
    columns = {
        "criterion": np.full(rows, one.criterion),
        "granularity": np.full(rows, one.granularity),
        "layer": np.repeat(np.arange(len(sizes)), sizes),
        "source": np.repeat([layer.source for layer in one.layers], sizes),
        "unit": np.concatenate([np.arange(size) for size in sizes]),
        "score": np.concatenate([np.asarray(layer.scores, dtype=np.float64) for layer in one.layers]),
    }
    return pa.RecordBatch.from_arrays(
        [pa.array(columns[name]).cast(kind) for name, kind in zip(COLUMNS.names, COLUMNS.types, strict=True)],
        schema=COLUMNS,
    )


def read_records(folder: Path) -> ScoreReport:
    """A score run back from its files.

    Raises:
        CheckpointError: a file is missing, of another schema, or damaged.
    """
    try:
        document = json.loads((folder / DOCUMENT).read_text(encoding="utf-8"))
        table = pq.read_table(folder / TABLE)
    except (OSError, ValueError, pa.ArrowException) as error:
        raise CheckpointError(
            f"{folder}: expected a score run ({DOCUMENT} and {TABLE}): {error}. Run cascade score again."
        ) from None
    schema = document.pop("schema", None) if isinstance(document, dict) else None
    if schema != SCHEMA:
        raise CheckpointError(f"{folder / DOCUMENT}: expected schema {SCHEMA!r}, found {schema!r}")
    document.pop("table", None)
    try:
        return replace(from_jsonable(ScoreReport, document), scores=_scores_of(table))
    except (KeyError, TypeError, ValueError, AttributeError, pa.ArrowException) as error:
        raise CheckpointError(
            f"{folder}: incomplete or corrupt ({error}). Run cascade score again."
        ) from None


def _scores_of(table: pa.Table) -> tuple[ScoredUnits, ...]:
    named = [table[name].cast(pa.string()).to_numpy() for name in ("criterion", "granularity")]
    layer, source, score = (table[name].to_numpy() for name in ("layer", "source", "score"))
    changed = np.zeros(len(score), dtype=bool)
    for column in (*named, layer):
        changed[1:] |= column[1:] != column[:-1]
    starts = [0, *np.flatnonzero(changed).tolist(), len(score)] if len(score) else []
    found: dict[tuple[str, str], list[LayerScores]] = {}
    for start, stop in pairwise(starts):
        scores = tuple(score[start:stop].tolist())
        one = LayerScores(source=int(source[start]), scores=scores, kept=())
        found.setdefault((named[0][start], named[1][start]), []).append(one)
    return tuple(
        ScoredUnits(criterion=criterion, granularity=granularity, layers=tuple(layers))
        for (criterion, granularity), layers in found.items()
    )
