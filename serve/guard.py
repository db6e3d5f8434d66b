"""What happens to every request before and after it is answered: token, size, headers, counts."""

from __future__ import annotations

import hmac
import logging
import time
from collections.abc import Callable
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve.errors import Refused, too_large
from serve.schemas import ErrorAnswer, ErrorBody

LOG = logging.getLogger("cascade.serve")
RETRY_AFTER_S = 1
DRAINED = 2**20
"""Bytes of a body that are read for the sake of the connection, though the request is refused."""
HEADERS = (
    (b"content-security-policy", b"default-src 'self'; img-src 'self' data:; frame-ancestors 'none'"),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cache-control", b"no-store"),
)

Told = Callable[[str, str, int, float], None]
"""``(model, route, status, seconds)`` of each answer."""


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
    ) -> None:
        self._app, self._told, self._token, self._most = app, told, token, most_bytes
        self._routes, self._free = routes, free
        self._most_requests, self._in_hand = most_requests, 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began = time.perf_counter()
        scope.setdefault("state", {})
        status = 0

        async def answered(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message = {**message, "headers": [*message.get("headers", ()), *HEADERS]}
            await send(message)

        counted = scope["method"] == "POST"
        self._in_hand += counted
        try:
            self._admit(scope)
            if counted and self._in_hand > self._most_requests:
                await _drained(receive)
                raise Refused(503, "overloaded", "busy: try again in a second", retry_after=RETRY_AFTER_S)
            await self._app(scope, _bounded(receive, self._most), answered)
        except Refused as refusal:
            if status:  # the answer had begun
                raise
            await refuse(refusal, answered)
        except Exception:
            LOG.exception("%s %s failed", scope["method"], scope["path"])
            if status:
                raise
            await refuse(
                Refused(500, "internal", "something went wrong here; the server's log says what"), answered
            )
        finally:
            self._in_hand -= counted
            state: dict[str, Any] = scope["state"]
            route = scope["path"] if scope["path"] in self._routes else "other"
            self._told(state.get("model", ""), route, status, time.perf_counter() - began)

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


def _bounded(receive: Receive, most: int) -> Receive:
    """``receive`` that refuses once more than ``most`` bytes have come, whatever was announced."""
    seen = 0

    async def counted() -> Message:
        nonlocal seen
        message = await receive()
        if message["type"] == "http.request":
            seen += len(message.get("body", b""))
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
    if refusal.status == 413:  # whoever goes on sending is not listened to
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
