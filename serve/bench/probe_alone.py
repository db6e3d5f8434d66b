"""An exported model on an edge device: ``python -m serve.bench.probe_alone SPEC``; numpy and ONNX Runtime, no torch."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import onnxruntime

from serve.bench.energy import meter
from serve.bench.measuring import Memory, answering, measured


def main(spec: dict[str, Any]) -> dict[str, Any]:
    """The figures of a ``Probe``. ``spec``: onnx, inputs (files), threads, batches, runs, seconds."""
    inputs = np.load(spec["inputs"], allow_pickle=False)
    memory = Memory()
    began = time.perf_counter()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = spec["threads"]
    options.log_severity_level = 3  # errors only
    session = onnxruntime.InferenceSession(spec["onnx"], options, providers=["CPUExecutionProvider"])
    (name,) = (one.name for one in session.get_inputs())
    session.run(None, {name: inputs[:1]})
    load_s = time.perf_counter() - began

    def call(size: int) -> Callable[[], object]:
        batch = np.resize(inputs, (size, *inputs.shape[1:]))
        return lambda: session.run(None, {name: batch})

    figures = measured(
        call, batches=tuple(spec["batches"]), runs=spec["runs"], seconds=spec["seconds"], meter=meter()
    )
    return {"load_s": load_s, **memory.figures(), **figures, "torch": "torch" in sys.modules}


if __name__ == "__main__":
    with answering() as answer:
        answer(main(json.loads(sys.argv[1])))
