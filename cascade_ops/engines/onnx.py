"""ONNX Runtime: the classifier with its front end as one graph, for any batch."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from cascade_ops.batches import Batch
from cascade_ops.engines.base import ENGINES, Engine, EngineEntry
from cascade_ops.graphs import graph_of, quietly


def build(model: PreTrainedModel, example: Batch) -> Engine:
    """Exported to a temporary file, and run from there; the graph's weights are the session's own."""
    with tempfile.TemporaryDirectory(prefix="cascade-onnx-") as folder:
        path = Path(folder) / "model.onnx"
        export_onnx(model, example, path)
        return run_onnx(path)


def run_onnx(path: Path) -> Engine:
    """The graph in a file, in a session of its own."""
    session = open_session(path)

    def run(batch: Batch) -> Tensor:
        (logits,) = session.run(None, {name: tensor.numpy() for name, tensor in batch.items()})
        return torch.from_numpy(logits)

    return run


def open_session(path: Path) -> Any:
    """An ``InferenceSession`` on the CPU with as many threads as torch uses here."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3  # errors only
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def export_onnx(model: PreTrainedModel, example: Batch, path: Path) -> None:
    """``model`` as the file ``path``: tensors named as in ``example`` to ``logits``; batch and length are free."""
    module, inputs, shapes = graph_of(model, example)
    with quietly():
        program = torch.onnx.export(
            module,
            inputs,
            dynamo=True,
            input_names=module.names,
            output_names=["logits"],
            dynamic_shapes=shapes,
            verbose=False,
        )
    assert program is not None  # dynamo=True returns one
    for node in program.model.graph.all_nodes():
        node.metadata_props.clear()  # each carries the Python stack that made it
    program.save(path)


ENGINES.add(
    "onnx",
    EngineEntry(
        build=build,
        title="ONNX Runtime",
        tolerances={"diagnosis": 1e-4},
        packages=("onnx", "onnxscript", "onnxruntime"),
    ),
)
