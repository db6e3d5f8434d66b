"""What is refused, as an exception that becomes an answer."""

from __future__ import annotations


class Refused(Exception):
    """Answered with ``status`` and a message; ``field`` names the part of the request that is wrong."""

    def __init__(
        self,
        status: int,
        kind: str,
        message: str,
        field: str | None = None,
        *,
        retry_after: int | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.kind, self.message, self.field = status, kind, message, field
        self.retry_after = retry_after


def invalid(message: str, field: str | None = None) -> Refused:
    """The request cannot be carried out as it was made."""
    return Refused(422, "invalid_request", message, field)


def too_large(message: str) -> Refused:
    return Refused(413, "too_large", message)


def worded(message: str) -> str:
    """Pydantic's words as ours."""
    return message.replace("Input should", "must").replace("Field required", "is required")


def internal() -> Refused:
    """A mistake of the server's own, which its log tells of."""
    return Refused(500, "internal", "something went wrong here; the server's log says what")
