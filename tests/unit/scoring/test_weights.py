"""Headers of safetensors files, read without safetensors: the same tensors, and one refusal for each kind of damage."""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import save_torch_state_dict
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedModel

from cascade_ops.checkpoint import load_pruned, save_pruned
from cascade_ops.errors import CheckpointError
from cascade_ops.shards import Shard, layout_of, load_shard
from cascade_ops.weights import KINDS, read_tensors, stored_tensors, weight_files
from tests.factories import assert_same_weights, gpt2, gpt_neox, llama_like

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
NORM = "model.norm.weight"


@pytest.fixture
def model() -> PreTrainedModel:
    return llama_like()


@pytest.fixture
def single(model: PreTrainedModel, tmp_path: Path) -> Path:
    save_pruned(model, tmp_path / "single")
    return tmp_path / "single"


@pytest.fixture
def several(model: PreTrainedModel, tmp_path: Path) -> Path:
    """The same weights in several files."""
    save_pruned(model, tmp_path / "several")
    (tmp_path / "several" / SINGLE).unlink()
    save_torch_state_dict(model.state_dict(), tmp_path / "several", max_shard_size=6000)
    return tmp_path / "several"


@pytest.fixture(params=["single", "several"])
def folder(request: pytest.FixtureRequest) -> Path:
    path: Path = request.getfixturevalue(request.param)
    return path


def refusals(folder: Path) -> str:
    """What loading says, as a whole and as a shard: one line each that names the place."""
    said = []
    for attempt in (load_pruned, load_first):
        with pytest.raises(CheckpointError) as caught:
            attempt(folder)
        message = str(caught.value)
        assert "\n" not in message
        assert str(folder) in message
        said.append(message)
    return said[0]


def load_first(folder: Path) -> None:
    """The second of two shards."""
    layout = layout_of(folder)
    depth = len(layout.blocks)
    load_shard(layout, Shard(first=1, stop=depth, layers=depth))


# ------------------------------------------------------------------------------------------ reading


def test_headers_say_what_safetensors_says(folder: Path) -> None:
    stored, seen = stored_tensors(folder), set()
    for file in folder.glob("*.safetensors"):
        with safe_open(file, framework="pt") as reader:
            for name in reader.keys():  # noqa: SIM118  (no mapping)
                part, tensor = reader.get_slice(name), stored[name]
                seen.add(name)
                assert (tensor.file, tensor.name) == (file, name)
                assert (tensor.kind, list(tensor.shape)) == (part.get_dtype(), part.get_shape())
    assert stored.keys() == seen
    assert weight_files(folder) == sorted(folder.glob("*.safetensors"))


def test_tensors_are_what_safetensors_reads(folder: Path) -> None:
    read = read_tensors(stored_tensors(folder), stored_tensors(folder))
    expected = {name: t for file in folder.glob("*.safetensors") for name, t in load_file(file).items()}
    assert read.keys() == expected.keys()
    assert all(torch.equal(read[name], expected[name]) for name in read)


def test_every_type_and_every_shape_is_read_bit_for_bit(tmp_path: Path) -> None:
    """Scalars and tensors without elements too."""
    generator = torch.Generator().manual_seed(0)
    tensors: dict[str, Tensor] = {}
    for kind, dtype in KINDS.items():
        for shape in ((), (0,), (3, 0), (1,), (2, 3, 5)):
            values = torch.randint(0, 2 if kind == "BOOL" else 100, shape, generator=generator)
            tensors[f"{kind}{shape}"] = values.to(dtype)
    save_file(tensors, tmp_path / SINGLE, metadata={"format": "pt"})
    read = read_tensors(stored_tensors(tmp_path), tensors)
    for name, expected in tensors.items():
        assert (read[name].dtype, read[name].shape) == (expected.dtype, expected.shape)
        assert torch.equal(read[name], expected), name


def test_what_is_read_is_not_tied_to_the_file(folder: Path) -> None:
    stored = stored_tensors(folder)
    tensor = read_tensors(stored, [NORM])[NORM]
    before = tensor.clone()
    for file in folder.glob("*.safetensors"):
        os.truncate(file, 0)
    tensor += 1
    assert torch.equal(tensor, before + 1)


def test_only_what_is_asked_for_is_read(folder: Path) -> None:
    assert read_tensors(stored_tensors(folder), [NORM]).keys() == {NORM}


# ------------------------------------------------------------------------------------------ damage


