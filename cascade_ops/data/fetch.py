"""Downloading a dataset from its publisher: resumable, verified, nothing half-written.

A file grows as ``NAME.part``; a later attempt asks for the rest (HTTP Range). It gets its name only after
its sha256 matched. Files that are here and right are skipped.
"""

from __future__ import annotations

import http.client
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Sequence
from pathlib import Path

from cascade_ops.data.locate import cache_root
from cascade_ops.data.readers import DATASETS, DatasetEntry, RemoteFile
from cascade_ops.data.readers.base import sha256_of
from cascade_ops.errors import DownloadError, UsageError

CHUNK = 1 << 18
ATTEMPTS = 3
TIMEOUT_S = 30.0

Progress = Callable[[str, int, int | None], None]
"""Called with file name, bytes here so far, and total bytes where the server told."""


def fetch(
    name: str,
    *,
    root: Path | None = None,
    base_url: str | None = None,
    progress: Progress | None = None,
    timeout_s: float = TIMEOUT_S,
) -> Path:
    """Downloads dataset ``name`` into ``root/name`` and returns that folder.

    ``root`` is the user's cache by default; ``base_url`` is a mirror that serves the same file names.

    Raises:
        UnknownNameError: no such dataset.
        UsageError: it offers no download, or the URL is not http(s).
        DownloadError: no network, a server error, or a file that is not what it should be. The message
            names the missing files and where to put them by hand; finished files are kept.
    """
    entry = DATASETS[name]
    if not entry.files:
        raise UsageError(f"dataset {name!r} cannot be downloaded; it comes from {entry.obtain}.")
    base = (base_url or entry.base_url).rstrip("/")
    if urllib.parse.urlsplit(base).scheme not in ("http", "https"):
        raise UsageError(f"expected an http or https URL, found {base!r}. Correct it.")
    folder = (root or cache_root()) / name
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DownloadError(
            f"{folder}: expected to create a folder, found {error.strerror}. Choose another."
        ) from None
    missing = [file for file in entry.files if not _is_right(folder / file.file, file.sha256)]
    for position, file in enumerate(missing):
        url = f"{base}/{file.file if base_url else file.remote}"
        try:
            _fetch_file(url, folder / file.file, file.sha256, progress, timeout_s)
        except (OSError, http.client.HTTPException) as error:
            raise DownloadError(_by_hand(entry, url, folder, missing[position:], error)) from error
    return folder


def _is_right(path: Path, sha256: str) -> bool:
    return path.is_file() and sha256_of(path) == sha256


def _by_hand(
    entry: DatasetEntry, url: str, folder: Path, missing: Sequence[RemoteFile], error: Exception
) -> str:
    reason = getattr(error, "reason", None) or getattr(error, "strerror", None) or error
    names = ", ".join(file.file for file in missing)
    return (
        f"{url}: expected to download it, found {reason}. Run the command again to resume, or get these "
        f"files from {entry.obtain} and put them into {folder}: {names}."
    )


def _fetch_file(url: str, path: Path, sha256: str, progress: Progress | None, timeout_s: float) -> None:
    """One file, with ``ATTEMPTS`` attempts at an interrupted transfer; each goes on where the last ended."""
    part = path.with_name(path.name + ".part")
    for attempt in range(1, ATTEMPTS + 1):
        try:
            _transfer(url, part, path.name, progress, timeout_s)
            break
        except urllib.error.HTTPError as error:
            if error.code != 416 or attempt == ATTEMPTS:
                raise
            # nothing lies beyond what is here: either it is complete, or it is not this file
            if not _is_right(part, sha256):
                part.unlink(missing_ok=True)
                continue
            break
        except (ConnectionError, TimeoutError, http.client.HTTPException):
            if attempt == ATTEMPTS:
                raise
    found = sha256_of(part)
    if found != sha256:
        part.unlink()
        raise DownloadError(
            f"{url}: expected sha256 {sha256[:12]}…, found {found[:12]}…. The file was discarded: try again, "
            f"or another mirror; put the right one into {path.parent}."
        )
    part.replace(path)


def _transfer(url: str, part: Path, name: str, progress: Progress | None, timeout_s: float) -> None:
    """Appends to ``part`` what it lacks; starts over where the server does not do ranges."""
    have = part.stat().st_size if part.is_file() else 0
    request = urllib.request.Request(url, headers={"User-Agent": "cascade-ops"})
    if have:
        request.add_header("Range", f"bytes={have}-")
    with urllib.request.urlopen(request, timeout=timeout_s) as response:
        resumed = response.status == 206
        have = have if resumed else 0
        length = response.headers.get("Content-Length")
        total = have + int(length) if length else None
        with part.open("ab" if resumed else "wb") as stream:
            while chunk := response.read(CHUNK):
                stream.write(chunk)
                have += len(chunk)
                if progress is not None:
                    progress(name, have, total)
    if total is not None and have < total:
        raise http.client.IncompleteRead(b"", total - have)
