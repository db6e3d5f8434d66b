"""Distillation: a teacher's outputs, computed once and kept on disk, and the loss of a student beside them.

(Hinton et al. 2015, arXiv 1503.02531; hidden states: Sun et al. 2019, arXiv 1908.09355.) The teacher need not be in
memory while the student learns. Of each position's logits z the ``top`` largest are kept, and for all others together

    r = log Σ_rest exp(z_j/T)

so that with L = log(Σ_top exp(z_i/T) + exp r) the tempered probabilities p_i = exp(z_i/T − L) of the kept ones and
p_rest = exp(r − L) of the rest are exact. The divergence is taken over the kept ones and the rest as one.

Training signals may be varied (``Augment``); the teacher has heard them as recorded, so the student learns to answer
to the variation what the teacher answers to the original.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from cascade_ops.anatomy import CONFIG_KEY, base_of, blocks_of
from cascade_ops.batches import Batch, length_of, on_device, sequential
from cascade_ops.errors import CheckpointError, ConfigError
from cascade_ops.files import written_whole
from cascade_ops.loss import IGNORE, losses_of, next_tokens, wide
from cascade_ops.progress import Progress, silent
from cascade_ops.schedule import Distillation
from cascade_ops.training import LossOf

NUMBER = "sample"
"""Key of each sample's position in the data that the teacher has seen."""
SCHEMA, INDEX = "cascade.teacher/1", "teacher.json"
PART_BYTES = 2**26
VALUES, CHOSEN, REST = "logits", "index", "rest"


def numbered(data: Batch) -> dict[str, Tensor]:
    """The data with each sample's position, by which its teacher's outputs are found."""
    return {**data, NUMBER: torch.arange(length_of(data))}


@torch.no_grad()
def cache_teacher(
    teacher: nn.Module,
    data: Batch,
    folder: Path,
    distillation: Distillation,
    *,
    keep_layers: Sequence[int] = (),
    batch_size: int = 32,
    progress: Progress = silent,
) -> TeacherCache:
    """Run the teacher once over ``data`` and write its outputs to ``folder``, as Arrow files, whole or not at all.

    Args:
        keep_layers: blocks whose outputs are kept if ``distillation.hidden`` is on, as numbered in the dense model.

    Raises:
        OSError: the disk is full; ``folder`` is then as it was.
    """
    sources = sorted(set(keep_layers)) if distillation.hidden else []
    size, done, parts = length_of(data), 0, list[dict[str, Any]]()
    waiting: list[dict[str, Tensor]] = []
    shapes: dict[str, list[int]] = {}
    teacher.eval()
    with written_whole(folder) as scratch:
        for batch in sequential(data, batch_size):
            found = _outputs(teacher, on_device(batch, teacher), distillation, sources)
            shapes = {name: list(tensor.shape[1:]) for name, tensor in found.items()}
            waiting.append({name: tensor.cpu() for name, tensor in found.items()})
            done += length_of(batch)
            if done == size or sum(map(_nbytes, waiting)) >= PART_BYTES:
                parts.append(_write_part(scratch, len(parts), waiting))
                waiting = []
            progress("teacher", done, size)
        index = {
            "schema": SCHEMA,
            "samples": size,
            "temperature": distillation.temperature,
            "layers": sources,
            "shapes": shapes,
            "parts": parts,
        }
        (scratch / INDEX).write_text(json.dumps(index, indent=1) + "\n", encoding="utf-8")
    return TeacherCache.open(folder)


def _nbytes(outputs: Mapping[str, Tensor]) -> int:
    return sum(tensor.nbytes for tensor in outputs.values())


