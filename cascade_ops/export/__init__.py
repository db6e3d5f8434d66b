"""Compressed models for other runtimes: ``export(source, target, out)``.

A target is one file here with one registration. Each reloads what it wrote in its own runtime and compares the answers
with plain PyTorch's before the export appears.
"""

from __future__ import annotations

from importlib import import_module
from pkgutil import iter_modules

from cascade_ops.export.auto import auto_name_of as auto_name_of
from cascade_ops.export.base import TARGETS as TARGETS
from cascade_ops.export.base import Exported as Exported
from cascade_ops.export.base import Job as Job
from cascade_ops.export.base import Source as Source
from cascade_ops.export.base import Target as Target
from cascade_ops.export.base import export as export
from cascade_ops.export.base import kind_of as kind_of
from cascade_ops.export.base import refusals as refusals
from cascade_ops.export.base import write_manifest as write_manifest

for _module in sorted(module.name for module in iter_modules(__path__)):
    import_module(f"{__name__}.{_module}")  # each registers its target
