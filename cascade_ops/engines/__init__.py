"""Ways of running one model behind one interface: ``ENGINES[name].build(model, example)``.

An engine is one file here with one registration. What it answers is compared with plain PyTorch on probe inputs
before anyone is given it: ``start_engine``.
"""

from __future__ import annotations

from cascade_ops.engines.base import ENGINES as ENGINES
from cascade_ops.engines.base import Engine as Engine
from cascade_ops.engines.base import EngineEntry as EngineEntry
from cascade_ops.engines.base import Parity as Parity
from cascade_ops.engines.base import start_engine as start_engine

from cascade_ops.engines import compiled, eager, int8, onnx  # isort: skip  # noqa: F401  (they register themselves)
