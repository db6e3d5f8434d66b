"""What a damaged model folder says, and that a failed write damages none."""

from __future__ import annotations

import errno
import json
import shutil
from pathlib import Path

import pytest
import torch
from huggingface_hub import save_torch_state_dict
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel

from cascade_ops import checkpoint
from cascade_ops.anatomy import CONFIG_KEY, anatomy_of
from cascade_ops.checkpoint import load_pruned, save_pruned, weights_size, written_whole
from cascade_ops.errors import CascadeError, CheckpointError
from cascade_ops.granularity import Granularity
from cascade_ops.surgery import prune
from tests.factories import classifier, gpt2, inputs_for, llama_like, logits_of, varied_plan


@pytest.fixture
def model() -> PreTrainedModel:
    pruned = llama_like()
    for granularity in (Granularity.HEAD, Granularity.CHANNEL):
        prune(pruned, varied_plan(anatomy_of(pruned), granularity))
    return pruned


@pytest.fixture
def folder(model: PreTrainedModel, tmp_path: Path) -> Path:
    save_pruned(model, tmp_path / "model")
    return tmp_path / "model"


def refusal(folder: Path) -> str:
    """The message of the refusal: one line that names the folder."""
    with pytest.raises(CheckpointError) as caught:
        load_pruned(folder)
    message = str(caught.value)
    assert "\n" not in message
    assert str(folder) in message or "config" in message
    return message


def edit(path: Path, **changes: object) -> None:
    data = json.loads(path.read_text())
    data.update(changes)
    path.write_text(json.dumps(data))


def test_only_safetensors_and_json_are_written(folder: Path) -> None:
    assert {path.name for path in folder.iterdir()} == {
        "config.json",
        "generation_config.json",
        "model.safetensors",
    }
    assert not [path for path in folder.parent.iterdir() if path != folder]


def test_no_folder_and_no_config(tmp_path: Path, folder: Path) -> None:
    assert "no config.json" in refusal(tmp_path / "absent")
    (folder / "config.json").unlink()
    assert "no config.json" in refusal(folder)


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"model_type": "llamma"}'])
def test_a_broken_config(folder: Path, text: str) -> None:
    (folder / "config.json").write_text(text)
    assert "config.json cannot be read" in refusal(folder)


@pytest.mark.parametrize(
    "keep", [0, 4, 100, -10], ids=["empty", "no header", "half header", "ten bytes short"]
)
def test_truncated_weights(folder: Path, keep: int) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:keep])
    assert "not a complete safetensors file" in refusal(folder)


def test_pickled_weights_are_not_loaded(folder: Path, model: PreTrainedModel) -> None:
    (folder / "model.safetensors").unlink()
    torch.save(model.state_dict(), folder / "pytorch_model.bin")
    assert "pickled weights are not loaded" in refusal(folder)


def test_shards_load_and_an_absent_shard_is_named(folder: Path, model: PreTrainedModel) -> None:
    (folder / "model.safetensors").unlink()
    save_torch_state_dict(model.state_dict(), folder, max_shard_size=6000)
    shards = sorted(folder.glob("model-*.safetensors"))
    assert len(shards) > 1
    inputs = inputs_for(model)
    assert torch.equal(logits_of(load_pruned(folder), inputs), logits_of(model, inputs))
    shards[1].unlink()
    assert f"names {shards[1].name}, which is not there (1 absent)" in refusal(folder)


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"weight_map": []}'])
def test_a_broken_index(folder: Path, text: str) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(text)
    assert "not a safetensors index" in refusal(folder)


