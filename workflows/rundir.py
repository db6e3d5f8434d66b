"""A run directory that describes itself, and in which nothing is ever half-written.

    RUN/config.yaml        the resolved configuration
    RUN/provenance.json    versions, commit, fingerprints, threads
    RUN/status.json        what is going on, for ``cascade status``
    RUN/steps/NN-name/     one step: model/, result.json and manifest.json
    RUN/model/             the compressed model and its manifest.json
    RUN/report.json, report.html

A step is written under a temporary name and renamed, its manifest last: a step folder that agrees with its
manifest (``workflows.artifacts``) is a finished step. The report comes last: a run that has both its files is
complete.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cascade_ops.errors import CheckpointError, RunExistsError
from cascade_ops.files import written_whole
from workflows.config import JobConfig, dump, read_document, resolve

CONFIG, PROVENANCE, RESULT = "config.yaml", "provenance.json", "result.json"
REPORT, PAGE = "report.json", "report.html"
DENSE = "00-dense"
"""The step that makes or loads the dense model."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunDir:
    """One run's folder."""

    path: Path

    @property
    def model(self) -> Path:
        return self.path / "model"

    @property
    def scratch(self) -> Path:
        """For what passes between processes; swept away when a run goes on."""
        return self.path / ".scratch"

    @property
    def teachers(self) -> Path:
        """Outputs of teachers, which are kept until the run is complete."""
        return self.path / "teachers"

    @property
    def report(self) -> Path:
        return self.path / REPORT

    @property
    def complete(self) -> bool:
        return self.report.is_file() and (self.path / PAGE).is_file()

    def step(self, name: str) -> Path:
        return self.path / "steps" / name

    def result(self, name: str) -> Any:
        """What step ``name`` recorded. Raises CheckpointError."""
        return read_json(self.step(name) / RESULT)

    def config(self) -> JobConfig:
        """The recorded configuration. Raises ConfigError."""
        return resolve(read_document(self.path / CONFIG))

    @contextmanager
    def held(self) -> Iterator[None]:
        """No other process works on this run meanwhile; the lock goes with the process that holds it.

        Raises:
            RunExistsError: another one does.
        """
        folder = os.open(self.path, os.O_RDONLY)
        try:
            try:
                fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise RunExistsError(
                    f"{self.path}: another process is working on this run. Wait for it, or stop it and resume."
                ) from None
            yield
        finally:
            os.close(folder)

    def sweep(self) -> None:
        """Remove temporary folders and files that a killed process left behind."""
        for stray in (*self.path.glob(".*"), *self.path.glob("steps/.*")):
            if stray.is_dir():
                shutil.rmtree(stray)
            else:
                stray.unlink()

    def reopen(self) -> None:
        """No longer complete: something in it is to be made again."""
        self.report.unlink(missing_ok=True)

    @contextmanager
    def writing(self, name: str) -> Iterator[Path]:
        """A temporary folder that becomes step ``name`` on success and vanishes on failure."""
        with written_whole(self.step(name)) as scratch:
            yield scratch


def create(path: Path, config: JobConfig, provenance: dict[str, Any]) -> RunDir:
    """A new run directory, complete with its description or not there at all.

    Raises:
        RunExistsError: ``path`` is there already.
    """
    refuse_existing(path)
    with written_whole(path) as scratch:
        (scratch / "steps").mkdir()
        write_json(scratch / PROVENANCE, provenance)
        write_text(scratch / CONFIG, dump(config))
    return RunDir(path=path)


def refuse_existing(path: Path) -> None:
    """Raises RunExistsError if ``path`` is anything but an empty folder or nothing."""
    if (path / CONFIG).is_file():
        raise RunExistsError(
            f"{path}: a run is there already. Continue it (cascade compress --resume {path}), "
            "or give another --out."
        )
    if path.is_file() or (path.is_dir() and any(path.iterdir())):
        raise RunExistsError(f"{path}: is not empty and not a run. Give another --out.")


def open_run(path: Path) -> RunDir:
    """An existing run directory. Raises CheckpointError."""
    if not (path / CONFIG).is_file():
        found = "a folder without it" if path.is_dir() else "no such folder"
        raise CheckpointError(f"{path}: expected a run directory with {CONFIG}, found {found}")
    return RunDir(path=path)


def write_json(path: Path, document: Any) -> None:
    write_text(path, json.dumps(document, indent=1, ensure_ascii=False) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write and wait for the disk, so that a later marker never outlives what it marks."""
    with path.open("w", encoding="utf-8") as stream:
        stream.write(text)
        stream.flush()
        os.fsync(stream.fileno())


def read_json(path: Path) -> Any:
    """Raises CheckpointError."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: expected a JSON document ({error})") from error
