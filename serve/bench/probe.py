"""One model on one engine in this process: ``python -m serve.bench.probe SPEC``, a JSON object; answers in JSON.

What a process has imported, allocated or warmed up belongs to the next model measured in it, so each gets its own.
"""

from __future__ import annotations

import importlib
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from cascade_ops.batches import Batch
from cascade_ops.checkpoint import load_pruned, read_config
from cascade_ops.engines import ENGINES, Engine, start_engine
from cascade_ops.engines.onnx import export_onnx
from cascade_ops.errors import CascadeError
from cascade_ops.surgery import meta_model
from serve.bench import language
from serve.bench.energy import meter
from serve.bench.measuring import Memory, answering, latency, measured, timed

PROBES = 8
PROBE_TOKENS = 8


def main(spec: dict[str, Any]) -> dict[str, Any]:
    """``prepare``: the engine's parity, and its graph as a file; ``measure``: the figures of a ``Probe``."""
    torch.set_num_threads(spec["threads"])
    return prepare(spec) if spec["do"] == "prepare" else measure(spec)


def prepare(spec: dict[str, Any]) -> dict[str, Any]:
    """Raises CascadeError where the engine cannot run the model, or answers differently."""
    model = load_pruned(spec["folder"]).to(spec["device"])
    example = _example(spec, model)
    _, parity = start_engine(spec["engine"], model, example, task=spec["task"])
    if spec.get("onnx"):
        export_onnx(model, example, Path(spec["onnx"]))
    return {"difference": parity.difference, "agreement": parity.agreement, "probes": parity.probes}


def measure(spec: dict[str, Any]) -> dict[str, Any]:
    """The model's own share: the framework, the architecture's code and the inputs are there before."""
    entry = ENGINES[spec["engine"]]
    for package in entry.packages:
        importlib.import_module(package)
    example = _example(spec, meta_model(read_config(Path(spec["folder"]))))
    on_gpu = torch.device(spec["device"]).type == "cuda"
    if on_gpu:
        torch.zeros(1, device=spec["device"])  # the context is not the model's
        torch.cuda.reset_peak_memory_stats()
    memory = Memory()
    began = time.perf_counter()
    model = load_pruned(spec["folder"]).to(spec["device"])
    engine = entry.build(model, example)
    engine({name: tensor[:1] for name, tensor in example.items()})
    load_s = time.perf_counter() - began
    if spec["task"] == "lm":
        figures = _language(spec, model)
    else:
        del model  # an engine that needs it holds it
        figures = measured(
            _calls(engine, example["signal"]),
            batches=tuple(spec["batches"]),
            runs=spec["runs"],
            seconds=spec["seconds"],
            meter=meter(),
        )
    cuda = torch.cuda.max_memory_allocated() if on_gpu else None
    return {"load_s": load_s, **memory.figures(), **figures, "cuda_bytes": cuda, "torch": True}


def _calls(engine: Engine, signal: Tensor) -> Callable[[int], Callable[[], object]]:
    def call(size: int) -> Callable[[], object]:
        batch = {"signal": torch.from_numpy(np.resize(signal.numpy(), (size, *signal.shape[1:])))}
        return lambda: engine(batch)

    return call


def _language(spec: dict[str, Any], model: PreTrainedModel) -> dict[str, Any]:
    """Reading the prompt is this task's single sample."""
    tokens, new = language.lengths(model.config, spec["prompt_tokens"], spec["new_tokens"])
    prompt = language.prompt_for(model, tokens)
    figures = latency(timed(language.prefill(model, prompt), runs=spec["runs"], seconds=spec["seconds"]))
    written = language.decode(model, prompt, new, spec["seconds"])
    told = {"prompt_tokens": tokens, "new_tokens": new, "ttft_ms": figures["p50_ms"], **written}
    return {**figures, "language": told}


def _example(spec: dict[str, Any], model: PreTrainedModel) -> Batch:
    if spec["task"] == "lm":
        vocabulary = int(model.config.get_text_config().vocab_size)
        generator = torch.Generator().manual_seed(0)
        return {"input_ids": torch.randint(vocabulary, (PROBES, PROBE_TOKENS), generator=generator)}
    return {"signal": torch.from_numpy(np.load(spec["inputs"], allow_pickle=False)[:PROBES])}


if __name__ == "__main__":
    with answering() as answer:
        try:
            answer(main(json.loads(sys.argv[1])))
        except CascadeError as error:
            answer({"error": str(error)})
