"""What every export promises: it runs in its own runtime and answers as the model did, or says why it cannot."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel

from cascade_ops.anatomy import anatomy_of
from cascade_ops.checkpoint import load_pruned, read_config, save_pruned
from cascade_ops.errors import CheckpointError, ExportError, UsageError
from cascade_ops.export import TARGETS, Source, export
from cascade_ops.families import FAMILIES
from cascade_ops.granularity import Granularity
from cascade_ops.plan import PruningPlan
from cascade_ops.surgery import prune
from tests.factories import CASES, LAYERS, REPRESENTATIVES, inputs_for, logits_of, perturbed, varied_plan


def uneven(model: PreTrainedModel) -> PreTrainedModel:
    """Other keep-sets, of other sizes, in each layer; some KV groups ragged."""
    for seed, granularity in enumerate((Granularity.HEAD, Granularity.CHANNEL, Granularity.LAYER)):
        anatomy = anatomy_of(model)
        if granularity not in dict(anatomy.refused):
            prune(model, varied_plan(anatomy, granularity, seed=seed))
    return model


def even(model: PreTrainedModel) -> PreTrainedModel:
    """One shape for all layers, as far as the family's own config can say it."""
    sizes = FAMILIES[anatomy_of(model).model_type].sizes
    heads = Granularity.KV_GROUP if anatomy_of(model).layers[0].n_rep > 1 else Granularity.HEAD
    wanted = {Granularity.LAYER: True, heads: sizes.head_dim is not None, Granularity.CHANNEL: sizes.channels}
    for granularity, possible in wanted.items():
        anatomy = anatomy_of(model)
        if not possible or granularity in dict(anatomy.refused):
            continue
        drop = 5 if granularity is Granularity.CHANNEL else 1
        left = [
            list(range(drop, units)) if units > drop else list(range(units))
            for units in anatomy.units(granularity)
        ]
        prune(model, PruningPlan.from_keep(granularity, left))
    return model


def saved(model: PreTrainedModel, folder: Path) -> Source:
    save_pruned(model, folder)
    return Source(folder=folder)


DISPLACED = "gpt2-inverse-layer-scale"
PLAIN = [name for name in REPRESENTATIVES if not name.startswith("classifier") and name != DISPLACED]


@pytest.mark.parametrize("name", PLAIN)
def test_an_even_cut_is_a_plain_transformers_model(name: str, tmp_path: Path) -> None:
    model = even(CASES[name].build())
    assert len(anatomy_of(model).layers) < LAYERS or Granularity.LAYER in dict(anatomy_of(model).refused)
    exported = export(saved(model, tmp_path / "model"), "hf", tmp_path / "out")
    assert exported.parity.difference <= 1e-6
    document = json.loads((tmp_path / "out/config.json").read_text())
    assert not any(key.startswith("cascade") for key in document)


@pytest.mark.parametrize("name", ["gpt2", "llama-n_rep=3", "classifier-gpt2"])
@pytest.mark.parametrize("target", ["cascade", "onnx", "torch.export"])
def test_an_uneven_cut_runs_there(name: str, target: str, tmp_path: Path) -> None:
    model = uneven(CASES[name].build())
    exported = export(saved(model, tmp_path / "model"), target, tmp_path / "out")
    assert exported.parity.difference <= 1e-6
    inputs = inputs_for(model, samples=5)
    inputs.pop("attention_mask", None)
    answered = TARGETS[target].open(tmp_path / "out")(inputs)
    assert torch.allclose(answered, logits_of(model, inputs), atol=1e-5)


@pytest.mark.parametrize("name", ["gpt2", "llama-n_rep=3", "bloom", "gemma3_text", "classifier-llama", "vit"])
def test_an_uneven_cut_runs_in_transformers_without_this_package(name: str, tmp_path: Path) -> None:
    model = uneven(CASES[name].build())
    exported = export(saved(model, tmp_path / "model"), "hf-remote", tmp_path / "out")
    assert exported.parity.difference <= 1e-6
    again = load_pruned(tmp_path / "out")  # and with it
    assert anatomy_of(again) == anatomy_of(model)
    assert torch.equal(logits_of(again, inputs_for(model)), logits_of(model, inputs_for(model)))


