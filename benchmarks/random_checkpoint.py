"""A model folder of a large architecture with random bfloat16 weights, written without holding the model.

    python benchmarks/random_checkpoint.py OUT {gqa-swiglu,mha-gelu} [--layers N] [--shard-bytes 1GiB]

What scoring costs in time and memory depends on the shapes, not on what the weights know. Matrices are
independent normal values with standard deviation 0.02 (the two output projections of each block: 0.02/√(2·layers),
as GPT-2 is initialised, so that deep random models stay finite), norms 1, biases 0. A tensor's values follow
from the seed and its name alone, so other file sizes give the same model; so do other depths, but for the
output projections' scale. Memory holds a few megabytes.
"""

from __future__ import annotations

import argparse
import errno
import functools
import hashlib
import json
import math
import re
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import GPTNeoXConfig, LlamaConfig, PreTrainedConfig, PreTrainedModel

from cascade_ops.anatomy import base_of, family_of
from cascade_ops.files import written_whole
from cascade_ops.surgery import meta_model
from cascade_ops.weights import INDEX

STD = 0.02
CHUNK = 2**18  # values drawn at a time: what belongs to one chunk stays in the processor's cache
UNITS = {"": 1, "B": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}
Words = NDArray[np.uint16]
"""bfloat16 values by their bits; numpy has no such type."""

