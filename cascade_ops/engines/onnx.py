"""ONNX Runtime: the classifier with its front end as one graph, for any batch."""

from __future__ import annotations

import logging
import tempfile
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from cascade_ops.batches import Batch, take
from cascade_ops.engines.base import ENGINES, Engine, EngineEntry

MOST_SAMPLES = 4096
"""Largest batch that the graph admits."""


def build(model: PreTrainedModel, example: Batch) -> Engine:
    """Exported to a temporary file, and run from there; the graph's weights are the session's own."""
    with tempfile.TemporaryDirectory(prefix="cascade-onnx-") as folder:
        path = Path(folder) / "model.onnx"
        export_onnx(model, example, path)
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
    """``model`` as the file ``path``: ``signal`` (batch × samples) to ``logits`` (batch × classes), batch free."""
    names = list(example)
    batch = torch.export.Dim("batch", min=1, max=MOST_SAMPLES)
    for talkative in ("torch.onnx", "onnxscript", "onnx_ir"):
        logging.getLogger(talkative).setLevel(logging.ERROR)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # the exporter's own deprecations
        program = torch.onnx.export(
            _Logits(model, names),
            tuple(take(example, slice(0, 2)).values()),
            dynamo=True,
            input_names=names,
            output_names=["logits"],
            dynamic_shapes={"inputs": tuple({0: batch} for _ in names)},
            verbose=False,
        )
    assert program is not None  # dynamo=True returns one
    program.save(path)


class _Logits(nn.Module):
    """Positional tensors in, logits out: what an ONNX graph has."""

    def __init__(self, model: PreTrainedModel, names: list[str]) -> None:
        super().__init__()
        self.model, self.names = model, names

    def forward(self, *inputs: Tensor) -> Tensor:
        logits: Tensor = self.model(**dict(zip(self.names, inputs, strict=True))).logits
        return logits


ENGINES.add(
    "onnx",
    EngineEntry(
        build=build,
        title="ONNX Runtime",
        tolerances={"diagnosis": 1e-4},
        packages=("onnx", "onnxscript", "onnxruntime"),
    ),
)
