"""ONNX: one graph for ONNX Runtime, float32 or int8; a classifier with its front end."""

from __future__ import annotations

from pathlib import Path

from transformers import PreTrainedModel

from cascade_ops.engines.base import Engine
from cascade_ops.engines.onnx import export_onnx, run_onnx
from cascade_ops.export.base import TARGETS, Job, Target
from cascade_ops.graphs import quietly

FILE = "model.onnx"


def write(model: PreTrainedModel, folder: Path, job: Job) -> tuple[str, ...]:
    """``model.onnx``; int8 is ONNX Runtime's dynamic quantisation of every matrix product with weights."""
    model = model.float()
    if job.precision == "fp32":
        export_onnx(model, job.probes, folder / FILE)
        return ()
    from onnxruntime.quantization import QuantType, quantize_dynamic

    whole = folder / "fp32.onnx"
    export_onnx(model, job.probes, whole)
    with quietly():
        quantize_dynamic(
            whole,
            folder / FILE,
            op_types_to_quantize=["MatMul", "Gemm"],
            per_channel=True,
            weight_type=QuantType.QInt8,
        )
    for left in folder.glob("fp32.onnx*"):
        left.unlink()
    return ("int8: weights per channel, activations per tensor as they come (onnxruntime.quantization)",)


def open_folder(folder: Path) -> Engine:
    """By ONNX Runtime."""
    return run_onnx(folder / FILE)


TARGETS.add(
    "onnx",
    Target(
        title="ONNX Runtime",
        refuses=lambda anatomy: (),
        kinds=("lm", "diagnosis", "encoder", "image"),
        precisions={"fp32": 1e-4, "int8": 0.25},
        write=write,
        open=open_folder,
        how='import onnxruntime\n\nsession = onnxruntime.InferenceSession("model.onnx")\n'
        '(logits,) = session.run(None, {{"{input}": values}})',
        packages=("onnx", "onnxscript", "onnxruntime"),
        extra="engines",
    ),
)