def _outputs(
    teacher: nn.Module, batch: Batch, distillation: Distillation, sources: Sequence[int]
) -> dict[str, Tensor]:
    """What is kept of each sample: sample × positions × top, sample × positions, sample × tokens × hidden."""
    inputs = {name: tensor for name, tensor in batch.items() if name != "labels"}
    with block_outputs(teacher, sources) as hidden:
        logits = wide(teacher(**inputs).logits).float()
    logits = logits[:, None] if logits.dim() == 2 else logits
    values, chosen = logits.topk(min(distillation.top, logits.shape[-1]))
    rest = (logits / distillation.temperature).scatter(-1, chosen, -math.inf).logsumexp(-1)
    kept = {VALUES: values, CHOSEN: chosen.int(), REST: rest}
    return kept | {f"hidden.{source}": hidden[source].float() for source in sources}


@contextmanager
def block_outputs(model: nn.Module, sources: Sequence[int]) -> Iterator[dict[int, Tensor]]:
    """Filled, by each forward in the context, with the outputs of these blocks (as numbered in the dense model) of
    those that the model has."""
    found: dict[int, Tensor] = {}
    record = getattr(base_of(model).config, CONFIG_KEY, None)
    with ExitStack() as stack:
        for position, block in enumerate(blocks_of(model)):
            source = record["layers"][position]["source"] if record else position
            if source in sources:

                def keep(module: nn.Module, args: Any, output: Any, source: int = source) -> None:
                    found[source] = output[0] if isinstance(output, tuple) else output

                stack.callback(block.register_forward_hook(keep).remove)
        yield found


def _write_part(folder: Path, number: int, outputs: list[dict[str, Tensor]]) -> dict[str, Any]:
    """One Arrow file, a row for each sample; what the index says about it."""
    columns = {}
    for name in outputs[0]:
        rows = torch.cat([one[name] for one in outputs]).flatten(1).numpy()
        columns[name] = pa.FixedSizeListArray.from_arrays(pa.array(rows.reshape(-1)), rows.shape[1])
    part = pa.table(columns)
    path = folder / f"part-{number:05d}.arrow"
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, part.schema) as writer:
        writer.write_table(part)
    return {"file": path.name, "samples": part.num_rows, "sha256": _sha256(path)}


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


class TeacherCache:
    """What a teacher said about each sample; ``open`` reads it. Only its folder travels to other processes."""

    def __init__(self, folder: Path, index: Mapping[str, Any]) -> None:
        self.folder, self._index = folder, index

    def __reduce__(self) -> tuple[Any, ...]:
        return TeacherCache.open, (self.folder,)

    @classmethod
    def open(cls, folder: Path) -> TeacherCache:
        """The cache in ``folder``. Raises CheckpointError where it is damaged: it must be made again."""
        try:
            index = json.loads((folder / INDEX).read_text(encoding="utf-8"))
            damaged = [
                part["file"] for part in index["parts"] if _sha256(folder / part["file"]) != part["sha256"]
            ]
            known = (
                index["schema"] == SCHEMA and {"samples", "temperature", "layers", "shapes"} <= index.keys()
            )
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise CheckpointError(f"{folder}: expected a teacher's outputs, found {error!r}") from None
        if not known or damaged:
            what = f"{damaged[0]} is damaged (checksum)" if damaged else f"{INDEX} is of another version"
            raise CheckpointError(f"{folder}: {what}; delete the folder, it will be made again")
        return cls(folder, index)

    @cached_property
    def _parts(self) -> list[dict[str, np.ndarray]]:
        """Arrays that are read from disk where they are looked at."""
        found = []
        for part in self._index["parts"]:
            table = pa.ipc.open_file(pa.memory_map(str(self.folder / part["file"]))).read_all()
            found.append(
                {
                    name: table[name]
                    .combine_chunks()
                    .flatten()
                    .to_numpy()
                    .reshape(table.num_rows, *self._index["shapes"][name])
                    for name in table.column_names
                }
            )
        return found

    def rows(self, samples: Int[Tensor, " batch"]) -> dict[str, Tensor]:
        """The outputs of these samples, by name, on their device."""
        ends = np.cumsum([part["samples"] for part in self._index["parts"]])
        places = [(int(np.searchsorted(ends, n, side="right")), n) for n in samples.tolist()]
        starts = [0, *ends[:-1].tolist()]
        rows = {
            name: np.stack([self._parts[part][name][n - starts[part]] for part, n in places])
            for name in self._index["shapes"]
        }
        return {name: torch.from_numpy(array).to(samples.device) for name, array in rows.items()}

    def loss(self, distillation: Distillation) -> LossOf:
        """Per-sample losses of a student: ``(1 − α)·cross-entropy + α·T²·KL(teacher ‖ student) + β·hidden``.

        For a language model both are means over the sample's predicted tokens. ``hidden`` is
        ``mean‖h_s − h_t‖² / mean‖h_t‖²`` over the sample's tokens, averaged over the blocks that both have.

        Raises:
            ConfigError: the outputs were kept for another temperature, or without hidden states.
        """
        if distillation.temperature != self._index["temperature"]:
            raise ConfigError(
                f"distillation.temperature: the teacher's outputs in {self.folder} are for "
                f"{self._index['temperature']:g}, got {distillation.temperature:g}; delete the folder"
            )
        layers = self._index["layers"]
        if distillation.hidden and not layers:
            raise ConfigError(f"distillation.hidden: {self.folder} holds no hidden states; delete the folder")

        def loss_of(model: nn.Module, batch: Batch) -> Float[Tensor, " batch"]:
            rows = self.rows(batch[NUMBER])
            inputs = {name: t for name, t in batch.items() if name not in ("labels", NUMBER)}
            inner = getattr(model, "module", model)  # DeepSpeed's wrapper runs the forward
            with block_outputs(inner, layers if distillation.hidden else ()) as hidden:
                logits = model(**inputs).logits
            alpha, heat = distillation.weight, distillation.temperature
            loss = (1 - alpha) * losses_of(logits, batch) if alpha < 1 else 0.0
            loss = loss + alpha * heat**2 * _over_sample(divergence(logits, rows, heat), batch)
            if distillation.hidden:
                loss = loss + distillation.hidden * _apart(hidden, rows, batch)
            return loss

        return loss_of


