"""Two saved benchmarks side by side: what changed, and whether the machine or the settings did too."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from cascade_ops.loadtest.figures import Figure, figures_of
from cascade_ops.loadtest.ratios import Ratio, paired_ratio, unpaired_ratio
from cascade_ops.loadtest.results import Bench

COMPARISON_SCHEMA = "cascade.bench.compare/1"
IGNORED = ("created", "command", "url", "seed")
"""What two benchmarks of the same thing may well differ in."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """A figure in both: ``ratio`` is after ÷ before; ``better`` None where the interval has 1 or there is none."""

    figure: str
    where: str
    variant: str
    before: float
    after: float
    ratio: Ratio | None
    better: bool | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """Something other than the figures that differs."""

    what: str
    before: str
    after: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """``only_before`` and ``only_after`` name figures that the other one lacks."""

    changes: tuple[Change, ...]
    differences: tuple[Difference, ...]
    only_before: tuple[str, ...]
    only_after: tuple[str, ...]
    schema: str = COMPARISON_SCHEMA


def compare(before: Bench, after: Bench) -> Comparison:
    """What is in both, ratio by ratio. The two were not interleaved: a busier machine looks like a change."""
    old = {figure.key: figure for figure in figures_of(before)}
    new = {figure.key: figure for figure in figures_of(after)}
    return Comparison(
        changes=tuple(_change(old[key], new[key]) for key in old if key in new),
        differences=tuple(_differences(before, after)),
        only_before=tuple(" · ".join(key) for key in old if key not in new),
        only_after=tuple(" · ".join(key) for key in new if key not in old),
    )


def _change(before: Figure, after: Figure) -> Change:
    ratio = unpaired_ratio(after.rounds, before.rounds) or paired_ratio((after.value,), (before.value,))
    better = None
    if ratio is not None and ratio.differs:
        better = (ratio.value > 1) is before.more_is_better
    return Change(
        figure=before.name,
        where=before.where,
        variant=before.variant,
        before=before.value,
        after=after.value,
        ratio=ratio,
        better=better,
    )


def _differences(before: Bench, after: Bench) -> Iterator[Difference]:
    for title, one, other in (
        ("settings", before.settings, after.settings),
        ("workload", before.workload, after.workload),
        ("machine", before.provenance, after.provenance),
        ("model", _models(before), _models(after)),
    ):
        flat, others = dict(_flat(one)), dict(_flat(other))
        for key in dict.fromkeys([*flat, *others]):
            if key.rpartition(".")[2] not in IGNORED and flat.get(key) != others.get(key):
                yield Difference(
                    what=f"{title}: {key}", before=flat.get(key, "none"), after=others.get(key, "none")
                )


def _models(bench: Bench) -> dict[str, Any]:
    return {model.name: {"version": model.version, "engine": model.engine} for model in bench.models}


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", str(value)
