"""Text token by token: prefill once, then decode with the cache of keys and values.

Requests take turns on the model's thread, one token each, so that a long answer does not hold up a short one.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import AutoTokenizer, PreTrainedModel

from serve.engines import Loaded
from serve.errors import invalid
from serve.schemas import Choice, Completion, CompletionRequest, Usage

if TYPE_CHECKING:
    from serve.service import Service

Reason = Literal["stop", "length"]
UNFINISHED = "\N{REPLACEMENT CHARACTER}"
"""What an incomplete UTF-8 sequence decodes to: the rest comes with the next token."""


@lru_cache(maxsize=16)
def tokenizer_at(folder: Path) -> Any:
    return AutoTokenizer.from_pretrained(folder, local_files_only=True)


@torch.inference_mode()
def step(
    model: PreTrainedModel, ids: Int[Tensor, "1 tokens"], cache: Any
) -> tuple[Float[Tensor, " vocabulary"], Any]:
    """Logits of the next token, and the cache with ``ids`` in it (None: an empty one)."""
    found = model(input_ids=ids.to(model.device), past_key_values=cache, use_cache=True, logits_to_keep=1)
    return found.logits[0, -1].float().cpu(), found.past_key_values


def sample(
    logits: Float[Tensor, " vocabulary"], temperature: float, top_p: float, generator: torch.Generator
) -> int:
    """The likeliest token at temperature 0; else one drawn from the smallest set that holds ``top_p``."""
    if temperature == 0:
        return int(logits.argmax())
    probabilities, order = (logits / temperature).softmax(-1).sort(descending=True)
    kept = probabilities.cumsum(-1) - probabilities < top_p
    drawn = torch.multinomial(probabilities * kept, 1, generator=generator)
    return int(order[drawn])


@dataclass(slots=True)
class Text:
    """What has been written so far, and how much of it may be told: never a part of a stop word."""

    tokenizer: Any
    stops: tuple[str, ...]
    tokens: list[int] = field(default_factory=list)
    told: int = 0

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
        return str(self.tokenizer.decode(self.tokens, skip_special_tokens=True))

    def _tell(self, whole: str, end: int) -> str:
        piece = whole[self.told : end]
        self.told = max(self.told, end)
        return piece

    def _held_back(self, whole: str) -> int:
        broken = len(whole) - len(whole.rstrip(UNFINISHED))
        begun = [
            length for stop in self.stops for length in range(1, len(stop)) if whole.endswith(stop[:length])
        ]
        return max([broken, *begun])


class Writer:
    """One completion.

    Raises:
        Refused: the prompt is empty, too long, or has tokens that the model does not know.
    """

    def __init__(self, service: Service, loaded: Loaded, asked: CompletionRequest) -> None:
        self._service, self._model, self._asked = service, loaded.model, asked
        self._name = loaded.variant.name
        assert loaded.variant.tokenizer is not None
        self._tokenizer = tokenizer_at(loaded.variant.tokenizer)
        self._prompt = self._ids()
        self._id, self._created = f"cmpl-{uuid.uuid4().hex}", int(time.time())

    async def whole(self) -> Completion:
        """All of it at once."""
        parts: list[str] = []
        ended: Reason | None = None
        async for piece, ended in self._written():  # noqa: B007  (the last one counts)
            parts.append(piece)
        return self._completion([Choice(text="".join(parts), finish_reason=ended)], self._usage())

    async def pieces(self) -> AsyncIterator[Completion]:
        """Piece by piece; the last says why it ended, and one more has the usage where that was asked for."""
        async for piece, reason in self._written():
            if piece or reason:
                yield self._completion([Choice(text=piece, finish_reason=reason)], None)
        if self._asked.stream_options and self._asked.stream_options.include_usage:
            yield self._completion([], self._usage())

    async def _written(self) -> AsyncIterator[tuple[str, Reason | None]]:
        asked, text = self._asked, self._text()
        generator = torch.Generator()
        generator.manual_seed(asked.seed) if asked.seed is not None else generator.seed()
        ids, cache = torch.tensor([self._prompt]), None
        while True:
            logits, cache = await self._service.on_model_thread(partial(step, self._model, ids, cache))
            token = sample(logits, asked.temperature, asked.top_p, generator)
            if token in self._ends():
                yield text.rest(), "stop"
                return
            piece, stopped = text.add(token)
            if stopped:
                yield piece, "stop"
                return
            if len(text.tokens) >= asked.max_tokens:
                yield piece + text.rest(), "length"
                return
            yield piece, None
            ids = torch.tensor([[token]])

    def _text(self) -> Text:
        stop = self._asked.stop
        stops = (stop,) if isinstance(stop, str) else tuple(stop or ())
        self._written_text = Text(tokenizer=self._tokenizer, stops=tuple(word for word in stops if word))
        return self._written_text

    def _ends(self) -> set[int]:
        ends = self._model.generation_config.eos_token_id if self._model.generation_config else None
        ends = ends if ends is not None else self._tokenizer.eos_token_id
        return set(ends if isinstance(ends, list) else [ends])

    def _ids(self) -> list[int]:
        asked, config = self._asked, self._model.config.get_text_config()
        most = self._service.config.limits.tokens
        if asked.max_tokens > most:
            raise invalid(f"expected at most {most} tokens, found {asked.max_tokens}.", "max_tokens")
        ids: list[int] = (
            self._tokenizer(asked.prompt)["input_ids"] if isinstance(asked.prompt, str) else asked.prompt
        )
        if not ids or max(ids) >= config.vocab_size:
            raise invalid(f"expected tokens below {config.vocab_size}, at least one.", "prompt")
        room = getattr(config, "max_position_embeddings", None)
        if room is not None and len(ids) + asked.max_tokens > room:
            raise invalid(
                f"expected a prompt and an answer of at most {room} tokens together, found {len(ids)} and "
                f"{asked.max_tokens}. Shorten one.",
                "prompt",
            )
        return ids

    def _completion(self, choices: list[Choice], usage: Usage | None) -> Completion:
        return Completion(id=self._id, created=self._created, model=self._name, choices=choices, usage=usage)

    def _usage(self) -> Usage:
        read, written = len(self._prompt), len(self._written_text.tokens)
        return Usage(prompt_tokens=read, completion_tokens=written, total_tokens=read + written)