def test_onnx_int8_is_smaller_and_close(tmp_path: Path) -> None:
    source = saved(CASES["classifier-gpt2"].build(), tmp_path / "model")
    whole = export(source, "onnx", tmp_path / "fp32")
    small = export(replace(source, precision="int8"), "onnx", tmp_path / "int8")
    assert small.size_bytes < whole.size_bytes
    assert 0 < small.parity.difference <= 0.25


def test_what_a_target_cannot_express_is_refused_by_layer_before_work_starts(tmp_path: Path) -> None:
    source = saved(uneven(CASES["llama-n_rep=3"].build()), tmp_path / "model")
    next(source.folder.glob("*.safetensors")).unlink()  # so no weight can have been read
    with pytest.raises(
        ExportError, match=r"layer 2: 3 heads, layer 0 has 5: .*Targets that can: cascade, hf-remote"
    ):
        export(source, "hf", tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model"]


def test_a_size_without_a_config_field_is_refused(tmp_path: Path) -> None:
    model = CASES["gpt2"].build()
    prune(model, PruningPlan.from_keep(Granularity.HEAD, [[0, 1]] * LAYERS))
    with pytest.raises(ExportError, match="no head may go"):
        export(saved(model, tmp_path / "model"), "hf", tmp_path / "out")


def test_a_layer_that_knows_its_place_is_refused_in_another(tmp_path: Path) -> None:
    model = CASES[DISPLACED].build()
    prune(model, PruningPlan.from_keep(Granularity.LAYER, [list(range(1, LAYERS))]))
    with pytest.raises(ExportError, match="layer 1: its scaling is that of its place in the dense model"):
        export(saved(model, tmp_path / "model"), "hf", tmp_path / "out")


@pytest.fixture
def altered() -> Iterator[str]:
    """A target that writes other weights than it was given."""

    def write(model: PreTrainedModel, folder: Path, job: object) -> tuple[str, ...]:
        return TARGETS["cascade"].write(perturbed(model, seed=5), folder, job)  # type: ignore[arg-type]

    TARGETS.add("altered", replace(TARGETS["cascade"], write=write))
    yield "altered"
    TARGETS._entries.pop("altered")


def test_an_export_that_answers_differently_does_not_appear(altered: str, tmp_path: Path) -> None:
    source = saved(CASES["classifier-gpt2"].build(), tmp_path / "model")
    with pytest.raises(ExportError, match="expected the answers of plain PyTorch within"):
        export(source, altered, tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model"]


def test_weights_that_are_no_numbers_are_not_exported(tmp_path: Path) -> None:
    model = CASES["gpt2"].build()
    with torch.no_grad():
        next(model.parameters()).fill_(float("nan"))
    with pytest.raises(ExportError, match="finite logits"):
        export(saved(model, tmp_path / "model"), "cascade", tmp_path / "out")


def test_mistakes_are_told_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = saved(CASES["gpt2"].build(), tmp_path / "model")
    with pytest.raises(UsageError, match="Did you mean 'onnx'"):
        export(source, "onxx", tmp_path / "out")
    with pytest.raises(UsageError, match="precision: onnx has fp32, int8, got 'int3'"):
        export(replace(source, precision="int3"), "onnx", tmp_path / "out")
    with pytest.raises(UsageError, match="exists already"):
        export(source, "cascade", tmp_path)
    with pytest.raises(CheckpointError, match=r"no config\.json"):
        export(replace(source, folder=tmp_path), "cascade", tmp_path / "out")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"needs onnx.*pip install 'cascade-ops\[engines\]'"):
        export(source, "onnx", tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model"]


def test_a_foreign_modelling_file_is_never_executed_by_our_own_loader(tmp_path: Path) -> None:
    export(saved(CASES["gpt2"].build(), tmp_path / "model"), "hf-remote", tmp_path / "out")
    (tmp_path / "out/modeling_cascade.py").write_text("raise SystemExit('executed')")
    assert read_config(tmp_path / "out").model_type == "gpt2"
    load_pruned(tmp_path / "out")
