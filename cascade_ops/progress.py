"""How long work tells how far it is: one callable, passed explicitly, silent by default."""

from __future__ import annotations

from typing import Protocol, runtime_checkable


@runtime_checkable
class Progress(Protocol):
    """Called as work goes on.

    Args:
        phase: what is going on, in a few words ("recover"); a new phase starts a new count.
        done: units of work finished, from 0 to ``total``.
        total: units of work in this phase.
        figures: what is worth watching meanwhile (``loss=0.31``).
    """

    def __call__(self, phase: str, done: int, total: int, **figures: float) -> None: ...


def silent(phase: str, done: int, total: int, **figures: float) -> None:
    """A Progress that says nothing."""
