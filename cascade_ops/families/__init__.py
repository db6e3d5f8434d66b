"""Architecture families: one declarative file each.

To add one, write a file like ``llama.py`` into this folder (docs/families.md); the contract tests run over the
registry.
"""

from __future__ import annotations

from importlib import import_module
from pkgutil import iter_modules

from cascade_ops.families.spec import (
    FAMILIES,
    Attribute,
    FamilySpec,
    PerHead,
    Projection,
    Refusal,
    Sizes,
    family,
    separate,
)

for _module in sorted(module.name for module in iter_modules(__path__)):
    import_module(f"{__name__}.{_module}")  # each registers its family

__all__ = [
    "FAMILIES",
    "Attribute",
    "FamilySpec",
    "PerHead",
    "Projection",
    "Refusal",
    "Sizes",
    "family",
    "separate",
]
