"""Models alone: fresh processes, turns that alternate, no torch where none is needed, and what energy counters say."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cascade_ops.anatomy import anatomy_of
from cascade_ops.checkpoint import load_pruned, save_pruned
from cascade_ops.errors import UsageError
from cascade_ops.granularity import Granularity
from cascade_ops.loadtest.results import Probe
from cascade_ops.serde import from_jsonable
from cascade_ops.surgery import prune
from serve.bench import language, offline, probe
from serve.bench.energy import meter
from serve.bench.measuring import latency, timed
from serve.bench.offline import ALONE, ProbeFailedError, ProbePlan, measure_offline, run
from serve.variants import Variant
from tests.factories import WINDOW, classifier, gpt2, llama_like, varied_plan

QUICK: dict[str, Any] = {"threads": 1, "device": "cpu", "runs": 20, "seconds": 0.3, "batches": (4,)}


def variant(folder: Path, name: str, task: str = "diagnosis") -> Variant:
    return Variant(
        name=name,
        folder=folder,
        title=name,
        task=task,
        engine="eager",
        version="0" * 12,
        created=0,
        backbone_params=1,
        total_params=1,
        size_bytes=1000,
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny classifier and what it is given."""
    root = tmp_path_factory.mktemp("bench")
    save_pruned(classifier(gpt2), root / "model")
    np.save(root / "windows.npy", np.random.default_rng(0).normal(size=(8, WINDOW)).astype(np.float32))
    return root


def spec(folder: Path, **more: object) -> dict[str, Any]:
    common = {"folder": str(folder / "model"), "inputs": str(folder / "windows.npy"), "task": "diagnosis"}
    return {**QUICK, **common, "engine": "eager", "do": "measure", **more}


def test_a_fresh_process_measures_a_model(folder: Path) -> None:
    found = from_jsonable(Probe, run("serve.bench.probe", spec(folder)))
    assert found.torch
    assert found.runs == 20
    assert 0 < found.p5_ms <= found.p50_ms <= found.p95_ms
    assert found.p99_ms is None  # 20 samples do not tell it
    assert found.throughput.keys() == {"4"}
    assert found.load_s > 0
    # torch alone is so large; the model's share is what came after
    assert found.peak_bytes > found.base_bytes > 1e8
    assert found.above_bytes < found.base_bytes
    assert found.peak_bytes >= found.resident_bytes > 0
    assert found.cuda_bytes is None


def test_an_exported_model_needs_no_torch(folder: Path) -> None:
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    kind = onnx.TensorProto.FLOAT
    weights = onnx.numpy_helper.from_array(np.ones((WINDOW, 3), dtype=np.float32), "weights")
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("MatMul", ["signal", "weights"], ["logits"])],
        "classifier",
        [onnx.helper.make_tensor_value_info("signal", kind, ["batch", WINDOW])],
        [onnx.helper.make_tensor_value_info("logits", kind, ["batch", 3])],
        [weights],
    )
    opset = [onnx.helper.make_opsetid("", 18)]
    onnx.save(onnx.helper.make_model(graph, opset_imports=opset, ir_version=9), folder / "model.onnx")
    asked = spec(folder, onnx=str(folder / "model.onnx"))
    found = from_jsonable(Probe, run("serve.bench.probe_alone", asked))
    assert not found.torch
    assert found.base_bytes < 1e8
    assert found.throughput.keys() == {"4"}


def test_preparing_compares_the_engine_with_plain_pytorch(folder: Path) -> None:
    found = probe.main(spec(folder, do="prepare"))
    assert found["agreement"] == 1.0
    assert found["difference"] <= 1e-5


