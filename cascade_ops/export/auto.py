"""Which of transformers' Auto classes opens a model class."""

from __future__ import annotations

from typing import Any

import transformers

from cascade_ops.errors import ExportError

AUTO = (
    "AutoModelForCausalLM",
    "AutoModelForMaskedLM",
    "AutoModelForSequenceClassification",
    "AutoModelForImageClassification",
    "AutoModel",
)


def auto_name_of(architecture: str) -> str:
    """The name of the Auto class for this model class. Raises ExportError."""
    for name in AUTO:
        known = getattr(transformers, name)._model_mapping._model_mapping.values()
        if any(architecture in ((one,) if isinstance(one, str) else one) for one in known):
            return name
    raise ExportError(f"expected a model class that transformers' Auto classes know, found {architecture}")


def auto_class_of(architecture: str) -> Any:
    """The Auto class itself. Raises ExportError."""
    return getattr(transformers, auto_name_of(architecture))