def divergence(
    logits: Float[Tensor, "batch *positions classes"], rows: Mapping[str, Tensor], temperature: float
) -> Float[Tensor, "batch positions"]:
    """``Σ p·(log p − log q)`` of each position, over the teacher's kept classes and the rest as one."""
    logits = wide(logits[:, None] if logits.dim() == 2 else logits) / temperature
    chosen, rest = rows[CHOSEN].long(), rows[REST].to(logits.dtype)
    kept = rows[VALUES].to(logits.dtype) / temperature
    whole = torch.logaddexp(kept.logsumexp(-1), rest)
    log_p, log_p_rest = kept - whole[..., None], rest - whole
    normaliser = logits.logsumexp(-1)
    log_q = logits.gather(-1, chosen) - normaliser[..., None]
    found = (log_p.exp() * (log_p - log_q)).sum(-1)
    if chosen.shape[-1] < logits.shape[-1]:
        log_q_rest = logits.scatter(-1, chosen, -math.inf).logsumexp(-1) - normaliser
        found = found + log_p_rest.exp() * (log_p_rest - log_q_rest)
    return found


def _over_sample(values: Float[Tensor, "batch positions"], batch: Batch) -> Float[Tensor, " batch"]:
    """The mean over the positions whose cross-entropy counts."""
    if values.shape[1] == 1:
        return values[:, 0]
    counted = next_tokens(batch) != IGNORE
    return (values * counted).sum(dim=1) / counted.sum(dim=1).clamp(min=1)


def _apart(hidden: Mapping[int, Tensor], rows: Mapping[str, Tensor], batch: Batch) -> Float[Tensor, " batch"]:
    distances = []
    for source, mine in hidden.items():
        theirs = rows[f"hidden.{source}"]
        mask = batch["attention_mask"] if "attention_mask" in batch else torch.ones_like(theirs[..., 0])
        off = ((wide(mine) - theirs).square().mean(-1) * mask).sum(dim=1)
        distances.append(off / (theirs.square().mean(-1) * mask).sum(dim=1).clamp(min=1e-12))
    return torch.stack(distances).mean(dim=0)
