"""What a search found: ``search.json`` for machines, ``trials.parquet`` with a row for each trial."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from cascade_ops.errors import CheckpointError
from cascade_ops.serde import from_jsonable, to_jsonable

SCHEMA = "cascade.search/1"
DOCUMENT, TABLE, PAGE, WINNER = "search.json", "trials.parquet", "report.html", "schedule.yaml"

TrialState = Literal["complete", "pruned", "failed"]
Mode = Literal["min", "max"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ObjectiveRecord:
    """One objective: a key of ``outcome``, which way is better, and its unit in words."""

    name: str
    mode: Mode
    unit: str


@dataclass(frozen=True, slots=True, kw_only=True)
class StageRecord:
    """One cut of a trial's schedule as it was carried out.

    Attributes:
        ratio: share of the units present that went.
        steps: recovery steps after it.
        compression: of the backbone, reached by the end of the stage.
        cached: taken from an earlier trial with the same prefix.
        seconds: that it took where it was computed.
    """

    granularity: str
    ratio: float
    criterion: str
    allocation: str
    steps: int
    compression: float
    cached: bool
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class TrialRecord:
    """One trial.

    Attributes:
        number: Optuna's.
        origin: ``drawn``, ``branch of 7`` (shares a prefix with trial 7), ``paper``, ``warm start``.
        params: what the sampler chose, by name.
        values: objective → value with the full recovery; empty unless complete.
        rungs: (what was measured, first objective) in order, such as ``("no recovery", 0.61)``.
        outcome: every figure measured at the highest fidelity reached: ``accuracy``/``perplexity`` and ``loss`` on
            the validation side, ``test_accuracy`` … on the test side (which no decision sees), ``compression``,
            ``params``, ``size_mb``, ``latency_ms``, ``latency`` (share of the dense model's).
        violations: limit → by how much it is exceeded (≤ 0: kept).
        beyond: granularities that a round cuts further than the check's safe ratio.
        stages: of the highest fidelity reached.
        requested, computed: stages that were needed at all fidelities, and those that had to be computed.
        seconds: that this trial's own computing took; saved: that taking stages from earlier trials saved.
        error: why it failed.
    """

    number: int
    state: TrialState
    origin: str
    params: dict[str, Any]
    values: dict[str, float] = field(default_factory=dict)
    rungs: tuple[tuple[str, float], ...] = ()
    outcome: dict[str, float] = field(default_factory=dict)
    violations: dict[str, float] = field(default_factory=dict)
    beyond: tuple[str, ...] = ()
    stages: tuple[StageRecord, ...] = ()
    requested: int = 0
    computed: int = 0
    seconds: float = 0.0
    saved: float = 0.0
    error: str | None = None

    @property
    def feasible(self) -> bool:
        """Complete, and within every limit."""
        return self.state == "complete" and all(value <= 0 for value in self.violations.values())


@dataclass(frozen=True, slots=True, kw_only=True)
class BoundRecord:
    """How much of a granularity one round may remove.

    Attributes:
        unit: what is searched: ``kv_group`` where query heads share K/V.
        safe: r*, by which ratio losses add up; None where too few units could be measured.
        loss: the ratio at which shutting the units costs the loss that is allowed; None as above.
        ratio: the bound that the search obeyed (1: none).
        least: units per layer (or layers) that must be left after all rounds.
        units: units per layer (or layers) of the dense model.
    """

    unit: str
    safe: float | None
    loss: float | None
    ratio: float
    least: int
    units: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchRecord:
    """A whole search.

    Attributes:
        model, data: in a few words each.
        target: backbone compression asked for; None where it is free.
        reach: the best backbone compression that the bounds allow.
        objectives: the first decides where one is needed.
        limits: limit → largest value allowed.
        trials: by number; winner, front: numbers among them.
        dense, reference: outcomes of the dense model and of the configuration's own schedule.
        reference_name: what that schedule is, in words.
        importances: objective → parameter → share of the variance explained (PED-ANOVA).
        agreement: fidelity in words → Spearman's ρ with the full recovery, and the number of trials behind it.
        foresight: Spearman's ρ of the first objective between validation and test side over complete trials.
        ignored_sia: the bounds were not obeyed.
        wall: seconds that trials took from first to last; slots: trials at a time; overhead: share of trial time that
            was neither data, stages nor measurements.
    """

    model: str
    data: str
    task: str
    target: float | None
    reach: float
    objectives: tuple[ObjectiveRecord, ...]
    limits: dict[str, float]
    bounds: tuple[BoundRecord, ...]
    rounds: int
    sampler: str
    scheduler: str
    ignored_sia: bool
    trials: tuple[TrialRecord, ...]
    winner: int | None
    front: tuple[int, ...]
    dense: dict[str, float]
    reference: dict[str, float]
    reference_name: str
    importances: dict[str, dict[str, float]]
    agreement: dict[str, tuple[float, int]]
    foresight: float | None
    wall: float
    slots: int
    overhead: float
    provenance: dict[str, Any] = field(default_factory=dict)

    @property
    def requested(self) -> int:
        return sum(trial.requested for trial in self.trials)

    @property
    def computed(self) -> int:
        return sum(trial.computed for trial in self.trials)

    def trial(self, number: int) -> TrialRecord:
        return next(trial for trial in self.trials if trial.number == number)


def machine_view(record: SearchRecord) -> dict[str, Any]:
    return {"schema": SCHEMA, **to_jsonable(record)}


def read_record(folder: Path) -> SearchRecord:
    """Raises CheckpointError: missing, of another schema, or damaged."""
    path = folder / DOCUMENT
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        found = document.pop("schema", None)
        if found != SCHEMA:
            raise CheckpointError(f"{path}: expected schema {SCHEMA!r}, found {found!r}")
        return from_jsonable(SearchRecord, document)
    except (OSError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(
            f"{path}: incomplete or corrupt ({error}). Continue the search: cascade search --resume {folder}"
        ) from None
