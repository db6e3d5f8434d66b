"""Models without a server: each on each engine in fresh processes, interleaved round by round."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

import serve
from cascade_ops.engines import ENGINES
from cascade_ops.engines.base import require
from cascade_ops.errors import UsageError
from cascade_ops.loadtest.results import Parity, Probe, Process
from cascade_ops.progress import Progress, silent
from cascade_ops.serde import from_jsonable
from serve.variants import Variant

ALONE = "onnx-alone"
"""ONNX Runtime in a process that never imports torch."""
PATIENCE_S = 900.0
ROOT = Path(serve.__file__).resolve().parents[1]


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbePlan:
    """What each process measures: at most ``runs`` calls of a kind, for at most ``seconds``."""

    rounds: int = 3
    threads: int = 1
    device: str = "cpu"
    runs: int = 400
    seconds: float = 5.0
    batches: tuple[int, ...] = (8, 32)
    prompt_tokens: int = 128
    new_tokens: int = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class _Case:
    """A variant on an engine; ``onnx`` is where its graph is."""

    variant: Variant
    engine: str
    onnx: Path | None = None

    @property
    def name(self) -> str:
        return f"{self.variant.name} on {self.engine}"


class ProbeFailedError(Exception):
    """A process that could not measure; the message says why."""


def check_engines(engines: Sequence[str], task: str, device: str) -> None:
    """Raises UnknownNameError, UsageError: an engine that cannot be used here at all."""
    for name in engines:
        require(name, ENGINES[name], task)
        if name == "onnx" and device != "cpu":
            raise UsageError("--engines onnx: runs on the CPU here. Measure it with --device cpu.")


def measure_offline(
    variants: Sequence[Variant],
    engines: Sequence[str],
    plan: ProbePlan,
    windows: Float[np.ndarray, "windows samples"] | None,
    *,
    progress: Progress = silent,
) -> tuple[Process, ...]:
    """Every variant on every engine, and exported models without torch where ``onnx`` is among them.

    ``windows`` are what classifiers are given.

    Raises:
        UsageError: an engine that cannot be used here. One that fails on a model is told in its Process.
    """
    check_engines(engines, variants[0].task, plan.device)
    with tempfile.TemporaryDirectory(prefix="cascade-bench-") as folder:
        scratch = Path(folder)
        common = _common(plan, windows, scratch)
        wanted = [
            _Case(variant=v, engine=e, onnx=scratch / f"{i}.onnx" if e == "onnx" else None)
            for e in engines
            for i, v in enumerate(variants)
        ]
        found: dict[tuple[str, str], Process] = {}
        cases: list[_Case] = []
        for done, case in enumerate(wanted):
            progress("checking engines", done, len(wanted))
            process, able = _prepared(case, common)
            found |= {(one.variant, one.engine): one for one in process}
            cases += able
        _rounds(cases, common, plan, found, progress)
    return tuple(found.values())


def _prepared(case: _Case, common: dict[str, Any]) -> tuple[list[Process], list[_Case]]:
    """Parity once, and the exported file for every process that only runs it."""
    process = Process(variant=case.variant.name, engine=case.engine, size_bytes=case.variant.size_bytes)
    try:
        parity = from_jsonable(Parity, run("serve.bench.probe", {**common, **_spec(case), "do": "prepare"}))
    except ProbeFailedError as error:
        return [replace(process, failed=str(error))], []
    process = replace(process, parity=parity)
    if case.onnx is None:
        return [process], [case]
    size = sum(file.stat().st_size for file in case.onnx.parent.glob(f"{case.onnx.name}*"))
    alone = replace(process, engine=ALONE, size_bytes=size)
    return [process, alone], [case, replace(case, engine=ALONE)]


def _rounds(
    cases: Sequence[_Case],
    common: dict[str, Any],
    plan: ProbePlan,
    found: dict[tuple[str, str], Process],
    progress: Progress,
) -> None:
    """Every case once a round, each round in the other direction; what fails once is left out from then on."""
    total, done = plan.rounds * len(cases), 0
    for number in range(plan.rounds):
        for case in cases if number % 2 == 0 else cases[::-1]:
            progress("fresh processes", done, total)
            done += 1
            key = case.variant.name, case.engine
            if found[key].failed:
                continue
            module = "serve.bench.probe_alone" if case.engine == ALONE else "serve.bench.probe"
            try:
                probe = from_jsonable(Probe, run(module, {**common, **_spec(case), "do": "measure"}))
            except ProbeFailedError as error:
                found[key] = replace(found[key], failed=str(error), rounds=())
                continue
            found[key] = replace(found[key], rounds=(*found[key].rounds, probe))


def _common(
    plan: ProbePlan, windows: Float[np.ndarray, "windows samples"] | None, scratch: Path
) -> dict[str, Any]:
    inputs = scratch / "windows.npy"
    if windows is not None:
        np.save(inputs, windows)
    return {
        "inputs": str(inputs),
        "threads": plan.threads,
        "device": plan.device,
        "runs": plan.runs,
        "seconds": plan.seconds,
        "batches": plan.batches,
        "prompt_tokens": plan.prompt_tokens,
        "new_tokens": plan.new_tokens,
    }


def _spec(case: _Case) -> dict[str, Any]:
    return {
        "folder": str(case.variant.folder.resolve()),
        "engine": case.engine,
        "task": case.variant.task,
        "onnx": None if case.onnx is None else str(case.onnx),
    }


def run(module: str, spec: dict[str, Any], *, patience: float = PATIENCE_S) -> dict[str, Any]:
    """The answer of ``python -m module`` to ``spec``. Raises ProbeFailedError."""
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    environment = {
        **os.environ,
        "PYTHONPATH": path,
        "OMP_NUM_THREADS": str(spec["threads"]),
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_VERBOSITY": "error",
    }
    try:
        done = subprocess.run(
            [sys.executable, "-m", module, json.dumps(spec)],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=patience,
            env=environment,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise ProbeFailedError(f"it took longer than {patience:g} s") from None
    if done.returncode < 0:
        raise ProbeFailedError(f"it was ended by signal {-done.returncode}: not enough memory?")
    if done.returncode > 0:
        lines = done.stderr.strip().splitlines()
        cause = lines[-1] if lines else f"it ended with exit code {done.returncode}"
        raise ProbeFailedError(cause)
    answer: dict[str, Any] = json.loads(done.stdout)
    if "error" in answer:
        raise ProbeFailedError(answer["error"])
    return answer
