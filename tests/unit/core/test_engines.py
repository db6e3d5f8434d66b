"""Every engine answers as plain PyTorch does, or does not go live."""

from __future__ import annotations

import copy
import functools
import importlib.util
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from importlib.machinery import ModuleSpec

import pytest
import torch
from torch import Tensor, nn
from torch.fx import GraphModule
from torch.utils._python_dispatch import is_traceable_wrapper_subclass
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import SequenceClassifierOutput
from transformers.pytorch_utils import Conv1D

from cascade_ops.anatomy import anatomy_of
from cascade_ops.batches import Batch
from cascade_ops.engines import ENGINES, Engine, EngineEntry, Parity, start_engine
from cascade_ops.engines.base import compare
from cascade_ops.engines.int8 import linear_layers
from cascade_ops.errors import EngineError, UnknownNameError, UsageError
from cascade_ops.granularity import Granularity
from cascade_ops.surgery import prune
from tests.factories import bert, classifier, gpt2, inputs_for, llama_like, logits_of, varied_plan

BATCHES = (1, 2, 7)
PROBES = 5
"""Not one of the batches that follow."""


def pruned(
    build: Callable[..., PreTrainedModel], granularity: Granularity, **config: object
) -> PreTrainedModel:
    """A classifier whose layers differ in their heads and channels."""
    model = classifier(build, **config)
    for each in (granularity, Granularity.CHANNEL):
        prune(model, varied_plan(anatomy_of(model), each))
    return model


MODELS: dict[str, Callable[[], PreTrainedModel]] = {
    "gpt2": lambda: pruned(gpt2, Granularity.HEAD, n_layer=2),
    "llama": lambda: pruned(llama_like, Granularity.KV_GROUP, num_hidden_layers=2),
    "bert": lambda: classifier(bert, num_hidden_layers=1),
    "small": lambda: pruned(gpt2, Granularity.HEAD, n_layer=1),
}
MATRIX = [
    *((engine, model) for engine in ("eager", "int8") for model in MODELS),
    ("onnx", "gpt2"),
    ("onnx", "llama"),
]


class Started:
    """An engine around a model, beside an untouched copy of it."""

    def __init__(self, engine: str, model: str) -> None:
        self.name, self.plain = engine, MODELS[model]()
        probes = inputs_for(self.plain, samples=PROBES, seed=9)
        self.run, self.parity = start_engine(engine, copy.deepcopy(self.plain), probes)


@pytest.fixture(scope="module", params=MATRIX, ids="-".join)
def started(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Started]:
    scratch = tmp_path_factory.mktemp("scratch")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tempfile, "tempdir", str(scratch))
        yield Started(*request.param)
        assert list(scratch.iterdir()) == []  # what was written to build it is gone while it answers


def test_every_engine_is_in_the_matrix() -> None:
    assert {engine for engine, _ in MATRIX} | {"compile"} == set(ENGINES)
    for name in ENGINES:
        assert ENGINES[name].title
        assert 0 < ENGINES[name].tolerances["diagnosis"] <= 0.1


def test_answers_are_plain_pytorchs(started: Started) -> None:
    check_answers(started)


def check_answers(started: Started) -> None:
    assert started.parity.holds
    assert started.parity.probes == PROBES + 1
    allowed = ENGINES[started.name].tolerances["diagnosis"]
    for samples in BATCHES:
        inputs = inputs_for(started.plain, samples=samples, seed=samples)
        given = {name: tensor.clone() for name, tensor in inputs.items()}
        logits = started.run(inputs)
        assert logits.dtype == torch.float32
        assert logits.device.type == "cpu"
        assert not logits.requires_grad
        expected = logits_of(started.plain, given)
        assert logits.shape == expected.shape
        assert (logits.softmax(-1) - expected.softmax(-1)).abs().max() <= allowed
        for name, tensor in given.items():
            assert torch.equal(inputs[name], tensor), f"{name} was changed"


def test_answers_are_repeated_and_depend_on_the_input(started: Started) -> None:
    inputs = inputs_for(started.plain, samples=3, seed=1)
    first = started.run(inputs)
    other = started.run(inputs_for(started.plain, samples=3, seed=2))
    assert torch.equal(started.run(inputs), first)
    assert not torch.equal(first, other)


def test_inputs_that_are_views_are_read_as_they_are(started: Started) -> None:
    whole = inputs_for(started.plain, samples=8, seed=3)
    every_second = {name: tensor[::2] for name, tensor in whole.items()}
    assert torch.equal(
        started.run(every_second), started.run({name: t.contiguous() for name, t in every_second.items()})
    )


