"""What happens to every request before and after it is answered: token, size, headers, counts."""

from __future__ import annotations

import asyncio
import hmac
import logging
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve.errors import Refused, internal, too_large
from serve.schemas import ErrorAnswer, ErrorBody

LOG = logging.getLogger("cascade.serve")
RETRY_AFTER_S = 1
DRAINED, DRAIN_S = 2**20, 0.2
"""Bytes of a body, and seconds, that are spent for the sake of the connection, though the request is refused."""
PACE_S, LONGEST_PACE_S = 1e-3, 0.25
"""Refusals are at least so far apart, unless that would delay one for longer."""
HEADERS = (
    (b"content-security-policy", b"default-src 'self'; img-src 'self' data:; frame-ancestors 'none'"),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cache-control", b"no-store"),
)

Told = Callable[[str, str, int, float], None]
"""``(model, route, status, seconds)`` of each answer."""


class _Answer:
    """``send`` that adds headers and remembers how far the answer has come."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self.status, self.ended = 0, False

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            message = {**message, "headers": [*message.get("headers", ()), *HEADERS]}
        elif message["type"] == "http.response.body":
            self.ended = not message.get("more_body", False)
        await self._send(message)


class Guard:
    """ASGI middleware.

    Args:
        app: what answers.
        told: is given every answer, for the counts.
        token: bearer token that all paths but the ``free`` ones ask for; None: none.
        most_bytes: of a body; more is refused by its ``Content-Length``, or as soon as it has come.
        routes: paths that are counted by their name; all others are "other", so that labels stay few.
        free: paths that tell nothing about models or data.
        most_requests: in hand at a time, of those that compute; more are refused with 503.
        body_s: seconds within which a body must have come.
    """

    def __init__(
        self,
        app: ASGIApp,
        told: Told,
        *,
        token: str | None,
        routes: frozenset[str],
        free: frozenset[str],
        most_bytes: int,
        most_requests: int,
        body_s: float,
    ) -> None:
        self._app, self._told, self._token, self._most = app, told, token, most_bytes
        self._routes, self._free, self._body_s = routes, free, body_s
        self._most_requests, self._in_hand, self._refusing = most_requests, 0, 0

    @property
    def in_hand(self) -> int:
        """Requests that were let in and have no answer yet."""
        return self._in_hand

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began = time.perf_counter()
        scope.setdefault("state", {})
        answer = _Answer(send)
        try:
            self._admit(scope)
            await self._let_in(scope, receive, answer)
        except Refused as refusal:
            if answer.status:  # the answer had begun
                raise
            await refuse(refusal, answer)
        except Exception:
            LOG.exception("%s %s failed", scope["method"], scope["path"])
            if not answer.status:
                await refuse(internal(), answer)
            elif not answer.ended:
                answer.status = 500  # for the counts; whoever reads sees the connection break
                raise
        finally:
            state: dict[str, Any] = scope["state"]
            route = scope["path"] if scope["path"] in self._routes else "other"
            self._told(state.get("model", ""), route, answer.status, time.perf_counter() - began)

    async def _let_in(self, scope: Scope, receive: Receive, answer: _Answer) -> None:
        """Raises Refused where too many are in hand; what computes nothing is always let in."""
        counted = scope["method"] == "POST"
        if counted and self._in_hand >= self._most_requests:
            await self._put_off(receive)
            raise Refused(503, "overloaded", "busy: try again in a second", retry_after=RETRY_AFTER_S)
        self._in_hand += counted
        try:
            await self._app(scope, _bounded(receive, self._most, self._body_s), answer)
        finally:
            self._in_hand -= counted

    async def _put_off(self, receive: Receive) -> None:
        """Read what is there of a refused body, and wait the longer, the more are being refused.

        Clients that ask again at once would else keep the event loop so busy with refusals that the requests let in
        get no turn: 200 connections left 130 answers a second of 1,050.
        """
        self._refusing += 1
        try:
            with suppress(TimeoutError):
                async with asyncio.timeout(DRAIN_S):
                    await _drained(receive)
            await asyncio.sleep(min(self._refusing * PACE_S, LONGEST_PACE_S))
        finally:
            self._refusing -= 1

    def _admit(self, scope: Scope) -> None:
        """Raises Refused."""
        headers = dict(scope["headers"])
        if self._token is not None and scope["path"] not in self._free:
            given = headers.get(b"authorization", b"")
            if not hmac.compare_digest(given, b"Bearer " + self._token.encode()):
                raise Refused(
                    401,
                    "unauthorized",
                    "expected the header Authorization: Bearer TOKEN with the server's token",
                )
        length = headers.get(b"content-length", b"0")
        if not length.isdigit():
            raise Refused(400, "invalid_request", "expected a Content-Length that is a number")
        if int(length) > self._most:
            raise _oversized(self._most)


def _bounded(receive: Receive, most: int, seconds: float) -> Receive:
    """``receive`` that refuses once more than ``most`` bytes have come, whatever was announced, or if the body is not
    there ``seconds`` from now: whoever sends a byte now and then keeps a place from others."""
    seen, whole = 0, False
    deadline = asyncio.get_running_loop().time() + seconds

    async def counted() -> Message:
        nonlocal seen, whole
        if whole:
            return await receive()
        try:
            async with asyncio.timeout_at(deadline):
                message = await receive()
        except TimeoutError:
            raise Refused(408, "timeout", f"expected the whole body within {seconds:g} s") from None
        if message["type"] == "http.request":
            seen += len(message.get("body", b""))
            whole = not message.get("more_body", False)
            if seen > most:
                raise _oversized(most)
        return message

    return counted


async def _drained(receive: Receive) -> None:
    """Read a small body nobody wants: a client that is answered while it sends may see a broken connection."""
    seen = 0
    while seen <= DRAINED:
        message = await receive()
        seen += len(message.get("body", b""))
        if not message.get("more_body", False):
            return


def _oversized(most: int) -> Refused:
    return too_large(
        f"expected a body of at most {most / 2**20:g} MiB. Send less, or fewer recordings at a time."
    )


def error_document(refusal: Refused) -> bytes:
    body = ErrorBody(type=refusal.kind, message=refusal.message, field=refusal.field)
    return ErrorAnswer(error=body).model_dump_json().encode()


def headers_of(refusal: Refused) -> dict[str, str]:
    headers = {"content-type": "application/json"}
    if refusal.retry_after is not None:
        headers["retry-after"] = str(refusal.retry_after)
    if refusal.status in (408, 413):  # whoever goes on sending is not listened to
        headers["connection"] = "close"
    if refusal.status == 401:
        headers["www-authenticate"] = "Bearer"
    return headers


async def refuse(refusal: Refused, send: Send) -> None:
    """Answer with the refusal."""
    document = error_document(refusal)
    headers = {**headers_of(refusal), "content-length": str(len(document))}
    pairs = [(name.encode(), value.encode()) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": refusal.status, "headers": pairs})
    await send({"type": "http.response.body", "body": document})


def sse(document: str) -> bytes:
    """One server-sent event."""
    return f"data: {document}\n\n".encode()