@pytest.mark.parametrize("keep", [0, 7, 8, 100, -1], ids=["empty", "7", "8", "half header", "one byte short"])
def test_a_truncated_file_is_named(folder: Path, keep: int) -> None:
    file = max(folder.glob("*.safetensors"))
    file.write_bytes(file.read_bytes()[:keep])
    assert f"{file}: not a complete safetensors file" in refusals(folder)


def test_a_file_that_becomes_shorter_after_its_header_was_read_is_named(folder: Path) -> None:
    stored = stored_tensors(folder)
    file = stored[NORM].file
    os.truncate(file, stored[NORM].offset + 1)
    with pytest.raises(
        CheckpointError, match=f"{stored[NORM].nbytes - 1} bytes of {NORM} are missing"
    ) as caught:
        read_tensors(stored, [NORM])
    assert str(file) in str(caught.value)
    file.unlink()
    with pytest.raises(CheckpointError, match=file.name):
        read_tensors(stored, [NORM])


def test_an_absent_file_is_named(several: Path) -> None:
    files = sorted(several.glob("*.safetensors"))
    files[1].unlink()
    files[2].unlink()
    message = refusals(several)
    assert f"names {files[1].name}, which is not there (2 absent)" in message


def test_a_tensor_that_is_not_in_the_file_of_the_index_is_named(several: Path) -> None:
    index = json.loads((several / INDEX).read_text())
    files = sorted(set(index["weight_map"].values()))
    index["weight_map"][NORM] = next(file for file in files if file != index["weight_map"][NORM])
    (several / INDEX).write_text(json.dumps(index))
    assert f"names {NORM}, which is not in the file it says (1 such tensors)" in refusals(several)
    index["weight_map"]["nowhere"] = files[0]
    (several / INDEX).write_text(json.dumps(index))
    assert "(2 such tensors)" in refusals(several)


def with_header(file: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """The file with another header; the data stays as it is."""
    content = file.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + length])
    text = json.dumps(change(header)).encode()
    file.write_bytes(struct.pack("<Q", len(text)) + text + content[8 + length :])


GARBAGE = {
    "noise": os.urandom(64),
    "no JSON": struct.pack("<Q", 9) + b"not JSON!",
    "no UTF-8": struct.pack("<Q", 4) + b"\xff\xfe\xfd\xfc",
    "a list": struct.pack("<Q", 2) + b"[]",
    "a number": struct.pack("<Q", 1) + b"1",
    "no entries": struct.pack("<Q", 8) + b'{"a":{}}',
    "an enormous header": struct.pack("<Q", 2**60) + b"{}",
    "a pickle": b"\x80\x02}q\x00" + bytes(64),
    "zeros": bytes(1000),
}


@pytest.mark.parametrize("content", GARBAGE.values(), ids=GARBAGE)
def test_what_is_no_safetensors_file_is_named(folder: Path, content: bytes) -> None:
    file = max(folder.glob("*.safetensors"))
    file.write_bytes(content)
    assert f"{file}: not a complete safetensors file" in refusals(folder)


def entry(name: str, **changes: Any) -> Callable[[dict[str, Any]], Any]:
    def change(header: dict[str, Any]) -> dict[str, Any]:
        header[name] |= changes
        return header

    return change


@pytest.mark.parametrize(
    "changes",
    [
        {"shape": None},
        {"shape": ["a"]},
        {"data_offsets": [0]},
        {"data_offsets": 3},
        {"data_offsets": [0, 10**9]},
    ],
    ids=str,
)
def test_a_broken_entry_is_refused(single: Path, changes: dict[str, Any]) -> None:
    with_header(single / SINGLE, entry(NORM, **changes))
    assert SINGLE in refusals(single)


@pytest.mark.parametrize("span", [[0, 4], [96, 0], [-96, 0], [0, 100]], ids=str)
def test_bytes_that_do_not_make_the_shape_are_refused(single: Path, span: list[int]) -> None:
    """safetensors refuses such a file; read all the same, it gives another tensor's values."""
    with_header(single / SINGLE, entry(NORM, data_offsets=span))
    with pytest.raises(Exception, match=r"(?i)header|invalid"):
        load_file(single / SINGLE)
    assert SINGLE in refusals(single)


# ------------------------------------------------------------------------------------------ what does not fit


def rewritten(folder: Path, change: Callable[[dict[str, Tensor]], None]) -> None:
    weights = load_file(folder / SINGLE)
    change(weights)
    save_file(weights, folder / SINGLE, metadata={"format": "pt"})


