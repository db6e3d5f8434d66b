"""The two tasks: bearing diagnosis and language modelling, as tensors ready for batching."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Int
from torch import Tensor

from cascade_ops.augment import Augment
from cascade_ops.batches import Batch, length_of, subset
from cascade_ops.data.types import SplitData, Windows
from cascade_ops.errors import DataError
from cascade_ops.registry import Registry


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """What a task measures, and which way is better."""

    name: str
    metric: str
    higher_is_better: bool


TASKS: Registry[Task] = Registry("task")
TASKS.add("diagnosis", Task(name="diagnosis", metric="accuracy", higher_is_better=True))
TASKS.add("lm", Task(name="lm", metric="perplexity", higher_is_better=False))


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskData:
    """Everything a run reads. ``calibration`` is part of ``train``; ``test`` is for reporting only.

    ``augment`` says how training signals are varied, in dense training and in recovery alike.
    """

    task: str
    train: Batch
    validation: Batch
    test: Batch
    calibration: Batch
    classes: tuple[str, ...] = ()
    augment: Augment | None = None
    metadata: dict[str, Any] = field(default_factory=dict)


@runtime_checkable
class Tokenizer(Protocol):
    """What the text front end and language models ask of a tokenizer (transformers' satisfy it)."""

    def __call__(self, text: Any, **kwargs: Any) -> Any: ...


def check_disjoint(train: Batch, validation: Batch) -> None:
    """No validation sample is a training sample.

    Raises:
        DataError: some are: early stopping would watch what is being learnt by heart.
    """
    seen, held_out = ({_digest(data, n) for n in range(length_of(data))} for data in (train, validation))
    both = len(seen & held_out)
    if both:
        raise DataError(
            f"validation: {both} of its {len(held_out)} different samples are training samples too, so it cannot tell "
            "when to stop. Choose a split or a text without repetitions, or do without patience."
        )


def _digest(data: Batch, sample: int) -> bytes:
    whole = hashlib.sha256()
    for name in sorted(data.keys() - {"labels"}):
        whole.update(data[name][sample].contiguous().numpy().tobytes())
    return whole.digest()


def diagnosis_data(
    split: SplitData,
    *,
    calibration_samples: int = 256,
    seed: int = 0,
    render: Callable[[Windows], list[str]] | None = None,
    tokenizer: Tokenizer | None = None,
    augment: Augment | None = None,
) -> TaskData:
    """Tensors for a SignalClassifier.

    With ``render`` (windows → prompts) and ``tokenizer`` the signals become token ids for the text
    front end; without them they stay signals for the patch front end.
    """

    def tensors(windows: Windows) -> dict[str, Tensor]:
        labels = torch.tensor(windows.label, dtype=torch.long)
        if render is None or tokenizer is None:
            return {"signal": torch.tensor(windows.signal, dtype=torch.float32), "labels": labels}
        encoded = tokenizer(render(windows), padding=True, return_tensors="pt")
        return {
            "input_ids": encoded["input_ids"],
            "attention_mask": encoded["attention_mask"],
            "labels": labels,
        }

    train = tensors(split.train)
    return TaskData(
        task="diagnosis",
        train=train,
        validation=tensors(split.validation),
        test=tensors(split.test),
        calibration=subset(train, calibration_samples, seed),
        classes=split.train.classes,
        augment=augment,
        metadata={
            "split": split.name,
            "notes": list(split.notes),
            "windows": {
                "train": len(split.train),
                "validation": len(split.validation),
                "test": len(split.test),
            },
        },
    )


def lm_data(
    train: str | Path,
    test: str | Path,
    tokenizer: Tokenizer,
    *,
    length: int = 128,
    validation: float = 0.1,
    calibration_samples: int = 128,
    max_sequences: int | None = None,
    seed: int = 0,
) -> TaskData:
    """Consecutive sequences of ``length`` tokens from two text files.

    The last ``validation`` part of the training text is held out. Perplexities of different lengths
    are not comparable: the length goes into the metadata.

    Raises:
        DataError: a file is missing or too short.
    """
    ids = token_sequences(train, tokenizer, length)
    held_out = max(1, round(validation * len(ids)))
    if len(ids) <= held_out:
        raise DataError(f"{train}: expected at least two sequences of {length} tokens, found {len(ids)}")
    sides = {
        "train": ids[:-held_out],
        "validation": ids[-held_out:],
        "test": token_sequences(test, tokenizer, length),
    }
    sides = {name: side[:max_sequences] for name, side in sides.items()}
    return TaskData(
        task="lm",
        train={"input_ids": sides["train"]},
        validation={"input_ids": sides["validation"]},
        test={"input_ids": sides["test"]},
        calibration=subset({"input_ids": sides["train"]}, calibration_samples, seed),
        metadata={
            "split": "text",
            "length": length,
            "train": Path(train).name,
            "test": Path(test).name,
            "sequences": {name: len(side) for name, side in sides.items()},
        },
    )


def token_sequences(path: str | Path, tokenizer: Tokenizer, length: int) -> Int[Tensor, "sequences tokens"]:
    """A text file as consecutive sequences of ``length`` tokens; what is left over is dropped.

    Raises:
        DataError: the file is missing, not UTF-8, or too short.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: expected a UTF-8 text file: {error}") from error
    ids: Sequence[int] = tokenizer(text)["input_ids"]
    count = len(ids) // length
    if count == 0:
        raise DataError(f"{path}: expected at least {length} tokens, found {len(ids)}; give a shorter length")
    return torch.tensor(ids[: count * length]).view(count, length)