class Processes:
    """In the place of real ones: says what was asked for, in which order."""

    def __init__(self, failing: str = "", on: str = "measure") -> None:
        self.asked: list[tuple[str, str, str]] = []
        self._failing, self._on = failing, on

    def __call__(self, module: str, spec: dict[str, Any]) -> dict[str, Any]:
        name = f"{Path(spec['folder']).name} {'alone' if module.endswith('alone') else spec['engine']}"
        self.asked.append((spec["do"], name, module))
        if spec["do"] == self._on and name == self._failing:
            raise ProbeFailedError("it does not fit")
        if spec["do"] == "prepare":
            if spec["onnx"]:
                Path(spec["onnx"]).write_bytes(b"x" * 1234)
            return {"difference": 1e-7, "agreement": 1.0, "probes": 9}
        figures = {"load_s": 0.1, "base_bytes": 10, "peak_bytes": 30, "above_bytes": 20, "resident_bytes": 25}
        return {**figures, "runs": 9, "p50_ms": 1.0, "p5_ms": 0.5, "p95_ms": 2.0}


def measured(stand_in: Processes, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    monkeypatch.setattr(offline, "run", stand_in)
    pair = [variant(tmp_path / name, name) for name in ("dense", "small")]
    windows = np.zeros((2, WINDOW), dtype=np.float32)
    return measure_offline(pair, ("eager", "onnx"), ProbePlan(rounds=3), windows)


def test_processes_take_turns_and_turn_round(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    processes = Processes()
    found = measured(processes, monkeypatch, tmp_path)
    order = [name for do, name, _ in processes.asked if do == "measure"]
    once = ["dense eager", "small eager", "dense onnx", "dense alone", "small onnx", "small alone"]
    assert order == [*once, *once[::-1], *once]
    assert {(one.variant, one.engine, len(one.rounds)) for one in found} == {
        (name, engine, 3) for name in ("dense", "small") for engine in ("eager", "onnx", ALONE)
    }
    sizes = {(one.variant, one.engine): one.size_bytes for one in found}
    assert sizes["dense", ALONE] == 1234  # the file that a device gets
    assert sizes["dense", "onnx"] == 1000
    exports = [name for do, name, _ in processes.asked if do == "prepare"]
    assert len(exports) == 4  # once, not once a round


@pytest.mark.parametrize("on", ["prepare", "measure"])
def test_an_engine_that_fails_is_told_and_the_others_go_on(
    on: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    pytest.importorskip("onnxruntime")
    processes = Processes(failing="small onnx", on=on)
    found = {(one.variant, one.engine): one for one in measured(processes, monkeypatch, tmp_path)}
    failed = found["small", "onnx"]
    assert (failed.failed, failed.rounds) == ("it does not fit", ())
    assert len(found["dense", "onnx"].rounds) == 3
    assert sum(name == "small onnx" for _, name, _ in processes.asked) == (1 if on == "prepare" else 2)


def test_engines_that_cannot_be_used_are_refused_before_anything_starts(tmp_path: Path) -> None:
    model = variant(tmp_path, "words", task="lm")
    with pytest.raises(UsageError, match="does not run the task 'lm'"):
        measure_offline([model], ("onnx",), ProbePlan(), None)


def test_why_a_process_failed_is_its_last_line() -> None:
    with pytest.raises(ProbeFailedError, match="No module named"):
        run("serve.bench.nothing_of_the_kind", QUICK)
    with pytest.raises(ProbeFailedError, match=r"longer than 0\.01 s"):
        run("serve.bench.probe", QUICK, patience=0.01)


def test_a_language_model_reads_and_writes_apart() -> None:
    """3 layers × (keys + values) × 2 KV heads of 4 × 4 bytes = 192 bytes for each token."""
    model = llama_like(heads=6, kv_heads=2)
    read, new = language.lengths(model.config, 128, 8)
    assert read + new <= model.config.max_position_embeddings == 32
    prompt = language.prompt_for(model, read)
    assert prompt.shape == (1, 24)
    language.prefill(model, prompt)()
    found = language.decode(model, prompt, new, seconds=0.2)
    assert found["per_token_ms"] > 0
    assert found["kv_bytes"] == 192 * (read + new - 1)
    anatomy = anatomy_of(model)
    prune(model, varied_plan(anatomy, Granularity.KV_GROUP))
    left = sum(len(layer) for layer in varied_plan(anatomy, Granularity.KV_GROUP).keep)
    assert 0 < left < 6
    assert language.decode(model, prompt, new, seconds=0.2)["kv_bytes"] == 32 * left * (read + new - 1)


def test_the_greedy_step_is_the_models_own() -> None:
    model = gpt2()
    prompt = language.prompt_for(model, 6)
    token, cache = language.likeliest(model, prompt, None)
    again, _ = language.likeliest(model, token, cache)
    whole = model(input_ids=torch.cat([prompt, token], dim=1)).logits[:, -1].argmax(-1, keepdim=True)
    assert torch.equal(again, whole)


def test_language_figures(tmp_path: Path) -> None:
    save_pruned(gpt2(), tmp_path / "model")
    asked = spec(tmp_path, task="lm", prompt_tokens=8, new_tokens=4)
    model = load_pruned(tmp_path / "model")
    cached = probe._language(asked, model)
    assert cached["language"]["kv_bytes"] == 3 * 2 * 4 * 4 * 4 * (8 + 4 - 1)
    assert cached["language"]["ttft_ms"] == cached["p50_ms"]


def test_memory_is_counted_from_where_the_model_began() -> None:
    """160 MB are held before, 80 more for a moment meanwhile."""
    code = """
import json, numpy as np
from serve.bench.measuring import Memory
before = np.ones(20_000_000); del before
held = np.ones(5_000_000)
memory = Memory()
gone = np.ones(10_000_000); del gone
print(json.dumps(memory.figures()))
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parents[2],
    )
    found = json.loads(done.stdout)
    assert found["above_bytes"] == pytest.approx(80e6, rel=0.05)
    assert found["peak_bytes"] >= 160e6
    assert 40e6 < found["base_bytes"] < 120e6
    assert found["resident_bytes"] < found["base_bytes"] + 10e6


def test_calls_are_bounded_in_number_and_time() -> None:
    calls: list[int] = []
    assert len(timed(lambda: calls.append(1), runs=7, seconds=10.0)) == 7
    assert len(calls) == 17  # ten to warm up
    slow = timed(lambda: time.sleep(0.02), runs=1000, seconds=0.2)
    assert 5 <= len(slow) <= 12
    assert latency([0.001] * 368)["p99_ms"] == pytest.approx(1.0)
    assert latency([0.001] * 367)["p99_ms"] is None


def rapl(root: Path, zone: str, name: str, micro: int, span: int = 1_000_000) -> Path:
    folder = root / zone
    folder.mkdir(parents=True)
    (folder / "name").write_text(f"{name}\n")
    (folder / "max_energy_range_uj").write_text(str(span))
    (folder / "energy_uj").write_text(str(micro))
    return folder / "energy_uj"


def test_energy_of_packages_is_added_and_counters_may_begin_again(tmp_path: Path) -> None:
    first = rapl(tmp_path, "intel-rapl:0", "package-0", 900_000)
    second = rapl(tmp_path, "intel-rapl:1", "package-1", 100_000)
    rapl(tmp_path, "intel-rapl:0:0", "core", 5)  # part of a package
    rapl(tmp_path, "intel-rapl:2", "psys", 5)  # the whole board
    found = meter(tmp_path)
    assert [name for name in found.sources if name.startswith("RAPL")] == ["RAPL package-0", "RAPL package-1"]
    before = {name: value for name, value in found.read().items() if name.startswith("RAPL")}
    first.write_text("150000")  # over its end at 1 J
    second.write_text("350000")
    only = type(found)(tuple(one for one in found.counters if one.path), ())
    assert only.since(before) == pytest.approx(0.25 + 0.25)
    second.unlink()
    assert only.since(before) is None


def test_energy_that_cannot_be_read_says_why(tmp_path: Path) -> None:
    found = meter(tmp_path)
    assert any("no processor package" in reason for reason in found.missing)
    rapl(tmp_path, "intel-rapl:0", "package-0", 1).unlink()
    found = meter(tmp_path)
    assert any("cannot be read" in reason for reason in found.missing)
    assert not [name for name in found.sources if name.startswith("RAPL")]
