"""Tokens one by one: drawing the next one, and the text they spell."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

UNFINISHED = "\N{REPLACEMENT CHARACTER}"
"""What an incomplete UTF-8 sequence decodes to: the rest comes with the next token."""
COLDEST = 1e-4
"""Temperatures below it are greedy: logits divided by less run out of float32."""
CONTEXT = 8
"""Tokens of the prompt that are decoded with the text, since many tokenizers drop a first token's leading space."""


def sample(
    logits: Float[Tensor, " vocabulary"], temperature: float, top_p: float, generator: torch.Generator
) -> int:
    """The likeliest token at temperature 0; else one drawn from the smallest set that holds ``top_p``."""
    if temperature < COLDEST:
        return int(logits.argmax())
    probabilities, order = (logits / temperature).softmax(-1).sort(descending=True)
    kept = probabilities.cumsum(-1) - probabilities < top_p
    kept[0] = True  # a share may be too small for float32
    drawn = torch.multinomial(probabilities * kept, 1, generator=generator)
    return int(order[drawn])


@dataclass(slots=True)
class Text:
    """What has been written so far, and how much of it may be told: never a part of a stop word.

    ``before`` are the prompt's tokens; prompt and text decoded together and the prompt cut off is the text.
    """

    tokenizer: Any
    stops: tuple[str, ...]
    before: Sequence[int] = ()
    tokens: list[int] = field(default_factory=list)
    told: int = 0
    _start: int = 0

    def __post_init__(self) -> None:
        self.before = list(self.before[-CONTEXT:])
        self._start = len(self._decode(self.before).rstrip(UNFINISHED))

    def add(self, token: int) -> tuple[str, bool]:
        """The text that this token completes, and whether a stop word ended it."""
        self.tokens.append(token)
        whole = self.decoded()
        found = [at for stop in self.stops if (at := whole.find(stop)) >= 0]
        if found:
            return self._tell(whole, min(found)), True
        return self._tell(whole, len(whole) - self._held_back(whole)), False

    def rest(self) -> str:
        """What was held back, once nothing more comes."""
        whole = self.decoded()
        return self._tell(whole, len(whole))

    def decoded(self) -> str:
        """All of it."""
        return self._decode([*self.before, *self.tokens])[self._start :]

    def _decode(self, tokens: Sequence[int]) -> str:
        return str(self.tokenizer.decode(tokens, skip_special_tokens=True))

    def _tell(self, whole: str, end: int) -> str:
        piece = whole[self.told : end]
        self.told = max(self.told, end)
        return piece

    def _held_back(self, whole: str) -> int:
        known = whole.rstrip(UNFINISHED)
        begun = [
            length
            for stop in self.stops
            for length in range(1, min(len(stop), len(known) + 1))
            if known.endswith(stop[:length])
        ]
        return len(whole) - len(known) + max(begun, default=0)