@pytest.mark.slow  # C++ compilers are busy for a minute
def test_torch_compile() -> None:
    """In a process of its own: the shapes that these tests check cannot be checked while a graph is traced."""
    code = f"from {__name__} import Started, check_answers; check_answers(Started('compile', 'small'))"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=500, check=False
    )
    assert done.returncode == 0, done.stderr[-4000:]


class Layer(PreTrainedModel):
    """The smallest model there is."""

    def __init__(self, classes: int) -> None:
        super().__init__(PreTrainedConfig())
        self.layer = nn.Linear(4, classes)

    def forward(self, signal: Tensor) -> SequenceClassifierOutput:
        return SequenceClassifierOutput(logits=self.layer(signal))


def test_every_model_is_compiled_however_many_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two graphs each, where torch gives up at eight for one function."""
    graphs = []

    def counted(graph: GraphModule, example: list[Tensor]) -> Callable[..., object]:
        graphs.append(graph)
        return graph.forward

    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend=counted))
    for models in range(1, 6):
        run, _ = start_engine("compile", Layer(models), {"signal": torch.randn(PROBES, 4)})
        run({"signal": torch.randn(7, 4)})
        assert len(graphs) == 2 * models


def test_int8_holds_int8() -> None:
    model = MODELS["gpt2"]()
    weights = [module.weight.shape for module in model.modules() if isinstance(module, (nn.Linear, Conv1D))]
    start_engine("int8", model, inputs_for(model, samples=PROBES))
    held = [module.weight for module in model.modules() if isinstance(module, nn.Linear)]
    assert len(held) == len(weights) > 8
    for weight in held:
        assert is_traceable_wrapper_subclass(weight)
        inner = [getattr(weight, name) for name in weight.__tensor_flatten__()[0]]
        matrices = [tensor for tensor in inner if isinstance(tensor, Tensor) and tensor.shape == weight.shape]
        assert [tensor.dtype for tensor in matrices] == [torch.int8]


def test_conv1d_becomes_the_linear_layer_that_it_is() -> None:
    model = MODELS["gpt2"]()
    inputs = inputs_for(model, samples=PROBES)
    expected = logits_of(model, inputs)
    assert any(isinstance(module, Conv1D) for module in model.modules())
    linear_layers(model)
    assert not any(isinstance(module, Conv1D) for module in model.modules())
    torch.testing.assert_close(logits_of(model, inputs), expected, rtol=1e-5, atol=1e-6)


def test_one_probe_is_enough_for_any_batch() -> None:
    model = MODELS["bert"]()
    run, _ = start_engine("onnx", model, inputs_for(model, samples=1))
    inputs = inputs_for(model, samples=7)
    assert (run(inputs).softmax(-1) - logits_of(model, inputs).softmax(-1)).abs().max() <= 1e-4


@pytest.mark.parametrize("engine", ["eager", "int8"])
def test_language_models(engine: str) -> None:
    model = gpt2()
    plain = copy.deepcopy(model)
    run, parity = start_engine(engine, model, inputs_for(model, samples=PROBES), task="lm")
    assert parity.holds
    inputs = inputs_for(model, samples=2, tokens=5, seed=4)
    apart = (run(inputs).softmax(-1) - logits_of(plain, inputs).softmax(-1)).abs().sum(-1) / 2
    assert apart.max() <= parity.tolerance / 5  # so small a model is far within it


# -- what does not go live -------------------------------------------------------------------------


class NotAnError(Exception):
    """With no base but Exception, as onnxruntime's have none."""


def _raise(model: PreTrainedModel, example: Batch) -> Engine:
    raise NotAnError("no kernel for Gelu\nat line 7")


def _changed(change: Callable[[Tensor], Tensor]) -> Callable[[PreTrainedModel, Batch], Engine]:
    def build(model: PreTrainedModel, example: Batch) -> Engine:
        return lambda batch: change(logits_of(model, dict(batch)))

    return build


def _only_alone(logits: Tensor) -> Tensor:
    """Right for one sample, wrong for many."""
    return logits if len(logits) == 1 else logits.flip(0)


def _nan_once(logits: Tensor) -> Tensor:
    return logits.index_fill(0, torch.tensor([len(logits) - 1]), float("nan"))


