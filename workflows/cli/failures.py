"""Errors as a person meets them: one line on stderr and the right exit code."""

from __future__ import annotations

import logging
import os
import sys
from typing import Any

import typer
from typer.core import TyperGroup

TALKATIVE = ("torchao", "torch.utils._pytree")
"""They warn, on import, of GPU libraries that a CPU has no use for."""


class Commands(TyperGroup):
    """A group that reports deliberate errors in one line.

    Without ``--debug`` no traceback is shown, not even of a bug.
    """

    def invoke(self, ctx: Any) -> Any:
        """Run the command; exit code 1 or 2 on an error."""
        os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
        for talkative in TALKATIVE:
            logging.getLogger(talkative).setLevel(logging.ERROR)
        if ctx.params.get("debug"):
            return super().invoke(ctx)
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            fail("interrupted", 1)
        except BrokenPipeError:  # the reader has left, as in `cascade ls | head`
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise typer.Exit(1) from None
        except Exception as error:
            if _is_typers_own(error):
                raise
            fail(*explain(error))


def fail(message: str, code: int) -> None:
    """Print one line and exit."""
    typer.echo(f"cascade: error: {message}", err=True)
    raise typer.Exit(code)


def explain(error: Exception) -> tuple[str, int]:
    """Message and exit code of an error."""
    from cascade_ops.errors import CascadeError
    from cascade_ops.files import disk_full

    if isinstance(error, CascadeError):
        return str(error), error.exit_code
    full = disk_full(error)
    if full is not None:
        where = f" at {full.filename}" if full.filename else ""
        return f"the disk is full{where}: nothing was half-written; make room and resume", 1
    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror}" + (f": {error.filename}" if error.filename else ""), 1
    return f"{type(error).__name__}: {error} (unexpected; cascade --debug … shows where)", 1


def _is_typers_own(error: Exception) -> bool:
    """Usage errors and exits, which typer reports by itself."""
    if isinstance(error, typer.Exit | typer.Abort):
        return True
    return hasattr(error, "exit_code") and hasattr(error, "show")
