"""Score maps: which units a stage kept and which it removed, layer by layer.

A kept unit is a full square and a removed one a small square, so the picture survives print, grey scale and
colour blindness; the colour tells the score's rank among all scores of the stage (eight levels). Where a
stage has too many units to draw, neighbours share a cell that is filled up to the share of them kept.
"""

from __future__ import annotations

import bisect
import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from cascade_ops.results import LayerScores, StageResult
from workflows.report import format as fmt
from workflows.report.svg import finite, number, tag

LEVELS = 8
MAX_CELLS = 12_000
MAX_TITLED_CELLS = 600
COLUMNS = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class MapRow:
    """One layer of the dense model: its drawing, or why there is none."""

    label: str
    kept: int
    units: int
    svg: Markup | None
    note: str


@dataclass(frozen=True, slots=True, kw_only=True)
class UnitMap:
    """The map of one stage. ``units_per_cell`` is 1 unless the map is binned."""

    rows: tuple[MapRow, ...]
    units_per_cell: int


def levels(stage: StageResult) -> list[float]:
    """The 7 inner quantiles of a stage's finite scores: the borders between colour levels."""
    scores = sorted(finite(score for layer in stage.layers for score in layer.scores))
    if not scores:
        return []
    return [scores[min(len(scores) - 1, len(scores) * i // LEVELS)] for i in range(1, LEVELS)]


def level_class(score: float, borders: Sequence[float]) -> str:
    """``s0`` (lowest) … ``s7`` (highest); ``sx`` for a score that is not a number."""
    if not math.isfinite(score) or not borders:
        return "sx"
    return f"s{bisect.bisect_right(borders, score)}"


def unit_map(stage: StageResult, gone: dict[int, str]) -> UnitMap:
    """Draw every layer of a stage.

    Args:
        stage: a stage whose granularity is not ``layer``.
        gone: dense layer index → note, for layers that an earlier stage removed.
    """
    borders = levels(stage)
    total = sum(len(layer.scores) for layer in stage.layers)
    cells_per_layer = max(32, min(256, MAX_CELLS // max(1, len(stage.layers))))
    widest = max((len(layer.scores) for layer in stage.layers), default=0)
    per_cell = math.ceil(widest / cells_per_layer) if total > MAX_CELLS else 1
    present = {layer.source: layer for layer in stage.layers}
    rows: list[MapRow] = []
    run: list[int] = []
    for source in sorted(set(present) | set(gone)):
        layer = present.get(source)
        if layer is None:
            # Neighbours that went in the same stage share a row.
            if run and gone[run[-1]] == gone[source]:
                rows.pop()
            else:
                run = []
            run.append(source)
            rows.append(_gone_row(run, gone[source]))
            continue
        run = []
        rows.append(
            MapRow(
                label=f"Layer {source}",
                kept=len(layer.kept),
                units=len(layer.scores),
                svg=_draw(layer, stage.granularity, borders, per_cell, titled=total <= MAX_TITLED_CELLS),
                note="",
            )
        )
    return UnitMap(rows=tuple(rows), units_per_cell=per_cell)


def _gone_row(sources: Sequence[int], note: str) -> MapRow:
    several = f"Layers {sources[0]}–{sources[-1]}"
    label = several if len(sources) > 1 else f"Layer {sources[0]}"
    return MapRow(label=label, kept=0, units=0, svg=None, note=note)


def _draw(
    layer: LayerScores, granularity: str, borders: Sequence[float], per_cell: int, *, titled: bool
) -> Markup:
    cells = math.ceil(len(layer.scores) / per_cell)
    columns = cells if cells <= 32 else COLUMNS
    cell = 28 if cells <= 32 else 14
    width, height = max(1, columns) * cell, math.ceil(cells / max(1, columns)) * cell
    if titled:
        body = _titled_cells(layer, granularity, borders, columns, cell)
    elif per_cell == 1:
        body = _merged_cells(layer, borders, columns, cell)
    else:
        body = _binned_cells(layer, borders, columns, cell, per_cell)
    label = f"Layer {layer.source}: {len(layer.kept)} of {len(layer.scores)} {granularity} units kept"
    return tag(
        "svg",
        *body,
        class_="unitmap",
        viewBox=f"0 0 {width} {max(1, height)}",
        style=f"max-width:{width}px",
        role="img",
        aria_label=label,
    )


def _square(index: int, columns: int, cell: int, *, kept: bool) -> tuple[float, float, float]:
    """Left, top and side of a unit's square."""
    side = cell * (0.84 if kept else 0.34)
    inset = (cell - side) / 2
    return index % columns * cell + inset, index // columns * cell + inset, side


def _titled_cells(
    layer: LayerScores, granularity: str, borders: Sequence[float], columns: int, cell: int
) -> list[Markup]:
    kept = set(layer.kept)
    cells = []
    for index, score in enumerate(layer.scores):
        state = "kept" if index in kept else "removed"
        title = tag("title", f"{fmt.unit(granularity)} {index}: {state}, score {fmt.significant(score)}")
        if index not in kept:
            left, top, side = _square(index, columns, cell, kept=True)
            cells.append(tag("rect", title, x=left, y=top, width=side, height=side, rx=2, class_="hollow"))
        left, top, side = _square(index, columns, cell, kept=index in kept)
        colour = level_class(score, borders)
        cells.append(
            tag("rect", title, x=left, y=top, width=side, height=side, rx=2, class_=f"{state} {colour}")
        )
    return cells


def _merged_cells(layer: LayerScores, borders: Sequence[float], columns: int, cell: int) -> list[Markup]:
    """One path per state and level: a tenth of the bytes of one element per unit."""
    kept = set(layer.kept)
    paths: defaultdict[tuple[str, str], list[str]] = defaultdict(list)
    for index, score in enumerate(layer.scores):
        left, top, side = _square(index, columns, cell, kept=index in kept)
        edge = number(side)
        key = ("kept" if index in kept else "removed", level_class(score, borders))
        paths[key].append(f"M{number(left)} {number(top)}h{edge}v{edge}h-{edge}z")
    return [tag("path", d="".join(data), class_=" ".join(key)) for key, data in sorted(paths.items())]


def _binned_cells(
    layer: LayerScores, borders: Sequence[float], columns: int, cell: int, per_cell: int
) -> list[Markup]:
    kept = set(layer.kept)
    side = cell * 0.84
    outline: list[str] = []
    paths: defaultdict[str, list[str]] = defaultdict(list)
    for position, start in enumerate(range(0, len(layer.scores), per_cell)):
        members = range(start, min(start + per_cell, len(layer.scores)))
        scores = finite(layer.scores[index] for index in members)
        share = sum(index in kept for index in members) / len(members)
        left, top, _ = _square(position, columns, cell, kept=True)
        corner, edge = f"M{number(left)} {number(top)}", number(side)
        outline.append(f"{corner}h{edge}v{edge}h-{edge}z")
        if share > 0:
            colour = level_class(sum(scores) / len(scores) if scores else math.nan, borders)
            tall = number(side * share)
            paths[colour].append(f"M{number(left)} {number(top + side)}h{edge}v-{tall}h-{edge}z")
    drawn = [tag("path", d="".join(data), class_=f"kept {name}") for name, data in sorted(paths.items())]
    return [tag("path", d="".join(outline), class_="hollow"), *drawn]
