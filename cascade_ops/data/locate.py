"""Where data is looked for, and opening it by name.

In this order: a path given explicitly (then nowhere else), ``CASCADE_DATA_DIR``, ``../shared/data`` relative
to the current directory if it exists, and the user's cache, where ``fetch`` writes.
"""

from __future__ import annotations

import dataclasses
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cascade_ops.data.readers import DATASETS, DatasetEntry
from cascade_ops.data.types import Dataset
from cascade_ops.errors import DataError

ENVIRONMENT = "CASCADE_DATA_DIR"


def cache_root() -> Path:
    """``~/.cache/cascade-ops/data``, or below ``XDG_CACHE_HOME``."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "cascade-ops" / "data"


def roots(path: Path | None = None) -> tuple[Path, ...]:
    """Folders to look in, first come first served. An explicit ``path`` is the only one."""
    if path is not None:
        return (path,)
    found = []
    if given := os.environ.get(ENVIRONMENT):
        found.append(Path(given))
    shared = Path("..") / "shared" / "data"
    if shared.is_dir():
        found.append(shared)
    return (*found, cache_root())


def find_dataset(name: str, *, path: Path | None = None) -> Path | None:
    """The folder that holds dataset ``name``, or None. Raises UnknownNameError."""
    entry = DATASETS[name]
    return next((folder for root in roots(path) if (folder := entry.find(root)) is not None), None)


def open_dataset(name: str, *, path: Path | None = None, **options: Any) -> Dataset:
    """A dataset by name; ``"auto"`` is CWRU where it is found and simulated signals otherwise.

    The result's ``source`` and ``info`` say which it is. ``options`` go to the reader (under ``"auto"``
    to the one that is chosen).

    Raises:
        UnknownNameError: no such dataset.
        DataError: it is not here (the message tells where to put it), or it is damaged.
    """
    if name == "auto":
        if find_dataset("cwru", path=path) is not None:
            return open_dataset("cwru", path=path, **options)
        simulated = open_dataset("simulated", **options)
        note = "no CWRU recordings were found (`cascade data fetch cwru`): simulated signals stand in"
        info = dataclasses.replace(simulated.info, notes=(*simulated.info.notes, note))
        return dataclasses.replace(simulated, info=info)
    entry = DATASETS[name]
    if name == "simulated":
        return entry.load(Path(), **options)
    folder = find_dataset(name, path=path)
    if folder is None:
        raise DataError(not_here(name, entry, path))
    return entry.load(folder, **options)


def not_here(name: str, entry: DatasetEntry, path: Path | None = None) -> str:
    """The message for a dataset that is in none of the places."""
    places = ", ".join(str(root) for root in roots(path))
    if entry.files:
        example = entry.files[0].file
        mend = f"Run `cascade data fetch {name}`, or put {example} … into {roots(path)[-1] / name}"
    else:
        mend = f"Get it from {entry.obtain}, and put it into {roots(path)[-1] / name}"
    return (
        f"dataset {name!r}: expected its files in one of {places}, found none. {mend}, or name another place "
        f"with {ENVIRONMENT}."
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class DatasetStatus:
    """A row of ``cascade data ls``. ``folder`` is empty where the dataset is not here."""

    name: str
    title: str
    folder: str
    files: int
    expected: int
    complete: bool
    bytes: int
    licence: str
    citation: str
    obtain: str


def available(*, path: Path | None = None) -> tuple[DatasetStatus, ...]:
    """The state of every registered dataset; looks at names and sizes only."""
    return tuple(_status(name, DATASETS[name], path) for name in DATASETS)


def _status(name: str, entry: DatasetEntry, path: Path | None) -> DatasetStatus:
    folder = None if name == "simulated" else find_dataset(name, path=path)
    if folder is None:
        files = []
    elif entry.files:
        files = [folder / f.file for f in entry.files if (folder / f.file).is_file()]
    else:
        files = [f for f in folder.iterdir() if f.is_file()]
    return DatasetStatus(
        name=name,
        title=entry.info.title,
        folder=str(folder) if folder else "",
        files=len(files),
        expected=len(entry.files),
        complete=name == "simulated" or (folder is not None and len(files) >= len(entry.files)),
        bytes=sum(file.stat().st_size for file in files),
        licence=entry.info.licence,
        citation=entry.info.citation,
        obtain=entry.obtain,
    )
