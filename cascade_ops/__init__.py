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
    from cascade_ops.anatomy import ModelAnatomy as ModelAnatomy
    from cascade_ops.anatomy import anatomy_of as anatomy_of
    from cascade_ops.cascade import default_schedule as default_schedule
    from cascade_ops.cascade import run_cascade as run_cascade
    from cascade_ops.checkpoint import load_pruned as load_pruned
    from cascade_ops.checkpoint import save_pruned as save_pruned
    from cascade_ops.compensation import compensate as compensate
    from cascade_ops.errors import CascadeError as CascadeError
    from cascade_ops.evaluation import evaluate as evaluate
    from cascade_ops.gates import Gates as Gates
    from cascade_ops.gates import gated as gated
    from cascade_ops.gates import masked as masked
    from cascade_ops.granularity import Granularity as Granularity
    from cascade_ops.layer import LayerAnatomy as LayerAnatomy
    from cascade_ops.plan import PruningPlan as PruningPlan
    from cascade_ops.planning import plan_ratio as plan_ratio
    from cascade_ops.planning import plan_target as plan_target
    from cascade_ops.recovery import recover as recover
    from cascade_ops.results import CompressionReport as CompressionReport
    from cascade_ops.results import StageResult as StageResult
    from cascade_ops.schedule import CascadeSchedule as CascadeSchedule
    from cascade_ops.schedule import Recovery as Recovery
    from cascade_ops.schedule import Stage as Stage
    from cascade_ops.scoring import ImportanceScores as ImportanceScores
    from cascade_ops.scoring import gather as gather
    from cascade_ops.scoring import score as score
    from cascade_ops.sia import SIAReport as SIAReport
    from cascade_ops.sia import check_sia as check_sia
    from cascade_ops.statistics import Statistics as Statistics
    from cascade_ops.surgery import prune as prune

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
    "compensate": "compensation",
    "default_schedule": "cascade",
    "evaluate": "evaluation",
    "gated": "gates",
    "gather": "scoring",
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

__all__ = sorted(_HOME)
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'cascade_ops' has no attribute {name!r}")
    return getattr(importlib.import_module(f"cascade_ops.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
