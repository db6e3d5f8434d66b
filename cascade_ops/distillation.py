"""Distillation: a teacher's outputs, computed once and kept on disk, and the loss of a student beside them."""

from __future__ import annotations

import torch
from torch import Tensor

from cascade_ops.batches import Batch, length_of
from cascade_ops.schedule import Distillation
from cascade_ops.training import LossOf

NUMBER = "sample"
"""Key of each sample's position in the data that the teacher has seen."""


def numbered(data: Batch) -> dict[str, Tensor]:
    """The data with each sample's position, by which its teacher's outputs are found."""
    return {**data, NUMBER: torch.arange(length_of(data))}


class TeacherCache:
    """What a teacher said about each sample."""

    def loss(self, distillation: Distillation) -> LossOf:
        """Per-sample losses of a student that learns from these outputs."""
        raise NotImplementedError
