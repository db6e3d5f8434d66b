"""Cascaded multi-granularity structured pruning of transformers.

    anatomy = anatomy_of(model)
    plan = PruningPlan.from_keep(Granularity.HEAD, [[0, 2], [1]])
    with masked(model, plan): ...
    prune(model, plan)
    scores = score(model, batches, criteria=("taylor", "wanda"))
    save_pruned(model, path);  model = load_pruned(path)

Names are imported on first use, so that ``import cascade_ops`` costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cascade_ops.anatomy import LayerAnatomy, ModelAnatomy, anatomy_of
    from cascade_ops.cascade import default_schedule, run_cascade
    from cascade_ops.checkpoint import load_pruned, save_pruned
    from cascade_ops.errors import CascadeError
    from cascade_ops.evaluation import evaluate
    from cascade_ops.gates import Gates, gated, masked
    from cascade_ops.granularity import Granularity
    from cascade_ops.plan import PruningPlan
    from cascade_ops.planning import plan_ratio, plan_target
    from cascade_ops.recovery import recover
    from cascade_ops.results import CompressionReport, StageResult
    from cascade_ops.schedule import CascadeSchedule, Recovery, Stage
    from cascade_ops.scoring import ImportanceScores, score
    from cascade_ops.sia import SIAReport, check_sia
    from cascade_ops.statistics import Statistics
    from cascade_ops.surgery import prune

_HOME = {
    "CascadeError": "errors",
    "CascadeSchedule": "schedule",
    "CompressionReport": "results",
    "Gates": "gates",
    "Granularity": "granularity",
    "ImportanceScores": "scoring",
    "LayerAnatomy": "layer",
    "ModelAnatomy": "anatomy",
    "PruningPlan": "plan",
    "Recovery": "schedule",
    "SIAReport": "sia",
    "Stage": "schedule",
    "StageResult": "results",
    "Statistics": "statistics",
    "anatomy_of": "anatomy",
    "check_sia": "sia",
    "default_schedule": "cascade",
    "evaluate": "evaluation",
    "gated": "gates",
    "load_pruned": "checkpoint",
    "masked": "gates",
    "plan_ratio": "planning",
    "plan_target": "planning",
    "prune": "surgery",
    "recover": "recovery",
    "run_cascade": "cascade",
    "save_pruned": "checkpoint",
    "score": "scoring",
}

__all__ = sorted(_HOME)  # noqa: PLE0605  (spelt out above)
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'cascade_ops' has no attribute {name!r}")
    return getattr(importlib.import_module(f"cascade_ops.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