def test_a_missing_tensor_and_a_strange_one_are_named(single: Path) -> None:
    rewritten(single, lambda weights: weights.__delitem__(NORM))
    assert f"missing ['{NORM}'], unexpected none" in refusals(single)
    rewritten(single, lambda weights: weights.update({NORM: torch.ones(24), "spare": torch.ones(1)}))
    assert "missing none, unexpected ['spare']" in refusals(single)


def test_another_shape_is_named(single: Path) -> None:
    rewritten(single, lambda weights: weights.update({NORM: torch.ones(23)}))
    message = refusals(single)
    assert NORM in message
    assert "expected (24,), found (23,)" in message


QUANTISED = "model.layers.1.mlp.down_proj.weight"


@pytest.mark.parametrize("dtype", [torch.int8, torch.float8_e4m3fn, torch.bool], ids=str)
def test_a_layout_of_quantised_weights_is_refused(single: Path, dtype: torch.dtype) -> None:
    rewritten(single, lambda weights: weights.update({QUANTISED: weights[QUANTISED].to(dtype)}))
    with pytest.raises(CheckpointError, match=rf"{QUANTISED} has type .* De-quantise"):
        layout_of(single)


@pytest.mark.parametrize(
    "dtype",
    [
        torch.int8,
        torch.bool,
        torch.float8_e4m3fn,
    ],
    ids=str,
)
def test_a_model_of_quantised_weights_is_refused(single: Path, dtype: torch.dtype) -> None:
    rewritten(single, lambda weights: weights.update({QUANTISED: weights[QUANTISED].to(dtype)}))
    with pytest.raises(CheckpointError, match=QUANTISED):
        load_pruned(single)


# --------------------------------------------------------------------------------- folders from elsewhere


def test_a_folder_of_the_backbone_alone_loads(tmp_path: Path) -> None:
    """As transformers saves GPT-2's: no prefix, no head, an architecture that has both."""
    model = gpt2()
    save_pruned(model, tmp_path / "model")
    backbone = {name: tensor.clone() for name, tensor in model.transformer.state_dict().items()}
    assert not any(name.startswith("transformer.") for name in backbone)
    save_file(backbone, tmp_path / "model" / SINGLE, metadata={"format": "pt"})
    loaded = load_pruned(tmp_path / "model")
    assert_same_weights(loaded, model)
    assert loaded.lm_head.weight is loaded.transformer.wte.weight
    piece = load_shard(layout_of(tmp_path / "model"), Shard(first=2, stop=3, layers=3))
    assert torch.equal(piece.model.lm_head.weight, model.lm_head.weight)


def test_a_folder_with_a_prefix_loads_into_the_backbone(tmp_path: Path) -> None:
    model = gpt2(head="GPT2Model")
    save_pruned(model, tmp_path / "model")
    named = {f"transformer.{name}": tensor for name, tensor in model.state_dict().items()}
    save_file(named, tmp_path / "model" / SINGLE, metadata={"format": "pt"})
    assert_same_weights(load_pruned(tmp_path / "model"), model)


def test_an_untied_head_is_not_made_up(tmp_path: Path) -> None:
    model = gpt2(tie_word_embeddings=False)
    save_pruned(model, tmp_path / "model")
    rewritten(tmp_path / "model", lambda weights: weights.__delitem__("lm_head.weight"))
    assert "missing ['lm_head.weight']" in refusals(tmp_path / "model")


@pytest.mark.parametrize(
    ("build", "extra"),
    [
        (llama_like, "model.layers.0.self_attn.rotary_emb.inv_freq"),
        (gpt_neox, "gpt_neox.layers.1.attention.rotary_emb.inv_freq"),
        (gpt_neox, "gpt_neox.layers.1.attention.masked_bias"),
        (gpt2, "transformer.h.0.attn.masked_bias"),
        (gpt2, "h.0.attn.bias"),
    ],
    ids=lambda value: value if isinstance(value, str) else value.__name__,
)
def test_buffers_that_older_checkpoints_store_are_passed_over(
    build: Callable[[], PreTrainedModel], extra: str, tmp_path: Path
) -> None:
    model = build()
    save_pruned(model, tmp_path / "model")
    rewritten(tmp_path / "model", lambda weights: weights.update({extra: torch.ones(2)}))
    assert_same_weights(load_pruned(tmp_path / "model"), model)
    assert extra not in layout_of(tmp_path / "model").stored
