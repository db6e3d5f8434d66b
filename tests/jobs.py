"""A job so small that all of it takes a second or two."""

from __future__ import annotations

from pathlib import Path
from typing import Any

TINY: dict[str, Any] = {
    "threads": 1,
    "data": {
        "name": "simulated",
        "split": "load:3",
        "length": 256,
        "stride": 128,
        "calibration": 32,
        "options": {"seconds": 1.0, "labels": ["N", "IR014", "OR014"], "loads": ["0", "3"]},
    },
    "model": {
        "patch": 32,
        "config": {
            "model_type": "gpt2",
            "n_embd": 16,
            "n_layer": 3,
            "n_head": 4,
            "n_inner": 32,
            "n_positions": 8,
            "vocab_size": 1,
            "bos_token_id": None,
            "eos_token_id": None,
        },
    },
    "train": {"steps": 20, "batch_size": 16},
    "schedule": {"target": 4, "recovery": {"steps": 20, "batch_size": 16}},
}

WORDS = tuple(f"w{i}" for i in range(30))


def save_word_tokenizer(folder: Path) -> None:
    """One token for each of WORDS, and one for all others."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {"<unk>": 0, **{word: number + 1 for number, word in enumerate(WORDS)}}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>").save_pretrained(folder)
