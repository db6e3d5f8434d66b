"""Estimates of importance kept on disk, by the weights that they are of: many runs ask for the same ones."""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Iterable, Sequence
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from cascade_ops.batches import Batch
from cascade_ops.granularity import Granularity
from cascade_ops.scoring import ImportanceScores, Scorer, Scores


def remembered(scorer: Scorer, folder: Path, *, weights: str) -> Scorer:
    """``scorer``, asked only for what is not in ``folder`` yet.

    Args:
        weights: digest of the weights that are scored. All that uses one folder has the same calibration data.
    """

    def scored(model: nn.Module, batches: Iterable[Batch], criteria: Sequence[str], *, seed: int) -> Scores:
        places = {name: folder / f"{weights[:32]}-{name}-{seed}.safetensors" for name in criteria}
        found = {name: _load(place) for name, place in places.items()}
        missing = tuple(name for name, scores in found.items() if not scores)
        fresh = scorer(model, batches, missing, seed=seed) if missing else {}
        for name in missing:
            found[name] = {key: one for key, one in fresh.items() if key[0] == name}
            _save(found[name], places[name])
        return {key: one for scores in found.values() for key, one in scores.items()}

    return scored


def _save(scores: Scores, place: Path) -> None:
    place.parent.mkdir(parents=True, exist_ok=True)
    tensors = {
        f"{granularity.value}.{index}": row.contiguous()
        for (_, granularity), one in scores.items()
        for index, row in enumerate(one.per_layer)
    }
    about = {
        granularity.value: [criterion, len(one.per_layer), one.samples]
        for (criterion, granularity), one in scores.items()
    }
    scratch = place.with_name(f".{place.name}.{uuid.uuid4().hex}")
    try:
        save_file(tensors, scratch, metadata={"scores": json.dumps(about)})
        os.replace(scratch, place)
    finally:
        scratch.unlink(missing_ok=True)


def _load(place: Path) -> Scores:
    """What is there; nothing where it is missing or damaged."""
    try:
        with safe_open(place, framework="pt") as stream:
            about = json.loads((stream.metadata() or {})["scores"])
            return {
                (criterion, Granularity(name)): ImportanceScores(
                    granularity=Granularity(name),
                    criterion=criterion,
                    per_layer=tuple(stream.get_tensor(f"{name}.{index}") for index in range(layers)),
                    samples=samples,
                )
                for name, (criterion, layers, samples) in about.items()
            }
    except (OSError, SafetensorError, KeyError, ValueError, TypeError):
        return {}
