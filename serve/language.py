"""Text token by token: prefill once, then decode with the cache of keys and values.

Requests take turns on the model's thread, one token each, so that a long answer does not hold up a short one.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any, Literal

import torch

from cascade_ops.probes import step
from serve.decoding import Text, sample
from serve.engines import Language, Loaded
from serve.errors import invalid
from serve.schemas import Choice, Completion, CompletionRequest, Usage

if TYPE_CHECKING:
    from serve.service import Service

Reason = Literal["stop", "length"]


async def writer_for(service: Service, loaded: Loaded, asked: CompletionRequest) -> Writer:
    """What answers ``asked``.

    Raises:
        Refused: the prompt is empty, too long, or has tokens that the model does not know.
    """
    language, limit = loaded.language, service.config.limits.tokens
    assert language is not None, "a classifier was refused before it was loaded"
    if asked.max_tokens > limit:
        raise invalid(f"expected at most {limit} tokens, found {asked.max_tokens}.", "max_tokens")
    prompt = await service.prepare(lambda: prompt_ids(language, asked), len(asked.prompt))
    return Writer(service, loaded.variant.name, language, prompt, asked)


def prompt_ids(language: Language, asked: CompletionRequest) -> list[int]:
    """The prompt's tokens. Raises Refused."""
    config = language.model.config.get_text_config()
    ids: list[int] = (
        language.tokenizer(asked.prompt)["input_ids"] if isinstance(asked.prompt, str) else asked.prompt
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


class Writer:
    """One completion of ``prompt``, whole or piece by piece, once."""

    def __init__(
        self, service: Service, name: str, language: Language, prompt: list[int], asked: CompletionRequest
    ) -> None:
        self._service, self._name, self._asked = service, name, asked
        self._model, self._prompt = language.model, prompt
        stops = (asked.stop,) if isinstance(asked.stop, str) else tuple(asked.stop or ())
        self._text = Text(language.tokenizer, tuple(word for word in stops if word), before=prompt)
        self._ends = _ends(language)
        self._ids, self._cache = prompt, None
        self._generator = torch.Generator()
        if asked.seed is not None:
            self._generator.manual_seed(asked.seed)
        else:
            self._generator.seed()
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
        reason: Reason | None = None
        while reason is None:
            piece, reason = await self._service.on_model_thread(self._next)
            yield piece, reason

    def _next(self) -> tuple[str, Reason | None]:
        """One token more: what may be told of the text since, and why it ended if it did."""
        logits, self._cache = step(self._model, torch.tensor([self._ids]), self._cache)
        token = sample(logits[0].float().cpu(), self._asked.temperature, self._asked.top_p, self._generator)
        if token in self._ends:
            return self._text.rest(), "stop"
        self._ids = [token]
        piece, stopped = self._text.add(token)
        if stopped:
            return piece, "stop"
        if len(self._text.tokens) >= self._asked.max_tokens:
            return piece + self._text.rest(), "length"
        return piece, None

    def _completion(self, choices: list[Choice], usage: Usage | None) -> Completion:
        return Completion(id=self._id, created=self._created, model=self._name, choices=choices, usage=usage)

    def _usage(self) -> Usage:
        read, written = len(self._prompt), len(self._text.tokens)
        return Usage(prompt_tokens=read, completion_tokens=written, total_tokens=read + written)


def _ends(language: Language) -> frozenset[Any]:
    """Tokens that end a text."""
    config = language.model.generation_config
    ends = config.eos_token_id if config else None
    ends = ends if ends is not None else language.tokenizer.eos_token_id
    return frozenset(ends if isinstance(ends, list) else [ends])