BROKEN: dict[str, tuple[Callable[[PreTrainedModel, Batch], Engine], str]] = {
    "raises": (_raise, r"cannot run this model: no kernel for Gelu\. Use --engine eager"),
    "other answers": (
        _changed(lambda x: x.flip(-1)),
        r"total variation of 0\.001; found 0\.\d+ on 5 probes .* does not go live",
    ),
    "slightly other": (_changed(lambda x: x * 1.05), "does not go live"),
    "right only alone": (_changed(_only_alone), "does not go live"),
    "NaN": (_changed(_nan_once), r"found nan .* does not go live"),
    "infinite": (_changed(lambda x: x / 0), r"found nan .* does not go live"),
    "one row": (_changed(lambda x: x[:1]), r"logits of shape \(6, 3\), found \(2, 3\)"),
    "one class": (_changed(lambda x: x[:, :1]), r"shape \(6, 3\), found \(6, 1\)"),
    "no tensor": (lambda model, example: lambda batch: None, "cannot run this model"),  # type: ignore[arg-type,return-value]
}


def register(
    patch: pytest.MonkeyPatch, build: Callable[[PreTrainedModel, Batch], Engine], **options: tuple[str, ...]
) -> None:
    """An engine called broken, until the test ends."""
    entry = EngineEntry(build=build, title="broken", tolerances={"diagnosis": 1e-3, "lm": 1e-3}, **options)
    patch.setitem(ENGINES._entries, "broken", entry)


@pytest.mark.parametrize("case", BROKEN)
def test_a_wrong_engine_does_not_go_live(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    build, message = BROKEN[case]
    register(monkeypatch, build)
    model = MODELS["small"]()
    with pytest.raises(EngineError, match=message) as caught:
        start_engine("broken", model, inputs_for(model, samples=PROBES))
    assert "\n" not in str(caught.value)
    assert "'broken'" in str(caught.value)


def test_a_right_engine_goes_live(monkeypatch: pytest.MonkeyPatch) -> None:
    """So the refusals above are for what was wrong."""
    register(monkeypatch, _changed(lambda x: x))
    model = MODELS["small"]()
    _, parity = start_engine("broken", model, inputs_for(model, samples=PROBES))
    assert parity.agreement == 1.0
    assert parity.difference <= 1e-6


def test_the_registry_is_as_it_was() -> None:
    assert "broken" not in ENGINES


def test_a_model_that_answers_nan_is_not_an_engines_fault() -> None:
    model = MODELS["small"]()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(float("nan"))
    with pytest.raises(EngineError, match=r"finite logits from plain PyTorch.*Check the model's weights"):
        start_engine("eager", model, inputs_for(model, samples=PROBES))


def test_a_difference_that_is_no_number_does_not_hold() -> None:
    def parity(difference: float) -> Parity:
        return Parity(engine="x", difference=difference, agreement=1.0, tolerance=1e-3, probes=1)

    assert parity(1e-3).holds
    assert not parity(1.1e-3).holds
    assert not parity(float("nan")).holds


def test_a_wrong_answer_over_a_large_vocabulary_is_a_large_difference() -> None:
    """No probability is off by more than a thousandth, and hardly any is right."""
    expected = torch.randn(2, 5, 20_000, generator=torch.Generator().manual_seed(0))
    wrong = expected.roll(1, -1)
    assert (wrong.softmax(-1) - expected.softmax(-1)).abs().max() < 0.01
    found = compare("x", wrong, expected, 0.25)
    assert found.difference > 0.4
    assert not found.holds
    assert compare("x", expected, expected, 0.25).difference == 0
    one_text = expected.clone()
    one_text[1] = wrong[1]
    assert compare("x", one_text, expected, 0.25).difference == pytest.approx(found.difference, rel=0.1)


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    model = MODELS["small"]()
    inputs = inputs_for(model, samples=PROBES)
    for name in ("onnx", "int8"):
        for package in ENGINES[name].packages:

            def found(wanted: str, without: str = package) -> ModuleSpec | None:
                return None if wanted == without else ModuleSpec(wanted, None)

            monkeypatch.setattr(importlib.util, "find_spec", found)
            with pytest.raises(
                UsageError, match=rf"needs {package}, not installed here: pip install 'cascade-ops"
            ):
                start_engine(name, model, inputs)
    register(monkeypatch, _changed(lambda x: x), packages=("one", "two"))
    monkeypatch.setattr(importlib.util, "find_spec", lambda wanted: None)
    with pytest.raises(UsageError, match="needs one, two, not installed"):
        start_engine("broken", model, inputs)


def test_a_task_that_an_engine_cannot_run() -> None:
    model = gpt2(n_layer=1)
    with pytest.raises(UsageError, match=r"'onnx' does not run the task 'lm'\. Those that do: eager, int8"):
        start_engine("onnx", model, inputs_for(model), task="lm")


def test_a_misspelt_engine() -> None:
    model = gpt2(n_layer=1)
    with pytest.raises(UnknownNameError, match=r"unknown engine 'onyx'.*Did you mean 'onnx'"):
        start_engine("onyx", model, inputs_for(model))
