"""Every error that cascade-ops raises on purpose.

CascadeError                     something a person can act on; ``exit_code`` is what the CLI returns
├── UsageError                   the request itself is wrong (exit code 2)
│   ├── UnknownNameError         no such dataset, criterion, family, stage, … (with "did you mean")
│   ├── ConfigError              a located configuration error: ``stages.0.ratio: must be in (0, 1), got 1.5``
│   ├── PlanError                a pruning plan or target that the model cannot meet
│   ├── UnsupportedFamilyError   the architecture has no FamilySpec, or the spec cannot express the request
│   └── RunExistsError           the run directory is there already
├── DataError                    a recording or text cannot be used (exit code 1)
│   └── DownloadError            a file could not be fetched, or is not the file it should be
├── CheckpointError              a saved model or run is incomplete or does not fit (exit code 1)
├── ExportError                  a target cannot express a model, or runs it differently (exit code 1)
└── EngineError                  a runtime cannot run a model, or answers differently (exit code 1)

Each message says what was expected, what was found, and what to do.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class CascadeError(Exception):
    """Base class of every deliberate error."""

    exit_code = 1


class UsageError(CascadeError):
    """The request cannot be carried out as it was made."""

    exit_code = 2


class UnknownNameError(UsageError):
    """A name that nothing is registered under.

    Args:
        kind: what was looked up, in the singular ("criterion").
        name: what was asked for.
        known: every name that would have worked.
    """

    def __init__(self, kind: str, name: str, known: Iterable[str]) -> None:
        self.kind, self.name, self.known = kind, name, tuple(sorted(known))
        close = difflib.get_close_matches(name, self.known, n=1, cutoff=0.5)
        hint = f" Did you mean {close[0]!r}?" if close else ""
        super().__init__(f"unknown {kind} {name!r}.{hint} Known: {', '.join(self.known) or 'none'}.")


class ConfigError(UsageError):
    """A configuration value that is missing, misspelt or out of range; the message starts with where."""


class PlanError(UsageError):
    """A plan that does not fit the anatomy, or a target that no plan reaches."""


class UnsupportedFamilyError(UsageError):
    """The model's architecture is not described by any FamilySpec, or not for this granularity."""


class RunExistsError(UsageError):
    """A run directory would be overwritten."""


class DataError(CascadeError):
    """A recording, a text or a dataset folder cannot be used."""


class DownloadError(DataError):
    """A file could not be downloaded, or its checksum differs."""


class CheckpointError(CascadeError):
    """A saved model or run directory is incomplete, corrupt or does not fit."""


class ExportError(CascadeError):
    """A target cannot express a model, or does not answer as plain PyTorch does."""


class EngineError(CascadeError):
    """A runtime cannot run a model, or does not answer as plain PyTorch does."""
