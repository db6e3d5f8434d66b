"""A model folder's own tokenizer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

from cascade_ops.errors import UsageError

VOCABULARIES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model")


def has_tokenizer(folder: Path) -> bool:
    """Whether there is a vocabulary; transformers would make up an empty one."""
    return any((folder / name).is_file() for name in VOCABULARIES)


def tokenizer_in(folder: Path) -> Any:
    """The tokenizer in ``folder``, which pads with the end of text where it has nothing else.

    Raises:
        UsageError: there is none, or it does not load.
    """
    if not has_tokenizer(folder):
        raise UsageError(f"{folder}: expected a tokenizer, found none of {', '.join(VOCABULARIES)}")
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # what tokenizers raises for a damaged file has no base but Exception
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UsageError(f"{folder}: expected a tokenizer, found none that loads ({first})") from None
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token
    return tokenizer