CONFIGS: dict[str, PreTrainedConfig] = {
    "gqa-swiglu": LlamaConfig(
        architectures=["LlamaForCausalLM"],
        hidden_size=4096,
        num_attention_heads=32,
        num_key_value_heads=8,
        intermediate_size=14336,
        num_hidden_layers=28,
        vocab_size=17408,
        max_position_embeddings=4096,
        tie_word_embeddings=False,
    ),
    "mha-gelu": GPTNeoXConfig(
        architectures=["GPTNeoXForCausalLM"],
        hidden_size=4096,
        num_attention_heads=32,
        intermediate_size=16384,
        num_hidden_layers=30,
        vocab_size=25344,
        max_position_embeddings=2048,
        hidden_act="gelu",
        tie_word_embeddings=False,
    ),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Draw:
    """A tensor to be written. ``std`` is None where all values are ``constant``."""

    name: str
    shape: tuple[int, ...]
    std: float | None
    constant: float = 0.0

    @property
    def numel(self) -> int:
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        return 2 * self.numel


@dataclass(frozen=True, slots=True, kw_only=True)
class Written:
    """What a checkpoint holds."""

    parameters: int
    nbytes: int
    files: int


def write_checkpoint(
    config: PreTrainedConfig, out: str | Path, *, shard_bytes: int = 2**30, seed: int = 0
) -> Written:
    """Write a folder that transformers and ``load_pruned`` read; ``out`` appears whole or not at all.

    Args:
        config: of any family that cascade_ops knows. Tied weights are written once.
        out: replaced if it is a model folder.
        shard_bytes: a file holds at most so much, or a single larger tensor.

    Raises:
        OSError: the disk has not enough room, or ``out`` is something else than a model folder.
    """
    out = Path(out).resolve()
    if out.exists() and not (out / "config.json").is_file():
        raise FileExistsError(errno.EEXIST, "is there and is no model folder; it is left alone", str(out))
    model = meta_model(config)
    draws = draws_of(model)
    nbytes = sum(draw.nbytes for draw in draws)
    check_room(out, nbytes)
    shards = packed(draws, shard_bytes)
    names = [f"model-{k:05}-of-{len(shards):05}.safetensors" for k in range(1, len(shards) + 1)]
    model.config.architectures = [type(model).__name__]
    model.config.dtype = "bfloat16"
    began, done = time.perf_counter(), 0
    with written_whole(out) as scratch:
        model.config.save_pretrained(scratch)
        for name, shard in zip(names, shards, strict=True):
            write_file(scratch / name, shard, seed)
            done += sum(draw.nbytes for draw in shard)
            _say(f"{name}: {done / 1e9:.2f} of {nbytes / 1e9:.2f} GB, {time.perf_counter() - began:.0f} s")
        places = {draw.name: name for name, shard in zip(names, shards, strict=True) for draw in shard}
        index = {"metadata": {"total_size": nbytes}, "weight_map": places}
        (scratch / INDEX).write_text(json.dumps(index, indent=2) + "\n")
    return Written(parameters=sum(draw.numel for draw in draws), nbytes=nbytes, files=len(shards))


def draws_of(model: PreTrainedModel) -> list[Draw]:
    """How each tensor is drawn, in the order of the model's state; of tied ones only the one they follow."""
    base = base_of(model)
    spec = family_of(base.config)
    ends = (f".{spec.attention_output}.weight", f".{spec.mlp_output}.weight")
    tied = getattr(model, "all_tied_weights_keys", None) or {}
    draws = []
    for name, tensor in model.state_dict().items():
        if name in tied:
            continue
        if not tensor.is_floating_point():
            raise ValueError(f"{name}: a {tensor.dtype} buffer; only floating-point tensors can be drawn")
        shape = tuple(tensor.shape)
        if len(shape) < 2:
            draws.append(
                Draw(name=name, shape=shape, std=None, constant=0.0 if name.endswith("bias") else 1.0)
            )
        else:
            deep = math.sqrt(2 * base.config.num_hidden_layers) if name.endswith(ends) else 1.0
            draws.append(Draw(name=name, shape=shape, std=STD / deep))
    return draws


def check_room(out: Path, need: int) -> None:
    """Raises OSError where the disk of ``out`` cannot take ``need`` bytes more."""
    there = next(folder for folder in out.parents if folder.exists())
    free = shutil.disk_usage(there).free
    need += 64 * 2**20  # headers, config, and room to breathe
    if free < need:
        raise OSError(
            errno.ENOSPC,
            f"not enough room: {need / 1e9:.2f} GB needed, {free / 1e9:.2f} GB free "
            "(an older folder of that name goes only once the new one is complete)",
            str(out),
        )


def packed(draws: Sequence[Draw], shard_bytes: int) -> list[list[Draw]]:
    """Consecutive tensors in files of at most ``shard_bytes``, or of one tensor."""
    shards: list[list[Draw]] = []
    room = 0
    for draw in draws:
        if not shards or draw.nbytes > room:
            shards.append([])
            room = shard_bytes
        shards[-1].append(draw)
        room -= draw.nbytes
    return shards


def write_file(path: Path, draws: Sequence[Draw], seed: int) -> None:
    """One safetensors file, tensor after tensor."""
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    start = 0
    for draw in draws:
        header[draw.name] = {
            "dtype": "BF16",
            "shape": draw.shape,
            "data_offsets": [start, start + draw.nbytes],
        }
        start += draw.nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # tensors start at a multiple of 8 bytes
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for draw in draws:
            _write_tensor(file, draw, seed)


def _write_tensor(file: BinaryIO, draw: Draw, seed: int) -> None:
    for chunk in values(draw, seed):
        file.write(chunk.data)


def values(draw: Draw, seed: int) -> Iterator[Words]:
    """A tensor's values, chunk by chunk, each in the place of the one before."""
    chunk = np.empty(min(CHUNK, draw.numel), np.uint16)
    sizes = [min(CHUNK, draw.numel - start) for start in range(0, draw.numel, CHUNK)]
    if draw.std is None:
        chunk[:] = _bits(torch.tensor([draw.constant]))[0]
        yield from (chunk[:size] for size in sizes)
        return
    table = quantiles(draw.std)
    key = hashlib.sha256(f"{seed} {draw.name}".encode()).digest()
    stream = np.random.SFC64(int.from_bytes(key, "little"))
    for size in sizes:
        places = stream.random_raw(-(-size // 4)).view(np.uint16)[:size]
        yield np.take(
            table, places, out=chunk[:size], mode="wrap"
        )  # any 16 bits are a place; "raise" buffers


@functools.cache
def quantiles(std: float) -> Words:
    """65,536 equally likely values of a normal distribution: one for each value of 16 random bits.

    Drawing from them is many times as fast as drawing from the distribution; the largest is 4.3 standard
    deviations away, and bfloat16 tells apart no more of them anyway.
    """
    probability = (torch.arange(2**16, dtype=torch.float64) + 0.5) / 2**16
    return _bits(std * torch.special.ndtri(probability))


def _bits(tensor: torch.Tensor) -> Words:
    words: Words = tensor.to(torch.bfloat16).view(torch.uint16).numpy()
    return words


def size_of(text: str) -> int:
    """``1GiB``, ``512MiB`` or a number of bytes."""
    found = re.fullmatch(r"(\d+)\s*([KMG]iB|B|)", text.strip())
    if not found or int(found[1]) == 0:
        raise argparse.ArgumentTypeError(f"{text!r}: expected a size such as 1GiB, 512MiB or 1000000")
    return int(found[1]) * UNITS[found[2]]


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", type=Path, help="the folder to write")
    parser.add_argument("name", choices=CONFIGS, help="an architecture of 6.25 billion parameters")
    parser.add_argument("--layers", type=int, help="blocks, if not as many as the architecture has")
    parser.add_argument("--shard-bytes", type=size_of, default=2**30, help="size of a file (1GiB)")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    config = CONFIGS[arguments.name]
    if arguments.layers is not None:
        if arguments.layers < 1:
            parser.error(f"--layers: expected 1 or more, got {arguments.layers}")
        config.num_hidden_layers = arguments.layers
    try:
        written = write_checkpoint(
            config, arguments.out, shard_bytes=arguments.shard_bytes, seed=arguments.seed
        )
    except OSError as error:
        sys.exit(f"{error.filename or arguments.out}: {error.strerror or error}")
    size = f"{written.parameters:,} parameters, {written.nbytes:,} bytes of weights, {written.files} files"
    print(f"{arguments.out}: {size}")


if __name__ == "__main__":
    main()