def test_weights_of_another_shape(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    name = "model.layers.0.mlp.down_proj.weight"
    weights[name] = weights[name][:, 1:].contiguous()
    save_file(weights, folder / "model.safetensors")
    message = refusal(folder)
    assert name in message
    assert "expected (24, 12), found (24, 11)" in message


def test_missing_and_unexpected_weights(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    missing = weights.pop("model.norm.weight")
    save_file(weights, folder / "model.safetensors")
    assert "missing ['model.norm.weight'], unexpected none" in refusal(folder)
    save_file(
        {**weights, "model.norm.weight": missing, "spare": missing.clone()}, folder / "model.safetensors"
    )
    assert "missing none, unexpected ['spare']" in refusal(folder)


def test_a_record_of_another_depth(folder: Path) -> None:
    edit(folder / "config.json", num_hidden_layers=2)
    assert "describes 3 layers, the model has 2" in refusal(folder)


@pytest.mark.parametrize(
    "layer",
    [
        {},
        {"source": 0, "heads_per_kv": [9, 9], "channels": 4},
        {"source": 0, "heads_per_kv": [1, 1], "channels": 999},
        {"source": 0, "heads_per_kv": [1, 1], "channels": 0},
        {"source": 0, "heads_per_kv": [], "channels": 4},
        {"source": 0, "heads_per_kv": "x", "channels": 4},
    ],
    ids=["empty", "too many heads", "too many channels", "no channels", "no heads", "text"],
)
def test_an_edited_record(folder: Path, layer: dict[str, object]) -> None:
    edit(folder / "config.json", **{CONFIG_KEY: {"layers": [layer] * 3}})
    refusal(folder)


@pytest.mark.parametrize("record", [{}, [], 1, {"layers": 1}], ids=["empty", "list", "number", "no layers"])
def test_a_record_that_is_none(folder: Path, record: object) -> None:
    edit(folder / "config.json", **{CONFIG_KEY: record})
    refusal(folder)


def test_an_unknown_architecture_in_the_folder(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.mkdir()
    (folder / "config.json").write_text(
        json.dumps({"model_type": "bloom", "n_layer": 1, "hidden_size": 8, "n_head": 2})
    )
    save_file({"x": torch.zeros(1)}, folder / "model.safetensors")
    with pytest.raises(CascadeError):
        load_pruned(folder)


# ------------------------------------------------------------------------------------------ writing


def snapshot(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize(
    "failure",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        SafetensorError("I/O error: No space left on device"),
        KeyboardInterrupt(),
    ],
    ids=["disk full", "disk full below safetensors", "Ctrl-C"],
)
def test_a_failed_write_leaves_the_old_folder(
    folder: Path, failure: BaseException, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = snapshot(folder)

    def fails(*args: object, **kwargs: object) -> None:
        raise failure

    monkeypatch.setattr(checkpoint, "save_torch_state_dict", fails)
    expected = KeyboardInterrupt if isinstance(failure, KeyboardInterrupt) else OSError
    with pytest.raises(expected) as caught:
        save_pruned(gpt2(), folder)
    if isinstance(caught.value, OSError):
        assert caught.value.errno == errno.ENOSPC
    assert snapshot(folder) == before
    assert [path.name for path in folder.parent.iterdir()] == [folder.name], "scratch is left behind"


def test_saving_replaces_the_whole_folder(folder: Path) -> None:
    (folder / "stale.txt").write_text("old")
    other = gpt2()
    save_pruned(other, folder)
    assert not (folder / "stale.txt").exists()
    assert type(load_pruned(folder)) is type(other)


def test_written_whole_vanishes_on_failure(tmp_path: Path) -> None:
    def half() -> None:
        with written_whole(tmp_path / "a" / "b") as scratch:
            (scratch / "file").write_text("x")
            raise ValueError("half-way")

    with pytest.raises(ValueError, match="half-way"):
        half()
    assert list((tmp_path / "a").iterdir()) == []


def test_a_written_folder_is_as_readable_as_any_other(tmp_path: Path) -> None:
    """Shared storage: not private to the writer, as temporary folders are."""
    (tmp_path / "plain").mkdir()
    with written_whole(tmp_path / "written") as scratch:
        (scratch / "file").write_text("x")
    assert (tmp_path / "written").stat().st_mode == (tmp_path / "plain").stat().st_mode


@pytest.mark.parametrize("tied", [True, False])
def test_size_is_what_lies_on_disk(tied: bool, tmp_path: Path) -> None:
    model = gpt2(tie_word_embeddings=tied)
    save_pruned(model, tmp_path / "model")
    on_disk = load_file(tmp_path / "model" / "model.safetensors")
    assert weights_size(model) == sum(t.numel() * t.element_size() for t in on_disk.values())


def test_a_plain_transformers_folder_loads(tmp_path: Path) -> None:
    model = llama_like()
    model.save_pretrained(tmp_path / "plain")
    loaded = load_pruned(tmp_path / "plain")
    inputs = inputs_for(model)
    assert torch.equal(logits_of(loaded, inputs), logits_of(model, inputs))


def test_the_classifiers_settings_come_back(tmp_path: Path) -> None:
    model = classifier(gpt2)
    save_pruned(model, tmp_path / "model")
    loaded = load_pruned(tmp_path / "model")
    assert loaded.config.classes == ["N", "IR", "OR"]
    assert (loaded.config.window, loaded.config.patch) == (model.config.window, model.config.patch)
    assert loaded.config.backbone_config is loaded.backbone.config
