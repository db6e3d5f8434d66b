"""What happened to each request of a load test."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Mode = Literal["closed", "open"]
"""``closed``: so many users, each asking again once answered. ``open``: users come at a rate, whatever happens."""

TIMEOUT, UNSENT, CONNECTION = "timeout", "unsent", "connection"
GIVEN_UP = (TIMEOUT, UNSENT)
OK = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One request. Times are seconds since its segment began.

    Attributes:
        level: users at a time (closed), or requests per second (open).
        intended: when it was to be sent; in the closed loop that is when it was.
        sent: None where no slot was free before its user gave up.
        finished: when the whole answer was there, or the user gave up.
        status: of HTTP; 0 without an answer, for the reason ``error``.
        counted: False while warming up.
    """

    round: int
    variant: str
    mode: Mode
    level: float
    intended: float
    sent: float | None
    finished: float
    status: int
    error: str | None = None
    counted: bool = True

    @property
    def latency(self) -> float:
        """Seconds since it was intended: a server that stalls delays everyone who came meanwhile.

        Counting from the sending would leave out the waiting of those who could not be sent ("coordinated
        omission"). A user who gave up waited at least so long.
        """
        return self.finished - self.intended

    @property
    def tells_latency(self) -> bool:
        """Answered with 200, or given up: leaving those out would flatter the slowest. Refusals do not tell."""
        return self.status == OK or self.error in GIVEN_UP

    @property
    def outcome(self) -> str:
        """The status, or why there is none."""
        return self.error or str(self.status)


@dataclass(frozen=True, slots=True, kw_only=True)
class Segment:
    """One variant under one load in one round.

    Attributes:
        seconds: from when requests count. Open loop: to the end of the time it had, or its last answer. Closed loop: to
            when the first user had nothing left to ask, so that a straggler's wait is not the others' doing.
        held: arrivals that had to wait because the generator's ceiling of outstanding requests was reached.
        generator_cpu: the generator's own processor time per second; near 1 it is the bottleneck.
        computed, batches: requests that the server's model answered meanwhile, and in how many batches.
        joules: taken by the machine meanwhile, idle draw and generator included.
    """

    round: int
    variant: str
    mode: Mode
    level: float
    requests: tuple[Request, ...]
    seconds: float
    held: int = 0
    generator_cpu: float = 0.0
    computed: int | None = None
    batches: int | None = None
    joules: float | None = None
