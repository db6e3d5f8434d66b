"""Architecture families: one declarative file each.

To add one, write a file like ``llama.py`` and import it here; the contract tests run over the registry.
"""

from __future__ import annotations

from cascade_ops.families.spec import FAMILIES, Attribute, FamilySpec, Projection, family

# Each import registers its family.
from cascade_ops.families import arcee, bert, gpt2, gpt_neox, llama, opt  # isort: skip

__all__ = [
    "FAMILIES",
    "Attribute",
    "FamilySpec",
    "Projection",
    "arcee",
    "bert",
    "family",
    "gpt2",
    "gpt_neox",
    "llama",
    "opt",
]
